"""Laws of pictures: Show-o's numbers are those of its own transforms, worked out here in their plain form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from f2edge.errors import InputError
from f2edge.imaging.images import fit_square, from_pixels, to_pixels
from f2edge.imaging.laws import law_named

pytestmark = pytest.mark.runtime
SHOW_O = law_named("show-o")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@given(st.integers(20, 500), st.integers(20, 500), st.sampled_from((64, 256)))
@settings(max_examples=40, deadline=None)
def test_the_shorter_side_is_resized_and_the_middle_kept(width: int, height: int, side: int) -> None:
    image = picture(width, height)
    longer = int(side * max(width, height) / min(width, height))
    whole = np.asarray(image.resize((longer, side) if width > height else (side, longer), Image.Resampling.BICUBIC), dtype=np.float32)
    top, left = (round((length - side) / 2.0) for length in whole.shape[:2])
    expected = (whole[top : top + side, left : left + side] / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    assert np.array_equal(SHOW_O.pixels(image, side), expected.transpose(2, 0, 1))


def test_pixels_are_cut_to_whole_numbers_and_ours_are_rounded() -> None:
    pixels = np.linspace(-1.2, 1.2, 3 * 40 * 50, dtype=np.float32).reshape(3, 40, 50)
    shares = np.clip((pixels + 1) / 2, 0, 1) * np.float32(255)
    assert np.array_equal(np.asarray(SHOW_O.picture(pixels)), np.floor(shares).astype(np.uint8).transpose(1, 2, 0))
    assert np.array_equal(np.asarray(law_named("f2edge").picture(pixels)), np.asarray(from_pixels(pixels)))
    assert not np.array_equal(np.asarray(SHOW_O.picture(pixels)), np.asarray(from_pixels(pixels)))


def test_cells_of_a_mask_are_white_around_their_middle() -> None:
    """Bicubic interpolation from 64 to 4: cell i reads lines 16 i + 6 … 16 i + 9 with weights -3/32, 19/32, 19/32, -3/32."""
    assert SHOW_O.mask_cells is not None
    weights = np.array([-3, 19, 19, -3]) / 32
    for seed in range(5):
        mask = picture(64, 64, seed).convert("L")
        values = np.asarray(mask, dtype=np.float64) / 255
        middle = values.reshape(4, 16, 4, 16)[:, 6:10, :, 6:10]
        expected = np.einsum("aibj,i,j->ab", middle, weights, weights) >= 0.5
        found = SHOW_O.mask_cells(mask, 64, 4)
        assert found.tolist() == expected.tolist()
        assert 0 < found.sum() < 16


def test_ours_is_the_centred_square_by_lanczos_and_others_are_unknown() -> None:
    image = picture(90, 60)
    assert np.array_equal(law_named("f2edge").pixels(image, 32), to_pixels(fit_square(image), 32))
    with pytest.raises(InputError, match="unknown law 'best'; choose one of: f2edge, show-o"):
        law_named("best")
