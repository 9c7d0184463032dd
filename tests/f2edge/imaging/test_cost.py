"""What a picture costs is known before it is decoded: bombs are refused at once, and ordinary pictures are not."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from itertools import islice
from typing import Any

import pytest
from PIL import Image, ImageFile

from bench.load.wire.pictures import bombs, damaged, encoded, jpeg, smooth
from f2edge.errors import ImageError
from f2edge.imaging.cost import decode_ms
from f2edge.imaging.guard import kind_of
from f2edge.imaging.images import load_image
from f2edge.server.settings import PICTURES

BOMBS: Mapping[str, bytes] = bombs()
#: Those that are large and no more: their limit is what an ordinary picture of their size costs.
CHEAP = frozenset({"a JPEG whose EXIF repeats one tag 5,000 times"})


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class of every picture whose pixels are decoded."""
    seen: list[str] = []
    load = ImageFile.ImageFile.load

    def noted(image: ImageFile.ImageFile) -> Any:
        seen.append(type(image).__name__)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", noted)
    return seen


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(bomb: str, decoded: list[str]) -> None:
    """The worst took 31 s of processor time before."""
    assert len(BOMBS[bomb]) <= 4 << 20
    if bomb in CHEAP:
        assert load_image(BOMBS[bomb], limits=PICTURES).size == (64, 64)
        return
    with pytest.raises(ImageError, match=r"^the image "):
        load_image(BOMBS[bomb], limits=PICTURES)
    assert decoded == []


ORDINARY = {
    "a telephone's photograph": jpeg(4032, 3024, quality=80),
    "a progressive photograph": jpeg(2048, 1536, progressive=True),
    "a progressive photograph in full colour": jpeg(1600, 1200, progressive=True, subsampling=0),
    "a telephone's screen": encoded(smooth(1440, 3200), "PNG"),
    "a screen with alpha": encoded(smooth(1920, 1080, "RGBA"), "PNG"),
    "a palette": encoded(smooth(640, 480, "P"), "PNG", transparency=0),
    "16 bits": encoded(smooth(1024, 768, "I;16"), "PNG"),
    "a WebP": encoded(smooth(2048, 1536), "WEBP"),
    "a WebP without loss": encoded(smooth(1600, 1200, "RGBA"), "WEBP", lossless=True),
    "CMYK": encoded(smooth(1024, 1024, "CMYK"), "JPEG"),
    "gray": encoded(smooth(3000, 3000, "L"), "JPEG"),
    "a colour profile": encoded(smooth(64, 64), "JPEG", icc_profile=bytes(200_000)),
    "a long comment": encoded(smooth(64, 64), "JPEG", comment=b"x" * 60_000),
    "fill bytes between segments": jpeg(64, 64)[:2] + b"\xff" * 7 + jpeg(64, 64)[2:],
    "restart markers": encoded(smooth(512, 512), "JPEG", restart_marker_rows=1),
}


@pytest.mark.parametrize("what", ORDINARY)
def test_ordinary_pictures_are_within_the_limit(what: str) -> None:
    picture = load_image(ORDINARY[what], limits=PICTURES)
    assert isinstance(picture, Image.Image)
    assert 0 < decode_ms(ORDINARY[what], str(kind_of(ORDINARY[what])), what) <= PICTURES.largest_decode_ms


def test_the_estimate_grows_with_pixels_scans_and_bytes() -> None:
    def cost(data: bytes) -> float:
        return decode_ms(data, str(kind_of(data)), "the image")

    assert cost(jpeg(64, 64)) < cost(jpeg(512, 512)) < cost(jpeg(512, 512, progressive=True))
    assert cost(jpeg(512, 512, progressive=True)) < cost(jpeg(512, 512, progressive=True, subsampling=0))
    whole = jpeg(512, 512, progressive=True)
    assert cost(whole[:-2] + bytes.fromhex("ffda0008010100010100") * 100) == pytest.approx(cost(whole) + 100 * 64 * 64 * 55e-6, rel=0.2)
    assert cost(encoded(smooth(512, 512), "PNG")) < cost(encoded(smooth(512, 512, "RGBA"), "PNG"))


@pytest.mark.parametrize("marker", [0xC3, 0xC9, 0xCA, 0xCB, 0xCD])
def test_codings_that_few_programs_write_are_refused(marker: int) -> None:
    data = jpeg(64, 64).replace(b"\xff\xc0", bytes([0xFF, marker]))
    with pytest.raises(ImageError, match="coded as few JPEGs are"):
        load_image(data)


def test_damaged_pictures_are_decoded_or_refused() -> None:
    """Two thousand of them; any other error fails, and most are refused."""
    refusals = set()
    for data in islice(damaged(3), 2000):
        with contextlib.suppress(ImageError):
            load_image(data, limits=PICTURES)
            continue
        refusals.add(data)
    assert 1000 < len(refusals) < 2000
