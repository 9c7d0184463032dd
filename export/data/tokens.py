"""Faces as the unified model reads them: image codes, encoder features and texts, computed once and memory-mapped.

>>> cache_tokens(FaceShards(Path("shards/train")), tokenizer, semantic, identity, Path("tokens/train"))
>>> TokenCache(Path("tokens/train")).codes[:2].shape
(2, 64)

Axes: n faces, N image tokens, M feature vectors of width F, K slots, Y and X pixels.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from export.data.cache_format import SCALE, Joined, Lines, check_shard, write_shard
from export.data.conditions import REAL, Conditions
from export.data.encoding import Encoding, FaceSource, ImageEncoder, encode_faces
from export.data.external.index import Texts
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema

META, ORDER = "meta.json", "order.npy"
FORMAT = 4
_ARRAYS = ("codes", "semantic", "identity", "slots")
_SEEN = "seen_"

#: What a face's texts are written from: its slots, or texts that came with it.
Face: TypeAlias = Mapping[str, str] | Texts


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
    """Write what :class:`TokenCache` reads, as one shard, in this process; ``python -m export cache`` uses several of each.

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
    encoding = Encoding(tokenizer, semantic, identity, None, batch, bf16, device or torch.device("cpu"))
    arrays = encode_faces(faces, range(len(faces)), encoding, conditions, seed=seed, progress=progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    write_shard(draft / shard_name(0), arrays, {})
    write_meta(draft, {"schema": F2EDGE_SCHEMA.to_json(), "regions": list(faces.region_names), "shards": [len(faces)]})
    shutil.rmtree(out, ignore_errors=True)
    draft.replace(out)
    return out


def shard_name(number: int) -> str:
    """Return the name of a shard's folder."""
    return f"shard-{number:06d}"


def write_meta(folder: Path, row: Mapping[str, Any]) -> None:
    """Write ``meta.json``, which makes a cache complete."""
    draft = folder / f".{META}.{os.getpid()}"
    draft.write_text(json.dumps({"format": FORMAT, **row}, indent=1), encoding="utf-8")
    draft.replace(folder / META)


class TokenCache:
    """A folder written by ``python -m export cache`` or :func:`cache_tokens`; the arrays are memory-mapped.

    Attributes:
        codes: int16 (n, N).
        semantic, identity: float16 (n, M, F).
        slots: int8 (n, K), columns in the schema's order, -1 where the picture does not show it.
        regions: uint8 (n, R, G, G), share of each cell that a region covers, times 255.
        seen_codes, seen_semantic, seen_identity, seen_slots: the same of each face under real conditions, where the cache has them.
        region_names: of the R regions.
        schema: of the slots; empty where the data has none.
        validation_rows: how many rows at the end the split holds out; None where the data was not split.
        about: the whole of ``meta.json``.
    """

    def __init__(self, directory: Path) -> None:
        """Raises :class:`InputError` where the folder is missing, incomplete, or written for another attribute schema."""
        try:
            self.about: dict[str, Any] = json.loads((directory / META).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _no_cache(directory, error) from error
        own = self.about.get("texts", False)
        if self.about.get("format") != FORMAT or not (own or self.about.get("schema") == F2EDGE_SCHEMA.to_json()):
            raise InputError(f"{directory}: was written by another version of f2edge; make it again: python -m export cache")
        self.directory, self.schema = directory, AttributeSchema.from_json(self.about["schema"])
        self._folders = [directory / shard_name(number) for number, count in enumerate(self.about["shards"]) if count]
        for folder in self._folders:
            check_shard(folder)
        split = directory / ORDER
        order = np.load(split) if split.is_file() else np.arange(sum(self.about["shards"]), dtype=np.int64)
        try:
            self._open(order)
        except (OSError, ValueError) as error:
            raise _no_cache(directory, error) from error
        self.region_names: tuple[str, ...] = tuple(self.about["regions"])
        self.validation_rows: int | None = self.about.get("validation")
        self._texts = Lines(self._folders, "texts", order) if own else None

    def _open(self, order: NDArray[np.int64]) -> None:
        def joined(name: str) -> Any:
            if name == "semantic" and self.about.get("features") == "later":
                from export.data.later import LaterFeatures

                return LaterFeatures(Lines(self._folders, "crops", order), len(order), self.about)
            if name in {"semantic", "identity"} and not (self._folders[0] / f"{name}.npy").is_file():  # a model without this encoder
                return Joined([np.zeros((count, 0, 0), np.float16) for count in self.about["shards"] if count], order)
            parts = [np.load(folder / f"{name}.npy", mmap_mode="r") for folder in self._folders]
            scaled = (self._folders[0] / f"{name}{SCALE}.npy").is_file()
            scales = [np.load(folder / f"{name}{SCALE}.npy", mmap_mode="r") for folder in self._folders] if scaled else None
            return Joined(parts, order, scales)

        self.codes, self.semantic, self.identity, self.slots = (joined(name) for name in _ARRAYS)
        self.regions = joined("regions")
        twice = (self._folders[0] / f"{_SEEN}codes.npy").is_file()
        self.seen_codes, self.seen_semantic, self.seen_identity, self.seen_slots = (
            [joined(f"{_SEEN}{name}") for name in _ARRAYS] if twice else (self.codes, self.semantic, self.identity, self.slots)
        )

    def __len__(self) -> int:
        return len(self.codes)

    def face(self, row: int, *, seen: bool = False) -> Face:
        """What one face's texts are written from: the visible slots (with ``seen``, under real conditions), or its own texts."""
        slots = slots_of((self.seen_slots if seen else self.slots)[row], self.schema)
        if self._texts is None:
            return slots
        found = Texts.from_json(self._texts[row])
        return Texts(found.captions, found.questions, slots)


def _no_cache(directory: Path, error: Exception) -> InputError:
    return InputError(f"{directory}: no token cache ({error}); make one: python -m export cache --data SHARDS --out {directory}")


def slots_of(values: NDArray[np.int8], schema: AttributeSchema = F2EDGE_SCHEMA) -> dict[str, str]:
    """One row of slot values (K,) as name → value, without the hidden ones."""
    return {slot.name: slot.values[value] for slot, value in zip(schema.values(), values.tolist(), strict=True) if value >= 0}


def slot_values(faces: Sequence[Mapping[str, str] | None], schema: AttributeSchema) -> NDArray[np.int8]:
    """Return name → value of each face as value indices (n, K), -1 where a slot is not given."""
    rows = [[schema[name].index(face[name]) if face and name in face else -1 for name in schema] for face in faces]
    return np.array(rows, np.int8).reshape(len(faces), len(schema))
