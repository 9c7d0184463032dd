"""Corner cases of labels and content credentials: several packets and stores, cut ones, huge ones."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from f2edge.errors import ImageError
from f2edge.provenance.inspection import find_marks
from f2edge.provenance.label import EDITED, GENERATED, Label, label, read_label, xmp_packet
from f2edge.provenance.saving import encode

SAID = label(prompt="a face", seed=7, bundle="nano")
OTHER = Label("http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture", "a camera")
EMPTY = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


def picture(side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def itxt(packet: bytes, *, compressed: bool = False) -> bytes:
    body = zlib.compress(packet) if compressed else packet
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0" + (b"\1\0" if compressed else b"\0\0") + b"\0\0" + body)


def png_with(*chunks: bytes, behind: bool = True) -> bytes:
    """A plain PNG with more chunks before its end, or right after its header."""
    plain = encode(picture(), "PNG", None)
    place = len(plain) - 12 if behind else 33
    return plain[:place] + b"".join(chunks) + plain[place:]


def jpeg_with(*packets: bytes) -> bytes:
    plain = encode(picture(), "JPEG", None)
    bodies = [b"http://ns.adobe.com/xap/1.0/\0" + packet for packet in packets]
    return plain[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in bodies) + plain[2:]


def webp_with(*packets: bytes) -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, "WEBP", xmp=packets[0])
    data = buffer.getvalue()
    for packet in packets[1:]:
        data += b"XMP " + struct.pack("<I", len(packet)) + packet + b"\0" * (len(packet) % 2)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def with_packets(kind: str, *packets: bytes) -> bytes:
    if kind == "PNG":
        return png_with(*map(itxt, packets))
    return jpeg_with(*packets) if kind == "JPEG" else webp_with(*packets)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("hiding", [EMPTY, xmp_packet(OTHER), b"<broken", b"\xff\xfe"], ids=["empty", "camera", "broken", "bytes"])
def test_a_second_packet_hides_no_label(kind: str, hiding: bytes) -> None:
    for packets in ((xmp_packet(SAID), hiding), (hiding, xmp_packet(SAID))):
        data = with_packets(kind, *packets)
        assert read_label(data) == SAID
        assert find_marks(data).synthetic


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_without_a_model_the_first_label_counts(kind: str) -> None:
    assert read_label(with_packets(kind, xmp_packet(OTHER), EMPTY)) == OTHER
    assert read_label(with_packets(kind, EMPTY)) is None
    edited = label(prompt="p", seed=1, bundle="b", edited=True)
    first = read_label(with_packets(kind, xmp_packet(edited), xmp_packet(SAID)))
    assert first is not None
    assert first.source_type == EDITED != GENERATED


def test_chunks_before_the_pixels_and_compressed_ones_are_read() -> None:
    assert read_label(png_with(itxt(xmp_packet(SAID)), behind=False)) == SAID
    assert read_label(png_with(itxt(xmp_packet(SAID), compressed=True))) == SAID


@pytest.mark.parametrize(
    "bad",
    [
        chunk(b"iTXt", b"XML:com.adobe.xmp\0"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + b"not zlib"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\7\0\0" + zlib.compress(xmp_packet(SAID))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<" * (1 << 20))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x>" * 300_000),
        chunk(b"caBX", b""),
        chunk(b"caBX", b"\0\0\0\x10jumb"),
        chunk(b"caBX", b"\xff" * (8 << 20)),
        chunk(b"zzZz", b"\0" * (8 << 20)),
        *([itxt(b"<x/>") * 2000]),
    ],
    ids=["no text", "no zlib", "unknown method", "bomb", "long", "empty caBX", "cut caBX", "huge caBX", "huge unknown", "many"],
)
def test_malformed_chunks_give_a_verdict(bad: bytes) -> None:
    marked = png_with(itxt(xmp_packet(SAID)), bad, behind=False)
    try:
        marks = find_marks(marked)
    except ImageError:
        return  # refused by the guard or the decoder, in one line
    assert marks.label == SAID
    assert marks.credentials is None or marks.credentials.state == "invalid"
