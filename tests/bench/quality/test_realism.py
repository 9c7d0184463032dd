"""Measures of realism and of reading under conditions, against closed forms and pictures whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.quality import robustness
from bench.quality.faces import HeldOutFaces
from bench.quality.judge import Judge, JudgeNetwork
from bench.quality.realism import discriminator_auc, kernel_distance, precision_recall, sharpness, unlike_eyes
from bench.quality.robustness import CHANGES, calibration_error, covered, unknown_pictures
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA

RNG = np.random.default_rng(4)


def test_kernel_distance_is_that_of_moments_in_closed_form() -> None:
    """With F = 1, (x y + 1)^3 expands into moments: 1 + 3 m1 m1' + 3 m2 m2' + m3 m3'."""
    a, b = RNG.normal(size=(2000, 1)), RNG.normal(loc=1.0, size=(2000, 1))
    true = 3 * (0 - 1) ** 2 + 3 * (1 - 2) ** 2 + (0 - 4) ** 2
    distance, low, high = kernel_distance(a, b)
    assert distance == pytest.approx(true, rel=0.15)
    assert low < distance < high
    assert abs(kernel_distance(a[::2], a[1::2])[0]) < 0.3
    with pytest.raises(InputError, match="kernel distance"):
        kernel_distance(a[:3], b)


def test_the_interval_of_a_distance_holds_it_and_falls_with_the_pictures() -> None:
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(2, n, 8)) + np.array([0.4, 0.0])[:, None, None] for n in (60, 1000)]
    (few, low, high), (many, least, most) = (kernel_distance(made, real) for made, real in sets)
    assert low < many < high
    assert low < few < high
    assert 0 < most - least < 0.5 * (high - low)
    same = kernel_distance(*rng.normal(size=(2, 500, 8)))
    assert same[1] < 0 < same[2] < least


def test_precision_and_recall_tell_a_narrow_set_from_a_wide_one() -> None:
    wide, narrow = RNG.normal(size=(400, 4)), 0.05 * RNG.normal(size=(400, 4))
    precision, recall = precision_recall(narrow, wide)
    assert precision > 0.98
    assert recall < 0.1
    assert all(share > 0.8 for share in precision_recall(RNG.normal(size=(400, 4)), wide))
    assert precision_recall(wide + 100, wide) == (0.0, 0.0)


def pictures(count: int, blur: bool = False) -> np.ndarray:
    images = np.stack([np.kron(RNG.integers(0, 256, (16, 16, 3)), np.ones((8, 8, 1))) for _ in range(count)]).astype(np.uint8)
    return np.stack([robustness._scaled(image, 2.0) for image in images]) if blur else images


def test_the_discriminator_finds_a_blur_and_nothing_where_there_is_nothing() -> None:
    clear = pictures(48)
    assert discriminator_auc(pictures(24, blur=True), clear[:24]) > 0.95
    assert 0.1 < discriminator_auc(clear[24:], clear[:24]) < 0.9


def test_sharpness_falls_with_blur() -> None:
    assert sharpness(pictures(8, blur=True)) < 0.2 * sharpness(pictures(8))


class ColorJudge(Judge):
    """Reads brown from a dark upper half, blue from a bright one; everybody looks ahead."""

    def predict(self, images: np.ndarray) -> Any:
        answers = np.zeros((len(images), len(F2EDGE_SCHEMA)), dtype=np.int8)
        answers[:, list(F2EDGE_SCHEMA).index("eye_color")] = images[:, :, :, 0].mean(axis=(1, 2)) > 127
        return answers


def test_eyes_are_unlike_where_the_halves_of_a_face_differ() -> None:
    judge = ColorJudge(JudgeNetwork())
    same, other = np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128, 3), np.uint8)
    other[:, 64:] = 255
    assert unlike_eyes(np.stack([same, same, other, same]), judge) == (0.25, 4)


def test_calibration_error_is_the_gap_between_confidence_and_truth() -> None:
    sure = np.full(1000, 0.9)
    assert calibration_error(sure, np.arange(1000) % 10 > 0) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error(sure, np.arange(1000) % 2 > 0) == pytest.approx(0.4)
    both = np.concatenate((np.full(500, 0.9), np.full(500, 0.6)))
    assert calibration_error(both, np.ones(1000, dtype=bool)) == pytest.approx(0.25)


@pytest.mark.parametrize("name", CHANGES)
def test_changes_keep_the_shape_and_do_something(name: str) -> None:
    picture = pictures(1)[0]
    changed = CHANGES[name](picture, np.random.default_rng(0))
    assert changed.shape == picture.shape
    assert changed.dtype == np.uint8
    assert np.array_equal(changed, picture) == (name == "clean")


def test_what_a_bar_covers_is_not_asked() -> None:
    eyes = np.zeros((16, 16), dtype=bool)
    eyes[6:8, 4:12] = True
    pipeline = SimpleNamespace(bundle=SimpleNamespace(regions=("eyes",)), pixels=np.asarray, cells=lambda *_: eyes)
    faces = HeldOutFaces(pictures(12), tuple({"eye_color": "blue", "hat": "cap", "age": "old"} for _ in range(12)))
    bench = SimpleNamespace(schema=F2EDGE_SCHEMA, seed=1, pipeline=pipeline)
    images, truth = covered(faces, bench)  # type: ignore[arg-type]
    names = list(F2EDGE_SCHEMA)
    hidden = (images != faces.images)[:, 6 * 8 : 8 * 8, 4 * 8 : 12 * 8].any(axis=(1, 2, 3))
    assert 0 < hidden.sum() < 12
    assert np.array_equal(truth[:, names.index("eye_color")] < 0, hidden)
    assert (truth[:, names.index("hat")] == -1).all()  # no region of this bundle shows a hat
    assert (truth[:, names.index("age")] >= 0).all()


def test_unknown_pictures_are_no_faces_of_ours() -> None:
    kinds = unknown_pictures(64, 1)
    assert set(kinds) == {"noise", "textures", "photographs"}
    assert all(images.shape[1:] == (64, 64, 3) and len(images) >= 12 for images in kinds.values())
