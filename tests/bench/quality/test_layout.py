"""The layout section: the truth of renders, flat maps, and what a model that copies and one that ignores a layout score."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from bench.quality.faces import held_out_faces
from bench.quality.layout import flat_map, layout, truth_masks
from bench.quality.quality import Bench
from export.data.render.renderer import REGIONS
from f2edge.imaging.map_pictures import FREE
from f2edge.spec.attributes import F2EDGE_SCHEMA

GRID = 8


class CopyingModel:
    """Draws the face whose regions are wanted, and a black picture otherwise; knows the truth of every face."""

    bundle = SimpleNamespace(regions=REGIONS, configuration=SimpleNamespace(tokenizer=SimpleNamespace(grid=GRID)))

    def __init__(self) -> None:
        self.truth: dict[bytes, np.ndarray] = {}

    def generate(self, _prompt: str, *, layout_from: Image.Image | None = None, **_more: Any) -> list[Any]:
        return [SimpleNamespace(image=layout_from or Image.new("RGB", (128, 128)))]

    def pixels(self, image: Image.Image) -> bytes:
        return image.tobytes()

    def coverage(self, pixels: bytes) -> np.ndarray:
        return self.truth.get(pixels, np.zeros((len(REGIONS), GRID, GRID), dtype=np.float32))


def test_copies_agree_and_others_do_not() -> None:
    model = CopyingModel()
    judge = SimpleNamespace(schema=F2EDGE_SCHEMA, predict=lambda images: np.zeros((len(images), len(F2EDGE_SCHEMA)), dtype=np.int64))
    bench = Bench(model, judge, images=15, seed=3, render=held_out_faces)  # type: ignore[arg-type]
    for image, masks in zip(bench.faces.images, truth_masks(bench, 3), strict=False):
        model.truth[image.tobytes()] = masks.reshape(len(REGIONS), GRID, 16, GRID, 16).mean(axis=(2, 4), dtype=np.float32)
    results = layout(bench)
    assert results["faces"] == 3
    assert results["ceiling"] == results["own_prompt"]["face"]["agreement"] == 1.0
    assert results["own_prompt"]["nothing"]["agreement"] == results["own_prompt"]["map"]["agreement"] == 0.0
    assert 0.2 < results["floor"] < 0.95
    assert results["other_prompt"]["nothing"]["relative_time"] == 1.0


def test_a_flat_map_has_the_front_region_of_each_pixel() -> None:
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0], masks[1, 1:3], masks[2, 0] = True, True, True
    names = ("skin", "eyes", "hat")
    assert flat_map(masks, {"hat": "cap"}, names)[:, 0].tolist() == [2, 1, 1, 0]
    assert flat_map(masks, {"hat": "none"}, names)[:, 0].tolist() == [0, 1, 1, 0], "a hat that is not worn"
    assert flat_map(masks[1:2], {}, ("eyes",))[0, 0] == FREE
