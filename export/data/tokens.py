"""Rendered faces as the unified model reads them: image codes and encoder features, computed once and memory-mapped.

>>> cache_tokens(FaceShards(Path("shards/train")), tokenizer, semantic, identity, Path("tokens/train"))
>>> TokenCache(Path("tokens/train")).codes[:2].shape
(2, 64)

Axes: n faces, N image tokens, M feature vectors of width F, K slots, Y and X pixels.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.data.conditions import REAL, Conditions, disturbed
from export.data.pixels import to_pixels
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA

META = "meta.json"
_FORMAT = 3
_ARRAYS = ("codes", "semantic", "identity", "slots", "regions")
_SEEN = "seen_"


class FaceSource(Protocol):
    """The part of :class:`export.data.shards.FaceShards` that is used here."""

    @property
    def region_names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def images(self, rows: Any) -> NDArray[np.uint8]:
        """Return pictures ``(n, Y, X, 3)``."""
        ...

    def slots(self, rows: Any) -> NDArray[np.int8]:
        """Return value indices ``(n, K)``, -1 for hidden slots."""
        ...

    def regions(self, rows: Any) -> NDArray[np.uint8]:
        """Return coverage of cells ``(n, R, G, G)``, times 255."""
        ...


class ImageEncoder(Protocol):
    """An image tokenizer: ``encode`` takes pixels (B, 3, Y, X) in [-1, 1] to codes (B, N)."""

    def encode(self, pixels: Tensor) -> Tensor: ...


@torch.no_grad()
def cache_tokens(
    faces: FaceSource,
    tokenizer: ImageEncoder,
    semantic: nn.Module,
    identity: nn.Module,
    out: Path,
    *,
    batch: int = 64,
    bf16: bool = True,
    device: torch.device | None = None,
    conditions: Conditions | None = REAL,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Path:
    """Write what :class:`TokenCache` reads.

    The folder appears under its name when it is complete; one that exists is replaced.

    Args:
        faces: pictures and slots.
        tokenizer: trained, in eval mode, on ``device``; so are both encoders.
        semantic: pixels to features (B, M, F).
        identity: likewise.
        out: folder of the cache.
        batch: pictures at a time.
        bf16: run the networks under autocast.  The codes of a few pictures near a decision differ from fp32's.
        device: where the networks are; None: the CPU.
        conditions: every face is encoded a second time as seen under these, for questions about it; None: the second time is the first.
        seed: of the conditions.
        progress: called with the number of faces done.
    """
    device = device or torch.device("cpu")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    count, arrays = len(faces), dict[str, NDArray[Any]]()

    def encoded(pixels: Tensor) -> dict[str, NDArray[Any]]:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            return {
                "codes": tokenizer.encode(pixels).cpu().numpy().astype(np.int16),
                "semantic": semantic(pixels).float().cpu().numpy().astype(np.float16),
                "identity": identity(pixels).float().cpu().numpy().astype(np.float16),
            }

    for start in range(0, count, batch):
        rows = np.arange(start, min(start + batch, count))
        images, slots, regions = faces.images(rows), faces.slots(rows), faces.regions(rows)
        pixels = to_pixels(images)
        found = encoded(pixels.to(device)) | {"slots": slots}
        if conditions is None:
            seen = found
        else:
            rng = np.random.default_rng([seed, start])
            changed = disturbed(images, slots, rng, conditions, regions=regions, names=faces.region_names)
            seen = encoded(changed.pixels.to(device)) | {"slots": changed.slots}
        found = found | {f"{_SEEN}{name}": part for name, part in seen.items()} | {"regions": regions}
        for name, part in found.items():
            if name not in arrays:
                shape = (count, *part.shape[1:])
                arrays[name] = np.lib.format.open_memmap(draft / f"{name}.npy", mode="w+", dtype=part.dtype, shape=shape)
            arrays[name][rows] = part
        progress(int(rows[-1]) + 1)
    meta = {"format": _FORMAT, "count": count, "regions": list(faces.region_names), "schema": F2EDGE_SCHEMA.to_json()}
    (draft / META).write_text(json.dumps(meta), encoding="utf-8")
    arrays.clear()  # flush
    shutil.rmtree(out, ignore_errors=True)
    draft.replace(out)
    return out


class TokenCache:
    """A folder written by :func:`cache_tokens`; the arrays are memory-mapped.

    Attributes:
        codes: int16 (n, N).
        semantic, identity: float16 (n, M, F).
        slots: int8 (n, K), columns in the schema's order, -1 where the picture does not show it.
        regions: uint8 (n, R, G, G), share of each cell that a region covers, times 255.
        seen_codes, seen_semantic, seen_identity, seen_slots: the same of each face under real conditions.
        region_names: of the R regions.
    """

    codes: NDArray[np.int16]
    semantic: NDArray[np.float16]
    identity: NDArray[np.float16]
    slots: NDArray[np.int8]
    regions: NDArray[np.uint8]
    seen_codes: NDArray[np.int16]
    seen_semantic: NDArray[np.float16]
    seen_identity: NDArray[np.float16]
    seen_slots: NDArray[np.int8]
    region_names: tuple[str, ...]

    def __init__(self, directory: Path) -> None:
        """Raises :class:`InputError` where the folder is missing, incomplete, or written for another attribute schema."""
        try:
            meta = json.loads((directory / META).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _no_cache(directory, error) from error
        if meta.get("format") != _FORMAT or meta.get("schema") != F2EDGE_SCHEMA.to_json():
            raise InputError(f"{directory}: was written by another version of f2edge; make it again: python -m export cache")
        try:
            self.codes, self.semantic, self.identity, self.slots, self.regions = (
                np.load(directory / f"{name}.npy", mmap_mode="r") for name in _ARRAYS
            )
            self.seen_codes, self.seen_semantic, self.seen_identity, self.seen_slots = (
                np.load(directory / f"{_SEEN}{name}.npy", mmap_mode="r") for name in _ARRAYS[:4]
            )
        except (OSError, ValueError) as error:
            raise _no_cache(directory, error) from error
        self.region_names = tuple(meta["regions"])

    def __len__(self) -> int:
        return len(self.codes)

    def face(self, row: int) -> dict[str, str]:
        """The visible slots of one face, name → value."""
        return slots_of(self.slots[row])


def _no_cache(directory: Path, error: Exception) -> InputError:
    return InputError(f"{directory}: no token cache ({error}); make one: python -m export cache --data SHARDS --out {directory}")


def slots_of(values: NDArray[np.int8]) -> dict[str, str]:
    """One row of slot values (K,) as name → value, without the hidden ones."""
    return {slot.name: slot.values[value] for slot, value in zip(F2EDGE_SCHEMA.values(), values.tolist(), strict=True) if value >= 0}
