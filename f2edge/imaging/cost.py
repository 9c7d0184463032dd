"""What a picture will cost its decoder, read from its structure alone: no pixel is decoded, and the walk itself is bounded.

A progressive JPEG of 4 MiB can hold 400,000 scans, each of which visits every block; a PNG 340,000 chunks, each of which its reader turns
into objects.  The estimate is in milliseconds of one core of an AMD EPYC (Zen 4), from timings of Pillow 13 over pictures of 12 million
pixels; it is meant to be right within a third, and high rather than low.

>>> from f2edge.imaging.images.cost import decode_ms                                               # doctest: +SKIP
>>> decode_ms(data, "JPEG", "the image")                                                    # doctest: +SKIP
1.3
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from f2edge.errors import ImageError

#: Segments of a JPEG and chunks of a PNG or WebP; each is a few microseconds of Python in Pillow.
_MOST_PARTS = 4096
_MOST_FILL_BYTES = 4096
#: Of quantisation and Huffman tables together.
_MOST_TABLE_BYTES = 64 << 10
#: A marker inside entropy-coded data: no stuffed zero, no restart marker, no fill byte.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SOF_BASELINE, _SOF_EXTENDED, _SOF_PROGRESSIVE = 0xC0, 0xC1, 0xC2
_OTHER_SOF = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8}
_DHT, _DQT, _SOI, _EOI, _SOS, _TEM, _DNL, _DHP, _EXP = 0xC4, 0xDB, 0xD8, 0xD9, 0xDA, 0x01, 0xDC, 0xDE, 0xDF
_STANDALONE = frozenset({_SOI, _TEM, *range(0xD0, 0xD8)})
_BLOCK = 8

# Nanoseconds on the machine named above.
_NS_PIXEL_OF_JPEG, _NS_BLOCK_OF_SCAN, _NS_BYTE_OF_JPEG = 6.0, 55.0, 8.0
_NS_BYTE_OF_ROW, _NS_BYTE_OF_WIDE_ROW, _NS_ALPHA, _NS_INTERLACED = 4.5, 7.0, 10.0, 5.0
_NS_PIXEL_OF_WEBP, _NS_BYTE_OF_WEBP = 12.0, 45.0
#: Lossless WebP: 16 pixels may have Huffman codes of their own, written in 20 bits; their tables take 5.6 KB.
_NS_GROUP, _MOST_GROUPS, _PIXELS_OF_GROUP, _BITS_OF_GROUP = 7000.0, 1 << 16, 16, 20
_NS_PART, _NS_INFLATED_TEXT = 3000.0, 4e6
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_COMPRESSED_TEXT = (b"zTXt", b"iTXt", b"iCCP")


def decode_ms(data: bytes, kind: str, name: str) -> float:
    """Return the estimated time that decoding takes.

    Args:
        data: the whole file.
        kind: "JPEG", "PNG" or "WEBP", by its first bytes.
        name: of the picture, for errors.

    Raises:
        ImageError: a structure that no ordinary program writes, or one that is damaged.
    """
    return {"JPEG": _jpeg_ns, "PNG": _png_ns, "WEBP": _webp_ns}[kind](data, name) / 1e6


def _damaged(name: str, why: str) -> ImageError:
    return ImageError(f"{name} is damaged ({why}); save or send it again")


def _unusual(name: str, what: str) -> ImageError:
    return ImageError(f"{name} {what}; save it again as an ordinary JPEG or PNG")


@dataclass
class _Jpeg:
    """What the walk over a JPEG has seen: size in pixels, blocks of each component, blocks visited by all scans, parts."""

    pixels: int = 0
    blocks: dict[int, int] = field(default_factory=dict)
    progressive: bool = False
    visited: int = 0
    parts: int = 0
    table_bytes: int = 0

    def frame(self, marker: int, body: bytes, name: str) -> None:
        """Take in a start of frame."""
        if self.blocks or len(body) < 6 or len(body) < 6 + 3 * body[5]:
            raise _damaged(name, "a JPEG header that is cut off, or a second one")
        height, width = struct.unpack_from(">HH", body, 1)
        parts = [(body[at], body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, 6 + 3 * body[5], 3)]
        across, down = max((h for _, h, _ in parts), default=0), max((v for _, _, v in parts), default=0)
        if not (parts and across and down and all(h and v for _, h, v in parts)):
            raise _damaged(name, "a JPEG header without a size")
        self.pixels, self.progressive = width * height * max(3, len(parts)) // 3, marker == _SOF_PROGRESSIVE
        for number, h, v in parts:
            self.blocks[number] = -(-width * h // (across * _BLOCK)) * -(-height * v // (down * _BLOCK))

    def scan(self, body: bytes) -> None:
        """Take in a start of scan."""
        count = body[0] if body else 0
        self.visited += sum(self.blocks.get(body[at], 0) for at in range(1, min(1 + 2 * count, len(body)), 2))


def _jpeg_ns(data: bytes, name: str) -> float:
    seen, position, fill = _Jpeg(), 2, 0
    while position + 1 < len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0x00:
            raise _damaged(name, "bytes between the parts of a JPEG")
        if marker == 0xFF:
            fill += 1
            position += 1
        elif marker == _EOI:
            break
        elif marker in _STANDALONE:
            position += 2
            seen.parts += 1
        else:
            position = _jpeg_segment(data, position, marker, seen, name)
        if seen.parts > _MOST_PARTS or fill > _MOST_FILL_BYTES or seen.table_bytes > _MOST_TABLE_BYTES:
            raise _unusual(name, "is a JPEG of too many parts")
    extra = seen.visited if seen.progressive else max(0, seen.visited - sum(seen.blocks.values()))
    return seen.pixels * _NS_PIXEL_OF_JPEG + extra * _NS_BLOCK_OF_SCAN + len(data) * _NS_BYTE_OF_JPEG + seen.parts * _NS_PART


def _jpeg_segment(data: bytes, position: int, marker: int, seen: _Jpeg, name: str) -> int:
    """Take in one segment; returns where the next begins."""
    if position + 4 > len(data):
        raise _damaged(name, "JPEG ends early")
    length = int.from_bytes(data[position + 2 : position + 4], "big")
    end = position + 2 + length
    if length < 2 or end > len(data):
        raise _damaged(name, "JPEG ends early")
    seen.parts += 1
    if marker in _OTHER_SOF or marker in (_DNL, _DHP, _EXP):
        raise _unusual(name, "is coded as few JPEGs are (lossless, hierarchical or arithmetic)")
    if marker in (_SOF_BASELINE, _SOF_EXTENDED, _SOF_PROGRESSIVE):
        seen.frame(marker, data[position + 4 : end], name)
    elif marker in (_DHT, _DQT):
        seen.table_bytes += length
    elif marker == _SOS:
        seen.scan(data[position + 4 : end])
        found = _NEXT_MARKER.search(data, end)
        return len(data) if found is None else found.start()
    return end


def _png_ns(data: bytes, name: str) -> float:
    position, parts, texts, alpha = 8, 0, 0, False
    row_ns = pixels = 0.0
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        parts += 1
        if parts > _MOST_PARTS:
            raise _unusual(name, "is a PNG of too many parts")
        if kind == b"IHDR" and length == 13 and position + 21 <= len(data):
            width, height, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, position + 8)
            bits = depth * _PNG_CHANNELS.get(color, 4)
            pixels, alpha = float(width * height), color in (4, 6)
            row_ns = pixels * bits / 8 * (_NS_BYTE_OF_WIDE_ROW if depth == 16 else _NS_BYTE_OF_ROW) + pixels * _NS_INTERLACED * interlaced
        texts += kind in _COMPRESSED_TEXT
        alpha = alpha or kind == b"tRNS"
        position += 12 + length
        if kind == b"IEND":
            break
    return row_ns + pixels * _NS_ALPHA * alpha + parts * _NS_PART + texts * _NS_INFLATED_TEXT


def _webp_ns(data: bytes, name: str) -> float:
    position, parts, pixels, alpha, lossless = 12, 0, 0, False, 0
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        body = data[position + 8 : position + 18]
        parts += 1
        if parts > _MOST_PARTS:
            raise _unusual(name, "is a WebP of too many parts")
        if kind in (b"VP8 ", b"VP8L") and len(body) == 10:
            width, height = webp_size(kind, body)
            pixels += width * height
            alpha = alpha or (kind == b"VP8L" and bool(body[4] & 0x10))
        alpha = alpha or kind == b"ALPH"
        lossless += length if kind in (b"VP8L", b"ALPH") else 0
        position += 8 + length + length % 2
    groups = min(_MOST_GROUPS, pixels // _PIXELS_OF_GROUP, lossless * 8 // _BITS_OF_GROUP)
    colors = pixels * (_NS_PIXEL_OF_WEBP + _NS_ALPHA * alpha)
    return colors + groups * _NS_GROUP + len(data) * _NS_BYTE_OF_WEBP + parts * _NS_PART


def webp_size(kind: bytes, body: bytes) -> tuple[int, int]:
    """Return width and height in the first ten bytes of a canvas, a lossy or a lossless frame."""
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    bits = int.from_bytes(body[1:5], "little")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
