"""Pictures of where a face's regions lie: one colour for each region, as a paint program writes it.

White and transparent pixels are free: nothing is said about them.  Sides and size are free, too; the centred square counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import dist
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.errors import InputError
from f2edge.imaging.images import ImageSource, open_image, square_box
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
#: The index, in an array, of pixels about which nothing is said; in a picture they are white.
FREE = 255
_WHITE = (255, 255, 255)
#: From back to front, as a map is drawn; others lie before these.
_DRAWN = ("background", "hair", "clothing", "neck", "ears", "skin", "chin", "nose", "mouth", "eyes", "brows", "hat")
#: Largest distance of a pixel from the colour that it has; pixels between two colours (smooth edges) say nothing.
_TOLERANCE = 40.0
#: Largest share of pixels without a region's colour, and of those amid others of the same colour, which no smooth edge has.
_UNKNOWN, _UNKNOWN_AREA = 0.3, 0.001
#: Slots that say what of a face's regions is there, and how far down the face hair of a length reaches.
ASKED = ("hat", "hair_length")
_REACH: Mapping[str, float] = MappingProxyType({"short": 0.5, "medium": 1.0})
#: Smallest and largest side with which a map is read.
_SIDES = (64, 256)


def colours_of(names: Sequence[str]) -> dict[str, Colour]:
    """Return each region's colour in maps; names outside :data:`PALETTE` get the colours that are left, in their order."""
    left = [
        colour
        for colour in product((0, 128, 255), (0, 128, 255), (0, 128, 255))
        if all(dist(colour, other) > 85 for other in (*PALETTE.values(), _WHITE))
    ]
    spare = iter(left)
    return {name: PALETTE[name] if name in PALETTE else next(spare, (0, 0, 0)) for name in names}


def hex_of(colour: Colour) -> str:
    """Return a colour as "#ff8000"."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def open_map(source: LayoutSource, names: Sequence[str]) -> Image.Image:
    """Return the centred square of a map as a picture by :data:`PALETTE`, with a side in 64 … 256."""
    picture = map_picture(source, names) if isinstance(source, np.ndarray) and source.ndim == 2 else open_image(source)
    left, top, side = square_box(picture.size)
    square, wanted = picture.crop((left, top, left + side, top + side)), min(max(side, _SIDES[0]), _SIDES[1])
    return square if side == wanted else square.resize((wanted, wanted), Image.Resampling.NEAREST)


def map_picture(indices: NDArray[Any], names: Sequence[str]) -> Image.Image:
    """Return regions' indices (Y, X), ``FREE`` where nothing is said, as a picture by :data:`PALETTE`."""
    if indices.ndim != 2 or not indices.size or not np.issubdtype(indices.dtype, np.integer):
        raise InputError(f"layout: an array of {indices.dtype} {indices.shape}; give whole numbers of shape (Y, X), or a picture")
    wrong = indices[(indices != FREE) & ((indices < 0) | (indices >= len(names)))]
    if wrong.size:
        raise InputError(f"layout: {wrong.flat[0]} is no region; give 0 … {len(names) - 1} ({', '.join(names)}), or {FREE} for free")
    colours = np.array([*colours_of(names).values(), _WHITE], dtype=np.uint8)
    return Image.fromarray(colours[np.where(indices == FREE, len(names), indices)])


def drawn_map(coverage: Coverage, names: Sequence[str], side: int, seen: Mapping[str, str] = MappingProxyType({})) -> Image.Image:
    """Return the map of a face that the parser has read, as a picture by :data:`PALETTE`.

    Args:
        coverage: the parser's shares (K, G, G), which show where a hat and long hair may be, too.
        names: of the K regions.
        side: of the map, in pixels.
        seen: values of the slots :data:`ASKED`; a hat and hair that are not there are left out.
    """
    indices = np.full((side, side), FREE, dtype=np.int64)
    left_out = absent(seen)
    for name in sorted(names, key=lambda name: _DRAWN.index(name) if name in _DRAWN else len(_DRAWN)):
        share = coverage[names.index(name)]
        if share.max() >= PRESENT and name not in left_out:
            smooth = np.asarray(Image.fromarray(share).resize((side, side), Image.Resampling.BICUBIC))
            indices[smooth >= min(0.5, float(smooth.max()) / 2)] = names.index(name)
    return map_picture(cut(indices, names, seen), names)


def absent(seen: Mapping[str, str]) -> set[str]:
    """Return the regions that a face does not have by its slots :data:`ASKED`."""
    return {region for region, slot, value in (("hat", "hat", "none"), ("hair", "hair_length", "bald")) if seen.get(slot) == value}


def cut(indices: NDArray[np.int64], names: Sequence[str], seen: Mapping[str, str]) -> NDArray[np.int64]:
    """Return regions' indices (Y, X) with hair of the length that is seen; the parser says where long hair may be, whatever its length."""
    rows = np.flatnonzero((indices == names.index("skin")).any(axis=1)) if {"hair", "skin"} <= set(names) else np.zeros(0, dtype=np.int64)
    if rows.size and seen.get("hair_length") in _REACH:
        indices = indices.copy()
        below = indices[int(rows[0] + _REACH[seen["hair_length"]] * (rows[-1] - rows[0])) :]
        below[below == names.index("hair")] = FREE
    return indices


def indices_of(picture: Image.Image, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the region of each pixel (Y, X), ``FREE`` where nothing is said and between two colours.

    Raises:
        InputError: a colour that is no region's.
    """
    pixels = np.asarray(picture.convert("RGB"))
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
    return np.where(indices < len(names), indices, FREE)


def _flat(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of values (Y, X) have their own value above, below, left and right."""
    padded = np.pad(values, 1, constant_values=-1)
    same = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    flat: NDArray[np.bool_] = np.logical_and.reduce([values == other for other in same])
    return flat
