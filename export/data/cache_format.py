"""Files of a token cache: shards of memory-mapped arrays with checksums, and views that join them.

A shard's folder gets its name when all its files are written and flushed, so a run killed at any moment leaves whole shards only.

Axes: n rows of the cache, M feature vectors of width F.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2edge.errors import InputError

SUMS = "sums.json"
#: Suffix of the array with the scales of an array in 8 bits.
SCALE = "_scale"
Array = NDArray[Any]


def write_shard(path: Path, arrays: Mapping[str, Array], lines: Mapping[str, Sequence[bytes]]) -> None:
    """Write ``path/NAME.npy`` for arrays, and ``NAME.bin`` with ``NAME_ends.npy`` for sequences of bytes, with ``sums.json``."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        for name, array in arrays.items():
            np.save(draft / f"{name}.npy", array)
        for name, items in lines.items():
            (draft / f"{name}.bin").write_bytes(b"".join(items))
            np.save(draft / f"{name}_ends.npy", np.cumsum([0, *map(len, items)], dtype=np.int64))
        sums = {file.name: [file.stat().st_size, sha256_of(file)] for file in sorted(draft.iterdir())}
        (draft / SUMS).write_text(json.dumps(sums), encoding="utf-8")
        for file in draft.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        try:
            draft.replace(path)
        except OSError:
            if not path.is_dir():  # else another process wrote the same shard first
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_shard(path: Path, *, content: bool = False) -> None:
    """Raise :class:`InputError` if a file of a shard is missing or has another size or, with ``content``, another checksum."""
    try:
        sums = json.loads((path / SUMS).read_text(encoding="utf-8"))
        for name, (size, digest) in sums.items():
            if (path / name).stat().st_size != size or (content and sha256_of(path / name) != digest):
                raise InputError(f"{path / name}: is damaged; delete {path} and run the same cache command again")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}); delete it and run the same cache command again") from error


def quantized(features: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return features (n, M, F) as int8 with one scale per vector (n, M); value = code * scale."""
    scale = np.maximum(np.abs(features).max(axis=-1) / 127, 1e-6).astype(np.float16)
    codes = np.rint(features / scale[..., None].astype(np.float32)).clip(-127, 127).astype(np.int8)
    return codes, scale


def relative_loss(features: NDArray[np.floating]) -> float:
    """Return the error of :func:`quantized`, root mean square relative to that of the features."""
    codes, scale = quantized(features)
    kept = codes.astype(np.float32) * scale[..., None].astype(np.float32)
    return float(np.sqrt(np.mean((kept - features) ** 2) / max(float(np.mean(features.astype(np.float64) ** 2)), 1e-12)))


class Joined:
    """Arrays of several shards as one, by rows in a given order; a scale beside an array makes its values float16.

    ``joined[rows]`` takes an integer, a slice or an array of integers.
    """

    def __init__(self, parts: Sequence[Array], order: NDArray[np.int64], scales: Sequence[Array] | None = None) -> None:
        self._parts, self._scales, self._order = parts, scales, order
        self._starts = np.cumsum([0, *map(len, parts)])
        self.dtype = np.dtype(np.float16) if scales is not None else parts[0].dtype
        self.shape = (len(order), *parts[0].shape[1:])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows: Any) -> Array:
        places = self._order[rows]
        if np.ndim(places) == 0:
            one: Array = self._gather(places.reshape(1))[0]
            return one
        return self._gather(places)

    def _gather(self, places: NDArray[np.int64]) -> Array:
        found = np.empty((len(places), *self.shape[1:]), self.dtype)
        shards = np.searchsorted(self._starts, places, side="right") - 1
        for shard in np.unique(shards):
            chosen = shards == shard
            own = places[chosen] - self._starts[shard]
            values = self._parts[shard][own]
            if self._scales is not None:
                values = values.astype(np.float32) * self._scales[shard][own][..., None].astype(np.float32)
            found[chosen] = values
        return found


class Lines:
    """Byte strings of several shards by row; ``lines[row]`` is one of them."""

    def __init__(self, folders: Sequence[Path], name: str, order: NDArray[np.int64]) -> None:
        self._ends = [np.load(folder / f"{name}_ends.npy", mmap_mode="r") for folder in folders]
        self._bytes = [_mapped(folder / f"{name}.bin") for folder in folders]
        self._starts = np.cumsum([0, *(len(ends) - 1 for ends in self._ends)])
        self._order = order

    def __getitem__(self, row: int) -> bytes:
        place = int(self._order[row])
        shard = int(np.searchsorted(self._starts, place, side="right")) - 1
        own = place - int(self._starts[shard])
        return self._bytes[shard][int(self._ends[shard][own]) : int(self._ends[shard][own + 1])].tobytes()


def _mapped(path: Path) -> NDArray[np.uint8]:
    """Return the bytes of a file, mapped; an empty file cannot be."""
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
