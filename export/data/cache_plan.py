"""What a token cache is made of, settled and said before any picture is encoded: columns, numbers, sizes.

``OUT/request.json`` holds what the content depends on; a cache is completed only by a command that agrees with it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.checkpoints.parts import PartNames
from export.data.external.columns import parse_columns
from export.data.external.dataset import open_external
from export.data.external.faces import ALIGNED
from export.data.external.index import Index, build_index
from export.data.external.schema import read_vocabulary
from export.data.shards import META as RENDERED
from export.data.shards import FaceShards
from export.data.text.tokenizer import read_text_tokenizer
from f2edge.bundle.bundle import TOKENIZER
from f2edge.errors import InputError, OutputError
from f2edge.spec.configuration import FeatureShape, ModelConfiguration

REQUEST, INDEX = "request.json", "index.sqlite"
_LOOKED_AT = 1000
_TEXT_BYTES, _CROP_SHARE = 600, 0.2  # JPEG of quality 95: 0.14 of a photograph's bytes, 0.24 of a small render's


@dataclass(frozen=True)
class CacheRequest:
    """Options of ``python -m export cache``.

    Attributes:
        data: rendered shards, or a data set of any other origin.
        out: folder of the cache.
        parts: image tokenizer and encoders.
        configuration: of the model that will be trained.
        detector: :data:`export.data.external.faces.ALIGNED` or a detector's description.
        columns: ``ROLE=COLUMN,…``, overruling what is detected.
        schema: JSON file with the slots of the data, or None.
        text: text tokenizer to keep with the cache, or None.
        features: how semantic features are kept: fp16, int8 or later.
        most_skipped: how many rows may be unusable.
        largest_megapixels: of one picture.
        validation: pictures to hold out; None: 5 %, at most 512.
        limit: number of pictures, from the first; None: all.
        shard_rows: pictures of one shard.
        processes: that encode; ``threads`` of each.
        batch: pictures at a time.
        bf16, device: of the networks.
    """

    data: Path
    out: Path
    parts: PartNames
    configuration: ModelConfiguration
    detector: str = ALIGNED
    columns: str = ""
    schema: Path | None = None
    text: Path | None = None
    features: str = "fp16"
    most_skipped: int = 100
    largest_megapixels: float = 40.0
    validation: int | None = None
    limit: int | None = None
    shard_rows: int = 512
    processes: int = 1
    threads: int = 1
    batch: int = 64
    bf16: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.features not in {"fp16", "int8", "later"}:
            raise InputError(f"--features {self.features!r}: choose fp16, int8 or later")
        least = min(self.shard_rows, self.processes, self.batch, 1 if self.limit is None else self.limit)
        if least < 1 or self.most_skipped < 0 or self.largest_megapixels <= 0:
            raise InputError("cache: counts must be at least 1, --most-skipped at least 0, --largest-megapixels above 0")

    @property
    def index(self) -> Path:
        """File of the index."""
        return self.out / INDEX

    def to_json(self) -> dict[str, Any]:
        """Return what the content of the cache depends on."""
        stat = self.data.stat() if self.data.is_file() else None
        return {
            "data": str(self.data.absolute()),
            "data_version": None if stat is None else [stat.st_size, stat.st_mtime_ns],
            "parts": self.parts.to_json(),
            "configuration": self.configuration.to_json(),
            "detector": self.detector,
            "columns": self.columns,
            "schema": None if self.schema is None else self.schema.read_text(encoding="utf-8"),
            "features": self.features,
            "largest_megapixels": self.largest_megapixels,
            "validation": self.validation,
            "limit": self.limit,
            "shard_rows": self.shard_rows,
            **({"batch": self.batch} if is_rendered(self.data) else {}),
            "bf16": self.bf16,
        }


def is_rendered(data: Path) -> bool:
    """Whether ``data`` is a folder of ``python -m export render``."""
    if not (data / RENDERED).is_file():
        return False
    try:
        return "shard_size" in json.loads((data / RENDERED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def settle(request: CacheRequest, report: Callable[[str], None] = lambda _: None) -> int:
    """Check a request against the folder, and make the index of a data set; return the number of pictures.

    Raises:
        InputError: the folder holds another cache, or the data cannot be used; nothing is left behind then.
    """
    new = not (request.out / REQUEST).is_file()
    if new and request.out.is_dir() and any(not path.name.startswith(".") for path in request.out.iterdir()):
        raise InputError(f"{request.out}: holds other things and no {REQUEST}; choose a new folder")
    if is_rendered(request.data):
        rows = len(FaceShards(request.data, request.limit))
        _agree(request)
        return rows
    vocabulary = None if request.schema is None else read_vocabulary(request.schema)
    dataset = open_external(request.data, columns=parse_columns(request.columns), vocabulary=vocabulary)
    report(dataset.explain())
    _agree(request)
    if not request.index.is_file():
        try:
            build_index(dataset, request.index, most_skipped=request.most_skipped)
        except InputError:
            if new:
                shutil.rmtree(request.out, ignore_errors=True)
            raise
    index = Index(request.index)
    about = index.about
    report(
        f"{about['rows']} rows: {about['pictures']} pictures, {about['joined']} rows joined to an earlier one, {about['skipped']} skipped"
    )
    if vocabulary is not None and vocabulary.unknown:
        report("words that the schema lacks: " + ", ".join(f"{word} ({count} times)" for word, count in vocabulary.unknown.most_common(10)))
    _keep_tokenizer(request, index, report)
    return min(len(index), request.limit or len(index))


def _agree(request: CacheRequest) -> None:
    """Write ``request.json``, or compare with the one that is there."""
    path, wanted = request.out / REQUEST, json.loads(json.dumps(request.to_json()))
    _remove_drafts(request.out)
    if path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        if different := [key for key in wanted if held.get(key) != wanted[key]]:
            raise InputError(f"{request.out}: was begun with another {', '.join(different)}; choose another --out or delete the folder")
        return
    request.out.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{REQUEST}.{os.getpid()}")
    draft.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
    draft.replace(path)


def _remove_drafts(out: Path) -> None:
    """Delete what processes that are gone had begun to write; a draft's name ends with its process."""
    for draft in out.glob(".*.*"):
        process = draft.name.rpartition(".")[2]
        if process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _keep_tokenizer(request: CacheRequest, index: Index, report: Callable[[str], None]) -> None:
    """Copy the text tokenizer into the cache, and report how long the captions are in its tokens."""
    if request.text is None:
        return
    tokenizer = read_text_tokenizer(request.text)
    shutil.copyfile(request.text, request.out / TOKENIZER)
    captions = [caption for entry in index.entries(0, _LOOKED_AT) for caption in entry.texts.captions]
    if captions:
        counts = [len(tokenizer.encode(caption, add_special_tokens=False).ids) for caption in captions]
        longest = request.configuration.prompt_tokens
        cut = float(np.mean([count > longest for count in counts]))
        report(f"captions: {np.mean(counts):.0f} text tokens on average; {cut:.1%} are longer than a prompt ({longest}) and will be cut")


def check_room(request: CacheRequest, rows: int, report: Callable[[str], None]) -> None:
    """Report the sizes of the cache; raise :class:`OutputError` if the disk has too little room."""
    sizes = sizes_of(request, rows)
    chosen = {name: size for name, size in sizes.items() if not name.startswith("semantic") or name == f"semantic, {request.features}"}
    for name, size in sizes.items():
        report(f"  {name:<16} {size / 2**20:10.1f} MiB" + ("" if name in chosen else "   (if chosen by --features)"))
    total = sum(chosen.values())
    report(f"  {'together':<16} {total / 2**20:10.1f} MiB")
    free = shutil.disk_usage(request.out).free
    if total > free:
        raise OutputError(
            f"{request.out}: the cache takes {total / 2**30:.1f} GiB, the disk has {free / 2**30:.1f} GiB free; "
            "choose --features int8 or later, or another disk"
        )


def sizes_of(request: CacheRequest, rows: int) -> dict[str, float]:
    """Return the bytes of each part of a cache."""
    shape, twice = request.configuration, 2 if is_rendered(request.data) else 1

    def values(feature: FeatureShape | None) -> int:
        return 0 if feature is None else feature.vectors * feature.width

    semantic, vectors = values(shape.semantic), 0 if shape.semantic is None else shape.semantic.vectors
    sizes: dict[str, float] = {"codes": rows * 2 * shape.image_tokens * twice, "semantic, fp16": rows * 2 * semantic * twice}
    if twice == 1:
        sizes["semantic, int8"] = rows * (semantic + 2 * vectors)
        sizes["semantic, later"] = rows * shape.tokenizer.image_size**2 * 3 * _CROP_SHARE
        sizes["texts"] = rows * _TEXT_BYTES
    return sizes | {"identity": rows * 2 * values(shape.identity) * twice}


def text_of(parts: PartNames, text: Path | None) -> Path | None:
    """Return the text tokenizer to keep: the one given, or that of a bundle that gives the image tokenizer."""
    from f2edge.bundle.bundle import Bundle
    from f2edge.errors import BundleError

    if text is not None:
        return text
    try:
        return Bundle.load(parts.tokenizer, verify=False).tokenizer_path
    except BundleError:
        return None


def processes_of(wanted: int) -> int:
    """Return the number of processes; 0 means one for each usable core."""
    return wanted or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else wanted or os.cpu_count() or 1
