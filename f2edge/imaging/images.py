"""Image loading and conversion: guarded decoding, orientation, cropping, alignment, model pixels, contact sheets.

Pictures are Pillow images of mode RGB; the model's pixels are float32 of shape ``(3, size, size)`` in ``[-1, 1]``.  Colour profiles are
ignored: values are taken as sRGB.

>>> face = fit_square(load_image("photo.jpg"))                                              # doctest: +SKIP
>>> to_pixels(face, 128).shape                                                              # doctest: +SKIP
(3, 128, 128)
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.errors import ImageError, InputError
from f2edge.imaging.guard import DEFAULT_LIMITS, ImageLimits, check_dimensions, decode, read_file

Pixels = NDArray[np.float32]
#: A decoded picture, an array of uint8 (Y, X), (Y, X, 3) or (Y, X, 4), the bytes of a file, or its path.
ImageSource: TypeAlias = "Image.Image | NDArray[Any] | bytes | str | os.PathLike[str]"
#: Of pictures of the caller's own machine; the defaults of :class:`ImageLimits` are a server's.
LOCAL_LIMITS = ImageLimits(
    largest_bytes=256 << 20,
    smallest_side=1,
    largest_side=1 << 15,
    largest_pixels=200_000_000,
    largest_ratio=4096.0,
    largest_decode_ms=60_000.0,
)

#: EXIF orientation → transposition that makes the stored picture upright.
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_BACKGROUND = (255, 255, 255)


def load_image(source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Load an untrusted JPEG, PNG or WebP as an upright 8-bit RGB picture.

    The EXIF orientation is applied, transparency is composed on white; 16-bit, gray, palette and CMYK pictures are converted.

    Args:
        source: a path, the bytes of a file, or a picture as Pillow or NumPy has it (its size is checked).
        limits: accepted sizes; by default 4 MiB, sides of 16 … 4096 pixels, 16 million pixels, ratio 20.

    Raises:
        ImageError: missing, damaged, too large, animated or of another kind; the message names the rule and the cure.
    """
    if isinstance(source, np.ndarray):
        source = _of_array(source)
    if isinstance(source, Image.Image):
        check_dimensions(source.size, "the image", limits)
        return _to_rgb(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _to_rgb(_upright(decode(bytes(source), limits=limits)))
    return _to_rgb(_upright(decode(read_file(source, limits), name=os.fspath(source), limits=limits)))


def open_image(source: ImageSource) -> Image.Image:
    """Load a picture of the caller's own machine as :func:`load_image` does, of any size that memory holds; see :data:`LOCAL_LIMITS`."""
    return _to_rgb(source) if isinstance(source, Image.Image) else load_image(source, limits=LOCAL_LIMITS)


def listed(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    """Return one picture or several as a list."""
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]  # a text is a path


def _of_array(values: NDArray[Any]) -> Image.Image:
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or 0 in values.shape:
        raise ImageError(f"the image is an array of {values.dtype} {values.shape}; give uint8 of shape (Y, X), (Y, X, 3) or (Y, X, 4)")
    return Image.fromarray(np.ascontiguousarray(values))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  unreadable EXIF has no orientation; the pixels are good
        return image
    operation = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return image if operation is None else image.transpose(operation)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray; Pillow's own conversion clips instead of scaling
        wide = np.asarray(image)
        wide = wide if wide.dtype == np.uint16 else wide.clip(0, 65535)  # 32 bits hold 16; a copy of every pixel is saved otherwise
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*_BACKGROUND, 255)), rgba).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image


def to_pixels(image: Image.Image, size: int) -> Pixels:
    """Convert a picture to ``(3, size, size)`` float32 in [-1, 1], resized by Lanczos to that size without keeping its aspect."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    values = np.asarray(image.convert("RGB"), dtype=np.float32)  # (Y, X, 3)
    pixels: Pixels = np.ascontiguousarray(values.transpose(2, 0, 1)) / np.float32(127.5) - np.float32(1)
    return pixels


def from_pixels(pixels: NDArray[np.floating]) -> Image.Image:
    """Convert ``(3, Y, X)`` in [-1, 1] to an RGB picture; values outside are clipped, halves round to even."""
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise InputError(f"pixels must have shape (3, Y, X), got {pixels.shape}")
    values = np.rint((pixels.astype(np.float32) + 1) * 127.5).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0)))


def resize(image: Image.Image, size: int) -> Image.Image:
    """Return the picture scaled by Lanczos so that its longer side has ``size`` pixels."""
    scale = size / max(image.size)
    wanted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if wanted == image.size else image.resize(wanted, Image.Resampling.LANCZOS)


def square_box(size_wh: tuple[int, int]) -> tuple[int, int, int]:
    """Return left, top and side of the largest centred square of a picture, which :func:`fit_square` keeps."""
    width, height = size_wh
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def fit_square(image: Image.Image, *, pad: bool = False) -> Image.Image:
    """Return the centred square of a picture or, with ``pad``, the whole picture on a square of its mean colour."""
    if image.width == image.height:
        return image
    if not pad:
        left, top, side = square_box(image.size)
        return image.crop((left, top, left + side, top + side))
    side = max(image.size)
    mean = np.asarray(image.convert("RGB"), dtype=np.float64).mean(axis=(0, 1))
    square = Image.new("RGB", (side, side), (round(mean[0]), round(mean[1]), round(mean[2])))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def crop_face(
    image: Image.Image, box_xywh: Sequence[float], margins: Sequence[float] = (0.0, 0.0, 0.0, 0.0), size: int | None = None
) -> Image.Image:
    """Cut a detected face out as a square, as training pictures were cut.

    Args:
        image: RGB picture.
        box_xywh: left, top, width, height of the face, in pixels of ``image``.
        margins: left, top, right, bottom: how far the crop reaches beyond the box, as a share of the box's sides.
        size: side of the result in pixels; by default that of the crop.

    The crop is widened to a square around its centre; where it leaves the picture, the picture's edge is repeated.
    """
    x, y, width, height = map(float, box_xywh)
    left, top, right, bottom = margins
    if not (width > 0 and height > 0 and all(map(math.isfinite, (x, y, width, height)))):
        raise ImageError(f"face box {tuple(box_xywh)}: width and height must be above 0")
    across, down = width * (1 + left + right), height * (1 + top + bottom)
    center_x, center_y = x - left * width + across / 2, y - top * height + down / 2
    side = max(across, down)
    wanted = size or max(1, round(side))
    scale = side / wanted
    return _warp(image, (scale, 0.0, center_x - side / 2, 0.0, scale, center_y - side / 2), wanted)


def align(image: Image.Image, landmarks: NDArray[np.floating], template: NDArray[np.floating], size: int) -> Image.Image:
    """Rotate, scale and shift a face so that its landmarks match the template (least squares, no mirroring).

    Args:
        image: RGB picture.
        landmarks: ``(K, 2)`` points x, y in pixels of ``image``, K >= 2, not all equal.
        template: ``(K, 2)`` target points in a picture of 128 by 128 pixels.
        size: side of the result in pixels.
    """
    forward = similarity(np.asarray(landmarks, dtype=np.float64), np.asarray(template, dtype=np.float64) * (size / 128))
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
    a, b, c, d, e, f = inverse[:2].reshape(-1).tolist()
    return _warp(image, (a, b, c, d, e, f), size)


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ``(2, 3)`` similarity transform that maps points ``(K, 2)`` closest to others (Umeyama, PAMI 1991, eq. 40-42)."""
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2 or len(source) < 2:
        raise InputError(f"landmarks {source.shape} and template {target.shape} must be the same K >= 2 points of x, y")
    source_mean, target_mean = source.mean(0), target.mean(0)
    spread = ((source - source_mean) ** 2).sum(1).mean()
    if not np.isfinite(spread) or spread < 1e-9:
        raise ImageError("landmarks all lie in one place; give the five points of a face")
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)
    u, singular, vt = np.linalg.svd(covariance)
    mirror = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    rotation = u @ np.diag(mirror) @ vt
    scale = float((singular * mirror).sum() / spread)
    shift = target_mean - scale * rotation @ source_mean
    return np.hstack([scale * rotation, shift[:, None]])


def _warp(image: Image.Image, inverse: tuple[float, float, float, float, float, float], size: int) -> Image.Image:
    """Sample a square of ``size`` pixels through the affine map from result to picture, both in pixel-edge coordinates.

    Before shrinking by more than two the picture is box-filtered, against aliasing.  Outside the picture its edge is repeated.
    """
    a, b, c, d, e, f = inverse
    shrink = max(1, int(math.sqrt(abs(a * e - b * d))))
    if shrink > 1:
        image = image.reduce(shrink)
        a, b, c, d, e, f = (value / shrink for value in (a, b, c, d, e, f))
    corners = [(a * x + b * y + c, d * x + e * y + f) for x, y in ((0, 0), (size, 0), (0, size), (size, size))]
    outside = [v for x, y in corners for v in (-x, -y, x - image.width, y - image.height)]
    border = math.ceil(max(0.0, *outside)) + 2
    if border > 4 * max(image.size):
        raise ImageError("the face lies outside the picture; give a box or landmarks within it")
    padded = np.pad(np.asarray(image.convert("RGB")), ((border, border), (border, border), (0, 0)), mode="edge")
    shifted = (a, b, c + border, d, e, f + border)
    return Image.fromarray(padded).transform((size, size), Image.Transform.AFFINE, shifted, Image.Resampling.BICUBIC)


def image_grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Return a contact sheet of pictures of one size, in rows from left to right, by default nearly square; empty places are white."""
    if not images:
        raise InputError("image grid: no pictures to lay out")
    if len({image.size for image in images}) != 1:
        raise InputError(f"image grid: pictures of different sizes {sorted({image.size for image in images})}")
    columns = columns or math.ceil(math.sqrt(len(images)))
    if columns < 1:
        raise InputError(f"image grid: columns must be at least 1, got {columns}")
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), _BACKGROUND)
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet
