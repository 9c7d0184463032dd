"""Guard for untrusted image bytes: every limit is checked before a decoder allocates memory.

Checks in order: file size; kind by its first bytes (JPEG, PNG or WebP, never by name); structure (number of parts, PNG chunk lengths, no
animation); dimensions in the header; estimated decoding time (:mod:`.cost`); then the decoder of that one kind.  A 750 KB file can hold
256 million pixels, and a file of 4 MiB can take half a minute to decode.

>>> decode(b"GIF89a...")
Traceback (most recent call last):
f2edge.errors.ImageError: the image is not a JPEG, PNG or WebP; convert it to one of these
"""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from f2edge.errors import ImageError
from f2edge.imaging.cost import decode_ms, webp_size

if TYPE_CHECKING:
    from PIL import Image

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ImageLimits:
    """Accepted file size, sides (pixels), number of pixels, ratio of the longer to the shorter side, and estimated decoding time."""

    largest_bytes: int = 4 << 20
    smallest_side: int = 16
    largest_side: int = 4096
    largest_pixels: int = 16_000_000
    largest_ratio: float = 20.0
    largest_decode_ms: float = 1000.0


DEFAULT_LIMITS = ImageLimits()


def read_file(path: str | os.PathLike[str], limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """Return the bytes of a regular file, read up to one byte beyond the size limit; raises :class:`ImageError`."""
    name = os.fspath(path)
    try:
        # Opening a named pipe would block until a writer opens it.
        data = _read(Path(name), limits.largest_bytes + 1) if stat.S_ISREG(Path(name).stat().st_mode) else None
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file; check the path of the image") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name[:200]!r}: cannot be read ({reason}); check the path of the image") from error
    if data is None:
        raise ImageError(f"{name}: is not a regular file; give the path of a JPEG, PNG or WebP")
    return data


def _read(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def decode(data: bytes, *, name: str = "the image", limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Return the decoded picture, fully loaded, in its stored mode and orientation.

    Raises:
        ImageError: names the image, the rule that it breaks and the cure.
    """
    if len(data) > limits.largest_bytes:
        raise ImageError(f"{name} is larger than {limits.largest_bytes / 2**20:.3g} MiB; save it smaller")
    kind = kind_of(data)
    if kind is None:
        if not data:
            raise ImageError(f"{name} is empty (0 bytes); give a JPEG, PNG or WebP")
        raise ImageError(f"{name} is not a JPEG, PNG or WebP; convert it to one of these")
    work_ms = decode_ms(data, kind, name)
    if kind == "PNG":
        _check_png(data, name)
    if kind == "WEBP":
        _check_webp(data, name, limits)
    return _decode(data, kind, name, limits, work_ms)


def kind_of(data: bytes) -> str | None:
    """Return the kind of a file by its first bytes: "PNG", "JPEG", "WEBP"; None for anything else."""
    if data.startswith(_PNG_MAGIC):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def _damaged(name: str, what: str) -> ImageError:
    return ImageError(f"{name} is damaged ({what}); save or send it again")


def _animated(name: str) -> ImageError:
    return ImageError(f"{name} is animated; give a single picture")


def _check_png(data: bytes, name: str) -> None:
    """Check that chunk lengths lie within the file (a wrong length makes some readers allocate gigabytes) and that IEND is present."""
    position = len(_PNG_MAGIC)
    while True:
        if position + 12 > len(data):
            raise _damaged(name, "PNG ends early")
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if position > len(data):
            raise _damaged(name, "PNG ends early")
        if kind == b"acTL":
            raise _animated(name)
        if kind == b"IEND":
            return


def _check_webp(data: bytes, name: str, limits: ImageLimits) -> None:
    """Check size and animation in the RIFF chunks: the decoder allocates the canvas when it opens the file."""
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise _damaged(name, "WebP ends early")
    position = 12
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, position)
        body = data[position + 8 : position + 18]
        if position + 8 + length > end:
            raise _damaged(name, "WebP ends early")
        if kind in (b"ANIM", b"ANMF") or (kind == b"VP8X" and body[:1] and body[0] & 0x02):
            raise _animated(name)
        if len(body) == 10 and kind in (b"VP8X", b"VP8 ", b"VP8L"):
            check_dimensions(webp_size(kind, body), name, limits)
        position += 8 + length + length % 2


def check_dimensions(size_wh: tuple[int, int], name: str, limits: ImageLimits) -> None:
    """Raise :class:`ImageError` for a picture size outside the limits."""
    shorter, longer = sorted(size_wh)
    size = f"{size_wh[0]} x {size_wh[1]}"
    if shorter < limits.smallest_side:
        raise ImageError(f"{name} is {size} pixels; its sides must have {limits.smallest_side} at least; give a larger picture")
    if longer > limits.largest_side:
        raise ImageError(f"{name} is {size} pixels; its sides may have {limits.largest_side} at most; scale it down")
    if shorter * longer > limits.largest_pixels:
        raise ImageError(f"{name} is {size} pixels, more than {limits.largest_pixels / 1e6:g} million; scale it down")
    if longer > limits.largest_ratio * shorter:
        raise ImageError(f"{name} is {size} pixels, longer than {limits.largest_ratio:g} times its width; crop it")


def _check_work(work_ms: float, name: str, limits: ImageLimits) -> None:
    if work_ms > limits.largest_decode_ms:
        raise ImageError(f"{name} would take too long to decode; scale it down, or save it as a JPEG that is not progressive")


def _decode(data: bytes, kind: str, name: str, limits: ImageLimits, work_ms: float) -> Image.Image:
    """Open with the one decoder of that kind.  ``Image.open`` would also try MPO (a JPEG with a second picture for depth or stereo)."""
    from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    decoders: dict[str, Callable[[io.BytesIO], Image.Image]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
    }
    try:
        image = decoders[kind](io.BytesIO(data))
        check_dimensions(image.size, name, limits)
        _check_work(work_ms, name, limits)
        image.load()
    except ImageError:
        raise
    except Exception as error:  # decoders raise SyntaxError, OSError, struct.error, KeyError, ValueError …
        raise _damaged(name, f"{kind} cannot be decoded") from error
    return image
