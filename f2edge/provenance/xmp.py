"""All XMP packets of a picture's file.  Pillow keeps one, the last of a PNG or JPEG, so a second packet could hide the first."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

_PNG_KEYWORD = b"XML:com.adobe.xmp\0"
_JPEG_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
#: Of a packet in a compressed chunk; longer ones are cut off and then parse as nothing.
_LARGEST_BYTES = (1 << 16) + 1


def xmp_packets(image: Image.Image, data: bytes) -> Iterator[bytes]:
    """Yield the XMP packets of a decoded picture in the order of the file.

    Args:
        image: picture decoded from ``data`` behind the image guard, which has checked the lengths of all chunks.
        data: bytes of its PNG, JPEG or WebP file.
    """
    if image.format == "PNG":
        yield from _png_packets(data)
    elif image.format == "JPEG":
        segments = getattr(image, "applist", [])
        yield from (body[len(_JPEG_HEADER) :] for name, body in segments if name == "APP1" and body.startswith(_JPEG_HEADER))
    else:
        yield from _webp_packets(data)


def _png_packets(data: bytes) -> Iterator[bytes]:
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        if kind == b"iTXt" and body.startswith(_PNG_KEYWORD):
            yield _text(body[len(_PNG_KEYWORD) :])
        position += 12 + length


def _text(rest: bytes) -> bytes:
    """Return the text of an ``iTXt`` chunk behind its keyword: two flags, language, translated keyword, text; b"" if malformed."""
    compressed, method = rest[:1], rest[1:2]
    parts = rest[2:].split(b"\0", 2)
    if len(parts) < 3:
        return b""
    if compressed != b"\1":
        return parts[2]
    try:
        return zlib.decompressobj().decompress(parts[2], _LARGEST_BYTES) if method == b"\0" else b""
    except zlib.error:
        return b""


def _webp_packets(data: bytes) -> Iterator[bytes]:
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"XMP ":
            yield data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
