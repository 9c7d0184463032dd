"""Drafts: regions moved to where a map wants them."""

from __future__ import annotations

import numpy as np
import pytest

from f2edge.imaging.rearranged import rearranged
from f2edge.imaging.region_map import RegionMap

pytestmark = pytest.mark.runtime

NAMES = ("skin", "background", "hat", "clothing")
SIDE, GRID = 64, 8


def scene(left: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright block in columns ``left`` … ``right`` of cells on a dark ground, and its coverage."""
    coverage = np.zeros((4, GRID, GRID), dtype=np.float32)
    coverage[0, 2:6, left:right] = 1.0
    coverage[1] = 1.0 - coverage[0]
    cell = SIDE // GRID
    pixels = np.kron(coverage[0] * 2 - 1, np.ones((cell, cell), dtype=np.float32))
    return np.repeat(pixels[None], 3, axis=0), coverage


def test_nothing_moves_where_all_lies_as_wanted() -> None:
    pixels, coverage = scene(2, 6)
    assert np.abs(rearranged(pixels, coverage, RegionMap.of(coverage), NAMES) - pixels).max() < 1e-4


@pytest.mark.parametrize(("left", "right"), [(4, 8), (0, 4), (3, 5), (1, 7)])
def test_regions_move_and_stretch_to_their_places(left: int, right: int) -> None:
    pixels, coverage = scene(2, 6)
    wanted_pixels, wanted = scene(left, right)
    draft = rearranged(pixels, coverage, RegionMap.of(wanted), NAMES)
    assert draft.shape == pixels.shape
    assert draft.dtype == np.float32
    assert np.abs(draft - wanted_pixels).mean() < 0.6 * np.abs(pixels - wanted_pixels).mean()


def test_what_the_picture_does_not_have_takes_the_likest_colour() -> None:
    pixels, coverage = scene(2, 6)
    coverage[3, 7], coverage[1, 7] = 1.0, 0.0
    pixels[:, 56:] = np.array([1.0, -1.0, -1.0], dtype=np.float32)[:, None, None]
    wanted = coverage.copy()
    wanted[2, :2], wanted[1, :2] = 1.0, 0.0
    draft = rearranged(pixels, coverage, RegionMap.of(wanted), NAMES)
    assert np.abs(draft[:, 4, 32] - [1.0, -1.0, -1.0]).max() < 0.2, "a hat of the clothing's colour"
    assert np.abs(draft[:, 30:34, 30:34] - pixels[:, 30:34, 30:34]).max() < 0.2


def test_where_nothing_is_said_nothing_moves() -> None:
    pixels, coverage = scene(2, 6)
    _, wanted = scene(4, 8)
    given = np.zeros((4, GRID, GRID), dtype=np.float32)
    given[:, :, 7] = 1.0
    draft = rearranged(pixels, coverage, RegionMap(wanted, given), NAMES)
    assert np.abs(draft[:, :, :8] - pixels[:, :, :8]).max() < 1e-3
