"""Regions of a face as token cells: by name, box or mask; and putting an edited region back into its picture.

K named regions, G cells along a side of the token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from f2edge.errors import InputError, UnknownRegionError
from f2edge.imaging import fit_square, square_box

#: A name; a box ``(x, y, w, h)`` in pixels of the picture; a mask picture, bright inside; or the cells themselves, bool (G, G).
Region: TypeAlias = str | tuple[float, float, float, float] | Image.Image | NDArray[np.bool_]

#: A cell belongs to a region of which it holds at least this share.
LEAST_COVERAGE = 0.1


def region_cells(
    region: Region, image_size: tuple[int, int], grid: int, names: Sequence[str], coverage: Callable[[], NDArray[np.float32]]
) -> NDArray[np.bool_]:
    """Token cells of a region, bool (G, G), at least one of them true.

    Args:
        region: see :data:`Region`.
        image_size: width and height of the picture that boxes and masks refer to; its centred square is mapped onto the grid.
        grid: G.
        names: the named regions, K of them.
        coverage: computes the share of each cell that each named region covers, (K, G, G); called for a name only.

    Raises:
        UnknownRegionError: a name that is not among ``names``.
        InputError: a region without a cell, a box outside the picture, cells of another shape.
    """
    if isinstance(region, str):
        if region not in names:
            raise UnknownRegionError(f"unknown region {region!r}; known: {', '.join(names) or 'none'}; or give a box x,y,w,h or a mask")
        cells, what = coverage()[list(names).index(region)] >= LEAST_COVERAGE, f"region {region!r} was not found in this face"
    elif isinstance(region, Image.Image):
        mask = fit_square(region.convert("L").resize(image_size, Image.Resampling.NEAREST))
        shares = np.asarray(mask.resize((grid, grid), Image.Resampling.BOX), dtype=np.float32) / 255
        cells, what = shares >= LEAST_COVERAGE, "the mask is black everywhere"
    elif isinstance(region, tuple):
        cells, what = (
            _box_cells(region, image_size, grid),
            (f"the box {region} lies outside the centred square of the picture of {image_size[0]} x {image_size[1]}"),
        )
    else:
        cells, what = np.asarray(region, dtype=bool), "the region has no cell"
        if cells.shape != (grid, grid):
            raise InputError(f"region cells must have the shape ({grid}, {grid}), got {cells.shape}")
    if not cells.any():
        raise InputError(f"{what}; choose a region that covers at least one token cell")
    return np.asarray(cells, dtype=np.bool_)


def _box_cells(box: tuple[float, float, float, float], image_size: tuple[int, int], grid: int) -> NDArray[np.bool_]:
    """Every cell that the box touches."""
    x, y, w, h = box
    if not (w > 0 and h > 0):
        raise InputError(f"the box {box} is empty; width and height must be above 0")
    left, top, side = square_box(image_size)
    columns, rows = (
        (np.arange(grid) < (first + extent) * grid / side) & (np.arange(1, grid + 1) > first * grid / side)
        for first, extent in ((x - left, w), (y - top, h))
    )
    touched: NDArray[np.bool_] = rows[:, None] & columns[None, :]
    return touched


def paste_outside(original: Image.Image, edited: Image.Image, cells: NDArray[np.bool_]) -> Image.Image:
    """``edited`` inside the cells, ``original`` outside, both RGB of one size; the edge fades over half a cell to either side."""
    cell = original.size[0] / len(cells)
    mask = Image.fromarray(np.where(cells, 255, 0).astype(np.uint8)).resize(original.size, Image.Resampling.NEAREST)
    return Image.composite(edited, original, mask.filter(ImageFilter.GaussianBlur(cell / 4)))
