"""Maps of a face's regions: a picture with one colour for each region, as a paint program writes it.

White and transparent pixels are free: nothing is said about them.  Sides and size are free, too; the centred square counts.  A map says
where regions lie, :class:`RegionMap` says it by cells, as the parser does: K regions, G token cells along a side.

>>> sketch = Image.new("RGB", (40, 40), PALETTE["hat"])
>>> read_map(sketch, ("hair", "hat"), 2).coverage[1].tolist()
[[1.0, 1.0], [1.0, 1.0]]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import dist
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.errors import InputError
from f2edge.imaging.images import ImageSource, listed, open_image, square_box
from f2edge.imaging.regions import PRESENT, Coverage

Colour: TypeAlias = tuple[int, int, int]
#: A map of regions: a picture by :data:`PALETTE`, or whole numbers (Y, X), the regions' indices and :data:`FREE` where nothing is said.
LayoutSource: TypeAlias = "ImageSource | NDArray[Any]"

PALETTE: Mapping[str, Colour] = MappingProxyType(
    {
        "hair": (128, 64, 0),
        "eyes": (0, 0, 255),
        "brows": (128, 0, 128),
        "nose": (255, 0, 255),
        "mouth": (255, 0, 0),
        "chin": (255, 255, 0),
        "ears": (255, 128, 0),
        "skin": (255, 192, 160),
        "hat": (0, 128, 0),
        "neck": (192, 128, 96),
        "clothing": (0, 255, 255),
        "background": (128, 192, 255),
    }
)
#: Strength of a layout where none is given.
STRENGTH = 0.5
#: The index, in an array, of pixels about which nothing is said; in a picture they are white.
FREE = 255
_WHITE = (255, 255, 255)
#: Regions that the parser counts to others that they lie on.
_ON: Mapping[str, tuple[str, ...]] = MappingProxyType({"skin": ("eyes", "brows", "nose", "mouth", "chin"), "hair": ("hat",)})
#: From back to front, as a map is drawn; others lie before these.
_DRAWN = ("background", "hair", "clothing", "neck", "ears", "skin", "chin", "nose", "mouth", "eyes", "brows", "hat")
#: Largest distance of a pixel from the colour that it has; pixels between two colours (smooth edges) say nothing.
_TOLERANCE = 40.0
#: Largest share of pixels without a region's colour, and of those amid others of the same colour, which no smooth edge has.
_UNKNOWN, _UNKNOWN_AREA = 0.3, 0.001
_SIDES = (64, 512)


@dataclass(frozen=True, eq=False)
class RegionMap:
    """Where regions are to lie.

    Attributes:
        coverage: float32 (K, G, G), the share of each cell that a region covers, as the parser gives it.
        given: float32 (G, G), the share of each cell about which something is said.
    """

    coverage: Coverage
    given: NDArray[np.float32]

    @classmethod
    def of(cls, coverage: Coverage) -> RegionMap:
        """Return the map of a face that the parser has read."""
        return cls(coverage, np.ones(coverage.shape[1:], dtype=np.float32))

    def agreement(self, coverage: Coverage) -> float:
        """Return how far regions (K, G, G) lie as wanted: intersection over union, the mean of the map's regions, in [0, 1]."""
        lower = (np.minimum(coverage, self.coverage) * self.given).sum(axis=(1, 2))
        upper = (np.maximum(coverage, self.coverage) * self.given).sum(axis=(1, 2))
        wanted = self.present
        return float((lower[wanted] / upper[wanted]).mean())

    def error(self, coverage: Coverage) -> NDArray[np.float32]:
        """Return how far each cell (G, G) is from what is wanted, half of it its neighbourhood, in which a cell's tokens show, too."""
        error = np.pad(np.abs(coverage - self.coverage).sum(axis=0) * self.given, 1, mode="edge")
        grid = len(self.given)
        around = sum(error[y : y + grid, x : x + grid] for y in range(3) for x in range(3)) / np.float32(9)
        spread: NDArray[np.float32] = (error[1:-1, 1:-1] + around) / 2
        return spread

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which regions the map has, bool (K,); one of them at least."""
        shares: NDArray[np.bool_] = (self.coverage * self.given).max(axis=(1, 2)) >= PRESENT
        return shares


class Layout:
    """Where the regions of one face are to lie: a map, or those of another face, which are read once they are needed.

    Args:
        wanted: the map, or the face's pixels (3, Y, X).
        strength: 0 … 1, how much of a draft by the map is kept.
    """

    def __init__(self, wanted: RegionMap | NDArray[np.float32], strength: float) -> None:
        self.strength = checked_strength(strength)
        self._wanted = wanted

    def read(self, coverage: Callable[[NDArray[np.float32]], Coverage]) -> RegionMap:
        """Return the map; ``coverage`` gives the parser's shares (K, G, G) of pixels."""
        if not isinstance(self._wanted, RegionMap):
            self._wanted = RegionMap.of(coverage(self._wanted))
        return self._wanted


def checked_strength(strength: float) -> float:
    """Return the strength of a layout; raises :class:`InputError` outside 0 … 1."""
    if not 0.0 <= strength <= 1.0:
        raise InputError(f"layout_strength must lie in 0 … 1, got {strength}")
    return strength


def colours_of(names: Sequence[str]) -> dict[str, Colour]:
    """Return each region's colour in maps; names outside :data:`PALETTE` get the colours that are left, in their order."""
    left = [colour for colour in product((0, 128, 255), repeat=3) if all(dist(colour, other) > 85 for other in (*PALETTE.values(), _WHITE))]
    spare = iter(left)
    return {name: PALETTE[name] if name in PALETTE else next(spare, (0, 0, 0)) for name in names}


def read_map(picture: Image.Image, names: Sequence[str], grid: int) -> RegionMap:
    """Return what a picture by :data:`PALETTE` says.

    Args:
        picture: RGB, square.
        names: of the parser's K regions.
        grid: G.

    Raises:
        InputError: a colour that is no region's, or nothing but white.
    """
    if not names:
        raise InputError("layout: this bundle has no regions, so nothing can be laid out; leave it out, or take another bundle")
    indices = _indices(np.asarray(picture.convert("RGB")), names)
    said = np.stack([indices == index for index in range(len(names))])  # (K, Y, X)
    for region, others in _ON.items():
        if region in names:
            own = said[names.index(region)]
            own |= np.logical_or.reduce([own, *(said[names.index(other)] for other in others if other in names)])
    shares = np.stack([_shares(mask, grid) for mask in said])
    given = _shares((indices < len(names)), grid)
    coverage = (shares / np.maximum(given, np.float32(1e-6))).clip(0, 1)
    found = RegionMap(coverage, given)
    if not found.present.any():
        raise InputError("layout: the map is empty: no region covers a twentieth of a cell of the centred square; paint larger areas")
    return found


def hex_of(colour: Colour) -> str:
    """Return a colour as "#ff8000"."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def open_map(source: LayoutSource, names: Sequence[str]) -> Image.Image:
    """Return the centred square of a map as a picture by :data:`PALETTE`, with a side in 64 … 512."""
    picture = map_picture(source, names) if isinstance(source, np.ndarray) and source.ndim == 2 else open_image(source)
    left, top, side = square_box(picture.size)
    square, wanted = picture.crop((left, top, left + side, top + side)), min(max(side, _SIDES[0]), _SIDES[1])
    return square if side == wanted else square.resize((wanted, wanted), Image.Resampling.NEAREST)


def sources(
    layout: LayoutSource | Sequence[LayoutSource] | None, faces: ImageSource | Sequence[ImageSource] | None, count: int
) -> list[tuple[LayoutSource | None, ImageSource | None]]:
    """Return the map and the face of each of ``count`` pictures; one of them goes with all.

    Raises:
        InputError: both are given, or so many that they do not pair.
    """
    given = [listed(source) for source in (layout, faces) if source is not None]
    if not given:
        return [(None, None)] * count
    if len(given) == 2:
        raise InputError("layout and layout_from exclude each other; give one of the two")
    if len(given[0]) not in (1, count):
        raise InputError(f"{len(given[0])} layouts and {count} faces do not pair; give one for all, or one for each")
    found = given[0] * (count // len(given[0]))
    return [(source, None) if layout is not None else (None, source) for source in found]


def map_picture(indices: NDArray[Any], names: Sequence[str]) -> Image.Image:
    """Return regions' indices (Y, X), ``FREE`` where nothing is said, as a picture by :data:`PALETTE`."""
    if indices.ndim != 2 or not indices.size or not np.issubdtype(indices.dtype, np.integer):
        raise InputError(f"layout: an array of {indices.dtype} {indices.shape}; give whole numbers of shape (Y, X), or a picture")
    wrong = indices[(indices != FREE) & ((indices < 0) | (indices >= len(names)))]
    if wrong.size:
        raise InputError(f"layout: {wrong.flat[0]} is no region; give 0 … {len(names) - 1} ({', '.join(names)}), or {FREE} for free")
    colours = np.array([*colours_of(names).values(), _WHITE], dtype=np.uint8)
    return Image.fromarray(colours[np.where(indices == FREE, len(names), indices)])


def drawn_map(coverage: Coverage, names: Sequence[str], side: int) -> Image.Image:
    """Return the map of a face that the parser has read, as a picture by :data:`PALETTE` of ``side`` pixels."""
    indices = np.full((side, side), FREE, dtype=np.int64)
    for name in sorted(names, key=lambda name: _DRAWN.index(name) if name in _DRAWN else len(_DRAWN)):
        share = coverage[names.index(name)]
        if share.max() >= PRESENT:
            smooth = np.asarray(Image.fromarray(share).resize((side, side), Image.Resampling.BICUBIC))
            indices[smooth >= min(0.5, float(smooth.max()) / 2)] = names.index(name)
    return map_picture(indices, names)


def _indices(pixels: NDArray[np.uint8], names: Sequence[str]) -> NDArray[np.int64]:
    """Return the region of each pixel (Y, X): K where it is free, K + 1 between two colours; refuses colours of no region."""
    packed = pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    colours, inverse = np.unique(packed, return_inverse=True)
    rgb = np.stack([colours >> 16, (colours >> 8) & 255, colours & 255], axis=1).astype(np.float32)  # (colours, 3)
    known = np.array([*colours_of(names).values(), _WHITE], dtype=np.float32)
    nearest = np.full(len(rgb), len(known), dtype=np.int64)
    least = np.full(len(rgb), np.float32(_TOLERANCE))
    for index, colour in enumerate(known):
        distance = np.sqrt(((rgb - colour) ** 2).sum(axis=1))
        nearest, least = np.where(distance < least, index, nearest), np.minimum(distance, least)
    indices = nearest[inverse].reshape(packed.shape)
    unknown = indices == len(known)
    flat = unknown & _flat(packed)
    if unknown.mean() > _UNKNOWN or flat.mean() > _UNKNOWN_AREA:
        values, counts = np.unique(packed[flat if flat.any() else unknown], return_counts=True)
        cure = ", ".join(f"{name} {hex_of(colour)}" for name, colour in colours_of(names).items())
        raise InputError(f"layout: colour #{values[counts.argmax()]:06x} of the map is no region's; use {cure}; white is free")
    return indices


def _flat(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of values (Y, X) have their own value above, below, left and right."""
    padded = np.pad(values, 1, constant_values=-1)
    same = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    flat: NDArray[np.bool_] = np.logical_and.reduce([values == other for other in same])
    return flat


def _shares(mask: NDArray[np.bool_], grid: int) -> NDArray[np.float32]:
    """Return the share of each cell (G, G) of which a mask (Y, X) is true."""
    return np.asarray(Image.fromarray(mask.astype(np.float32)).resize((grid, grid), Image.Resampling.BOX), dtype=np.float32)
