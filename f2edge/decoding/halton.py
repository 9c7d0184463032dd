"""Halton's low-discrepancy order of an image's tokens (Halton-MaskGIT, arXiv 2503.17076).

Tokens that are decoded in the same step do not see one another; this order keeps them far apart, and it is known before the request runs.

>>> halton_order(2).tolist()
[2, 1, 0, 3]
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def radical_inverse(count: int, base: int) -> NDArray[np.float64]:
    """The van der Corput sequence of ``base``, elements 1 … ``count``, in (0, 1)."""
    indices = np.arange(1, count + 1)
    value, scale = np.zeros(count), 1.0 / base
    while indices.any():
        value += scale * (indices % base)
        indices = indices // base
        scale /= base
    return value


@lru_cache(maxsize=8)
def halton_order(grid: int) -> NDArray[np.int64]:
    """Raster indices of a ``grid`` x ``grid`` image in Halton order, bases 2 (row) and 3 (column), repetitions dropped; (grid²,)."""
    count = 4 * grid * grid
    while True:
        rows = (radical_inverse(count, 2) * grid).astype(np.int64)
        columns = (radical_inverse(count, 3) * grid).astype(np.int64)
        cells, first = np.unique(rows * grid + columns, return_index=True)
        if len(cells) == grid * grid:
            order: NDArray[np.int64] = cells[np.argsort(first)]
            order.setflags(write=False)
            return order
        count *= 2
