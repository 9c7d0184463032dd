"""The noise law: its known values, and that it equals the law written in plain integers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from f2edge.decoding.noise import gumbel, noise_key, uniform
from f2edge.errors import InputError
from tests.support.reference_sampler import reference_key, reference_uniform

pytestmark = pytest.mark.runtime

VECTORS = json.loads((Path(__file__).parent / "noise_vectors.json").read_text())
SEEDS = st.integers(0, 2**64 - 1)
WORDS = st.integers(0, 2**32 - 1)


def test_known_vectors() -> None:
    for row in VECTORS:
        key = noise_key(int(row["seed"]), row["step"], np.array([row["position"]]))
        assert key.dtype == np.int64
        assert key.tolist() == [row["key"]]
        codes = np.array([int(c) for c in row["uniform_times_2_24"]])
        assert (uniform(key, codes) * 2.0**24).tolist() == list(row["uniform_times_2_24"].values())


@settings(deadline=None)
@given(SEEDS, WORDS, WORDS, WORDS)
def test_equals_the_law_in_plain_integers(seed: int, step: int, position: int, code: int) -> None:
    key = noise_key(seed, step, np.array([position]))
    assert key[0] == reference_key(seed, step, position)
    assert float(uniform(key, np.array([code]))[0]) == reference_uniform(int(key[0]), code)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match=str(seed)):
        noise_key(seed, 0, np.arange(2))


def test_extreme_hashes_stay_finite() -> None:
    """The largest and the smallest uniform are exact in float32, inside (0, 1), and their Gumbel noise is finite."""
    extremes = (np.array([0, 2**23 - 1]).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
    assert extremes.tolist() == [2.0**-24, 1 - 2.0**-24]
    assert (-np.log(-np.log(extremes))).tolist() == pytest.approx([-2.811, 16.636], abs=1e-3)


def test_gumbel_moments() -> None:
    noise = gumbel(noise_key(5, 0, np.arange(256))[:, None], np.arange(4096)).astype(np.float64)
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=5e-3)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=1e-2)
