"""Pictures that cost their reader far more than their size: image bombs of at most 4 MiB, and an endless supply of damaged pictures."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LARGEST_BYTES = 4 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
#: A scan of one coefficient of one component with no bits in it (10 bytes of header follow the marker).
_EMPTY_SCAN = bytes.fromhex("ffda0008010100010100")


def jpeg(width: int, height: int, **options: object) -> bytes:
    """Return a smooth JPEG."""
    return encoded(smooth(width, height), "JPEG", **options)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return a gradient; it compresses well in every kind."""
    rows = np.linspace(0, 255, width, dtype=np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows, (height, width)))).convert(mode)


def png_chunk(kind: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a chunk with its right checksum; ``length`` lies about its size."""
    size = len(body) if length is None else length
    return struct.pack(">I", size) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, color: int, between: bytes = b"", *, interlaced: bool = False, fill: bytes = b"\x00") -> bytes:
    """Return a PNG of one value, with chunks of the caller's between its header and its pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = b"\x00" + fill * ((width * depth * channels + 7) // 8)
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    palette = png_chunk(b"PLTE", bytes(768)) if color == 3 else b""
    return _PNG + png_chunk(b"IHDR", head) + between + palette + png_chunk(b"IDAT", zlib.compress(row * height, 1)) + png_chunk(b"IEND")


def many_scans(side: int, *, end: bool) -> bytes:
    """Return a progressive JPEG filled up with empty scans; without ``end`` it is truncated."""
    whole = jpeg(side, side, progressive=True)
    scans = (LARGEST_BYTES - len(whole) - 2) // len(_EMPTY_SCAN)
    return whole[:-2] + _EMPTY_SCAN * scans + (b"\xff\xd9" if end else b"")


def _segments(marker: int, body: bytes) -> bytes:
    """Return a JPEG with as many segments of one kind as fit."""
    whole = jpeg(64, 64)
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
    return whole[:2] + segment * ((LARGEST_BYTES - len(whole)) // len(segment)) + whole[2:]


def _filled(byte: bytes) -> bytes:
    whole = jpeg(64, 64)
    return whole[:2] + byte * (LARGEST_BYTES - len(whole)) + whole[2:]


def _exif(entries: int) -> bytes:
    """Return a JPEG whose EXIF directory has so many entries."""
    directory = struct.pack("<H", entries) + struct.pack("<HHII", 0x0112, 3, 1, 1) * entries + bytes(4)
    body = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory
    whole = jpeg(64, 64)
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + whole[2:]


def _riff(chunks: bytes) -> bytes:
    body = b"WEBP" + chunks
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _many_riff_chunks() -> bytes:
    inside = encoded(smooth(64, 64), "WEBP")[12:]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (63).to_bytes(3, "little") * 2
    return _riff(extended + inside + (b"JUNK" + bytes(4)) * ((LARGEST_BYTES - len(inside) - 60) // 8))


class _Bits:
    """Bits as lossless WebP has them, lowest first."""

    def __init__(self) -> None:
        self._bits: list[int] = []

    def write(self, value: int, count: int) -> None:
        self._bits.extend(value >> at & 1 for at in range(count))

    def extend(self, bits: NDArray[np.uint8]) -> None:
        self._bits.extend(bits.tolist())

    def code(self, *, symbols: int = 0, used: int = 0, only: int = 0) -> None:
        """Write a Huffman code: of ``used`` symbols of 8 bits each, or of ``only`` one that takes no bits."""
        if not used:
            self.write(0b101 | only << 3, 11)  # one symbol of eight bits
            return
        self.write(0 | 8 << 1, 5)
        for length in (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8):
            self.write(length in (0, 8), 3)
        self.write(0, 1)
        self._bits.extend(symbol < used for symbol in range(symbols))

    def data(self) -> bytes:
        return np.packbits(np.array(self._bits, dtype=np.uint8), bitorder="little").tobytes()


def huffman_groups(side: int = 1024) -> bytes:
    """Return a lossless WebP every 16 pixels of which have Huffman codes of their own."""
    bits, groups = _Bits(), (side // 4) ** 2
    bits.write(0x2F, 8)
    bits.write((side - 1) | (side - 1) << 14, 32)  # no alpha, version 0
    bits.write(0b100, 3)  # no transform, no colour cache, codes of their own …
    bits.write(0, 4)  # … for every 4 x 4 pixels; the picture that says which has no colour cache
    bits.code(symbols=280, used=256)
    bits.code(symbols=256, used=256)
    for only in (0, 255, 0):
        bits.code(only=only)
    numbers = np.arange(groups, dtype="<u2").view(np.uint8)  # codes of eight bits are written highest bit first
    bits.extend(np.unpackbits(numbers))
    bits.extend(np.tile(np.array([1, 0, 0, 0], dtype=np.uint8), groups * 5))  # codes of one symbol of one bit
    data = bits.data() + bytes(64)
    data += bytes(len(data) % 2)
    return _riff(b"VP8L" + struct.pack("<I", len(data)) + data)


def bombs() -> Mapping[str, bytes]:
    """Return every bomb by what it is."""
    text = png_chunk(b"tEXt", b"k\0v")
    return {
        "a progressive JPEG of 400,000 empty scans": many_scans(64, end=True),
        "the same of 1024 by 1024 pixels": many_scans(1024, end=True),
        "the same of 4096 by 3072 pixels, truncated": many_scans(3072, end=False),
        "a JPEG of a million empty segments": _segments(0xE5, b""),
        "a JPEG of 800,000 empty comments": _segments(0xFE, b"x"),
        "a JPEG of 60,000 quantisation tables": _segments(0xDB, bytes(65)),
        "a JPEG of 200,000 Huffman tables": _segments(0xC4, b"\x00" + bytes(16)),
        "a JPEG of four million fill bytes": _filled(b"\xff"),
        "a JPEG of four million bytes between segments": _filled(b"\x00"),
        "a JPEG whose EXIF repeats one tag 5,000 times": _exif(5000),
        "a PNG of 280,000 text chunks": png(64, 64, 8, 2, text * ((LARGEST_BYTES - 1000) // len(text))),
        "a PNG of 340,000 unknown chunks": png(64, 64, 8, 2, png_chunk(b"juNK") * ((LARGEST_BYTES - 1000) // 12)),
        "an interlaced PNG of 12 million pixels, 16 bits, alpha": png(4096, 3072, 16, 6, interlaced=True),
        "a PNG of 12 million pixels, 16 bits, alpha": png(4096, 3072, 16, 6),
        "a PNG of 12 million pixels with alpha": png(4096, 3072, 8, 6),
        "an interlaced PNG of 12 million pixels": png(4096, 3072, 8, 2, interlaced=True),
        "a palette PNG of 12 million pixels with transparency": png(4096, 3072, 8, 3, png_chunk(b"tRNS", b"\x00")),
        "a gray PNG of 12 million pixels of 16 bits with alpha": png(4096, 3072, 16, 4),
        "a WebP of 500,000 chunks": _many_riff_chunks(),
        "a lossless WebP of 65,536 groups of Huffman codes": huffman_groups(),
        "a lossless WebP of 12 million pixels": encoded(smooth(4096, 3072), "WEBP", lossless=True),
        "a lossy WebP of 12 million pixels": encoded(smooth(4096, 3072), "WEBP"),
        "a progressive JPEG of 12 million pixels in CMYK": encoded(smooth(4096, 3072, "CMYK"), "JPEG", progressive=True),
    }


def damaged(seed: int) -> Iterator[bytes]:
    """Yield small pictures of every kind with a few bytes changed, moved or cut off, without end."""
    rng = random.Random(seed)  # noqa: S311
    sources = [
        encoded(smooth(side, side + 9, mode), kind, **options)
        for side in (40, 200)
        for kind, mode, options in (
            ("PNG", "RGB", {}),
            ("PNG", "RGBA", {}),
            ("PNG", "P", {}),
            ("JPEG", "RGB", {}),
            ("JPEG", "RGB", {"progressive": True}),
            ("JPEG", "CMYK", {}),
            ("WEBP", "RGB", {}),
            ("WEBP", "RGBA", {"lossless": True}),
        )
    ]
    while True:
        data = bytearray(rng.choice(sources))
        for _ in range(rng.randrange(1, 9)):
            at = rng.randrange(len(data) + 1)
            how = rng.randrange(5)
            if how == 0 and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            elif how == 1:
                data[at : at + rng.randrange(8)] = rng.randbytes(rng.randrange(8))
            elif how == 2:
                data[at:at] = data[rng.randrange(len(data) + 1) :][:200]
            elif how == 3 and at < len(data):
                data[at] = rng.choice((0, 255, 127, 128))
            elif rng.random() < 0.2:
                del data[at:]
        yield bytes(data)
