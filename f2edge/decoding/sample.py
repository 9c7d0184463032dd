"""Selection of the next text token from logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from f2edge.spec.layout import Ids


def greedy(logits: NDArray[np.float32]) -> Ids:
    """Return the most probable token of each row of (B, V); the lowest id wins a tie."""
    chosen: Ids = logits.argmax(axis=-1).astype(np.int64)
    return chosen


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log-probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
