"""What a pass through the transformer costs, in floating-point operations (one multiplication and one addition are two).

Counted are the matrix products, which are all but a few percent (norms, those of queries and keys included, are the rest); of a mixture of
experts, the experts that a token uses.  A measured time and one of these numbers give the share of a machine's ceiling
(``python -m bench latency``).

B branches or questions, P prompt tokens, S text columns, N image tokens, R requests.
"""

from __future__ import annotations

from f2edge.spec.configuration import ModelConfiguration


def token_flops(model: ModelConfiguration) -> int:
    """One token through all layers, without attention scores: four projections of the attention, shared and active experts."""
    experts = model.token_experts
    hidden = experts.shared_width + experts.active * experts.routed_width
    return model.layers * (8 * model.width**2 + 4 * model.width * hidden)


def attention_flops(model: ModelConfiguration, queries: int, keys: int) -> int:
    """Scores and weighted values of ``queries`` tokens over ``keys`` tokens, in all layers."""
    return model.layers * 4 * model.width * queries * keys


def prompt_flops(model: ModelConfiguration, prompt: int) -> int:
    """``t2i_prefill`` of one prompt of P tokens, specials included."""
    return prompt * token_flops(model) + attention_flops(model, prompt, prompt)


def step_flops(model: ModelConfiguration, prompts: list[int], rows: int) -> int:
    """``t2i_step`` of ``rows`` R requests in branches whose prompts have these lengths; the head runs once per request."""
    columns = model.image_columns + 2
    branches = sum(columns * token_flops(model) + attention_flops(model, columns, prompt + columns) for prompt in prompts)
    if model.tokenizer.codes_per_column > 1:  # from a column to its tokens
        branches += len(prompts) * model.image_tokens * 2 * model.width**2
    return branches + rows * model.image_tokens * 2 * model.width * model.codes


def image_flops(model: ModelConfiguration) -> int:
    """``mmu_prefill`` of one face."""
    columns = model.understanding_columns
    return columns * token_flops(model) + attention_flops(model, columns, columns)


def text_flops(model: ModelConfiguration, lengths: list[int], earlier: int = 0) -> int:
    """``mmu_extend`` of questions with these numbers of new text columns, after ``earlier`` ones; the head runs on the last column."""
    before = model.understanding_columns + earlier
    columns = sum(n * token_flops(model) + attention_flops(model, n, before + n) for n in lengths)
    return columns + len(lengths) * 2 * model.width * model.text_vocabulary
