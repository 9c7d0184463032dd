"""Where the regions of a face are to lie: what a map says, by cells, as the parser does.  K regions, G token cells along a side.

A map has one region a pixel; the parser's overlap (the head's outline goes on under hair, the neck under the chin).  So where a map shows
what may hide a region, it says nothing about that region.  And a model draws faces of a size and a place: a map whose face is much smaller
or lies elsewhere is enlarged and moved as a whole.

>>> sketch = open_map(np.zeros((40, 40), dtype=np.int64), ("hair", "skin"))
>>> read_map(indices_of(sketch, ("hair", "skin")), ("hair", "skin"), 2).coverage[0].tolist()
[[1.0, 1.0], [1.0, 1.0]]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.errors import InputError
from f2edge.imaging.images import ImageSource, listed
from f2edge.imaging.map_pictures import FREE, LayoutSource, indices_of, open_map
from f2edge.imaging.regions import PRESENT, Coverage

Pixels: TypeAlias = NDArray[np.float32]
#: Strength of a layout where none is given.
STRENGTH = 0.5
#: What lies on a face.
_FEATURES = ("eyes", "brows", "nose", "mouth", "chin")
#: Regions that are part of others.
_ON: Mapping[str, tuple[str, ...]] = MappingProxyType({"skin": _FEATURES})
#: What says nothing about a region where it is painted, because it may hide it.
_HIDES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "hair": ("hat", "clothing"),
        "skin": ("hair", "hat", "ears", "neck"),
        "eyes": ("brows", "nose", "hair"),
        "brows": ("eyes", "hair", "hat"),
        "nose": ("eyes", "mouth"),
        "mouth": ("nose", "chin"),
        "chin": ("mouth", "neck"),
        "ears": ("hair", "hat", "skin"),
        "hat": ("hair",),
        "neck": ("skin", "chin", "mouth", "hair"),
        "clothing": ("hair", "neck"),
    }
)
#: How far down the face hair reaches that is long, and that is short.
_LONG, _SHORT = 1.15, 0.6
_NO_ROWS = np.zeros(0, dtype=np.int64)
#: Size of a map's face over that of drawn ones, and distance of the centres in shares of the side, up to which it stays where it is.
_SIZE, _DISTANCE = 1.15, 0.04


@dataclass(frozen=True, eq=False)
class RegionMap:
    """Where regions are to lie.

    Attributes:
        coverage: float32 (K, G, G), the share of each cell that a region covers, of what is said about it.
        given: float32 (K, G, G), the share of each cell for which something is said about the region.
    """

    coverage: Coverage
    given: NDArray[np.float32]

    @classmethod
    def of(cls, coverage: Coverage) -> RegionMap:
        """Return the map of a face that the parser has read."""
        return cls(coverage, np.ones_like(coverage))

    def agreement(self, coverage: Coverage) -> float:
        """Return how far regions (K, G, G) lie as wanted: intersection over union, the mean of the map's regions, in [0, 1]."""
        lower = (np.minimum(coverage, self.coverage) * self.given).sum(axis=(1, 2))
        upper = (np.maximum(coverage, self.coverage) * self.given).sum(axis=(1, 2))
        wanted = self.present
        return float((lower[wanted] / upper[wanted]).mean())

    def error(self, coverage: Coverage) -> NDArray[np.float32]:
        """Return how far each cell (G, G) is from what is wanted, half of it its neighbourhood, in which a cell's tokens show, too."""
        wanted = self.present[:, None, None] * self.given
        error = np.pad((np.abs(coverage - self.coverage) * wanted).sum(axis=0), 1, mode="edge")
        grid = coverage.shape[-1]
        around = sum(error[y : y + grid, x : x + grid] for y in range(3) for x in range(3)) / np.float32(9)
        spread: NDArray[np.float32] = (error[1:-1, 1:-1] + around) / 2
        return spread

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which regions the map has, bool (K,); one of them at least."""
        shares: NDArray[np.bool_] = (self.coverage * self.given).max(axis=(1, 2)) >= PRESENT
        return shares


class Layout:
    """Where the regions of one face are to lie: by a map, or as in another face, which is read once that is needed.

    Args:
        names: of the parser's K regions.
        grid: G.
        indices: a map, regions' indices (Y, X).
        face: pixels (3, Y, X) of a face whose regions are wanted; one of the two is given.
        strength: 0 … 1, how much of a draft by the map is kept.

    Raises:
        InputError: an empty map, or a strength out of range.
    """

    def __init__(
        self,
        names: Sequence[str],
        grid: int,
        *,
        indices: NDArray[np.int64] | None = None,
        face: Pixels | None = None,
        strength: float = STRENGTH,
    ) -> None:
        self.strength = checked_strength(strength)
        self._names, self._grid, self._indices, self._face = names, grid, indices, face
        self._read: RegionMap | None = None
        if indices is not None:
            read_map(indices, names, grid)  # refuses an empty one

    @property
    def words(self) -> list[tuple[str, str]]:
        """What a map says that a prompt can say, too: slots and words for them; of a face that is not known before it is read."""
        return [] if self._indices is None else said_by(self._indices, self._names)

    def read(self, coverage: Callable[[Pixels], Coverage], first: Coverage) -> RegionMap:
        """Return what is wanted.

        Args:
            coverage: returns the parser's shares (K, G, G) of pixels.
            first: those of the first drawing, to whose place and size a map is fitted.
        """
        if self._read is None and self._indices is not None:
            self._read = read_map(fitted(self._indices, self._names, first), self._names, self._grid)
        elif self._read is None:
            assert self._face is not None
            self._read = RegionMap.of(coverage(self._face))
        return self._read


def checked_strength(strength: float) -> float:
    """Return the strength of a layout; raises :class:`InputError` outside 0 … 1."""
    if not 0.0 <= strength <= 1.0:
        raise InputError(f"layout_strength must lie in 0 … 1, got {strength}")
    return strength


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


def map_indices(source: LayoutSource, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the regions' indices (Y, X) of a map; raises :class:`InputError` for what is none, and for a bundle without regions."""
    if not names:
        raise InputError("layout: this bundle has no regions, so nothing can be laid out; leave it out, or take another bundle")
    return indices_of(open_map(source, names), names)


def read_map(indices: NDArray[np.int64], names: Sequence[str], grid: int) -> RegionMap:
    """Return what a map (Y, X) says; raises :class:`InputError` if that is nothing."""
    painted = {name: indices == index for index, name in enumerate(names)}
    anything = indices != FREE

    def union(others: Sequence[str]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.logical_or.reduce([np.zeros_like(anything), *(painted[o] for o in others if o in painted)])
        return found

    own = [painted[name] | union(_ON.get(name, ())) for name in names]
    given = [_shares(anything & (mask | ~union(_HIDES.get(name, ()))), grid) for name, mask in zip(names, own, strict=True)]
    shares = [_shares(mask, grid) / np.maximum(known, np.float32(1e-6)) for mask, known in zip(own, given, strict=True)]
    found = RegionMap(np.stack(shares).clip(0, 1), np.stack(given))
    if not found.present.any():
        raise InputError("layout: the map is empty: no region covers a twentieth of a cell of the centred square; paint larger areas")
    return found


def said_by(indices: NDArray[np.int64], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return what a map (Y, X) says about attributes: slots, and words as a prompt has them."""
    rows = {name: np.flatnonzero((indices == index).any(axis=1)) for index, name in enumerate(names)}
    found = [("hat", "with a hat")] if rows.get("hat", _NO_ROWS).size else []
    hair, skin = rows.get("hair", _NO_ROWS), rows.get("skin", _NO_ROWS)
    if hair.size and skin.size:
        reach = (hair[-1] - skin[0]) / (skin[-1] - skin[0] + 1)  # 0 at the top of the face, 1 at the chin
        length = "long" if reach > _LONG else "short" if reach < _SHORT else ""
        found += [("hair_length", f"with {length} hair")] if length else []
    elif skin.size and not found and (indices[: skin[0]] != FREE).all():
        found.append(("hair_length", "with a bald head"))
    return found


def fitted(indices: NDArray[np.int64], names: Sequence[str], drawn: Coverage) -> NDArray[np.int64]:
    """Return a map whose face has about the size and the place of drawn ones; as it is where it shows no face.

    Args:
        indices: of regions (Y, X), square.
        names: of the K regions.
        drawn: the parser's shares (K, G, G) of a drawn face.
    """
    if "skin" not in names or "hair" not in names or not (indices == names.index("skin")).any():
        return indices
    face = np.isin(indices, [names.index(name) for name in ("skin", *_FEATURES) if name in names])
    hidden = drawn[names.index("hair")]
    if "hat" in names and (indices == names.index("hat")).any():
        hidden = np.maximum(hidden, drawn[names.index("hat")])
    skin, painted = drawn[names.index("skin")], places(face.astype(np.float32))
    ends = [places(seen) for seen in (skin, skin * (1 - hidden)) if seen.max() >= PRESENT]  # hair may be painted below or above the head
    if not ends:
        return indices
    size, end = min(((_size(painted, end), end) for end in ends), key=lambda found: abs(log(found[0])))
    size = 1.0 if 1 / _SIZE <= size <= _SIZE else size
    side = len(indices)
    affine = []
    for (here, _), (there, _) in zip(painted, end, strict=True):
        moved = (there - here) - float(np.clip(there - here, -_DISTANCE, _DISTANCE))
        affine.append(side * (here - (here + moved) / size))
    matrix = (1 / size, 0.0, affine[0], 0.0, 1 / size, affine[1])
    picture = Image.fromarray(indices.astype(np.uint8))
    moved_picture = picture.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=FREE)
    return np.asarray(moved_picture).astype(np.int64)


def _size(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float:
    """Return by what one thing must be stretched to have the size of another, by their :func:`places`."""
    return sqrt((other[0][1] * other[1][1]) / (one[0][1] * one[1][1]))


def places(share: Coverage) -> list[tuple[float, float]]:
    """Return a region's centre and extent (standard deviation) across and down, in shares of the side; ``share`` (Y, Y)."""
    grid = len(share)
    cells = (np.arange(grid) + 0.5) / grid
    found = []
    for summed in (share.sum(axis=0), share.sum(axis=1)):
        line = summed / max(float(summed.sum()), 1e-6)
        centre = float((line * cells).sum())
        found.append((centre, sqrt(float((line * (cells - centre) ** 2).sum()) + 1 / (12 * grid**2))))
    return found


def _shares(mask: NDArray[np.bool_], grid: int) -> NDArray[np.float32]:
    """Return the share of each cell (G, G) of which a mask (Y, X) is true."""
    return np.asarray(Image.fromarray(mask.astype(np.float32)).resize((grid, grid), Image.Resampling.BOX), dtype=np.float32)
