"""Token caches by several processes: ``python -m export cache``.

    cache = write_cache(CacheRequest(Path("faces.jsonl"), Path("tokens"), PartNames("nano", "nano"), NANO))

The data set is cut into shards of equal numbers of rows.  A process encodes a shard and writes it under its final name when it is
complete; the same command given again keeps the shards that are there, checked, and makes the others.  What a shard holds depends on
nothing but its rows, so no row is lost or doubled, however often a run is killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.checkpoints.parts import open_parts, portrait_alignment
from export.data.cache_format import check_shard, write_shard
from export.data.cache_plan import CacheRequest, check_room, is_rendered, settle
from export.data.encoding import Encoding
from export.data.external.faces import face_cutter
from export.data.external.index import Index
from export.data.external.schema import read_vocabulary
from export.data.external.split import HASH_BYTES, validation_rows
from export.data.sources import OwnRows, RenderedRows, ShardSource, own_limits
from export.data.tokens import META, ORDER, TokenCache, shard_name, write_meta
from export.graph.trace import Models
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema

REPORT, SKIPPED = "report.json", "skipped.jsonl"
_WATCH_S = 2.0


@dataclass(frozen=True)
class Worker:
    """What one process holds: the networks and the rows."""

    request: CacheRequest
    source: ShardSource
    encode: Encoding

    def run(self, number: int) -> int:
        """Write one shard; return its number."""
        size = self.request.shard_rows
        shard = self.source.shard(range(number * size, min((number + 1) * size, len(self.source))), self.encode)
        rows = len(next(iter(shard.arrays.values()))) if shard.arrays else 0
        folder = self.request.out / shard_name(number)
        report = json.dumps({"rows": rows, "skipped": shard.skipped, "loss": shard.loss}, ensure_ascii=False).encode()
        write_shard(folder, shard.arrays, {**shard.lines, "report": [report]})
        return number


def schema_of(request: CacheRequest) -> AttributeSchema:
    """Return the schema of the data: the user's, this project's for rendered faces, or none."""
    if is_rendered(request.data):
        return F2EDGE_SCHEMA
    return AttributeSchema([]) if request.schema is None else read_vocabulary(request.schema).schema


def open_worker(request: CacheRequest) -> Worker:
    """Load what a process needs."""
    torch.set_num_threads(max(1, request.threads))
    models, device = open_parts(request.parts, request.configuration), torch.device(request.device)
    later = request.features == "later"
    parts = {"semantic": None if later else models.semantic, "identity": models.identity, "parser": models.parser}
    for part in (models.image_tokenizer, *parts.values()):
        if part is not None:
            part.to(device)
    grid = models.configuration.tokenizer.grid
    encode = Encoding(models.image_tokenizer, **parts, batch=request.batch, bf16=request.bf16, device=device, grid=grid)  # type: ignore[arg-type]
    if is_rendered(request.data):
        return Worker(request, RenderedRows(request.data, request.limit), encode)
    size = models.configuration.tokenizer.image_size
    cut, index = face_cutter(request.detector, portrait_alignment(), size), Index(request.index)
    count = min(len(index), request.limit or len(index))
    limits = own_limits(request.largest_megapixels)
    return Worker(request, OwnRows(index, cut, schema_of(request), request.features, size, limits, count), encode)


_worker: Worker | None = None


def _begin(request: CacheRequest, parent: int, begun: Any, given_up: Any) -> None:
    """Load the worker of this process, on the next GPU where there are any.

    The process ends when the one that started it is gone or has given up, and with it the shard that it was about to write.
    """
    global _worker  # noqa: PLW0603 - one per process

    def watch() -> None:
        while os.getppid() == parent and not given_up.wait(_WATCH_S):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    with begun.get_lock():
        number, begun.value = begun.value, begun.value + 1
    if request.device == "cuda":
        request = replace(request, device=f"cuda:{number % torch.cuda.device_count()}")
    _worker = open_worker(request)


def _run(number: int) -> int:
    assert _worker is not None
    return _worker.run(number)


def write_cache(
    request: CacheRequest, *, report: Callable[[str], None] = print, progress: Callable[[int], None] = lambda _: None
) -> TokenCache:
    """Write or complete a cache.

    Args:
        request: what to encode, by what, where to.
        report: called with lines about the data and the cache.
        progress: called with the number of rows done.

    Raises:
        InputError: the data, a part or an option is wrong, too many pictures cannot be used, or the disk is too full.
    """
    if (request.out / META).is_file():
        settle(request)
        report(f"{request.out}: done before")
        return TokenCache(request.out)
    models = open_parts(request.parts, request.configuration)  # before anything is written
    rows = settle(request, report)
    check_room(request, rows, report)
    numbers = range(-(-rows // request.shard_rows))
    ready = [number for number in numbers if _is_ready(request.out / shard_name(number))]
    tally = _Tally(request, rows)
    for number in ready:
        tally.add(number)
    progress(tally.done)
    if ready:
        report(f"{len(ready)} of {len(numbers)} shards are there from before, checked")
    for number in _encoded(request, [number for number in numbers if number not in set(ready)]):
        tally.add(number)
        progress(tally.done)
    return _finish(request, models, tally, report)


def _is_ready(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    check_shard(folder, content=True)
    return True


class _Tally:
    """Rows done and pictures skipped; raises when too many are."""

    def __init__(self, request: CacheRequest, rows: int) -> None:
        self.request, self.rows, self.done = request, rows, 0
        self.counts: dict[int, int] = {}
        self.skipped: dict[int, list[list[str]]] = {}
        self.losses: list[float] = []
        self.before = 0 if is_rendered(request.data) else int(Index(request.index).about["skipped"])

    def add(self, number: int) -> None:
        found = json.loads((self.request.out / shard_name(number) / "report.bin").read_bytes())
        self.counts[number], self.skipped[number] = found["rows"], found["skipped"]
        self.done = min(self.rows, self.done + self.request.shard_rows)
        if found["loss"] is not None:
            self.losses.append(found["loss"])
        skipped = self.before + sum(map(len, self.skipped.values()))
        if skipped > self.request.most_skipped:
            some = "; ".join(f"{place}: {reason}" for rows in self.skipped.values() for place, reason in rows[:5])
            raise InputError(
                f"{self.request.data}: {skipped} rows cannot be used, allowed are {self.request.most_skipped}: {some[:1000]}; "
                "repair them, or give the same command with a larger --most-skipped to go on"
            )


def _encoded(request: CacheRequest, numbers: list[int]) -> Iterator[int]:
    """Yield the numbers of shards as they are written, by ``request.processes`` processes."""
    if request.processes <= 1 or len(numbers) <= 1:
        worker = open_worker(request) if numbers else None
        for number in numbers:
            assert worker is not None
            yield worker.run(number)
        return
    context = multiprocessing.get_context("spawn")
    count = min(request.processes, len(numbers))
    given_up = context.Event()
    arguments = (request, os.getpid(), context.Value("i", 0), given_up)
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=arguments) as pool:
        waiting: list[Future[int]] = [pool.submit(_run, number) for number in numbers]
        try:
            for future in as_completed(waiting):
                yield future.result()
        except BaseException:  # also an interrupt: what runs would be waited for, up to the end of its shard
            given_up.set()
            raise


def _finish(request: CacheRequest, models: Models, tally: _Tally, report: Callable[[str], None]) -> TokenCache:
    """Split the rows, list what was skipped, and complete the cache."""
    counts = [tally.counts[number] for number in sorted(tally.counts)]
    if not sum(counts):
        some = "; ".join(f"{place}: {reason}" for rows in tally.skipped.values() for place, reason in rows[:5])
        raise InputError(f"{request.data}: no usable picture: {some[:1000]}")
    about: dict[str, Any] = {
        "schema": schema_of(request).to_json(),
        "regions": list(RenderedRows(request.data, request.limit).faces.region_names if is_rendered(request.data) else models.regions),
        "shards": counts,
        "configuration": models.configuration.to_json(),
        "parts": request.parts.to_json(),
        "features": request.features,
    }
    if not is_rendered(request.data):
        about |= _finish_own(request, tally, report)
    write_meta(request.out, about)
    cache = TokenCache(request.out)
    size = sum(file.stat().st_size for file in request.out.rglob("*") if file.is_file())
    report(f"{request.out}: {len(cache)} faces, {size / 2**20:.0f} MiB")
    return cache


def _finish_own(request: CacheRequest, tally: _Tally, report: Callable[[str], None]) -> dict[str, Any]:
    index, folders = Index(request.index), [request.out / shard_name(n) for n in sorted(tally.counts) if tally.counts[n]]
    hashes = np.concatenate([np.load(folder / "hash.npy") for folder in folders]).reshape(-1, HASH_BYTES)
    held = validation_rows(hashes, request.validation if request.validation is not None else min(512, max(1, len(hashes) // 20)))
    if not 0 < held.sum() < len(held):
        raise InputError(f"{request.data}: {len(held)} pictures give no split of training and validation; most are copies of each other")
    np.save(request.out / ORDER, np.concatenate((np.flatnonzero(~held), np.flatnonzero(held))).astype(np.int64))
    skipped = [*index.skipped(), *((place, reason) for n in sorted(tally.skipped) for place, reason in tally.skipped[n])]
    lines = [json.dumps({"place": place, "reason": reason}, ensure_ascii=False) + "\n" for place, reason in skipped]
    (request.out / SKIPPED).write_text("".join(lines), encoding="utf-8")
    report(f"skipped {len(skipped)} rows" + (f", listed in {request.out / SKIPPED}" if skipped else ""))
    report(f"split: {int((~held).sum())} pictures for training, {int(held.sum())} for validation, no picture or copy of one on both sides")
    if tally.losses:
        report(
            f"semantic features in 8 bits lose {np.mean(tally.losses):.2%} of their size"
            + ("" if request.features == "int8" else "; kept in fp16")
        )
    return {
        "texts": True,
        "validation": int(held.sum()),
        "skipped": len(skipped),
        "alignment": {"landmarks": [list(p) for p in portrait_alignment().landmarks], "margins": list(portrait_alignment().margins)},
        "loss_8bit": float(np.mean(tally.losses)) if tally.losses else None,
    }
