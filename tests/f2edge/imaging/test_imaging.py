"""Pictures in and out: the guard refuses before decoding, orientation and colour come out right, geometry is exact, files are whole."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from f2edge.errors import ImageError, InputError, OutputError
from f2edge.imaging import guard
from f2edge.imaging.guard import ImageLimits
from f2edge.imaging.images import align, crop_face, fit_square, from_pixels, image_grid, load_image, resize, similarity, to_pixels
from f2edge.provenance.label import EDITED, GENERATED, Label, label, read_label, xmp_packet
from f2edge.provenance.saving import check_writable, save_image

pytestmark = pytest.mark.runtime
FORMATS = ("PNG", "JPEG", "WEBP")


def encoded(image: Image.Image, kind: str, **arguments: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **arguments)
    return buffer.getvalue()


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    """Red, green over blue, white: every turn and flip of it is distinct."""
    values = np.zeros((height, width, 3), dtype=np.uint8)
    values[: height // 2, : width // 2] = (255, 0, 0)
    values[: height // 2, width // 2 :] = (0, 255, 0)
    values[height // 2 :, : width // 2] = (0, 0, 255)
    values[height // 2 :, width // 2 :] = (255, 255, 255)
    return Image.fromarray(values)


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference in 8-bit steps."""
    assert a.size == b.size
    return float(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).mean())


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 64)) + png_chunk(b"IEND", b"")


# The guard -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_all_three_kinds_are_read_from_bytes_and_files(tmp_path: Path, kind: str) -> None:
    data = encoded(quadrants(), kind)
    (tmp_path / "picture.with-any-name").write_bytes(data)
    for source in (data, bytearray(data), tmp_path / "picture.with-any-name", str(tmp_path / "picture.with-any-name")):
        image = load_image(source)  # type: ignore[arg-type]
        assert image.mode == "RGB"
        assert difference(image, quadrants()) < 4


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_kinds_are_refused_even_under_a_good_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "face.png"
    path.write_bytes(encoded(quadrants(), kind))
    with pytest.raises(ImageError, match=r"face\.png is not a JPEG, PNG or WebP; convert"):
        load_image(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        load_image("a\0b.png")
    with pytest.raises(ImageError, match=r"is empty \(0 bytes\)"):
        load_image(b"")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):  # and does not wait for a writer
        load_image(tmp_path / "pipe.png")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The PNG pictures whose pixels were decoded."""
    pictures: list[object] = []
    load = PngImagePlugin.PngImageFile.load

    def watched(self: PngImagePlugin.PngImageFile) -> object:
        pictures.append(self)
        return load(self)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", watched)
    return pictures


def test_the_fixture_sees_a_decoder_at_work(decoded: list[object]) -> None:
    load_image(encoded(quadrants(), "PNG"))
    assert len(decoded) >= 1


def test_a_file_above_the_limit_is_read_to_the_limit_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(encoded(quadrants(), "PNG"))
    os.truncate(path, 3 << 30)  # a sparse file of 3 GiB
    lengths: list[int] = []
    read = guard._read

    def watched(path: Path, length: int) -> bytes:
        lengths.append(length)
        return read(path, length)

    monkeypatch.setattr(guard, "_read", watched)
    with pytest.raises(ImageError, match=r"larger than 4 MiB; save it smaller"):
        load_image(path)
    assert lengths == [(4 << 20) + 1]


@pytest.mark.parametrize(
    ("size", "rule"),
    [
        ((15, 64), "at least"),
        ((64, 4097), "at most"),
        ((4090, 4090), "more than 16 million"),
        ((16, 400), "longer than 20 times"),
        ((60_000, 60_000), "at most"),
        ((0, 64), "at least|damaged"),
    ],
)
def test_dimensions_are_judged_by_the_header(size: tuple[int, int], rule: str, decoded: list[object]) -> None:
    with pytest.raises(ImageError, match=rule):
        load_image(png_claiming(*size))
    assert decoded == []


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_dimensions_of_jpeg_and_webp(kind: str) -> None:
    with pytest.raises(ImageError, match="4200 x 20 pixels"):
        load_image(encoded(Image.new("RGB", (4200, 20)), kind))
    with pytest.raises(ImageError, match="10 x 20 pixels"):
        load_image(encoded(Image.new("RGB", (10, 20)), kind, **({"lossless": True} if kind == "WEBP" else {})))


def test_a_webp_canvas_of_gigabytes_is_refused_before_the_decoder_sees_it() -> None:
    data = bytearray(encoded(quadrants().convert("RGBA"), "WEBP", xmp=b"<x/>", lossless=True))
    assert data[12:16] == b"VP8X"
    data[24:30] = (16383).to_bytes(3, "little") * 2
    with pytest.raises(ImageError, match="16384 x 16384 pixels"):
        load_image(bytes(data))


def test_a_bomb_of_a_few_hundred_kilobytes(decoded: list[object]) -> None:
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    try:
        bomb = encoded(Image.new("L", (12_000, 12_000)), "PNG")
    finally:
        Image.MAX_IMAGE_PIXELS = before
    assert len(bomb) < 1 << 20
    decoded.clear()
    with pytest.raises(ImageError, match="12000 x 12000"):
        load_image(bomb)
    assert decoded == []


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), (value, 0, 0)) for value in (10, 200)]
    with pytest.raises(ImageError, match="is animated; give a single picture"):
        load_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100))


def test_a_jpeg_with_a_second_picture_gives_its_first(tmp_path: Path) -> None:
    """Phones write such files (MPO) for depth and stereo; they are photographs and not animations."""
    data = encoded(quadrants(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))])
    assert difference(load_image(data), quadrants()) < 4


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files_are_refused_at_every_length(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    whole = encoded(noise, kind)
    load_image(whole)
    for length in sorted({1, 3, 8, 12, 20, 33, 60, len(whole) // 2, len(whole) * 9 // 10, len(whole) - 20}):
        with pytest.raises(ImageError, match=r"damaged|not a JPEG, PNG or WebP"):
            load_image(whole[:length])


def test_a_png_chunk_that_claims_two_gigabytes() -> None:
    data = bytearray(encoded(quadrants(), "PNG"))
    data[33:37] = struct.pack(">I", 0x7FFFFFFF)
    with pytest.raises(ImageError, match="PNG ends early"):
        load_image(bytes(data))


SEEDS = [encoded(quadrants(), kind) for kind in FORMATS] + [
    encoded(quadrants().convert("P"), "PNG"),
    encoded(quadrants().convert("CMYK"), "JPEG"),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 5000))
def test_mutated_bytes_give_a_picture_or_an_image_error(seed: bytes, edits: list[tuple[int, int]], length: int) -> None:
    data = bytearray(seed)
    for position, value in edits:
        data[position % len(data)] = value
    outcome = picture_or_message(bytes(data[:length] if length < len(data) and length % 2 else data))
    assert outcome.startswith("the image is ") or outcome == "RGB"


def picture_or_message(data: bytes) -> str:
    try:
        return load_image(data).mode
    except ImageError as error:
        return str(error)


def test_limits_can_be_set() -> None:
    data = encoded(quadrants(), "PNG")
    with pytest.raises(ImageError, match=r"larger than 9\.54e-05 MiB"):
        load_image(data, limits=ImageLimits(largest_bytes=100))
    with pytest.raises(ImageError, match="32 at most"):
        load_image(data, limits=ImageLimits(largest_side=32))


# Colour and orientation ------------------------------------------------------------------------------------------------------------------

TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,  # stored turned to the left, so that the viewer turns it to the right
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", TURNS)
def test_every_exif_orientation_comes_out_upright(kind: str, orientation: int) -> None:
    turn = TURNS[orientation]
    stored = quadrants() if turn is None else quadrants().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(encoded(stored, kind, exif=exif.tobytes()))
    assert difference(upright, quadrants()) < 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_exif_that_cannot_be_read_does_not_spoil_a_good_picture(exif: bytes) -> None:
    assert difference(load_image(encoded(quadrants(), "JPEG", exif=exif)), quadrants()) < 4


def test_transparency_is_laid_on_white() -> None:
    values = np.zeros((32, 32, 4), dtype=np.uint8)
    values[:16] = (200, 0, 0, 255)
    values[16:] = (0, 0, 0, 0)
    image = Image.fromarray(values)
    for data in (encoded(image, "PNG"), encoded(image, "WEBP", lossless=True), encoded(image.convert("LA"), "PNG")):
        loaded = load_image(data)
        assert loaded.getpixel((5, 30)) == (255, 255, 255)
        assert loaded.getpixel((5, 5)) != (255, 255, 255)
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert load_image(encoded(palette, "PNG", transparency=1)).getpixel((3, 3)) == (255, 255, 255)


def test_gray_sixteen_bits_palette_and_cmyk_become_rgb() -> None:
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64)
    sixteen = load_image(encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG"))
    assert difference(sixteen, Image.fromarray((ramp / 256).astype(np.uint8)).convert("RGB")) < 1
    assert difference(load_image(encoded(quadrants().convert("L"), "PNG")), quadrants().convert("L").convert("RGB")) == 0
    assert difference(load_image(encoded(quadrants().convert("P"), "PNG")), quadrants()) < 1
    assert difference(load_image(encoded(quadrants().convert("CMYK"), "JPEG")), quadrants()) < 4
    assert load_image(encoded(quadrants().convert("1"), "PNG")).mode == "RGB"


# Pixels and geometry ---------------------------------------------------------------------------------------------------------------------


def test_pixels_round_trip_exactly() -> None:
    image = Image.fromarray(np.arange(256 * 3, dtype=np.uint16).reshape(16, 16, 3).astype(np.uint8))
    pixels = to_pixels(image, 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == np.float32
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert difference(from_pixels(pixels), image) == 0
    assert pixels[1, 0, 2] == pytest.approx(image.getpixel((2, 0))[1] / 127.5 - 1)  # type: ignore[index]
    assert to_pixels(image, 32).shape == (3, 32, 32)


def test_pixels_are_clipped_and_checked() -> None:
    assert from_pixels(np.full((3, 16, 16), 7.0, dtype=np.float32)).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(InputError, match="shape"):
        from_pixels(np.zeros((16, 16, 3), dtype=np.float32))


def test_fit_square_crops_the_centre_or_pads() -> None:
    image = quadrants(80, 40)
    cropped = fit_square(image)
    assert cropped.size == (40, 40)
    assert difference(cropped, image.crop((20, 0, 60, 40))) == 0
    padded = fit_square(image, pad=True)
    assert padded.size == (80, 80)
    assert difference(padded.crop((0, 20, 80, 60)), image) == 0


def test_crop_face_cuts_box_and_margins_and_repeats_the_edge() -> None:
    image = quadrants(100, 100)
    assert difference(crop_face(image, (20, 30, 40, 40)), image.crop((20, 30, 60, 70))) < 1e-9
    wide = crop_face(image, (30, 30, 40, 40), margins=(0.25, 0.25, 0.25, 0.25))
    assert wide.size == (60, 60)
    assert difference(wide, image.crop((20, 20, 80, 80))) < 1e-9
    outside = crop_face(image, (-40, -40, 80, 80), size=80)
    assert outside.getcolors() == [(80 * 80, (255, 0, 0))]
    with pytest.raises(ImageError, match="above 0"):
        crop_face(image, (0, 0, 0, 10))
    with pytest.raises(ImageError, match="outside the picture"):
        crop_face(image, (1e6, 0, 10, 10))


@settings(max_examples=50, deadline=None)
@given(st.floats(-3.1, 3.1), st.floats(0.3, 4), st.floats(-100, 100), st.floats(-100, 100))
def test_similarity_recovers_the_map_it_was_given(angle: float, scale: float, dx: float, dy: float) -> None:
    points = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]])
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = similarity(points, points @ linear.T + [dx, dy])
    np.testing.assert_allclose(found, np.hstack([linear, [[dx], [dy]]]), atol=1e-8)


def test_align_puts_the_landmarks_on_the_template() -> None:
    """A face drawn as five dots, turned, scaled and shifted, comes back with its dots on the template."""
    template = np.array([[40, 50], [88, 50], [64, 70], [46, 92], [82, 92]], dtype=np.float64)
    angle, scale = 0.4, 1.7
    turned = (template - 64) @ (scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])) + [150, 130]
    values = np.zeros((260, 300, 3), dtype=np.float64)
    y, x = np.mgrid[:260, :300] + 0.5
    for point in turned:
        values += (255 * np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * 5**2)))[..., None]
    size = 256
    aligned = np.asarray(align(Image.fromarray(values.clip(0, 255).astype(np.uint8)), turned, template, size), dtype=np.float64)[..., 0]
    Y, X = np.mgrid[:size, :size] + 0.5
    for px, py in template * (size / 128):
        near = (abs(X - px) < 14) & (abs(Y - py) < 14)
        weight = aligned * near
        assert (X * weight).sum() / weight.sum() == pytest.approx(px, abs=0.3)
        assert (Y * weight).sum() / weight.sum() == pytest.approx(py, abs=0.3)


def test_align_never_mirrors_and_refuses_nonsense() -> None:
    points = np.array([[0, 0], [10, 0], [5, 8]], dtype=np.float64)
    mirrored = points * [-1, 1]
    found = similarity(points, mirrored)
    assert np.linalg.det(found[:, :2]) > 0
    with pytest.raises(ImageError, match="one place"):
        similarity(np.zeros((5, 2)), np.ones((5, 2)))
    with pytest.raises(InputError, match="same K"):
        similarity(np.zeros((5, 2)), np.ones((4, 2)))


def test_a_large_picture_is_filtered_before_it_shrinks() -> None:
    """A checkerboard of single pixels is gray from afar; sampling every eighth pixel would give black or white."""
    checks = np.indices((800, 800)).sum(0) % 2 * 255
    small = np.asarray(crop_face(Image.fromarray(checks.astype(np.uint8)).convert("RGB"), (0, 0, 800, 800), size=100))
    assert abs(small.astype(int) - 127).max() <= 2


def test_grid_and_resize() -> None:
    faces = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (10, 20, 30)]
    sheet = image_grid(faces)
    assert sheet.size == (16, 16)
    assert [sheet.getpixel(at) for at in ((0, 0), (8, 0), (0, 8), (8, 8))] == [(10, 0, 0), (20, 0, 0), (30, 0, 0), (255, 255, 255)]
    assert image_grid(faces, columns=3).size == (24, 8)
    with pytest.raises(InputError, match="no pictures"):
        image_grid([])
    with pytest.raises(InputError, match="different sizes"):
        image_grid([faces[0], quadrants()])
    assert resize(quadrants(64, 48), 128).size == (128, 96)


# Saving and labels -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_saved_pictures_carry_their_label(tmp_path: Path, suffix: str) -> None:
    prompt = 'a "smiling" woman & <b>ö\U0001f600</b>'
    made = label(prompt=prompt, seed=2**40, bundle="nano")
    path = save_image(quadrants(), tmp_path / f"face{suffix}", made)
    assert difference(load_image(path), quadrants()) < 4
    found = read_label(path)
    assert found == made
    assert found.source_type == GENERATED
    assert found.synthetic
    assert b"trainedAlgorithmicMedia" in path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == [f"face{suffix}"], "no temporary file stays"


def test_png_repeats_the_label_as_text(tmp_path: Path) -> None:
    path = save_image(quadrants(), tmp_path / "face.png", label(prompt="a face", seed=7, bundle="nano"))
    with Image.open(path) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert {key: str(image.text[key]) for key in ("prompt", "seed", "bundle")} == {"prompt": "a face", "seed": "7", "bundle": "nano"}


def test_edited_pictures_say_composite() -> None:
    made = label(prompt="p", seed=1, bundle="b", edited=True)
    assert made.source_type == EDITED
    assert made.synthetic
    assert not Label("http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture").synthetic


def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_image(quadrants(), tmp_path / name, label(prompt="a face", seed=7, bundle="nano"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_labels_of_strangers(tmp_path: Path) -> None:
    assert read_label(encoded(quadrants(), "PNG")) is None
    as_element = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description>'
        b'<e:DigitalSourceType xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">http://x/digitalCapture</e:DigitalSourceType>'
        b"</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    found = read_label(encoded(quadrants(), "JPEG", xmp=as_element))
    assert found is not None
    assert found.source_type == "http://x/digitalCapture"
    assert found.seed is None
    laughs = b'<!DOCTYPE a [<!ENTITY b "c">]>' + xmp_packet(label(prompt="p", seed=1, bundle="b"))
    for packet in (b"<not xml", laughs, b"\xff\xfe<", xmp_packet(label(prompt="p", seed=1, bundle="b")) + b" " * 70_000):
        assert read_label(encoded(quadrants(), "WEBP", xmp=packet)) is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_no_encoding_hides_entities_from_the_guard(encoding: str) -> None:
    _, _, body = xmp_packet(label(prompt="&b;", seed=1, bundle="b")).decode().replace("&amp;", "&").partition("?>")
    packet = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY b "expanded">]>{body}'.encode(encoding)
    assert read_label(encoded(quadrants(), "WEBP", xmp=packet)) is None


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    forbidden = {
        tmp_path: "is a folder",
        tmp_path / "missing" / "face.png": "does not exist; create it first",
        tmp_path / "file" / "face.png": "does not exist",
        Path("/proc/face.png"): "cannot be written",
        tmp_path / "a\0b.png": "cannot be written",
        tmp_path / ("long" * 100 + ".png"): "cannot be written",
    }
    for path, reason in forbidden.items():
        with pytest.raises(OutputError, match=reason):
            check_writable(path)
    with pytest.raises(OutputError):
        save_image(quadrants(), tmp_path / "missing" / "face.png")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("name", ["face", "face.gif", "face.png.txt", ".png"])
def test_unknown_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"use \.png, \.jpg"):
        save_image(quadrants(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_checked_place_stays_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "face.png"
    target.write_bytes(b"old")
    check_writable(target)
    assert target.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["face.png"]
    save_image(quadrants(), target)
    assert target.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
