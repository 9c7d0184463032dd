"""The judge: network, files, fairness of its disturbances, and a short training on painted squares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bench.quality.judge import Judge, JudgeNetwork
from bench.quality.judge_training import JudgeTask, disturbed, slot_accuracy, write_judge
from export.training.loop import TrainOptions, train
from f2edge.errors import BundleError, BundleNotFoundError, InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema, Slot

SCHEMA = AttributeSchema(
    [Slot("paper", ("red", "blue"), "which color?", "test"), Slot("place", ("left", "middle", "right"), "where is the square?", "test")]
)


class Squares:
    """Pictures of a bright square on colored paper; the paper's color is sometimes "hidden"."""

    def __init__(self, count: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self._slots = np.stack([generator.integers(0, 2, count), generator.integers(0, 3, count)], axis=1).astype(np.int8)
        self._images = np.zeros((count, 128, 128, 3), np.uint8)
        for row, (paper, place) in enumerate(self._slots):
            self._images[row] = ((150, 20, 20), (20, 20, 150))[paper]
            self._images[row, 64:80, 24 + 32 * place : 40 + 32 * place] = 240
        self._slots[::5, 0] = -1

    def __len__(self) -> int:
        return len(self._images)

    def images(self, rows: Any) -> NDArray[np.uint8]:
        return np.asarray(self._images[rows])

    def slots(self, rows: Any) -> NDArray[np.int8]:
        return np.asarray(self._slots[rows])


Trained = tuple[Path, dict[str, Any], Squares]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("judge")
    task = JudgeTask(Squares(128, 0), 16, schema=SCHEMA, validation_rows=32)
    train(task, TrainOptions(out=folder, steps=30, batch=16, learning_rate=2e-3, warmup=5, ema=0.8, log_every=0, bf16=False))
    fresh = Squares(64, 1)
    return folder, write_judge(folder, task, fresh.images(slice(None)), fresh.slots(slice(None))), fresh


def test_training_learns_squares_and_the_report_says_so(trained: Trained) -> None:
    folder, report, _ = trained
    assert report == json.loads((folder / "judge.json").read_text())
    assert report["slot_accuracy"]["paper"] >= 0.95
    assert report["slot_accuracy"]["place"] >= 0.95
    assert report["mean_slot_accuracy"] == pytest.approx(np.mean(list(report["slot_accuracy"].values())))
    assert report["faces"] == 64


def test_a_loaded_judge_has_its_schema_and_answers_as_reported(trained: Trained) -> None:
    folder, report, fresh = trained
    judge = Judge.load(folder / "judge.safetensors")
    assert judge.schema.to_json() == SCHEMA.to_json()
    images = fresh.images(slice(0, 9))
    answers = judge.predict(images)
    assert answers.shape == (9, 2)
    assert answers.dtype == np.int8
    np.testing.assert_array_equal(judge.logits(images).argmax(axis=2), answers)
    recount = slot_accuracy(judge.predict(fresh.images(slice(None))), fresh.slots(slice(None)), SCHEMA)
    assert recount == report["slot_accuracy"]


def test_results_of_a_picture_do_not_depend_on_the_others(trained: Trained) -> None:
    folder, _, fresh = trained
    judge = Judge.load(folder / "judge.safetensors")
    images = fresh.images(slice(0, 5))
    np.testing.assert_allclose(judge.logits(images)[2], judge.logits(images[2:3])[0], atol=1e-4)
    np.testing.assert_allclose(judge.features(images)[2], judge.features(images[2:3])[0], atol=1e-4)


def test_full_network_covers_the_schema_and_stays_small(tmp_path: Path) -> None:
    judge = Judge(JudgeNetwork())
    judge.save(tmp_path / "judge.safetensors")
    assert (tmp_path / "judge.safetensors").stat().st_size < 3_100_000
    answers = Judge.load(tmp_path / "judge.safetensors").predict(
        np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    )
    assert answers.shape == (3, len(F2EDGE_SCHEMA))
    assert all(0 <= answers[:, k].min() <= answers[:, k].max() < len(slot.values) for k, slot in enumerate(F2EDGE_SCHEMA.values()))


def test_a_judge_of_another_width_is_read_as_it_was_written(tmp_path: Path) -> None:
    network = JudgeNetwork(SCHEMA, widths=(8, 16, 24, 32), blocks=(1, 0, 2, 1), look_width=4)
    Judge(network, SCHEMA).save(tmp_path / "judge.safetensors")
    images = np.random.default_rng(1).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    logits = Judge.load(tmp_path / "judge.safetensors").logits(images)
    np.testing.assert_allclose(logits[..., :2], Judge(network, SCHEMA).logits(images)[..., :2], atol=0.02)


def test_pictures_of_another_kind_are_refused() -> None:
    judge = Judge(JudgeNetwork(SCHEMA))
    bad: Any
    for bad in (np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 128, 128, 3), np.float32), np.zeros((128, 128, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8 pictures"):
            judge.predict(bad)


def test_missing_and_damaged_files_are_refused_by_name(tmp_path: Path, trained: Trained) -> None:
    with pytest.raises(BundleNotFoundError, match="python -m bench judge"):
        Judge.load(tmp_path / "judge.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((trained[0] / "judge.safetensors").read_bytes()[:1000])
    with pytest.raises(BundleError, match="damaged"):
        Judge.load(damaged)


def test_disturbances_keep_what_is_where_and_its_color() -> None:
    images = np.full((16, 128, 128, 3), 30, np.uint8)
    images[:, 20:44, 84:108, 1] = 220
    pixels = disturbed(images, torch.Generator().manual_seed(0))
    assert torch.equal(pixels, disturbed(images, torch.Generator().manual_seed(0)))
    assert float(pixels.abs().max()) <= 1
    assert not torch.equal(pixels[0], pixels[1])
    square, elsewhere = pixels[:, :, 28:36, 92:100].mean(dim=(2, 3)), pixels[:, :, 28:36, 20:36].mean(dim=(2, 3))
    assert bool((square[:, 1] > elsewhere[:, 1] + 1).all())
    assert bool((square[:, 1] > square[:, 0] + 1).all())


def test_slot_accuracy_counts_visible_slots_only() -> None:
    answers, truth = np.array([[0, 1], [1, 2], [1, 0]]), np.array([[0, -1], [0, 2], [-1, -1]])
    assert slot_accuracy(answers, truth, SCHEMA) == {"paper": 0.5, "place": 1.0}
    assert np.isnan(slot_accuracy(answers, np.full((3, 2), -1), SCHEMA)["paper"])
