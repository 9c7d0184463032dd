"""Left and right: irises whose hues differ are found, those of one face agree."""

from __future__ import annotations

import numpy as np
import pytest

from export.data.pairs import comparable, iris_hue, mismatched
from export.data.render.renderer import sample_face
from f2edge.spec.attributes import F2EDGE_SCHEMA


@pytest.mark.parametrize(
    ("color", "hue"), [((40, 128, 238), "blue"), ((52, 168, 60), "green"), ((104, 54, 18), "brown"), ((128, 128, 128), "brown")]
)
def test_an_iris_has_its_hue_amid_skin(color: tuple[int, int, int], hue: str) -> None:
    patch = np.full((15, 23, 3), (216, 150, 86), np.uint8)
    patch[4:11, 8:15] = color
    assert iris_hue(patch) == hue


@pytest.mark.parametrize("size", [128, 256])
def test_renders_agree_and_a_recolored_eye_does_not(size: int) -> None:
    faces = [sample_face(seed, size=size, with_regions=False) for seed in range(120)]
    table = np.array([[slot.index(f.slots[name]) if name in f.slots else -1 for name, slot in F2EDGE_SCHEMA.items()] for f in faces])
    shown = comparable(table)
    images, landmarks = np.stack([f.image for f in faces])[shown], np.stack([f.landmarks for f in faces])[shown]
    assert len(images) > 40
    assert mismatched(images, landmarks).mean() < 0.08
    reach = size // 42
    for image, points in zip(images, landmarks, strict=True):
        x, y = points[0].round().astype(int)
        image[y - reach : y + reach, x - reach : x + reach] = (52, 168, 60)
    green = table[shown][:, list(F2EDGE_SCHEMA).index("eye_color")] == F2EDGE_SCHEMA["eye_color"].index("green")
    assert mismatched(images[~green], landmarks[~green]).mean() > 0.75
    assert mismatched(images[green], landmarks[green]).mean() < 0.2
