"""Pictures that a model does not know: distances, scores, and the array that a bundle keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from f2edge.domain import Domain
from f2edge.errors import BundleError
from f2edge.spec.configuration import FeatureShape

SHAPE = FeatureShape(vectors=5, width=4)


def domain() -> Domain:
    rng = np.random.default_rng(0)
    return Domain(rng.normal(size=(5, 4)).astype(np.float32), np.diag([1, 2, 0.5, 1]).astype(np.float32), center=1.0, scale=0.25)


def test_the_distance_is_mahalanobis_distance() -> None:
    known = domain()
    features = known.mean + np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    inverse = known.whitening @ known.whitening.T
    squares = [float((f - m) @ inverse @ (f - m)) for f, m in zip(features, known.mean, strict=True)]
    assert known.distance(features) == pytest.approx(np.log(np.mean(squares)), rel=1e-5)
    assert known.score(known.mean) < 1e-9


def test_scores_rise_with_the_distance_and_part_at_the_center() -> None:
    known, away = domain(), np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    scores = [known.score(known.mean + factor * away) for factor in (0.1, 0.5, 1, 2, 4, 100)]
    assert scores == sorted(scores)
    factor = np.exp(0.5 * (known.center - known.distance(known.mean + away)))
    assert known.score(known.mean + np.float32(factor) * away) == pytest.approx(0.5, abs=1e-4)
    assert 0 <= scores[0] < 0.01
    assert 0.99 < scores[-1] <= 1


def test_what_is_stored_is_read_again(tmp_path: Path) -> None:
    known = domain()
    np.save(tmp_path / "domain.npy", known.table())
    again = Domain.load(tmp_path / "domain.npy", SHAPE, center=known.center, scale=known.scale)
    assert np.array_equal(again.mean, known.mean)
    assert np.array_equal(again.whitening, known.whitening)


@pytest.mark.parametrize(
    "table", [np.zeros((9, 3), np.float32), np.zeros((9, 4), np.float64), np.full((9, 4), np.nan, np.float32), np.array([{}], object)]
)
def test_another_array_is_refused(tmp_path: Path, table: np.ndarray) -> None:
    np.save(tmp_path / "domain.npy", table, allow_pickle=True)
    with pytest.raises(BundleError, match=r"domain\.npy"):
        Domain.load(tmp_path / "domain.npy", SHAPE, center=0.0, scale=1.0)
