"""Real conditions: what they change in pictures, and what they must change in labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from export.data.conditions import PLACES, REAL, Conditions, disturbed
from export.data.render.renderer import REGIONS
from f2edge.spec.attributes import F2EDGE_SCHEMA

STILL = Conditions(share=0.0, mirror=0.0)
ALL = Conditions(share=1.0, mirror=0.0, moved=0.0, each=0.0, covered=0.0)
B, SIZE, GRID = 12, 64, 8


def faces() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures of noise with a red left half, random slots, and regions that are a cell each."""
    rng = np.random.default_rng(0)
    images = rng.integers(60, 120, (B, SIZE, SIZE, 3)).astype(np.uint8)
    images[:, :, : SIZE // 2, 0] = 250
    slots = np.stack([rng.integers(0, len(slot.values), B) for slot in F2EDGE_SCHEMA.values()], axis=1).astype(np.int8)
    regions = np.zeros((B, len(REGIONS), GRID, GRID), np.uint8)
    for region in range(len(REGIONS)):
        regions[:, region, region % GRID, region // GRID] = 255
    return images, slots, regions


def column(name: str) -> int:
    return list(F2EDGE_SCHEMA).index(name)


def test_every_place_is_a_region_and_every_slot_is_known() -> None:
    assert set(PLACES) <= set(F2EDGE_SCHEMA)
    assert {region for places in PLACES.values() for region in places} <= set(REGIONS)


def test_nothing_is_changed_where_nothing_is_asked_for() -> None:
    images, slots, regions = faces()
    seen = disturbed(images, slots, np.random.default_rng(1), STILL, regions=regions, names=REGIONS)
    assert np.array_equal(((seen.pixels.permute(0, 2, 3, 1).numpy() + 1) * 127.5).round(), images)
    assert np.array_equal(seen.slots, slots)
    assert np.array_equal(seen.regions.numpy() * 255, regions)
    assert not seen.covered.any()


def test_the_generator_alone_decides() -> None:
    images, slots, regions = faces()
    one, same, other = (disturbed(images, slots, np.random.default_rng(s), REAL, regions=regions, names=REGIONS) for s in (3, 3, 4))
    assert torch.equal(one.pixels, same.pixels)
    assert not torch.equal(one.pixels, other.pixels)
    assert float(one.pixels.abs().max()) <= 1


def test_a_mirror_exchanges_left_and_right_in_picture_labels_and_regions() -> None:
    images, slots, regions = faces()
    seen = disturbed(images, slots, np.random.default_rng(0), replace(STILL, mirror=1.0), regions=regions, names=REGIONS)
    assert float(seen.pixels[:, 0, :, SIZE // 2 :].mean()) > float(seen.pixels[:, 0, :, : SIZE // 2].mean()) + 0.5
    assert np.array_equal(seen.regions.numpy()[..., ::-1] * 255, regions)
    exchanged = {0: 0, 1: 2, 2: 1}  # front or even, left, right
    for name in ("head_pose", "lighting"):
        assert [exchanged[v] for v in slots[:, column(name)].tolist()] == seen.slots[:, column(name)].tolist()
    others = [k for k, name in enumerate(F2EDGE_SCHEMA) if name not in {"head_pose", "lighting"}]
    assert np.array_equal(seen.slots[:, others], slots[:, others])


@pytest.mark.parametrize("conditions", [replace(ALL, moved=1.0), replace(ALL, each=1.0)])
def test_camera_light_and_codec_leave_the_labels(conditions: Conditions) -> None:
    images, slots, _ = faces()
    seen = disturbed(images, slots, np.random.default_rng(0), conditions)
    plain = disturbed(images, slots, np.random.default_rng(0), STILL)
    assert float((seen.pixels - plain.pixels).abs().mean(dim=(1, 2, 3)).min()) > 0.01
    assert np.array_equal(seen.slots, slots)


def test_what_is_covered_cannot_be_told() -> None:
    images, slots, regions = faces()
    seen = disturbed(images, slots, np.random.default_rng(0), replace(ALL, covered=1.0, cover=1.0), regions=regions, names=REGIONS)
    assert seen.covered.any()
    assert not seen.covered.all()
    assert np.array_equal(seen.slots, np.where(seen.covered, -1, slots))
    same = [(column("eye_color"), column("eyewear")), (column("lips"), column("lipstick"))]  # slots of one place go together
    assert all(np.array_equal(seen.covered[:, a], seen.covered[:, b]) for a, b in same)
    assert not seen.covered[:, column("age")].any()  # needs the whole picture
