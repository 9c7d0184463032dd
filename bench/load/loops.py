"""Shapes of load, each with one :class:`Sample` per request.

Latency is counted from the *intended* start.  In the open loop that is the drawn arrival, so a stall of the server or of this generator
delays every request that arrives in it (no coordinated omission); in the closed loop it is the end of the client's previous request.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from bench.load.work import Caller, Query, Reply

#: Number of open calls at which an open loop is stopped because the server cannot keep up.
MOST_OPEN = 1000
#: Samples of a MultiStream query.
STREAMS = 8
_OFFLINE_OPEN = 64
_SHORTEST_PAUSE_S = 0.02

#: Called with the number of finished requests and of all, 0 if unknown.
CountProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sample:
    """One request: its ``intended`` start on ``time.perf_counter`` and its reply."""

    method: str
    number: int
    intended: float
    reply: Reply

    @property
    def latency_ms(self) -> float:
        return 1e3 * (self.reply.done - self.intended)

    @property
    def first_ms(self) -> float | None:
        return None if self.reply.first is None else 1e3 * (self.reply.first - self.intended)

    @property
    def lag_ms(self) -> float:
        """Return the milliseconds by which this generator was late."""
        return 1e3 * (self.reply.sent - self.intended)

    @property
    def ok(self) -> bool:
        return self.reply.code == "OK"


@dataclass
class Run:
    """Samples of a run, and the reason if it ended early."""

    samples: list[Sample]
    seconds: float
    given_up: str = ""


def poisson(rate: float, seconds: float, most: int, seed: int) -> list[float]:
    """Return the arrivals of a Poisson process: seconds from the start, below ``seconds``, at most ``most``."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=most)
    arrivals = np.cumsum(gaps)
    return [float(at) for at in arrivals[arrivals < seconds]]


async def open_loop(callers: Sequence[Caller], queries: Iterator[Query], arrivals: Sequence[float], progress: CountProgress) -> Run:
    """Send each request at its arrival, regardless of open calls."""
    samples: list[Sample] = []
    open_calls: set[asyncio.Task[None]] = set()
    given_up = ""

    async def one(caller: Caller, query: Query, intended: float) -> None:
        samples.append(Sample(query.method, query.number, intended, await caller(query)))
        progress(len(samples), len(arrivals))

    with _clock() as start:
        for at, caller in zip(arrivals, cycle(callers), strict=False):
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            if len(open_calls) >= MOST_OPEN:
                given_up = f"{MOST_OPEN} calls were open at {at:.1f} s: the server takes less than this rate"
                break
            task = asyncio.create_task(one(caller, next(queries), start + at))
            open_calls.add(task)
            task.add_done_callback(open_calls.discard)
        await asyncio.gather(*open_calls)
    return Run(samples, time.perf_counter() - start, given_up)


async def closed_loop(callers: Sequence[Caller], queries: Iterator[Query], seconds: float, most: int, progress: CountProgress) -> Run:
    """Send each caller's next request when its previous one has ended."""
    samples: list[Sample] = []
    left = iter(range(most))

    async def client(caller: Caller) -> None:
        while time.perf_counter() - start < seconds and next(left, None) is not None:
            query, intended = next(queries), time.perf_counter()
            samples.append(Sample(query.method, query.number, intended, reply := await caller(query)))
            progress(len(samples), 0)
            if not samples[-1].ok:
                await asyncio.sleep(max(reply.pushback_s, _SHORTEST_PAUSE_S))

    with _clock() as start:
        await asyncio.gather(*map(client, callers))
    return Run(samples, time.perf_counter() - start)


async def single_stream(callers: Sequence[Caller], queries: Iterator[Query], seconds: float, most: int, progress: CountProgress) -> Run:
    """Send one request after another."""
    return await closed_loop(callers[:1], queries, seconds, most, progress)


async def multi_stream(callers: Sequence[Caller], queries: Iterator[Query], seconds: float, most: int, progress: CountProgress) -> Run:
    """Send eight requests at once, the next eight when all are done; the intended start is common to the eight."""
    samples: list[Sample] = []
    with _clock() as start:
        while time.perf_counter() - start < seconds and len(samples) + STREAMS <= most:
            group, intended = list(islice(queries, STREAMS)), time.perf_counter()
            replies = await asyncio.gather(*(caller(query) for caller, query in zip(cycle(callers), group, strict=False)))
            samples += [Sample(q.method, q.number, intended, reply) for q, reply in zip(group, replies, strict=True)]
            progress(len(samples), 0)
    return Run(samples, time.perf_counter() - start)


async def offline(callers: Sequence[Caller], queries: Sequence[Query], seconds: float, progress: CountProgress) -> Run:
    """Send all requests as fast as the server takes them; refused ones are repeated.

    The run stops after ``seconds``.
    """
    samples: list[Sample] = []
    waiting = iter(queries)
    late = False

    async def feed(caller: Caller) -> None:
        nonlocal late
        for query in waiting:
            reply = await caller(query)
            while reply.code == "RESOURCE_EXHAUSTED" and time.perf_counter() - start < seconds:
                await asyncio.sleep(max(reply.pushback_s, _SHORTEST_PAUSE_S))
                reply = await caller(query)
            samples.append(Sample(query.method, query.number, start, reply))
            progress(len(samples), len(queries))
            if time.perf_counter() - start >= seconds:
                late = True
                return

    with _clock() as start:
        await asyncio.gather(*(feed(caller) for caller, _ in zip(cycle(callers), range(_OFFLINE_OPEN), strict=False)))
    missing = len(queries) - len(samples)
    given_up = f"{missing} requests were left after {seconds:g} s" if late and missing else ""
    return Run(samples, time.perf_counter() - start, given_up)


async def find_peak(holds: Callable[[float], Awaitable[bool]], first: float, trials: int) -> float:
    """Return the highest rate that ``holds``, found by doubling, halving and bisection; 0.0 if none does."""
    best, worst, rate = 0.0, float("inf"), first
    for _ in range(trials):
        if await holds(rate):
            best = rate
        else:
            worst = rate
        rate = 2 * best if worst == float("inf") else worst / 2 if best == 0 else (best + worst) / 2
    return best


@contextmanager
def _clock() -> Iterator[float]:
    """Yield the start time; freeze existing objects, so that pauses of garbage collection are not measured as the server's."""
    gc.collect()
    gc.freeze()
    try:
        yield time.perf_counter()
    finally:
        gc.unfreeze()
