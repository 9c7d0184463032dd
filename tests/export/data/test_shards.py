"""Shards: what is read is what was rendered, interruptions heal, and wrong folders are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.data.render.renderer import REGIONS, sample_face
from export.data.shards import FaceShards, write_shards
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faces")
    write_shards(path, split="train", count=10, first_seed=4, size=64, grid=8, workers=2, shard_size=4)
    return path


def test_rows_are_the_rendered_faces(folder: Path) -> None:
    shards = FaceShards(folder)
    rows = np.array([9, 0, 5, 4])
    images, slots, landmarks, identity = shards.images(rows), shards.slots(rows), shards.landmarks(rows), shards.identity(rows)
    assert len(shards) == 10
    assert shards.region_names == REGIONS
    assert list(shards.schema) == list(F2EDGE_SCHEMA)
    assert shards.seeds(rows).tolist() == [13, 4, 9, 8]
    for i, row in enumerate(rows):
        face = sample_face(4 + int(row), "train", 64)
        assert np.array_equal(images[i], face.image)
        assert np.array_equal(landmarks[i], face.landmarks)
        assert identity[i] == face.identity
        shown = {name: F2EDGE_SCHEMA[name].values[k] for name, k in zip(F2EDGE_SCHEMA, slots[i], strict=True) if k >= 0}
        assert shown == face.slots


def test_regions_keep_their_area(folder: Path) -> None:
    stored = FaceShards(folder).regions(np.array([2]))[0] / 255.0  # (R, 8, 8)
    face = sample_face(6, "train", 64)
    for name, cells in zip(REGIONS, stored, strict=True):
        assert cells.mean() == pytest.approx(face.regions[name].mean(), abs=0.003)


def test_a_stopped_rendering_goes_on(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "shard-00001")
    with pytest.raises(InputError, match="shard-00001"):
        FaceShards(copy)
    assert len(FaceShards(copy, limit=4)) == 4
    kept = (copy / "shard-00000" / "images.npy").stat().st_mtime_ns
    steps: list[tuple[int, int]] = []
    write_shards(
        copy, split="train", count=10, first_seed=4, size=64, grid=8, shard_size=4, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(6, 10), (10, 10)]
    assert (copy / "shard-00000" / "images.npy").stat().st_mtime_ns == kept
    rows = np.arange(10)
    assert np.array_equal(FaceShards(copy).images(rows), FaceShards(folder).images(rows))


def test_other_settings_do_not_mix(folder: Path) -> None:
    with pytest.raises(InputError, match="first_seed"):
        write_shards(folder, split="train", count=10, first_seed=5, size=64, grid=8, shard_size=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "split"),
        ({"count": 0}, "count"),
        ({"size": 60}, "multiple of grid"),
        ({"first_seed": -1}, "first_seed"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path: Path, change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"split": "train", "count": 2, "size": 64, "grid": 8, **change}
    with pytest.raises(InputError, match=message):
        write_shards(tmp_path / "new", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_bad_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"meta\.json"):
        FaceShards(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    broken = copy / "shard-00002" / "images.npy"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(InputError, match=r"shard-00002.images\.npy"):
        FaceShards(copy)
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps({**meta, "grid": 16}))
    with pytest.raises(InputError, match=r"regions\.npy"):
        FaceShards(copy)
    (copy / "meta.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        FaceShards(copy)


def test_bad_rows_are_refused(folder: Path) -> None:
    shards = FaceShards(folder, limit=6)
    for rows in (np.array([6]), np.array([-1]), np.array([0.5]), np.zeros((1, 1), np.int64)):
        with pytest.raises(InputError, match="rows"):
            shards.images(rows)
