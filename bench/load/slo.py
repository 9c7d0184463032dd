"""Service-level objectives of docs/serving.md, measured on a server that the bench starts: throughput, latency under load, restarts.

Each objective has a value, its bound and whether it holds.  Every part takes ``seconds``.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import cycle, islice
from typing import Any

from bench.load.loops import CountProgress, Run, closed_loop
from bench.load.server import ServerProcess, health_sampler, wait_serving
from bench.load.work import Caller, Query, callers, faces_of, make_queries
from f2edge.cli.console import Output
from f2edge.client.connection import Connection
from f2edge.errors import ServerError

_TIMEOUT_S = 120.0
_MOST = 100_000
_CONNECTIONS = 8
#: Least number of pictures: more than a server caches, so that questions are about new faces.
_DISTINCT = 64
#: More pictures than a server queues.
_FLOOD = 48
_REFUSALS = 200
_REFUSAL_PAUSE_S = 0.01
_FILLING_S = 3.0
#: A call sent this long before a signal counts as accepted.
_ACCEPTED_S = 0.3

Queries = Mapping[str, Sequence[Query]]


async def measure_slo(
    arguments: Sequence[str], seconds: float, distinct: int, steps: int | None, progress: CountProgress
) -> dict[str, Any]:
    """Measure every objective; return ``{"slo": {name: {"value", "bound", "holds", "measured"}}}``."""
    results: dict[str, Any] = {}
    with ServerProcess(arguments) as server:
        connection = Connection(server.address)
        facts, faces = await asyncio.to_thread(faces_of, connection, steps)
        queries = make_queries(facts, faces, ["generate", "ask"], max(distinct, _DISTINCT), steps)
        parts = (_throughput, _first_tokens, _full_queue)
        for number, part in enumerate(parts):
            progress(number, len(parts) + 1)
            results |= await part(connection, queries, seconds)
    progress(len(parts), len(parts) + 1)
    results |= await _restart(arguments, queries, seconds)
    progress(len(parts) + 1, len(parts) + 1)
    return {"slo": results}


def show_slo(results: Mapping[str, Any], output: Output) -> None:
    """Print one line per objective."""
    rows = [
        (name, f"{line['value']:.2f}", line["bound"], "holds" if line["holds"] else "DOES NOT HOLD", line["measured"])
        for name, line in results["slo"].items()
    ]
    output.table(("objective", ">value", "bound", "", "measured…"), rows)


def _line(value: float, bound: str, measured: str) -> dict[str, Any]:
    relation, _, number = bound.partition(" ")
    limit = float(number.split()[0])
    return {"value": value, "bound": bound, "holds": value >= limit if relation == "≥" else value <= limit, "measured": measured}


async def _loops(connection: Connection, clients: Mapping[str, int], queries: Queries, seconds: float) -> dict[str, Run]:
    """Run closed loops of several methods at once, with the given number of clients each."""
    async with AsyncExitStack() as stack:
        loops = []
        for method, count in clients.items():
            made = await stack.enter_async_context(callers(connection, min(count, _CONNECTIONS), _TIMEOUT_S))
            clients_of = list(islice(cycle(made), count))
            loops.append(closed_loop(clients_of, cycle(queries[method]), seconds, _MOST, lambda _done, _all: None))
        return dict(zip(clients, await asyncio.gather(*loops), strict=True))


async def _throughput(connection: Connection, queries: Queries, seconds: float) -> dict[str, Any]:
    await _loops(connection, {"generate": 8}, queries, min(5.0, seconds))  # teaches the server the step times of these sizes
    serial = (await _loops(connection, {"generate": 1}, queries, seconds))["generate"]
    eight = (await _loops(connection, {"generate": 8}, queries, seconds))["generate"]
    rates = [_good(run) / run.seconds for run in (serial, eight)]
    measured = f"{rates[1]:.2f} a second with 8 clients, {rates[0]:.2f} with 1"
    return {"throughput of 8 generations over serial": _line(rates[1] / rates[0], "≥ 1.5 times", measured)}


async def _first_tokens(connection: Connection, queries: Queries, seconds: float) -> dict[str, Any]:
    idle = (await _loops(connection, {"ask": 1}, queries, min(5.0, seconds)))["ask"]
    busy = (await _loops(connection, {"ask": 1, "generate": 4}, queries, seconds))["ask"]
    medians = [statistics.median(s.first_ms for s in run.samples if s.ok and s.first_ms is not None) for run in (idle, busy)]
    measured = f"median {medians[1]:.1f} ms beside 4 pictures, {medians[0]:.1f} ms idle"
    return {"first answer token beside 4 pictures over idle": _line(medians[1] / medians[0], "≤ 2 times", measured)}


async def _full_queue(connection: Connection, queries: Queries, seconds: float) -> dict[str, Any]:
    """Measure health checks and refusals while pictures and answers fill the queue."""
    with health_sampler(connection) as health:
        async with callers(connection, 1, _TIMEOUT_S) as (probe,):
            flood = asyncio.create_task(_loops(connection, {"generate": _FLOOD, "ask": 16}, queries, float("inf")))
            refused = await _refusals(probe, cycle(queries["generate"]), seconds)
            flood.cancel()
            await asyncio.gather(flood, return_exceptions=True)
    if not refused:
        raise ServerError(f"{_FLOOD} pictures at once did not fill the server's queue")
    checks = [ms for _, ms in health.seen]
    return {
        "health at full load, slowest, ms": _line(
            max(checks), "≤ 50 ms", f"{len(checks)} checks, median {statistics.median(checks):.1f} ms"
        ),
        "refusal by a full queue, median, ms": _line(
            statistics.median(refused), "≤ 5 ms", f"{len(refused)} refusals, slowest {max(refused):.1f} ms, client and wire included"
        ),
    }


async def _refusals(probe: Caller, queries: Iterator[Query], seconds: float) -> list[float]:
    """Return the milliseconds of successive refusals while other clients keep the queue full."""
    times: list[float] = []
    await asyncio.sleep(_FILLING_S)
    until = time.perf_counter() + seconds
    while len(times) < _REFUSALS and time.perf_counter() < until:
        reply = await probe(next(queries))
        if reply.code == "RESOURCE_EXHAUSTED":
            times.append(1e3 * (reply.done - reply.sent))
        await asyncio.sleep(_REFUSAL_PAUSE_S)
    return times


async def _restart(arguments: Sequence[str], queries: Queries, seconds: float) -> dict[str, Any]:
    """Terminate a server under load and start another on its port: no accepted call may be lost, no client may see an error."""
    first = ServerProcess(arguments)
    with first:
        connection = Connection(first.address)
        load = asyncio.create_task(_loops(connection, {"generate": 4, "ask": 4}, queries, 2 * seconds))
        await asyncio.sleep(seconds)
        signalled = time.perf_counter()
        first.terminate()
        code = await asyncio.to_thread(first.wait)
        problems = first.problems()
        port = int(connection.target.rpartition(":")[2])
        second = await asyncio.to_thread(ServerProcess, arguments, port)
        try:
            await asyncio.to_thread(wait_serving, connection, _TIMEOUT_S)
            runs = await load
            problems += second.problems()
        finally:
            await asyncio.to_thread(second.stop)
    samples = [sample for run in runs.values() for sample in run.samples]
    accepted = [s for s in samples if s.reply.sent < signalled - _ACCEPTED_S and s.reply.done > signalled]
    after = sum(s.reply.done > signalled for s in samples)
    lost, errors = sum(not s.ok for s in accepted), Counter(s.reply.code for s in samples if not s.ok)
    seen = "".join(f"; {what}" for what in (dict(errors), problems) if what)
    return {
        "accepted calls lost by SIGTERM": _line(lost, "≤ 0", f"{len(accepted)} calls open at the signal; the server ended with {code}"),
        "errors that retrying clients saw over a restart": _line(
            errors.total(), "≤ 0", f"{len(samples)} calls, {after} ended after the signal{seen}"
        ),
    }


def _good(run: Run) -> int:
    return sum(sample.ok for sample in run.samples)
