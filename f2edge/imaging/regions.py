"""Regions of a face to edit: a name, a box or a mask, converted to cells of the token grid.

A region is written as ``hair`` (or several: ``hair+eyebrows``), as ``x,y,w,h`` in pixels of the picture or, if all four are at most 1,
as shares of its sides, or as the path of a mask that is white inside the region.  G token cells along a side, K regions of the parser.

>>> region_cells(parse_region("0.5,0,0.5,1", ("hair",)), (128, 128), 2).tolist()
[[False, True], [False, True]]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.errors import ImageError, InputError, UnknownRegionError
from f2edge.imaging.images import load_image, square_box

Cells: TypeAlias = NDArray[np.bool_]
Coverage: TypeAlias = NDArray[np.float32]
#: Names joined by "+"; a box x, y, w, h in pixels or, all four at most 1, shares of the sides; a mask, white inside; cells (G, G).
Region: TypeAlias = "str | Sequence[float] | Image.Image | Cells"

#: Share of a cell that a box or mask must cover.
THRESHOLD = 0.25
#: Share of a cell that a named region must cover.  A mouth covers four to six cells of nano's grid, three of them by less
#: than a quarter: leaving those out would keep the old lips' ends, which the decoded cells then follow.
NAMED_THRESHOLD = 0.08
#: Largest share at which the parser's region counts as absent.
PRESENT = 0.05
_MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_ASPECT_TOLERANCE = 0.02


def parse_region(text: str, names: Sequence[str]) -> str | tuple[float, float, float, float] | Image.Image:
    """Parse a region as the command line takes it: a name (or several joined by "+"), ``x,y,w,h``, or the path of a mask.

    Raises:
        UnknownRegionError: none of the three; the message lists ``names``.
        InputError: a box without area.
        ImageError: a mask that cannot be read.
    """
    if known_region(text, names):
        return text
    parts = text.split(",")
    if len(parts) == 4:
        try:
            x, y, width, height = (float(part) for part in parts)
        except ValueError:
            raise InputError(f"region {text[:100]!r}: a box is four numbers x,y,w,h") from None
        return _box((x, y, width, height))
    if Path(text).suffix.lower() in _MASK_SUFFIXES:
        return load_image(text).convert("L")
    raise _unknown(text, names)


def region_cells(
    region: Region,
    image_wh: tuple[int, int],
    grid: int,
    names: Sequence[str] = (),
    coverage: Callable[[], Coverage] | None = None,
) -> Cells:
    """Return the cells that a region covers, bool ``(G, G)``, at least one.

    Args:
        region: any form of :data:`Region`.
        image_wh: size of the picture that a box or mask refers to; the grid lies on its centred square (``imaging.fit_square``).
        grid: G.
        names: names of the parser's K regions.
        coverage: returns the parser's ``(K, G, G)`` shares in [0, 1]; called for named regions only.

    Raises:
        UnknownRegionError: a name that the parser does not have.
        InputError: the region covers no cell, or the picture does not show it.
    """
    if isinstance(region, str):
        if coverage is None or not known_region(region, names):
            raise _unknown(region, names)
        return _named_cells(region, names, coverage())
    if isinstance(region, Image.Image):
        return _covered(_mask_coverage(region, image_wh, grid), "the mask has no white")
    if isinstance(region, np.ndarray):
        if region.shape != (grid, grid) or region.dtype != np.bool_ or not region.any():
            raise InputError(f"region: cells must be bool ({grid}, {grid}), one of them true; got {region.dtype} {region.shape}")
        cells: Cells = region.copy()
        return cells
    x, y, width, height = _box(region)
    return _covered(_box_coverage((x, y, width, height), image_wh, grid), f"region {x:g},{y:g},{width:g},{height:g} has no part")


def select_cells(share: Coverage, threshold: float = NAMED_THRESHOLD) -> Cells:
    """Return the cells ``(G, G)`` covered by at least ``threshold`` or, if there are none, by half of the largest share."""
    selected: Cells = share >= min(threshold, float(share.max()) / 2)
    return selected


def paste_outside(original: Image.Image, edited: Image.Image, cells: Cells) -> Image.Image:
    """Return the edited picture inside the region and the original outside, blended over half a cell at the region's edge.

    The blend lies inside the region: pixels of cells outside it equal the original bit for bit.  Both pictures are square and of
    one size, a multiple of G.
    """
    size, grid = original.width, len(cells)
    if original.size != edited.size or original.size != (size, size) or size % grid:
        raise InputError(f"pictures of {original.size} and {edited.size} do not fit a grid of {grid} cells")
    cell = size // grid
    inside = np.kron(cells, np.ones((cell, cell), dtype=np.bool_))  # (Y, X)
    weight = np.zeros((size, size), dtype=np.float32)
    steps = max(1, cell // 2)
    for _ in range(steps):  # each erosion takes one ring of pixels off, so the weight is the distance from the edge
        weight += inside
        padded = np.pad(inside, 1, mode="edge")
        inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    mask = Image.fromarray(np.rint(weight * (255 / steps)).astype(np.uint8))
    return Image.composite(edited, original, mask)


def known_region(text: str, names: Sequence[str]) -> bool:
    """Return whether a text consists of known region names (one, or several joined by "+")."""
    return all(part in names for part in text.split("+"))


def _unknown(text: str, names: Sequence[str]) -> UnknownRegionError:
    listed = ", ".join(names) or "none in this bundle"
    return UnknownRegionError(f"unknown region {text[:100]!r}; known: {listed}; or give a box x,y,w,h or a mask image")


def _box(values: Sequence[float]) -> tuple[float, float, float, float]:
    if len(values) != 4 or not all(math.isfinite(value) for value in values) or values[2] <= 0 or values[3] <= 0:
        raise InputError(f"region {tuple(values)}: a box is x, y, width, height, the last two above 0")
    return float(values[0]), float(values[1]), float(values[2]), float(values[3])


def _named_cells(region: str, names: Sequence[str], coverage: Coverage) -> Cells:
    cells = np.zeros(coverage.shape[1:], dtype=np.bool_)
    for name in region.split("+"):
        share = coverage[names.index(name)]
        if share.max() >= PRESENT:
            cells |= select_cells(share)
    if not cells.any():
        raise InputError(f"region {region!r} is not visible in this picture; give a box x,y,w,h or a mask image instead")
    return cells


def _covered(share: Coverage, complaint: str) -> Cells:
    if share.max() <= 0:
        raise InputError(f"{complaint} in the centred square of the picture, which is all that the model sees; move it there")
    return select_cells(share, THRESHOLD)


def _box_coverage(box_xywh: tuple[float, float, float, float], image_wh: tuple[int, int], grid: int) -> Coverage:
    unit_x, unit_y = image_wh if all(0 <= value <= 1 for value in box_xywh) else (1, 1)
    x, y, width, height = box_xywh
    left, top, side = square_box(image_wh)
    across = _overlap(x * unit_x - left, (x + width) * unit_x - left, side, grid)
    down = _overlap(y * unit_y - top, (y + height) * unit_y - top, side, grid)
    return np.outer(down, across).astype(np.float32)


def _overlap(start: float, stop: float, side: int, grid: int) -> NDArray[np.float64]:
    """Share of each of ``grid`` equal parts of ``[0, side]`` that lies in ``[start, stop]``."""
    edges = np.linspace(0, side, grid + 1)
    share: NDArray[np.float64] = (np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)).clip(min=0) / (side / grid)
    return share


def _mask_coverage(mask: Image.Image, image_wh: tuple[int, int], grid: int) -> Coverage:
    if abs(mask.width * image_wh[1] / (mask.height * image_wh[0]) - 1) > _ASPECT_TOLERANCE:
        raise ImageError(f"the mask is {mask.width} x {mask.height}, the picture {image_wh[0]} x {image_wh[1]}; give both the same aspect")
    left, top, side = square_box(mask.size)
    values = np.asarray(mask.convert("L"), dtype=np.float32) / np.float32(255)
    square = Image.fromarray(values).crop((left, top, left + side, top + side))
    return np.asarray(square.resize((grid, grid), Image.Resampling.BOX), dtype=np.float32)
