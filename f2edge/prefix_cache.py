"""Prefixes: what a prompt or an image leaves behind for every later step, computed once.

In T2I nothing in the prompt looks at the image, in MMU nothing in the image segment looks at the question (model.md), so these caches are
exact.  A prompt is prefilled alone, not with its batch mates, so that its keys and values are its own to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from f2edge.backends.base import Backend, Value
from f2edge.decoding.parallel import UNCONDITIONAL, Feeds, StepFunction
from f2edge.lru_cache import LRUCache
from f2edge.spec.layout import Ids, TokenLayout, left_pad


@dataclass(frozen=True)
class PromptPrefix:
    """Keys and values (L, 1, H, P, W) of a prompt of ``length`` tokens, specials included; P is that of the longest prompt."""

    key: Value
    value: Value
    length: int


class PromptPrefixes:
    """Prefixes of prompts, the last few remembered (``recent``); that of the empty prompt (guidance's other branch) is kept for good."""

    def __init__(self, backend: Backend, layout: TokenLayout, size: int = 32) -> None:
        self._backend = backend
        self._layout = layout
        self.recent: LRUCache[tuple[int, ...], PromptPrefix] = LRUCache(size)
        self._unconditional: PromptPrefix | None = None

    def prompt(self, text: Sequence[int]) -> PromptPrefix:
        """Prefix of a prompt's text tokens; one that is too long raises :class:`~f2edge.errors.PromptError`."""
        ids = tuple(self._layout.prompt(text))
        return self.recent.get(ids, lambda: self._prefill(ids))

    @property
    def unconditional(self) -> PromptPrefix:
        if self._unconditional is None:
            self._unconditional = self._prefill(tuple(self._layout.unconditional))
        return self._unconditional

    def step(self, prefixes: Sequence[PromptPrefix]) -> StepFunction:
        """The step function of requests with these prefixes, for :func:`f2edge.decoding.parallel.decode`."""
        packed: LRUCache[tuple[int, ...], dict[str, Value]] = LRUCache(2)  # the branches change when guidance sets in or a row finishes

        def pack(branches: tuple[int, ...]) -> dict[str, Value]:
            chosen = [self.unconditional if b == UNCONDITIONAL else prefixes[b] for b in branches]
            return {
                "prefix_key": self._backend.pack([p.key for p in chosen]),
                "prefix_value": self._backend.pack([p.value for p in chosen]),
                "prefix_lengths": np.array([p.length for p in chosen], dtype=np.int64),
            }

        def run(feeds: Feeds, branches: tuple[int, ...]) -> tuple[Ids, Ids]:
            outputs = self._backend.run("t2i_step", {**feeds, **packed.get(branches, lambda: pack(branches))})
            return np.asarray(outputs["next_codes"]), np.asarray(outputs["proposal"])

        return run

    def _prefill(self, ids: tuple[int, ...]) -> PromptPrefix:
        # always as wide as the longest prompt: a sum over another number of columns rounds otherwise, and a neighbour would change a face
        prompt_ids, lengths = left_pad([ids], self._layout.pad, self._layout.prompt_tokens + len(self._layout.unconditional))
        outputs = self._backend.run("t2i_prefill", {"prompt_ids": prompt_ids, "prompt_lengths": lengths})
        return PromptPrefix(outputs["prefix_key"], outputs["prefix_value"], len(ids))


def pixel_hash(pixels: NDArray[np.float32]) -> bytes:
    """What an image is remembered by: the hash of its pixels."""
    return blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
