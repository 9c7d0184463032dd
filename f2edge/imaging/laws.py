"""How pictures become a model's pixels and its pixels pictures; a bundle's manifest names the law ("pictures").

A model sees pictures as it was trained on them, so an imported one keeps its own resizing and rounding.

>>> law_named("show-o").pixels(Image.new("RGB", (600, 400)), 256).shape
(3, 256, 256)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.errors import InputError
from f2edge.imaging.images import Pixels, fit_square, from_pixels, to_pixels

Cells = NDArray[np.bool_]

#: Cubic convolution with a = -0.75 half way between two of its four samples, as PyTorch interpolates.
_TAPS = np.array([-0.09375, 0.59375, 0.59375, -0.09375], dtype=np.float32)


@dataclass(frozen=True)
class PictureLaw:
    """One way in and out.

    Attributes:
        square: RGB picture of any size and the model's side → the RGB picture of that side that the model sees.
        pixels: RGB picture of any size and the model's side → float32 (3, side, side) in [-1, 1].
        picture: pixels (3, Y, X) → RGB picture; values outside [-1, 1] are clipped.
        mask_cells: mask (white inside), the model's side and G → cells bool (G, G); None leaves masks to :mod:`f2edge.imaging.regions`.
    """

    square: Callable[[Image.Image, int], Image.Image]
    pixels: Callable[[Image.Image, int], Pixels]
    picture: Callable[[NDArray[np.floating]], Image.Image]
    mask_cells: Callable[[Image.Image, int, int], Cells] | None = None


def _own_square(image: Image.Image, side: int) -> Image.Image:
    """The centred square, by Lanczos."""
    square = fit_square(image)
    return square if square.size == (side, side) else square.resize((side, side), Image.Resampling.LANCZOS)


def _own_pixels(image: Image.Image, side: int) -> Pixels:
    """The centred square, by Lanczos."""
    return to_pixels(fit_square(image), side)


def resized_and_cropped(image: Image.Image, side: int) -> Image.Image:
    """The shorter side resized to ``side`` by bicubic interpolation, then the centred square (arXiv 2408.12528's code, and CLIP's)."""
    width, height = image.size
    scale = min(width, height)
    wanted = (width * side // scale, height * side // scale)
    if image.size != wanted:
        image = image.resize(wanted, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def _show_o_pixels(image: Image.Image, side: int) -> Pixels:
    values = np.asarray(resized_and_cropped(image.convert("RGB"), side), dtype=np.float32) / np.float32(255)
    pixels: Pixels = np.ascontiguousarray((values.transpose(2, 0, 1) - np.float32(0.5)) / np.float32(0.5))
    return pixels


def _show_o_picture(pixels: NDArray[np.floating]) -> Image.Image:
    """Pixels cut down to whole numbers instead of rounded."""
    shares = ((pixels.astype(np.float32) + 1) / 2).clip(0, 1)
    return Image.fromarray(np.ascontiguousarray((shares * np.float32(255)).astype(np.uint8).transpose(1, 2, 0)))


def _show_o_cells(mask: Image.Image, side: int, grid: int) -> Cells:
    """Cells that are white at least by half where Show-o's code looks: four lines and columns around the middle of each cell."""
    shares = np.asarray(resized_and_cropped(mask.convert("L"), side), dtype=np.float32) / np.float32(255)
    cell = side // grid
    around = np.arange(grid)[:, None] * cell + cell // 2 + np.arange(-2, 2)  # (G, 4)
    sampled = np.einsum("gihj,i,j->gh", shares[around[:, :, None, None], around[None, None]], _TAPS, _TAPS)
    cells: Cells = sampled >= 0.5
    return cells


LAWS: Mapping[str, PictureLaw] = MappingProxyType(
    {
        "f2edge": PictureLaw(_own_square, _own_pixels, from_pixels),
        "show-o": PictureLaw(resized_and_cropped, _show_o_pixels, _show_o_picture, _show_o_cells),
    }
)


def law_named(name: str) -> PictureLaw:
    """A law of :data:`LAWS`; raises :class:`InputError` for others."""
    if name not in LAWS:
        raise InputError(f"pictures: unknown law {name!r}; choose one of: {', '.join(LAWS)}")
    return LAWS[name]
