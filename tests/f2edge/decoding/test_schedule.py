"""Schedules: counts, laws, orders."""

from __future__ import annotations

from itertools import pairwise
from math import cos, floor, pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from f2edge.decoding.halton import halton_order, halton_tokens, radical_inverse
from f2edge.decoding.schedule import (
    MASK_LAWS,
    ORDERS,
    TEMPERATURE_LAWS,
    Schedule,
    cosine,
    fixed_order,
    linear,
    linear_temperature,
    masked_counts,
    plan,
    show_o_temperature,
)
from f2edge.errors import InputError
from f2edge.spec.configuration import ImageTokenizerConfiguration
from f2edge.spec.layout import tokens_of_cells

pytestmark = pytest.mark.runtime

LAWS = st.sampled_from(sorted(MASK_LAWS))


@settings(deadline=None)
@given(LAWS, st.integers(1, 1024), st.integers(1, 1024))
def test_counts_fall_strictly_to_zero(law: str, masked: int, steps: int) -> None:
    counts = [masked, *masked_counts(MASK_LAWS[law], masked, steps)]
    assert len(counts) == min(steps, masked) + 1
    assert all(before > after for before, after in pairwise(counts))
    assert counts[-1] == 0


@pytest.mark.parametrize(("tokens", "steps"), [(64, 8), (64, 12), (256, 18), (256, 50), (1024, 50)])
def test_cosine_counts_are_those_of_the_reference_sampler(tokens: int, steps: int) -> None:
    """Show-o's own loop: floor of the cosine, at least one masked until the last step, at most one less than before."""
    expected, unknown = [], tokens
    for k in range(steps):
        unknown = max(1, min(unknown - 1, floor(tokens * cos(pi / 2 * (k + 1) / steps))))
        expected.append(unknown)
    expected[-1] = 0
    assert masked_counts(cosine, tokens, steps) == expected


@pytest.mark.parametrize("steps", range(1, 60))
def test_show_o_counts_differ_from_the_exact_cosine_by_one_token_at_two_thirds(steps: int) -> None:
    """In single precision cos 60° lies below 1/2; everywhere else both laws count alike."""
    exact, published = (masked_counts(MASK_LAWS[law], 256, steps) for law in ("cosine", "show-o"))
    assert [a - b for a, b in zip(exact, published, strict=True)] == [int(3 * (k + 1) == 2 * steps) for k in range(steps)]


@pytest.mark.parametrize("law", MASK_LAWS)
def test_mask_laws_begin_at_one_fall_and_end_at_zero(law: str) -> None:
    shares = [MASK_LAWS[law](x / 100) for x in range(101)]
    assert shares[0] == pytest.approx(1)
    assert shares[-1] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in pairwise(shares))


def test_arccos_counts_are_those_of_halton_maskgit() -> None:
    """Its loop, unmasked tokens: r = 1 - arccos(t) / (π/2), max(step + 1, int(r N)); ours rounds what stays masked down."""
    counts = masked_counts(MASK_LAWS["arccos"], 256, 32)
    for step, count in enumerate(counts):
        share = 1 - np.arccos((step + 1) / 32) / (np.pi * 0.5)
        assert abs((256 - count) - max(step + 1, int(share * 256))) <= 1


@settings(deadline=None)
@given(st.floats(0, 20), st.integers(1, 100))
def test_show_o_temperature_equals_its_literal_loop(start: float, steps: int) -> None:
    temperature = start
    for step in range(steps):
        ratio = 1.0 * (step + 1) / steps
        temperature = temperature * (1.0 - ratio)
        assert show_o_temperature(start, step, steps) == pytest.approx(temperature, rel=1e-9, abs=1e-12)


def test_temperature_laws_at_the_ninth_of_eighteen_steps() -> None:
    assert linear_temperature(1.0, 8, 18) == pytest.approx(0.5)
    assert show_o_temperature(1.0, 8, 18) == pytest.approx(0.045, abs=0.001)


@settings(deadline=None)
@given(st.integers(1, 40))
def test_halton_order_is_a_permutation(grid: int) -> None:
    assert sorted(halton_order(grid).tolist()) == list(range(grid * grid))


def test_halton_order_spreads_every_beginning() -> None:
    """The nearest pair among the first K cells is farther apart than in a random order."""
    rng = np.random.default_rng(0)

    def nearest(order: np.ndarray[tuple[int, ...], np.dtype[np.int64]], count: int) -> float:
        points = np.stack(np.divmod(order[:count], 16), axis=1).astype(float)
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
        return float(distances[np.triu_indices(count, 1)].min())

    for count in (8, 16, 32):
        random = np.mean([nearest(rng.permutation(256), count) for _ in range(50)])
        assert nearest(halton_order(16), count) > 1.3 * random


def test_radical_inverse_of_the_first_integers() -> None:
    assert radical_inverse(4, 2).tolist() == [0.5, 0.25, 0.75, 0.125]
    assert radical_inverse(4, 3) == pytest.approx([1 / 3, 2 / 3, 1 / 9, 4 / 9])


@settings(deadline=None)
@given(st.sampled_from(["halton", "ancestral"]), st.integers(0, 2**64 - 1))
def test_a_fixed_order_is_a_permutation_that_the_seed_fixes(order: str, seed: int) -> None:
    first = fixed_order(order, 64, seed)
    assert sorted(first.tolist()) == list(range(64))
    assert np.array_equal(first, fixed_order(order, 64, seed))


def test_seeds_differ_in_their_order() -> None:
    assert len({tuple(fixed_order("halton", 64, seed)) for seed in range(100)}) > 40  # of 64 rolls
    assert len({tuple(fixed_order("ancestral", 64, seed)) for seed in range(100)}) == 100


@settings(deadline=None)
@given(st.integers(1, 12), st.sampled_from([1, 2, 3]))
def test_halton_order_takes_a_cells_first_code_before_any_second(grid: int, codes: int) -> None:
    order = halton_tokens(grid * grid * codes)
    assert sorted(order.tolist()) == list(range(grid * grid * codes))
    assert (order % codes).tolist() == np.repeat(np.arange(codes), grid * grid).tolist()
    for code in range(codes):
        assert np.array_equal(order[order % codes == code] // codes, halton_order(grid))


@given(st.integers(1, 6), st.sampled_from([1, 2, 3]), st.sampled_from([2, 3]))
def test_halton_order_of_tokens_that_lie_block_by_block(blocks: int, codes: int, block: int) -> None:
    """The tokens of each step lie where they would in an image without blocks."""
    grid = blocks * block
    raster = np.arange(grid * grid).reshape(grid, grid)
    tokenizer = ImageTokenizerConfiguration(image_size=grid, bits=4, channels=(8,), blocks=1, codes_per_cell=codes, block=block)
    cells = tokens_of_cells(raster, tokenizer)[halton_tokens(grid * grid * codes, block)]
    assert cells.tolist() == halton_order(grid).tolist() * codes


@settings(deadline=None)
@given(
    st.sampled_from(sorted(ORDERS)),
    st.sampled_from(sorted(TEMPERATURE_LAWS)),
    st.integers(1, 100),
    st.integers(0, 2**32),
    st.lists(st.booleans(), min_size=64, max_size=64).filter(any),
)
def test_plans_fit_what_is_masked(order: str, law: str, steps: int, seed: int, masked: list[bool]) -> None:
    result = plan(Schedule(steps=steps, order=order, temperature_law=law), np.array(masked), seed)
    assert result.steps == min(steps, sum(masked))
    assert result.mask_ratio[0] == pytest.approx(sum(masked) / 64)
    assert np.allclose(result.mask_ratio[1:], result.masked_after[:-1] / 64)
    assert (np.diff(result.masked_after) < 0).all() or result.steps == 1
    assert result.temperature[-1] == (1.0 if law == "constant" and order == "maskgit" else 0.0)
    distinct = len(np.unique(result.priority))
    assert distinct == (1 if order == "maskgit" else 64)  # neighbours in a fixed order stay apart in float32


def test_guidance_acts_inside_its_interval_only() -> None:
    schedule = Schedule(steps=10, guidance=3.0, guidance_interval=(0.3, 0.8), mask_law="linear")
    result = plan(schedule, np.ones(100, dtype=bool), 0)
    masked_share = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert np.allclose(result.mask_ratio, masked_share, atol=0.011)  # floor of a float may lose one token of a hundred
    assert result.guidance[[0, 1]].tolist() == [0.0, 0.0]
    assert result.guidance[3:7].tolist() == [3.0] * 4
    assert result.guidance[8:].tolist() == [0.0, 0.0]


def test_the_interval_counts_the_tokens_of_the_request() -> None:
    """An edit of a small region is guided like a whole image, though little of the picture is masked."""
    small = np.arange(100) < 10
    result = plan(Schedule(steps=5, guidance=2.0, guidance_interval=(0.9, 1.0)), small, 0)
    assert result.mask_ratio[0] == pytest.approx(0.1)
    assert result.guidance.tolist() == [2.0, 2.0, 0.0, 0.0, 0.0] or result.guidance.tolist() == [2.0, 0.0, 0.0, 0.0, 0.0]


def test_guidance_ramps_from_zero_to_its_full_strength() -> None:
    result = plan(Schedule(steps=5, guidance=4.0, guidance_ramp=True), np.ones(64, dtype=bool), 0)
    assert result.guidance.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert plan(Schedule(steps=1, guidance=4.0, guidance_ramp=True), np.ones(64, dtype=bool), 0).guidance.tolist() == [4.0]


def test_ancestral_counts_are_even() -> None:
    assert masked_counts(linear, 64, 4) == [48, 32, 16, 0]


def test_nothing_to_decode_is_refused() -> None:
    with pytest.raises(InputError, match="region"):
        plan(Schedule(), np.zeros(64, dtype=bool), 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 1025),
        ("guidance", -1.0),
        ("guidance", float("nan")),
        ("temperature", -0.1),
        ("token_temperature", 0.0),
        ("guidance_interval", (0.8, 0.3)),
        ("guidance_interval", (0.0, 1.1)),
        ("order", "sideways"),
        ("mask_law", "cubic"),
        ("temperature_law", "show_o"),
    ],
)
def test_contradictory_options_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        Schedule(**{field: value})  # type: ignore[arg-type]
