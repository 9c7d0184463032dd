"""Copies of real photographs in other sizes and qualities never lie on both sides of the split."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from skimage import data

from export.data.external.split import groups_of, picture_hash, validation_rows


def photographs() -> list[Image.Image]:
    """Crops of scikit-image's photographs, 128 pixels."""
    found = []
    for name in ("astronaut", "camera", "coffee", "chelsea", "rocket", "cat", "brick", "grass", "moon", "coins"):
        picture = Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")
        side = min(picture.size) // 2
        found += [picture.crop((x, y, x + side, y + side)).resize((128, 128)) for x in (0, side) for y in (0, side)]
    return found


def copy(image: Image.Image, quality: int, size: int) -> Image.Image:
    buffer = io.BytesIO()
    image.resize((size, size)).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).resize((128, 128))


def test_copies_are_one_group_and_pictures_are_not() -> None:
    pictures = photographs()
    every = [*pictures, *(copy(p, 60, 128) for p in pictures), *(copy(p, 85, 90) for p in pictures)]
    hashes = np.array([picture_hash(p) for p in every])
    groups = groups_of(hashes).reshape(3, -1)
    assert (groups == groups[0]).mean() > 0.97  # textures lose their finest part in a smaller copy
    assert len(np.unique(groups[0])) >= len(np.unique(hashes[: len(pictures)], axis=0)) - 3  # chelsea and cat are one photograph


def test_no_group_is_divided_and_the_wish_is_met() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (400, 32), dtype=np.uint8)
    near = base[:200].copy()
    near[:, 5] ^= 0b1011  # three bits
    hashes = np.concatenate((base, near))[rng.permutation(600)]
    groups, held = groups_of(hashes), validation_rows(hashes, 60)
    assert len(np.unique(groups)) == 400
    assert not set(groups[held]) & set(groups[~held])
    assert 55 <= held.sum() <= 62


def test_a_picture_that_is_everywhere_does_not_become_the_validation() -> None:
    hashes = np.zeros((1000, 32), np.uint8)
    hashes[:40] = np.random.default_rng(1).integers(0, 256, (40, 32))
    held = validation_rows(hashes, 10)
    assert 8 <= held.sum() <= 12
    assert not held[40:].any()
