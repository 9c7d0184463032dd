"""Selection of the next text token from logits: greedy, or sampled with a seed.

Sampled text takes its noise from (seed, step, code), like image tokens, so a seed determines the words in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from f2edge.decoding.noise import gumbel, noise_key
from f2edge.errors import InputError
from f2edge.spec.layout import Ids

#: ``choose(logits float32 (B, V), step) -> int64 (B,)``.
Chooser = Callable[[NDArray[np.float32], int], Ids]


def greedy(logits: NDArray[np.float32], _step: int) -> Ids:
    """Return the most probable token of each row; the lowest id wins a tie."""
    chosen: Ids = logits.argmax(axis=-1).astype(np.int64)
    return chosen


def sampled(seeds: Sequence[int], temperature: float) -> Chooser:
    """Return a chooser that samples row b from ``softmax(logits / temperature)`` with the noise of ``seeds[b]``; ``temperature`` > 0."""
    if temperature <= 0:
        raise InputError(f"text temperature must be above 0, got {temperature}; for the most probable answer choose greedy decoding")

    def choose(logits: NDArray[np.float32], step: int) -> Ids:
        keys = np.stack([noise_key(seed, step, np.zeros(1, dtype=np.int64)) for seed in seeds])  # (B, 1)
        return greedy(logits / np.float32(temperature) + gumbel(keys, np.arange(logits.shape[-1])), step)

    return choose


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log-probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
