"""PyTorch baselines: the same weights and the same noise, decoded as in the code of the model's lineage (Show-o).

:class:`Lineage` follows Show-o's code: every step passes the whole sequence (the prompt padded to its longest, then the image) through
all layers, in both branches of guidance, and every column meets the head of the whole vocabulary; every answer token passes image,
question and answer again.  :class:`CachedTorch` is the stronger baseline: the same caches and sliced heads as the engines, and
optionally ``torch.compile``.  All of them end in the same tokens in fp32.

Both follow the protocol of :class:`bench.latency.decoders.TokenDecoder`.

>>> decoder = Lineage(models, layout)                                                                     # doctest: +SKIP
>>> decode(decoder.step([prompt]), masked, [plan(schedule, everything, seed)], [seed])                    # doctest: +SKIP
>>> answer(*decoder.prefill(codes, features), *left_pad([question], layout.pad), end_of_text=2, max_tokens=8)  # doctest: +SKIP

Axes: B branches or questions, P prompt columns, J image columns, N image tokens, V image codes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bench.latency.decoders import Features
from export.graph.sampling import sample
from export.graph.trace import Models, wrapper
from export.model.attention import additive, rotary_table
from export.model.experts import TokenExpertLayer
from export.model.transformer import Segments, TransformerBlock
from export.verify.parity import TorchBackend
from f2edge.decoding.autoregressive import ExtendFunction
from f2edge.decoding.parallel import UNCONDITIONAL, Feeds, StepFunction
from f2edge.spec.layout import Ids, TokenLayout, left_pad

#: Inputs of the step graph that only the choice of tokens reads.
_CHOICE = ("token_temperature", "temperature", "noise_key", "priority", "masked_after")


class Lineage:
    """Whole sequences, the whole vocabulary, no caches.

    Args:
        models: the transformer in fp32; not modified.
        layout: token layout.
    """

    def __init__(self, models: Models, layout: TokenLayout) -> None:
        assert models.transformer is not None
        self.model, self.layout, self.draw = models.transformer, layout, models.configuration.draw
        model = self.model
        rows = len(layout.specials)
        # One head over [text, specials, codes, mask]; rows that a trained model never chooses are zero and cost the same.
        blank = torch.zeros(rows, model.configuration.width)
        with torch.inference_mode():
            self.head = torch.cat((model.text_head.weight, blank, model.image_head_weight(), blank[:1]))
            self.bias = torch.cat((model.text_head.bias, blank[:, 0], model.image_head.bias, blank[:1, 0]))

    def step(self, prompts: Sequence[Sequence[int]]) -> StepFunction:
        """See :class:`bench.latency.decoders.TokenDecoder`."""

        def run(feeds: Feeds, prefixes: tuple[int, ...]) -> tuple[Ids, Ids]:
            given = {name: torch.from_numpy(np.asarray(array)) for name, array in feeds.items()}
            words = [self.layout.unconditional if p == UNCONDITIONAL else self.layout.prompt(prompts[p]) for p in prefixes]
            branches, rows = given["branch_row"], len(given["codes"])
            with torch.inference_mode():
                logits = self.image_logits(words, given["codes"][branches], given["mask_ratio"][branches])  # (B, P + N + 2, vocabulary)
                if len(branches) > rows:
                    g = given["guidance"].view(-1, 1, 1)
                    logits = (1 + g) * logits[:rows] - g * logits[given["unconditional_branch"]]
                first, N = self.layout.image_start, self.layout.image_tokens
                own = logits[:, -(N + 1) : -1, first : first + self.layout.codes]
                next_codes, proposal = sample(own, given["codes"], **{name: given[name] for name in _CHOICE}, draw=self.draw)
            return next_codes.numpy(), proposal.numpy()

        return run

    def image_logits(self, words: Sequence[Sequence[int]], codes: Tensor, mask_ratio: Tensor) -> Tensor:
        """Prompts (with specials) before codes (B, N), V where masked → logits of every column, (B, P + N + 2, vocabulary)."""
        P, J = self.layout.image_offset, self.model.configuration.image_columns
        ids, lengths = (torch.from_numpy(array) for array in left_pad(words, self.layout.pad, P))
        column = torch.arange(P + J + 2)
        image = column >= P
        seen = (column[None, :] <= column[:, None]) | (image[:, None] & image[None, :])
        seen = seen[None] & (column >= P - lengths[:, None])[:, None]
        x = torch.cat((self.model.embedding(ids), self.model.image_segment(codes)), dim=1)
        hidden = self.hidden(x, column[None], seen, "t2i", Segments(P), self.model.noise_sources(mask_ratio))
        return self.scores(hidden, P + 1)

    def prefill(self, codes: Ids, features: Features) -> tuple[ExtendFunction[Tensor], Tensor]:
        """See :class:`bench.latency.decoders.TokenDecoder`; the state is all text so far."""
        given = [torch.from_numpy(features[name]) if name in features else torch.zeros(0) for name in ("semantic", "identity")]
        image = torch.from_numpy(codes)

        def extend(text: Ids, lengths: Ids, earlier: Tensor) -> tuple[NDArray[np.float32], Tensor]:
            with torch.inference_mode():
                words = torch.cat((earlier.expand(len(text), -1), torch.from_numpy(text)), dim=1)
                logits = self.answer_logits(image.expand(len(text), -1), given, words, torch.from_numpy(lengths))
                return logits[:, -1, : self.layout.text_vocabulary].numpy(), words

        return extend, torch.zeros(1, 0, dtype=torch.int64)

    def answer_logits(self, codes: Tensor, features: Sequence[Tensor], words: Tensor, lengths: Tensor) -> Tensor:
        """Codes (B, N) before left-padded text (B, S) with ``lengths`` valid columns → logits (B, N + 3 + S, vocabulary)."""
        model, C, S = self.model, self.model.configuration.image_columns + 3, words.shape[1]
        column = torch.arange(C + S)
        first = C + S - lengths[:, None]  # (B, 1): where a row's text begins
        positions = torch.where(column < C, column, column - first + C)
        task = 0 if model.configuration.task_sees_image else 1
        seen = (column[None, :] <= column[:, None]) | ((column >= task)[:, None] & (column < C)[None, :])
        seen = seen[None] & ((column < C) | (column >= first))[:, None]
        sources = {name: row.expand(len(words), -1, -1) for name, row in model.feature_sources(features[0], features[1]).items()}
        x = torch.cat((model.understanding_segment(codes), model.embedding(words)), dim=1)
        return self.scores(self.hidden(x, positions, seen, "mmu", Segments(1), sources), 2)

    def hidden(  # noqa: PLR0917 - states, positions, mask, task group, image columns, feature sources
        self, x: Tensor, positions: Tensor, seen: Tensor, group: str, image: Segments, sources: Mapping[str, Tensor]
    ) -> Tensor:
        """Run all layers over (B, S, D); ``seen`` bool (B, S, S)."""
        configuration = self.model.configuration
        table = rotary_table(positions, configuration.rotary, configuration.rotary_base)
        mask = additive(seen)[:, None]
        for block in self.model.blocks:
            assert isinstance(block, TransformerBlock)
            h = block.norm(x)
            attended, _ = block.attention(h, table, mask)
            experts = block.experts[group] if block.routed else None
            fed = looped_experts(experts, h) if isinstance(experts, TokenExpertLayer) else block.dense(h)
            x = x + attended + fed
            if group in block.sequence:
                x = x + block.sequence_residual(h, h, group, image, sources)[0]
        return x

    def scores(self, hidden: Tensor, first: int) -> Tensor:
        """States (B, S, D), image columns from ``first`` on → logits of the whole vocabulary for every column, an image's by token."""
        J = self.model.configuration.image_columns
        tokens = self.model.token_states(hidden[:, first : first + J])
        states = torch.cat((hidden[:, :first], tokens, hidden[:, first + J :]), dim=1)
        return functional.linear(self.model.norm(states), self.head, self.bias)


def looped_experts(layer: TokenExpertLayer, x: Tensor) -> Tensor:
    """:class:`TokenExpertLayer` computed expert by expert, each on the tokens routed to it: the usual loop of PyTorch implementations."""
    gates, _, chosen = layer.router(x)  # (B, S, E)
    shared = slice(0, layer.shape.shared_width)
    flat, gate, picked = x.flatten(0, -2), gates.flatten(0, -2), chosen.flatten(0, -2)
    output = functional.linear(_expert(layer, flat, shared), layer.down.weight[:, shared], layer.down.bias)
    for expert in range(layer.shape.routed):
        rows, own = picked[:, expert].nonzero()[:, 0], layer.slice_of(expert)
        part = functional.linear(_expert(layer, flat[rows], own), layer.down.weight[:, own])
        output.index_add_(0, rows, part * gate[rows, expert, None])
    return output.view_as(x)


def _expert(layer: TokenExpertLayer, x: Tensor, rows: slice) -> Tensor:
    return functional.gelu(functional.linear(x, layer.up.weight[rows], layer.up.bias[rows]), approximate="tanh")


class CachedTorch(TorchBackend):
    """The engines' algorithm in PyTorch with fused attention: a backend for :class:`bench.latency.decoders.GraphDecoder`.

    Args:
        models: in fp32; their attention is switched to the fused kernel.
        compiled: apply ``torch.compile`` to each graph's module.
    """

    name = "cached"

    def __init__(self, models: Models, *, compiled: bool = False) -> None:
        super().__init__(models)
        assert models.transformer is not None
        models.transformer.use_fused_attention(fused=True)
        if compiled:
            for name in models.graphs:
                if name.startswith(("t2i", "mmu")):
                    module = wrapper(name, models)
                    # attention is fused already; Inductor's search for more of it trips over the answers' masks (torch 2.13)
                    module.compile(options={"pattern_matcher": False})
                    self._modules[name] = module
