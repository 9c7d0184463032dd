"""Floating-point operations of a pass through the transformer; a multiply-add counts as two.

Only matrix products are counted (norms, those of queries and keys included, are the other few percent) and, of the routed experts, only
the active ones.  A measured time and one of these counts give the share of a machine's ceiling (``python -m bench latency``).

B branches or questions, P prompt tokens, S text columns, N image tokens, R requests.
"""

from __future__ import annotations

from f2edge.spec.configuration import ModelConfiguration


def token_flops(model: ModelConfiguration) -> int:
    """Return the FLOPs of one token in all layers: attention projections, shared and active experts, without attention scores."""
    experts = model.token_experts
    hidden = experts.shared_width + experts.active * experts.routed_width
    return model.layers * (8 * model.width**2 + 4 * model.width * hidden)


def attention_flops(model: ModelConfiguration, queries: int, keys: int) -> int:
    """Return the FLOPs of attention scores and weighted values of ``queries`` tokens over ``keys`` tokens, in all layers."""
    return model.layers * 4 * model.width * queries * keys


def prompt_flops(model: ModelConfiguration, prompt: int) -> int:
    """Return the FLOPs of ``t2i_prefill`` for one prompt of P tokens, specials included."""
    return prompt * token_flops(model) + attention_flops(model, prompt, prompt)


def step_flops(model: ModelConfiguration, prompts: list[int], rows: int) -> int:
    """Return the FLOPs of ``t2i_step`` for ``rows`` R requests in branches with these prompt lengths; the head runs once per request."""
    columns = model.image_columns + 2
    branches = sum(columns * token_flops(model) + attention_flops(model, columns, prompt + columns) for prompt in prompts)
    if model.tokenizer.codes_per_column > 1:  # from a column to its tokens
        branches += len(prompts) * model.image_tokens * 2 * model.width**2
    return branches + rows * model.image_tokens * 2 * model.width * model.codes


def image_flops(model: ModelConfiguration) -> int:
    """Return the FLOPs of ``mmu_prefill`` for one face."""
    columns = model.understanding_columns
    return columns * token_flops(model) + attention_flops(model, columns, columns)


def text_flops(model: ModelConfiguration, lengths: list[int], earlier: int = 0) -> int:
    """Return the FLOPs of ``mmu_extend`` for questions with these numbers of new text columns after ``earlier`` ones."""
    before = model.understanding_columns + earlier
    columns = sum(n * token_flops(model) + attention_flops(model, n, before + n) for n in lengths)
    return columns + len(lengths) * 2 * model.width * model.text_vocabulary
