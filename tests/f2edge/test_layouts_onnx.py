"""Layouts on the embedded bundle: followed, the same alone and among others, and maps of faces as they are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from f2edge.imaging.map_pictures import PALETTE
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions

pytestmark = pytest.mark.runtime

OPTIONS = GenerateOptions(steps=6)
PROMPTS = ["a woman with red hair", "an old man"]


@pytest.fixture(scope="module")
def pipeline() -> FacePipeline:
    return FacePipeline.load("nano", threads=1, watermark=None)


@pytest.fixture(scope="module")
def turned(pipeline: FacePipeline) -> Image.Image:
    """A face that looks to the side, with long hair."""
    return pipeline.generate("a woman with long straight blonde hair facing left", seeds=5)[0].image


def share(map_: Image.Image, name: str) -> float:
    return float((np.asarray(map_) == PALETTE[name]).all(axis=2).mean())


def test_a_face_follows_another_ones_regions(pipeline: FacePipeline, turned: Image.Image) -> None:
    found = {strength: pipeline.generate(PROMPTS, seeds=[3, 4], layout_from=turned, layout_strength=strength) for strength in (0.0, 0.6)}
    without, placed = (np.array([face.layout_agreement for face in faces], dtype=float) for faces in found.values())
    assert (placed > without).all()
    assert placed.mean() > without.mean() + 0.02


def test_layouts_are_the_same_alone_and_among_others(pipeline: FacePipeline, turned: Image.Image) -> None:
    maps = [pipeline.region_map(turned, 128), pipeline.region_map(turned, 200)]
    both = pipeline.generate(PROMPTS, seeds=[3, 4], options=OPTIONS, layout=maps, check=1)
    for prompt, seed, where, face in zip(PROMPTS, (3, 4), maps, both, strict=True):
        (alone,) = pipeline.generate(prompt, seeds=seed, options=OPTIONS, layout=where, check=1)
        assert np.array_equal(alone.codes, face.codes)
        assert alone.image.tobytes() == face.image.tobytes()
        assert (alone.layout_agreement, alone.check) == (face.layout_agreement, face.check)


def test_a_map_shows_a_hat_and_hair_only_where_they_are(pipeline: FacePipeline, turned: Image.Image) -> None:
    hatless = pipeline.region_map(turned)
    (hatted,) = pipeline.generate("a man with a hat", seeds=2)
    assert share(hatless, "hat") == 0.0
    assert share(pipeline.region_map(hatted.image), "hat") > 0.05
    assert share(hatless, "skin") > 0.03
    assert share(hatless, "hair") > 0.05
    (bald,) = pipeline.generate("a bald man", seeds=2)
    assert pipeline.analyze(bald.image, attributes=["hair_length"])[0].best["hair_length"] == "bald"
    assert share(pipeline.region_map(bald.image), "hair") == 0.0


def test_a_painted_hat_is_drawn(pipeline: FacePipeline) -> None:
    patch = Image.new("RGB", (100, 100), "white")
    ImageDraw.Draw(patch).rectangle([20, 5, 80, 30], fill=PALETTE["hat"])
    seeds = range(4)
    plain, placed = (pipeline.generate(["an old man"] * 4, seeds=seeds, layout=layout) for layout in (None, patch))
    seen = [[report.best["hat"] for report in pipeline.analyze([f.image for f in faces], attributes=["hat"])] for faces in (plain, placed)]
    assert "none" in seen[0]
    assert "none" not in seen[1]
