"""Halton's low-discrepancy order of an image's tokens (Halton-MaskGIT, arXiv 2503.17076).

Tokens decoded in the same step are chosen independently; this order keeps them far apart and is known in advance.

>>> halton_order(2).tolist()
[2, 1, 0, 3]
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray


def radical_inverse(count: int, base: int) -> NDArray[np.float64]:
    """Return elements 1 … ``count`` of the van der Corput sequence of ``base``, in (0, 1)."""
    indices = np.arange(1, count + 1)
    value, scale = np.zeros(count), 1.0 / base
    while indices.any():
        value += scale * (indices % base)
        indices = indices // base
        scale /= base
    return value


@lru_cache(maxsize=8)
def halton_order(grid: int) -> NDArray[np.int64]:
    """Return the raster indices of a ``grid`` x ``grid`` image in Halton order, bases 2 (row) and 3 (column), distinct; (grid²,)."""
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


def halton_tokens(tokens: int, block: int = 1) -> NDArray[np.int64]:
    """Return the Halton order of all tokens of an image, (N,): the first code of every cell, then the second, and so on.

    If ``tokens`` is not a square, cells have the smallest number of codes that makes their grid square (128: 8 x 8 cells of 2 codes).
    Tokens lie block by block, of ``block`` x ``block`` cells each, as in :func:`f2edge.spec.layout.tokens_of_cells`.
    """
    codes = next(k for k in range(1, tokens + 1) if tokens % k == 0 and isqrt(tokens // k) ** 2 == tokens // k)
    grid = isqrt(tokens // codes)
    row, column = np.divmod(halton_order(grid), grid)
    cell = ((row // block) * (grid // block) + column // block) * block**2 + row % block * block + column % block
    return np.concatenate([cell * codes + code for code in range(codes)])
