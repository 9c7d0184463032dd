"""Soak test: many clients with mixed requests for a long time; errors, wrong replies and growth of memory.

First every distinct request is sent to the idle server; then clients send them concurrently, and each reply must equal the first one.  One
call in twenty is invalid, has an impossible deadline or is cancelled: it must end with the corresponding status.  The server's memory is
sampled every second; its drift is the median of the last tenth of the run minus the median of the tenth after the warm-up.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.hardware.memory import resident_mb
from bench.load.loops import CountProgress, Run, Sample, closed_loop
from bench.load.report import health_results
from bench.load.server import Sampler
from bench.load.work import Caller, Query, Reply
from f2edge.v1 import face_pb2 as pb

CLIENTS = 16
#: Share of the run that counts as warm-up.
_WARM_SHARE = 0.2
_WINDOW_SHARE = 0.1
_OWN_FAULTS = 0.05
_HOPELESS_S = 0.001
_PAUSE_S = 0.05
_LISTED = 5
#: Of open files and of threads.
_MOST_GROWTH = 8

Alone = Mapping[tuple[str, int], bytes]


@dataclass
class SoakFindings:
    """Errors and differing replies, and the number of deliberate faults by kind."""

    errors: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    own_faults: Counter[str] = field(default_factory=Counter)


async def replies_alone(
    caller: Caller, queries: Mapping[str, Sequence[Query]], progress: CountProgress
) -> tuple[dict[tuple[str, int], bytes], Run]:
    """Return the reply of every distinct request, sent one at a time, and their run."""
    every = [query for group in queries.values() for query in group]
    run = await closed_loop([caller], iter(every), float("inf"), len(every), lambda done, _: progress(done, len(every)))
    return {(s.method, s.number): s.reply.content for s in run.samples if s.ok}, run


async def soak(
    callers: Sequence[Caller], queries: Iterator[Query], alone: Alone, *, seconds: float, seed: int, progress: CountProgress
) -> tuple[Run, SoakFindings]:
    """Run a loop per caller for ``seconds``; the samples are of calls that should succeed."""
    samples: list[Sample] = []
    findings = SoakFindings()
    start = time.perf_counter()

    async def client(index: int, caller: Caller) -> None:
        rng = random.Random(seed * 1000 + index)  # noqa: S311
        while (elapsed := time.perf_counter() - start) < seconds:
            progress(int(elapsed), int(seconds))
            query, intended = next(queries), time.perf_counter()
            if rng.random() < _OWN_FAULTS:
                await _own_fault(rng, caller, query, findings)
                continue
            reply = await caller(query)
            samples.append(Sample(query.method, query.number, intended, reply))
            _judge(samples[-1], alone, findings)
            if reply.code != "OK":
                await asyncio.sleep(max(reply.pushback_s, _PAUSE_S))

    await asyncio.gather(*(client(index, caller) for index, caller in enumerate(callers)))
    return Run(samples, time.perf_counter() - start), findings


def _judge(sample: Sample, alone: Alone, findings: SoakFindings) -> None:
    name = f"{sample.method} {sample.number}"
    if not sample.ok:
        findings.errors.append(f"{name}: {sample.reply.code}")
    elif sample.reply.content != alone.get((sample.method, sample.number)):
        findings.different.append(name)


async def _own_fault(rng: random.Random, caller: Caller, query: Query, findings: SoakFindings) -> None:
    """Send a call that is invalid, late or cancelled, and check its status."""
    kind = rng.choice(("a bad prompt", "a hopeless deadline", "leaving early"))
    if kind == "a bad prompt":
        reply = await caller(Query("generate", -1, pb.GenerateRequest(prompt="\x00")))
        right = reply.code == "INVALID_ARGUMENT"
    elif kind == "a hopeless deadline":
        reply = await caller(query, timeout_s=_HOPELESS_S)
        right = reply.code == "DEADLINE_EXCEEDED"
    else:
        reply = await _left(caller, query, 0.1 * rng.random())
        right = reply.code in ("CANCELLED", "OK")  # OK where it ended before the cancellation
    findings.own_faults[kind] += 1
    if not right:
        findings.errors.append(f"{kind}, {query.method} {query.number}: {reply.code}")


async def _left(caller: Caller, query: Query, after_s: float) -> Reply:
    sent = time.perf_counter()
    try:
        return await asyncio.wait_for(caller(query), after_s)
    except asyncio.TimeoutError:
        return Reply("CANCELLED", sent, time.perf_counter())


def memory_sampler(pid: int | None) -> Sampler:
    """Sample resident memory once a second; no samples of a server that the bench did not start."""
    return Sampler(lambda: None if pid is None else resident_mb(pid), 1.0)


def held_samplers(pid: int | None) -> tuple[Sampler, Sampler]:
    """Open files and threads once a second; they see nothing where the server is not ours."""

    def count(folder: str) -> float | None:
        try:
            return float(len(list(Path(f"/proc/{pid}/{folder}").iterdir())))
        except OSError:
            return None

    return Sampler(lambda: count("fd"), 1.0), Sampler(lambda: count("task"), 1.0)


def drift_mb(seen: Sequence[tuple[float, float]], seconds: float) -> float | None:
    """Return the growth of memory after the warm-up; None where a window has no sample."""
    width, warm = _WINDOW_SHARE * seconds, _WARM_SHARE * seconds
    early = [mb for at, mb in seen if warm <= at < warm + width]
    late = [mb for at, mb in seen if seconds - width <= at <= seconds]
    return statistics.median(late) - statistics.median(early) if early and late else None


def growth(seen: Sequence[tuple[float, float]], seconds: float) -> float | None:
    """Return the growth of a count after the warm-up, from the lowest of a window to the lowest of the last; None without samples."""
    width, warm = _WINDOW_SHARE * seconds, _WARM_SHARE * seconds
    early = [count for at, count in seen if warm <= at < warm + width]
    late = [count for at, count in seen if seconds - width <= at <= seconds]
    return min(late) - min(early) if early and late else None


def soak_results(
    findings: SoakFindings, memory: Sampler, health: Sampler, held: tuple[Sampler, Sampler], seconds: float, *, wire: bool = False
) -> dict[str, Any]:
    """Return the results of the soak test besides those of its run; ``held`` are samples of open files and of threads.

    Attackers (``wire``) make memory rise and fall by what they may hold; the drift beside them is that of its lowest values.
    """
    drift = growth(memory.seen, seconds) if wire else drift_mb(memory.seen, seconds)
    files, threads = (growth(sampler.seen, seconds) for sampler in held)
    flat = all(grown is None or grown <= _MOST_GROWTH for grown in (files, threads))
    return {
        "errors": len(findings.errors),
        "first_errors": findings.errors[:_LISTED],
        "different_replies": len(findings.different),
        "first_different": findings.different[:_LISTED],
        "own_faults": dict(findings.own_faults),
        "memory_drift_mb": drift,
        "memory_mb": [round(mb, 1) for _, mb in memory.seen],
        "open_files_growth": files,
        "threads_growth": threads,
        "health": health_results(health),
        "passed": not findings.errors and not findings.different and (drift is None or drift <= 20.0) and flat,
    }
