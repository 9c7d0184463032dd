"""Honest numbers for answers: temperatures, hidden slots and the domain, fitted on a written bundle and read by the runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.data.outliers import outliers, shuffled
from export.reading import best_temperature, fit_domain, fit_reading
from f2edge.bundle.bundle import MANIFEST, Bundle, write_manifest
from f2edge.bundle.seal import sealed
from f2edge.decoding.choice import tempered
from f2edge.errors import BundleError
from f2edge.pipeline import FacePipeline
from f2edge.results import FaceReport
from f2edge.wire import report_message, report_of


def test_the_temperature_that_was_lost_is_found() -> None:
    rng = np.random.default_rng(0)
    honest = rng.dirichlet(np.ones(4), 3000)
    truth = np.array([rng.choice(4, p=row) for row in honest])
    bold = np.stack([tempered(row, 0.4) for row in honest])
    assert best_temperature(bold, truth) == pytest.approx(2.5, rel=0.1)
    assert best_temperature(honest, truth) == pytest.approx(1.0, rel=0.1)
    assert best_temperature(bold[:10], truth[:10]) == 1.0


def test_tempering_keeps_the_order_and_the_sum() -> None:
    chances = np.array([0.7, 0.0, 0.1, 0.2])
    for temperature in (0.3, 1.0, 4.0):
        found = tempered(chances, temperature)
        assert found.sum() == pytest.approx(1)
        assert np.argsort(found, kind="stable").tolist() == np.argsort(chances, kind="stable").tolist()
    assert tempered(chances, 4.0).max() < 0.7 < tempered(chances, 0.3).max()


def test_what_has_other_statistics_scores_high() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    known = (rng.normal(size=(400, 5, 6)) @ mix + 1).astype(np.float32)
    strange = (rng.normal(size=(100, 5, 6)) @ mix * 1.5 - 1).astype(np.float32)
    domain = fit_domain(known, strange)
    fresh = (rng.normal(size=(100, 5, 6)) @ mix + 1).astype(np.float32)
    low, high = (np.array([domain.score(row) for row in rows]) for rows in (fresh, strange))
    assert (high[:, None] > low).mean() > 0.99
    assert np.mean(low < 0.5) > 0.95
    assert np.mean(high > 0.5) > 0.95


def test_outliers_are_of_many_kinds_and_the_same_for_the_same_generator() -> None:
    pictures = outliers(8, 64, np.random.default_rng(0))
    assert pictures.shape == (8, 64, 64, 3)
    assert np.array_equal(pictures, outliers(8, 64, np.random.default_rng(0)))
    assert all(picture.std() > 3 for picture in pictures)
    mixed = shuffled(pictures, np.random.default_rng(1))
    assert np.array_equal(np.sort(mixed.reshape(8, -1)), np.sort(pictures.reshape(8, -1)))
    assert not np.array_equal(mixed, pictures)


@pytest.mark.slow
def test_a_written_bundle_gets_its_numbers_and_says_them(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "tiny")
    before = FacePipeline.load(folder).analyze(FacePipeline.load(folder).generate("a man", seeds=1)[0].image)[0]
    assert not before.hidden
    assert before.unfamiliar is None
    document = json.loads((folder / MANIFEST).read_text())
    document["reading"] = fit_reading(folder, faces=64)
    write_manifest(folder, document)
    pipeline = FacePipeline.load(folder)
    face = pipeline.generate("a man", seeds=1)[0].image
    report = pipeline.analyze(face)[0]
    assert set(report.hidden) == set(report.probabilities)
    assert all(0 <= chance <= 1 for chance in report.hidden.values())
    assert all(sum(values.values()) == pytest.approx(1) for values in report.probabilities.values())
    assert report.best == before.best  # a temperature changes no order
    assert report.unfamiliar is not None
    assert 0 <= report.unfamiliar <= 1


@pytest.mark.parametrize(
    "reading",
    [
        {"temperatures": {"age": 0}},
        {"temperatures": {"age": "warm"}},
        {"temperatures": {}, "unsure": 3},
        {"temperatures": {}, "domain": {"file": "nowhere.npy", "center": 1, "scale": 1}},
        {"temperatures": {}, "domain": {"file": "tokenizer.json", "center": 1, "scale": 0}},
        {"unsure": "cannot tell"},
    ],
)
def test_a_reading_that_does_not_fit_is_refused(reading: dict[str, object], tiny_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "tiny")
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_bytes(sealed({**document, "reading": reading}))
    with pytest.raises(BundleError, match="reading"):
        Bundle.load(folder)


def test_reports_travel_with_what_they_could_not_tell() -> None:
    values = {"eyewear": {"none": 0.75, "eyeglasses": 0.25}, "hat": {"none": 1.0}}
    for report in (FaceReport(values, {"eyewear": 0.125}, 0.5), FaceReport(values)):
        assert report_of(report_message(report)) == report
