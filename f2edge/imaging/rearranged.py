"""A face with its regions moved to where a map wants them: the draft of a layout.

The parser says where regions lie in a picture.  Each region of the map has a place and an extent; pixels there are taken from the same
region of the picture, moved and stretched so that place and extent are the same.  Between regions the ways of neighbours are blended, so
the draft is one smooth picture.  What the picture does not have is filled with the colour of the likest region that it has.

G token cells along a side, K regions, S pixels along a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.imaging.region_map import RegionMap, places
from f2edge.imaging.regions import PRESENT, Coverage

#: Weight of a region's way where several regions overlap; small ones lie on large ones.
_SMALL = MappingProxyType({"eyes": 4.0, "brows": 4.0, "nose": 4.0, "mouth": 4.0, "chin": 2.0})
#: Weight of every region's way, by its area, where no region is near.
_FAR = np.float32(0.05)
#: Smallest and largest stretch.
_STRETCH = (0.6, 1.7)
#: Smallest share of a wanted region's area at which the picture has it.
_SHOWN = 0.2
#: Whose colour a region takes that the picture does not show; the first that it shows.
_LIKE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"hat": ("clothing", "hair"), "hair": ("brows", "hat"), "brows": ("hair",), "clothing": ("hat", "neck")}
)


def rearranged(pixels: NDArray[np.float32], coverage: Coverage, wanted: RegionMap, names: Sequence[str]) -> NDArray[np.float32]:
    """Return a picture's pixels (3, S, S) rearranged.

    Args:
        pixels: float32 (3, S, S).
        coverage: of the picture, (K, G, G).
        wanted: the map.
        names: of the K regions.
    """
    side, present = pixels.shape[-1], wanted.present
    axis = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side)  # (S,)
    total = _smooth(1 - wanted.given.max(axis=0), side) + np.float32(1e-3)  # where nothing is said nothing moves
    ways = [total * axis[None, :], total * axis[:, None]]  # x and y in the picture, weighted
    paint: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    for index, name in enumerate(names):
        share = wanted.coverage[index] * wanted.given[index]
        if not present[index] or name == "background":  # which goes with what lies before it
            continue
        weight = _smooth(share, side)
        if coverage[index].sum() < _SHOWN * wanted.coverage[index].sum():
            paint.append((weight, _colour(pixels, coverage, name, names)))
            continue
        weight = weight * np.float32(_SMALL.get(name, 1.0)) + _FAR * share.mean()
        ends = zip(places(coverage[index]), places(share), strict=True)
        moved = [_moved(axis, here, there) for here, there in ends]
        total = total + weight
        ways = [ways[0] + weight * moved[0][None, :], ways[1] + weight * moved[1][:, None]]
    draft = _sampled(pixels, ways[0] / total, ways[1] / total)
    for weight, colour in paint:
        draft = draft * (1 - weight) + colour[:, None, None] * weight
    return draft


def _moved(axis: NDArray[np.float32], here: tuple[float, float], there: tuple[float, float]) -> NDArray[np.float32]:
    """Return where in the picture each place (S,) of the draft comes from."""
    stretch = float(np.clip(here[1] / there[1], *_STRETCH))
    moved: NDArray[np.float32] = (here[0] + (axis - there[0]) * stretch).astype(np.float32)
    return moved


def _smooth(share: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    scaled = Image.fromarray(share.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(scaled, dtype=np.float32).clip(0, 1)


def _colour(pixels: NDArray[np.float32], coverage: Coverage, name: str, names: Sequence[str]) -> NDArray[np.float32]:
    """Return the mean colour (3,) of the likest region that the picture shows."""
    candidates = [names.index(other) for other in (*_LIKE.get(name, ("skin",)), "skin") if other in names]
    weight = next((coverage[i] for i in candidates if coverage[i].max() >= PRESENT), np.ones_like(coverage[0])) ** 4
    grid = len(weight)
    cells = pixels.reshape(3, grid, pixels.shape[1] // grid, grid, -1).mean(axis=(2, 4))
    colour: NDArray[np.float32] = (cells * weight).sum(axis=(1, 2)) / weight.sum()
    return colour


def _sampled(pixels: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return pixels (3, S, S) at places (S, S) in [0, 1], bilinear; beyond the edge the edge."""
    import cv2  # which takes longer to import than everything else that a picture without a layout needs

    side = pixels.shape[-1]
    across, down = (v * side - np.float32(0.5) for v in (x, y))
    drawn = cv2.remap(pixels.transpose(1, 2, 0), across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    result: NDArray[np.float32] = drawn.astype(np.float32).transpose(2, 0, 1)
    return result
