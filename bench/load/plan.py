"""Plan of a load test, validated, and its runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

from bench.load import loops
from bench.load.loops import CountProgress, Run
from bench.load.report import order_statistic, parse_slo
from bench.load.work import DEFAULT_MIX, Caller, Query, callers, faces_of, make_queries, mixed, parse_mix
from f2edge.client.connection import Connection
from f2edge.errors import InputError, ServerError

#: Largest options of one run.
LONGEST_S, MOST_REQUESTS, MOST_CLIENTS, HIGHEST_RATE = 3600.0, 100_000, 256, 2000.0
_OPEN_CONNECTIONS = 8
_TRIALS = 10


class Scenario(str, Enum):
    """Shapes of the load."""

    closed = "closed"
    open = "open"
    single_stream = "single-stream"
    multi_stream = "multi-stream"
    server = "server"
    offline = "offline"
    deadlines = "deadlines"
    slo = "slo"


def parse_scenario(text: str) -> Scenario:
    """Return the scenario named ``text``; raise :class:`InputError` for others."""
    if text == "promises":
        raise InputError("--scenario promises is now --scenario slo")
    try:
        return Scenario(text)
    except ValueError as error:
        raise InputError(f"--scenario {text!r}: choose from {', '.join(Scenario)}") from error


@dataclass(frozen=True)
class LoadPlan:
    """Validated options of a load test.

    Attributes:
        clients: of the closed loop.
        rate: requests per second of the open loop; the first rate tried by the server scenario.
        seconds, most: bounds of a run, or of each trial of the server scenario.
        bound_ms: of the 99th percentile in the server scenario.
        mix: methods and weights, as given.
        slo: milliseconds, as given.
        distinct: different requests of each method.
        steps: of a picture; None takes the model's default.
        timeout_s: deadline of each call.
        wire: attackers beside the soak, over raw sockets; a plaintext server on this machine only.
    """

    scenario: str = "closed"
    clients: int = 8
    rate: float = 2.0
    seconds: float = 30.0
    most: int = 10_000
    bound_ms: float = 2000.0
    mix: str = DEFAULT_MIX
    slo: str = ""
    distinct: int = 64
    steps: int | None = None
    seed: int = 1
    timeout_s: float = 120.0
    wire: bool = False

    def __post_init__(self) -> None:
        bounds: Mapping[str, tuple[float, float, float]] = {
            "--clients": (self.clients, 1, MOST_CLIENTS),
            "--rate": (self.rate, 0.01, HIGHEST_RATE),
            "--duration or --soak": (self.seconds, 0.5, LONGEST_S),
            "--count": (self.most, 1, MOST_REQUESTS),
            "--bound": (self.bound_ms, 1, 1e6),
            "--distinct": (self.distinct, 1, 1024),
            "--timeout": (self.timeout_s, 0.1, LONGEST_S),
        }
        for name, (value, lowest, highest) in bounds.items():
            if not lowest <= value <= highest:
                raise InputError(f"{name} {value:g}: must lie in {lowest:g} … {highest:g}")
        parse_mix(self.mix)
        parse_slo(self.slo)


class Session:
    """A server with prepared requests for successive runs."""

    def __init__(self, plan: LoadPlan, connection: Connection) -> None:
        self.plan = plan
        self.mix = parse_mix(plan.mix)
        self.slo = parse_slo(plan.slo)
        self.connection = connection
        self.facts, self.faces = faces_of(connection, plan.steps)
        self.queries = make_queries(self.facts, self.faces, list(self.mix), plan.distinct, plan.steps)

    def mixed(self) -> Iterator[Query]:
        return mixed(self.queries, self.mix, self.plan.seed)

    async def run(self, progress: CountProgress) -> Run:
        """Run the plan's scenario once."""
        plan, queries = self.plan, self.mixed()
        count = plan.clients if plan.scenario == "closed" else _OPEN_CONNECTIONS
        async with callers(self.connection, count, plan.timeout_s) as made:
            await _warm(made, queries)
            if plan.scenario == "open":
                return await self._open(made, plan.rate, progress)
            if plan.scenario == "offline":
                return await loops.offline(made, list(islice(queries, plan.most)), plan.seconds, progress)
            by_scenario = {"closed": loops.closed_loop, "single-stream": loops.single_stream, "multi-stream": loops.multi_stream}
            return await by_scenario[plan.scenario](made, queries, plan.seconds, plan.most, progress)

    async def peak(self, progress: CountProgress) -> tuple[float, list[dict[str, Any]], Run]:
        """Return the highest rate whose 99th percentile is within the bound, every trial, and the last run within it."""
        trials: list[dict[str, Any]] = []
        best = Run([], 0.0)
        async with callers(self.connection, _OPEN_CONNECTIONS, self.plan.timeout_s) as made:
            await _warm(made, self.mixed())

            async def holds(rate: float) -> bool:
                nonlocal best
                run = await self._open(made, rate, progress)
                p99 = order_statistic(run.samples, 99)
                held = not run.given_up and p99 <= self.plan.bound_ms
                trials.append({"rate": rate, "requests": len(run.samples), "p99_ms": p99 if p99 < float("inf") else None, "held": held})
                best = run if held else best
                return held

            return await loops.find_peak(holds, self.plan.rate, _TRIALS), trials, best

    async def _open(self, made: list[Caller], rate: float, progress: CountProgress) -> Run:
        arrivals = loops.poisson(rate, self.plan.seconds, self.plan.most, self.plan.seed)
        return await loops.open_loop(made, self.mixed(), arrivals, progress)


async def _warm(made: list[Caller], queries: Iterator[Query]) -> None:
    """Make one call over every connection before the measurement."""
    for reply in await asyncio.gather(*(caller(next(queries)) for caller in made)):
        if reply.code not in ("OK", "RESOURCE_EXHAUSTED"):
            raise ServerError(f"the server fails on the requests of the load: {reply.code}; choose another --mix")
