"""Regions: every way of writing one gives the right cells of the token grid, and nothing outside it is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from f2edge.errors import ImageError, InputError, UnknownRegionError
from f2edge.imaging.regions import NAMED_THRESHOLD, Cells, Coverage, parse_region, paste_outside, region_cells, select_cells

pytestmark = pytest.mark.runtime
NAMES = ("hair", "eyes", "glasses")


def coverage() -> Coverage:
    """Hair fills the upper half; each eye covers a fifth of a cell; there are no glasses."""
    shares = np.zeros((3, 8, 8), dtype=np.float32)
    shares[0, :4] = 0.9
    shares[1, 3, 2] = shares[1, 3, 5] = 0.2
    shares[1, 4, 2] = 0.05
    shares[2] = 0.01
    return shares


def cells(region: object, size: tuple[int, int] = (128, 128)) -> Cells:
    return region_cells(region, size, 8, NAMES, coverage)  # type: ignore[arg-type]


def test_names() -> None:
    hair = np.zeros((8, 8), dtype=bool)
    hair[:4] = True
    np.testing.assert_array_equal(cells("hair"), hair)
    assert [tuple(at) for at in np.argwhere(cells("eyes"))] == [(3, 2), (3, 5)], "small parts are found, traces are not"
    np.testing.assert_array_equal(cells("hair+eyes"), hair)
    assert parse_region("hair+eyes", NAMES) == "hair+eyes"


def test_a_part_that_is_not_in_the_picture() -> None:
    with pytest.raises(InputError, match=r"'glasses' is not visible in this picture; give a box"):
        cells("glasses")
    np.testing.assert_array_equal(cells("hair+glasses"), cells("hair"))


@pytest.mark.parametrize("text", ["ears", "", "hair+ears", "Hair", "hair,eyes", "mask.txt", "x" * 5000])
def test_unknown_regions_list_the_known_ones(text: str) -> None:
    with pytest.raises(UnknownRegionError, match="known: hair, eyes, glasses; or give a box"):
        parse_region(text, NAMES)
    with pytest.raises(UnknownRegionError):
        cells(text)


def test_boxes_in_pixels_and_in_parts() -> None:
    wanted = np.zeros((8, 8), dtype=bool)
    wanted[2:4, 4:8] = True
    for text in ("64,32,64,32", "0.5,0.25,0.5,0.25", " 64 , 32, 64,32", "64.0,32,640,32"):
        np.testing.assert_array_equal(cells(parse_region(text, NAMES)), wanted)
    np.testing.assert_array_equal(cells(parse_region("256,128,256,128", NAMES), (512, 512)), wanted)


def test_a_box_refers_to_the_picture_and_the_grid_to_its_centred_square() -> None:
    wide = cells(parse_region("100,0,50,100", NAMES), (300, 100))
    np.testing.assert_array_equal(wide, np.repeat([[True] * 4 + [False] * 4], 8, axis=0))
    with pytest.raises(InputError, match="no part in the centred square"):
        cells(parse_region("0,0,50,100", NAMES), (300, 100))


@pytest.mark.parametrize("text", ["1,2,3,x", "0,0,0,10", "5,5,10,-1", "nan,0,1,1", "0,0,inf,1", ",,,"])
def test_boxes_without_area_or_sense(text: str) -> None:
    with pytest.raises(InputError, match="a box is"):
        parse_region(text, NAMES)


def test_a_tiny_box_is_one_cell() -> None:
    assert [tuple(at) for at in np.argwhere(cells((70.0, 20.0, 1.5, 1.5)))] == [(1, 4)]


@settings(deadline=None)
@given(
    st.floats(0, 127, allow_subnormal=False), st.floats(0, 127), st.floats(0.5, 200), st.floats(0.5, 200), st.sampled_from([1, 4, 8, 16])
)
def test_a_box_and_its_mask_agree(x: float, y: float, width: float, height: float, grid: int) -> None:
    """A box is what a mask of the same rectangle gives, up to the mask's resolution."""
    box = tuple(round(v) for v in (x, y, max(width, 2), max(height, 2)))
    mask = np.zeros((128, 128), dtype=np.uint8)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 255
    by_box = region_cells(box, (128, 128), grid)
    np.testing.assert_array_equal(by_box, region_cells(Image.fromarray(mask), (128, 128), grid))
    assert by_box.any()


def test_masks_from_files(tmp_path: Path) -> None:
    values = np.zeros((64, 64), dtype=np.uint8)
    values[:16] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(values).save(path)
    region = parse_region(str(path), NAMES)
    assert cells(region).sum() == 16
    assert cells(region)[:2].all()
    assert cells(region, (512, 512))[:2].all(), "a mask of another size with the same aspect"
    with pytest.raises(ImageError, match="same aspect"):
        cells(region, (512, 256))
    Image.fromarray(values * 0).save(path)
    with pytest.raises(InputError, match="the mask has no white"):
        cells(parse_region(str(path), NAMES))
    with pytest.raises(ImageError, match="no such file"):
        parse_region(str(tmp_path / "none.png"), NAMES)


def test_cells_pass_through_as_a_copy() -> None:
    given_cells = np.eye(8, dtype=bool)
    taken = cells(given_cells)
    np.testing.assert_array_equal(taken, given_cells)
    assert not np.shares_memory(taken, given_cells)
    for wrong in (np.zeros((8, 8), dtype=bool), np.eye(4, dtype=bool), np.eye(8)):
        with pytest.raises(InputError, match="cells must be bool"):
            cells(wrong)


def test_selection_always_takes_the_best_cell() -> None:
    rng = np.random.default_rng(0)
    for scale in (1.0, 0.3, 0.1, 1e-3):
        share = (rng.random((8, 8)) * scale).astype(np.float32)
        chosen = select_cells(share)
        assert chosen[np.unravel_index(share.argmax(), share.shape)]
        assert share[chosen].min() >= share[~chosen].max(initial=0)
        assert chosen[share >= NAMED_THRESHOLD].all()


def test_pasting_keeps_every_pixel_outside() -> None:
    rng = np.random.default_rng(0)
    original = Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8))
    edited = Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8))
    region = np.zeros((8, 8), dtype=bool)
    region[2:6, 2:6] = True
    inside = np.kron(region, np.ones((16, 16), dtype=bool))
    pasted, before, after = (np.asarray(image) for image in (paste_outside(original, edited, region), original, edited))
    np.testing.assert_array_equal(pasted[~inside], before[~inside])
    np.testing.assert_array_equal(pasted[40:88, 40:88], after[40:88, 40:88])
    whole = paste_outside(original, edited, np.ones((8, 8), dtype=bool))
    np.testing.assert_array_equal(np.asarray(whole), after)  # the picture's own edge is no edge of the region
    with pytest.raises(InputError, match="do not fit"):
        paste_outside(original, edited.resize((64, 64)), region)


def test_the_blend_grows_from_the_edge_inwards() -> None:
    black, white = Image.new("RGB", (128, 128)), Image.new("RGB", (128, 128), (255, 255, 255))
    region = np.zeros((8, 8), dtype=bool)
    region[:, 4:] = True
    row = np.asarray(paste_outside(black, white, region))[64, :, 0].astype(int)
    assert (row[:64] == 0).all()
    assert (np.diff(row[63:72]) > 0).all()
    assert (row[72:] == 255).all()
