"""Rendered faces on disk, in shards of memory-mapped ``.npy`` files.

A shard's folder gets its final name when it is complete, so interrupted rendering resumes with the next shard.

>>> write_shards(Path("faces"), split="train", count=60_000, first_seed=0, size=128, grid=8, workers=2)
>>> shards = FaceShards(Path("faces"))
>>> shards.images(np.array([3, 1]))  # (2, 128, 128, 3) uint8
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.data.render.renderer import REGIONS, RENDER_VERSION, sample_face
from export.data.slots import SPLITS
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema

META = "meta.json"
HIDDEN = -1
_ARRAYS = ("images", "slots", "regions", "landmarks", "identity", "seeds")

Rows = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class _Job:
    """One shard to render."""

    directory: Path
    index: int
    first_seed: int
    count: int
    split: str
    size: int
    grid: int

    @property
    def path(self) -> Path:
        return self.directory / f"shard-{self.index:05d}"


def coverage(masks: NDArray[np.bool_], grid: int) -> NDArray[np.uint8]:
    """Return the share of each grid cell that a mask covers, times 255: (R, size, size) → (R, grid, grid)."""
    regions, size, _ = masks.shape
    cell = size // grid
    share = masks.reshape(regions, grid, cell, grid, cell).mean((2, 4))
    return np.asarray(np.rint(share * 255), dtype=np.uint8)


def _render_shard(job: _Job) -> int:
    """Render and write one shard; return its number of faces."""
    arrays: dict[str, NDArray[Any]] = {
        "images": np.empty((job.count, job.size, job.size, 3), np.uint8),
        "slots": np.full((job.count, len(F2EDGE_SCHEMA)), HIDDEN, np.int8),
        "regions": np.empty((job.count, len(REGIONS), job.grid, job.grid), np.uint8),
        "landmarks": np.empty((job.count, 5, 2), np.float32),
        "identity": np.empty(job.count, np.int64),
        "seeds": np.arange(job.first_seed, job.first_seed + job.count, dtype=np.int64),
    }
    for row in range(job.count):
        face = sample_face(job.first_seed + row, job.split, job.size)
        arrays["images"][row] = face.image
        for column, (name, slot) in enumerate(F2EDGE_SCHEMA.items()):
            if name in face.slots:
                arrays["slots"][row, column] = slot.index(face.slots[name])
        arrays["regions"][row] = coverage(np.stack([face.regions[name] for name in REGIONS]), job.grid)
        arrays["landmarks"][row] = face.landmarks
        arrays["identity"][row] = face.identity
    draft = job.directory / f".{job.path.name}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        for name, array in arrays.items():
            np.save(draft / f"{name}.npy", array)
        draft.replace(job.path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # exists only if writing failed
    return job.count


def _check_arguments(*, split: str, count: int, first_seed: int, size: int, grid: int, workers: int, shard_size: int) -> None:
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; choose one of: {', '.join(SPLITS)}")
    if min(count, grid, workers, shard_size) < 1:
        raise InputError(f"count {count}, grid {grid}, workers {workers} and shard_size {shard_size} must all be at least 1")
    if first_seed < 0:
        raise InputError(f"first_seed {first_seed} must not be negative")
    if not 32 <= size <= 1024 or size % grid:
        raise InputError(f"size {size} must lie in 32 … 1024 and be a multiple of grid {grid}")


def _settle_meta(directory: Path, meta: dict[str, Any]) -> None:
    """Write ``meta.json``, or check that the existing one is equal."""
    path = directory / META
    if path.exists():
        stored = _read_meta(directory)
        different = [key for key in meta if stored.get(key) != meta[key]]
        if different:
            raise InputError(f"{directory}: holds faces rendered with another {', '.join(different)}; choose an empty folder or delete it")
        return
    draft = directory / f".{META}.{os.getpid()}"
    draft.write_text(json.dumps(meta, indent=1), encoding="utf-8")
    draft.replace(path)


def write_shards(
    directory: Path,
    *,
    split: str,
    count: int,
    first_seed: int = 0,
    size: int = 128,
    grid: int = 8,
    workers: int = 1,
    shard_size: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Render the faces of seeds ``first_seed … first_seed + count - 1``; existing shards are kept.

    Args:
        directory: output folder; created if missing.
        split: "train" or "heldout".
        count: number of faces.
        first_seed: seed of the first face.
        size: pixels along one side, a multiple of ``grid``.
        grid: cells along one side of the stored region masks.
        workers: processes; 1 renders in the calling process.
        shard_size: faces per shard.
        progress: called with (faces done, number of faces), first with existing faces.

    Raises:
        InputError: arguments out of range, or the folder contains other faces.
    """
    _check_arguments(split=split, count=count, first_seed=first_seed, size=size, grid=grid, workers=workers, shard_size=shard_size)
    directory.mkdir(parents=True, exist_ok=True)
    meta = {"version": RENDER_VERSION, "split": split, "count": count, "first_seed": first_seed, "size": size, "grid": grid}
    _settle_meta(directory, {**meta, "shard_size": shard_size, "regions": list(REGIONS), "schema": F2EDGE_SCHEMA.to_json()})
    starts = range(0, count, shard_size)
    jobs = [_Job(directory, i, first_seed + s, min(shard_size, count - s), split, size, grid) for i, s in enumerate(starts)]
    missing = [job for job in jobs if not job.path.exists()]
    done = count - sum(job.count for job in missing)
    report = progress if progress is not None else lambda _done, _all: None
    report(done, count)
    if workers == 1:
        for job in missing:
            done += _render_shard(job)
            report(done, count)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, max(1, len(missing))), mp_context=context) as pool:
        for future in as_completed([pool.submit(_render_shard, job) for job in missing]):
            done += future.result()
            report(done, count)


def _read_meta(directory: Path) -> dict[str, Any]:
    path = directory / META
    if not path.is_file():
        raise InputError(
            f"{directory}: no {META}, so there are no rendered faces here; make some with `python -m export render --out {directory}`"
        )
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); render the faces again") from error
    needed = ("version", "split", "count", "first_seed", "size", "grid", "shard_size", "regions", "schema")
    if not isinstance(meta, dict) or any(key not in meta for key in needed):
        raise InputError(f"{path}: lacks one of {', '.join(needed)}; render the faces again")
    return meta


class FaceShards:
    """Rendered faces of one folder, read by row number.

    Attributes:
        schema: attribute schema of the columns of :meth:`slots`.
        region_names: names of the second axis of :meth:`regions`.
        size, grid: pixels of a picture and cells of a region mask along one side.
        split: "train" or "heldout".
    """

    def __init__(self, directory: Path | str, limit: int | None = None) -> None:
        """Map the shards of the first ``limit`` faces (all by default); later shards may be missing.

        Raises:
            InputError: the folder, a shard or an array is missing or does not match the others.
        """
        directory = Path(directory)
        meta = _read_meta(directory)
        if limit is not None and not 1 <= limit <= meta["count"]:
            raise InputError(f"{directory}: limit {limit} is out of range; there are {meta['count']} faces")
        self.schema = AttributeSchema.from_json(meta["schema"])
        self.region_names: tuple[str, ...] = tuple(meta["regions"])
        self.size: int = meta["size"]
        self.grid: int = meta["grid"]
        self.split: str = meta["split"]
        self._length: int = limit or meta["count"]
        self._shard_size: int = meta["shard_size"]
        self._shards: list[dict[str, NDArray[Any]]] = []
        for index, start in enumerate(range(0, self._length, self._shard_size)):
            self._shards.append(self._map(directory / f"shard-{index:05d}", min(self._shard_size, meta["count"] - start)))

    def _map(self, path: Path, count: int) -> dict[str, NDArray[Any]]:
        shapes = {
            "images": (count, self.size, self.size, 3),
            "slots": (count, len(self.schema)),
            "regions": (count, len(self.region_names), self.grid, self.grid),
            "landmarks": (count, 5, 2),
            "identity": (count,),
            "seeds": (count,),
        }
        if not path.is_dir():
            raise InputError(f"{path}: is missing; rendering was stopped before it was done, run the same render command again")
        arrays: dict[str, NDArray[Any]] = {}
        for name in _ARRAYS:
            try:
                arrays[name] = np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"{path / name}.npy: cannot be read ({error}); delete {path} and render again") from error
            if arrays[name].shape != shapes[name]:
                raise InputError(
                    f"{path / name}.npy: has shape {arrays[name].shape}, expected {shapes[name]}; delete {path} and render again"
                )
        return arrays

    def __len__(self) -> int:
        return self._length

    def _gather(self, name: str, rows: Rows) -> NDArray[Any]:
        rows = np.asarray(rows)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise InputError(f"rows must be a 1-D array of integers, got {rows.dtype} of shape {rows.shape}")
        if rows.size and not (rows.min() >= 0 and rows.max() < self._length):
            raise InputError(f"rows {rows.min()} … {rows.max()} are out of range; there are {self._length} faces")
        sample = self._shards[0][name]
        result = np.empty((rows.size, *sample.shape[1:]), sample.dtype)
        shard, offset = np.divmod(rows, self._shard_size)
        for index in np.unique(shard):
            chosen = shard == index
            result[chosen] = self._shards[index][name][offset[chosen]]
        return result

    def images(self, rows: Rows) -> NDArray[np.uint8]:
        """Return pictures (n, size, size, 3) uint8 RGB."""
        return self._gather("images", rows)

    def slots(self, rows: Rows) -> NDArray[np.int8]:
        """Return value indices of slots (n, slots) int8; -1 for hidden slots."""
        return self._gather("slots", rows)

    def regions(self, rows: Rows) -> NDArray[np.uint8]:
        """Return the share of each cell that a region covers, times 255, (n, R, grid, grid) uint8."""
        return self._gather("regions", rows)

    def landmarks(self, rows: Rows) -> NDArray[np.float32]:
        """Return left eye, right eye, nose tip, left and right mouth corner in pixels, (n, 5, 2) float32."""
        return self._gather("landmarks", rows)

    def identity(self, rows: Rows) -> NDArray[np.int64]:
        """Return person numbers (n,) int64."""
        return self._gather("identity", rows)

    def seeds(self, rows: Rows) -> NDArray[np.int64]:
        """Return picture seeds (n,) int64, for :func:`export.data.render.renderer.sample_face`."""
        return self._gather("seeds", rows)
