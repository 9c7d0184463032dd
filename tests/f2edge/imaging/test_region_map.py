"""Maps of regions as people make them, and what is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from f2edge.errors import InputError
from f2edge.imaging.map_pictures import FREE, PALETTE, colours_of, drawn_map, map_picture
from f2edge.imaging.region_map import Layout, RegionMap, checked_strength, fitted, map_indices, places, read_map, said_by, sources

pytestmark = pytest.mark.runtime

NAMES = tuple(PALETTE)
GRID = 8


def sketch(width: int, height: int, background: str | None = "background", mode: str = "RGB") -> Image.Image:
    """A head with a hat as somebody paints it: an ellipse, two rectangles."""
    empty = (255, 255, 255, 0)[: len(mode)] if background is None else (*PALETTE[background], 255)[: len(mode)]
    picture = Image.new(mode, (width, height), empty)
    draw, w, h = ImageDraw.Draw(picture), width, height
    draw.rectangle([0.2 * w, 0.8 * h, 0.8 * w, h], fill=PALETTE["clothing"])
    draw.ellipse([0.3 * w, 0.3 * h, 0.7 * w, 0.85 * h], fill=PALETTE["skin"])
    draw.rectangle([0.38 * w, 0.5 * h, 0.62 * w, 0.56 * h], fill=PALETTE["eyes"])
    draw.rectangle([0.25 * w, 0.15 * h, 0.75 * w, 0.38 * h], fill=PALETTE["hat"])
    return picture


def read(picture: Image.Image) -> RegionMap:
    return read_map(map_indices(picture, NAMES), NAMES, GRID)


def share(picture: Image.Image, name: str) -> float:
    return float(read(picture).coverage[NAMES.index(name)].mean())


def saved(picture: Image.Image, kind: str, **arguments: Any) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **arguments)
    return Image.open(io.BytesIO(buffer.getvalue()))


def test_a_map_says_the_same_in_any_size_and_file() -> None:
    reference = share(sketch(512, 512), "hat")
    assert reference == pytest.approx(0.5 * 0.23, abs=0.01)
    large = sketch(1200, 1200)
    for other in (
        sketch(100, 100),
        sketch(37, 37),
        sketch(2000, 2000),
        large.resize((300, 300), Image.Resampling.LANCZOS),  # smooth edges
        saved(sketch(400, 400), "JPEG", quality=80),
        saved(sketch(400, 400).quantize(8), "PNG"),
        saved(sketch(256, 256), "WEBP", lossless=True),
    ):
        assert share(other, "hat") == pytest.approx(reference, abs=0.02)
    wide = Image.new("RGB", (600, 400), "white")
    wide.paste(sketch(400, 400), (100, 0))
    assert share(wide, "hat") == pytest.approx(reference, abs=0.01), "the centred square counts"


def test_what_lies_on_skin_is_skin_and_what_may_be_hidden_is_open() -> None:
    found = read(sketch(512, 512))
    coverage, given = (dict(zip(NAMES, values, strict=True)) for values in (found.coverage, found.given))
    assert (coverage["skin"] >= coverage["eyes"]).all()
    assert coverage["eyes"].max() > 0.4
    assert given["skin"][2, 4] < 0.1, "the hat may hide the head"
    assert given["hat"].min() == given["background"].min() == 1.0
    assert found.present[NAMES.index("hat")]
    assert not found.present[NAMES.index("hair")]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_white_and_transparent_pixels_are_free(mode: str) -> None:
    found = read(sketch(256, 256, None, mode))
    assert found.given[:, 0, 0].max() == 0.0
    assert found.given[NAMES.index("background"), 3, 3] == 1.0
    assert not found.present[NAMES.index("background")]
    anywhere = found.coverage.copy()
    anywhere[:, 0, 0] = 1.0
    assert found.agreement(anywhere) == pytest.approx(1.0), "what is said about nothing cannot be wrong"


def test_colours_of_no_region_are_refused_with_the_cure() -> None:
    wrong = sketch(300, 300)
    ImageDraw.Draw(wrong).rectangle([10, 10, 40, 40], fill=(17, 34, 51))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    for picture, told in (
        (wrong, "colour #112233.*hat #008000.*white is free"),
        (photo, "is no region's"),
        (Image.new("RGB", (64, 64)), "#000000"),
    ):
        with pytest.raises(InputError, match=told):
            read(picture)
    for empty in (Image.new("RGB", (64, 64), "white"), Image.new("RGBA", (64, 64))):
        with pytest.raises(InputError, match="empty"):
            read(empty)
    with pytest.raises(InputError, match="no regions"):
        map_indices(sketch(64, 64), ())


def test_arrays_of_indices() -> None:
    indices = np.full((60, 60), FREE)
    indices[:30] = NAMES.index("hat")
    found = read_map(map_indices(indices, NAMES), NAMES, 4)
    assert found.coverage[NAMES.index("hat")][:2].min() == 1.0
    assert found.given[NAMES.index("hat")].tolist() == [[1.0] * 4] * 2 + [[0.0] * 4] * 2
    for wrong, told in ((np.zeros((4, 4)), "whole numbers"), (np.full((4, 4), 12), "12 is no region"), (np.full((4, 4), -1), "-1 is no")):
        with pytest.raises(InputError, match=told):
            map_picture(wrong, NAMES)


def test_a_face_becomes_a_map_that_says_the_same() -> None:
    found = read(sketch(512, 512))
    again = read(drawn_map(found.coverage, NAMES, 256))
    assert RegionMap.of(found.coverage).agreement(again.coverage) > 0.75
    assert drawn_map(found.coverage, NAMES, 256).size == (256, 256)
    painted = head(0.5, 0.5, 0.3)
    painted[60:250, 20:50] = NAMES.index("hair")
    coverage = read_map(painted, NAMES, GRID).coverage
    lengths = {
        length: said_by(map_indices(drawn_map(coverage, NAMES, 256, {"hat": "none", "hair_length": length}), NAMES), NAMES)
        for length in ("long", "medium", "short", "bald")
    }
    assert lengths["long"] == [("hair_length", "with long hair")]
    assert lengths["medium"] == []
    assert lengths["short"] == [("hair_length", "with short hair")]
    assert ("hair_length", "with long hair") not in lengths["bald"]


def test_every_region_has_a_colour_of_its_own() -> None:
    colours = np.array([*colours_of((*NAMES, "beard", "glasses")).values(), (255, 255, 255)], dtype=float)
    distances = np.sqrt(((colours[:, None] - colours[None]) ** 2).sum(axis=2)) + 1000 * np.eye(len(colours))
    assert distances.min() > 80, "more than twice the tolerance"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_agreement_is_one_for_the_same_regions_and_less_for_others(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coverage, other = rng.random((2, 3, 4, 4)).astype(np.float32)
    wanted = RegionMap(coverage, rng.random((3, 4, 4)).astype(np.float32))
    assert wanted.agreement(coverage) == pytest.approx(1.0)
    assert 0.0 <= wanted.agreement(other) < 1.0
    assert wanted.error(coverage).max() == pytest.approx(0.0)
    assert wanted.error(other).min() >= 0.0


def test_layouts_of_several_faces() -> None:
    one, two = sketch(64, 64), sketch(80, 80)
    assert sources(None, None, 2) == [(None, None)] * 2
    assert sources(one, None, 2) == [(one, None)] * 2
    assert sources(None, [one, two], 2) == [(None, one), (None, two)]
    for given_, told in (((one, two, 1), "exclude"), (([one, two], None, 3), "2 layouts and 3 faces")):
        with pytest.raises(InputError, match=told):
            sources(*given_)


def head(x: float, y: float, radius: float) -> np.ndarray:
    """A painted disc of skin under a cap of hair."""
    rows, columns = (np.indices((256, 256)) + 0.5) / 256
    indices = np.full((256, 256), NAMES.index("background"))
    indices[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = NAMES.index("skin")
    indices[(np.abs(columns - x) < radius) & (np.abs(rows - y + radius) < radius / 2)] = NAMES.index("hair")
    return indices


def test_a_map_is_fitted_to_the_size_and_the_place_of_drawn_faces() -> None:
    drawn = read_map(head(0.5, 0.5, 0.3), NAMES, GRID).coverage
    skin = NAMES.index("skin")

    def place(indices: np.ndarray) -> np.ndarray:
        return np.array(places((indices == skin).astype(np.float32)))

    for x, y, radius in ((0.25, 0.7, 0.12), (0.8, 0.4, 0.15), (0.5, 0.5, 0.2)):
        moved = fitted(head(x, y, radius), NAMES, drawn)
        assert np.abs(place(moved) - place(head(0.5, 0.5, 0.3))).max() < 0.06
    for near in (head(0.5, 0.5, 0.3), head(0.52, 0.48, 0.29)):
        assert np.array_equal(fitted(near, NAMES, drawn), near), "what the model can draw stays where it is"
    faceless = np.full((64, 64), NAMES.index("hat"))
    assert fitted(faceless, NAMES, drawn) is faceless


def test_strength_and_the_face_that_is_read_once() -> None:
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="layout_strength"):
            checked_strength(wrong)
    reads = []

    def coverage(pixels: np.ndarray) -> np.ndarray:
        reads.append(pixels)
        return np.ones((2, 4, 4), dtype=np.float32)

    first = np.zeros((2, 4, 4), dtype=np.float32)
    layout = Layout(("skin", "hat"), 4, face=np.zeros((3, 8, 8), dtype=np.float32))
    assert layout.read(coverage, first) is layout.read(coverage, first)
    assert len(reads) == 1
    assert layout.words == []
    assert Layout(NAMES, GRID, indices=map_indices(sketch(64, 64), NAMES)).words == [("hat", "with a hat")]


def test_what_a_map_says_in_words() -> None:
    painted = head(0.5, 0.5, 0.3)
    assert said_by(painted, NAMES) == [("hair_length", "with short hair")]
    painted[60:250, 20:50] = NAMES.index("hair")
    assert said_by(painted, NAMES) == [("hair_length", "with long hair")]
    bald = np.where(painted == NAMES.index("hair"), NAMES.index("background"), painted)
    assert said_by(bald, NAMES) == [("hair_length", "with a bald head")]
    assert said_by(np.where(bald == NAMES.index("background"), FREE, bald), NAMES) == [], "nothing is said about what is above"
