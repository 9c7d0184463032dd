"""Random deadlines under load: ``python -m bench load --scenario deadlines --count 500``.

Clients in a closed loop keep the server busy; beside them pictures are asked for and edited, each with its own random deadline.  A call
that the server refuses at once costs nothing and is none of its promises.  Every other call is *accepted*: it has to answer in time.  A
call that ends at its deadline without a word from the server counts as accepted, whether or not it ever arrived.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from bench.load.loops import CountProgress, closed_loop, poisson
from bench.load.plan import LoadPlan, Session
from bench.load.report import percentiles
from bench.load.server import ServerProcess
from bench.load.work import Caller, Query, Reply, callers, make_queries
from f2edge.cli.console import Output
from f2edge.cli.top import scrape
from f2edge.client.connection import Connection

if TYPE_CHECKING:
    from bench.load.loops import Run

#: Deadlines are drawn between these, their logarithm evenly.
SHORTEST_S, LONGEST_S = 0.04, 2.0
#: Share of accepted calls that must answer in time.
BOUND = 0.99
_CONNECTIONS = 8
_WARM_S = 5.0
_METHODS = ("generate", "generate", "generate", "edit")


async def measure(session: Session, progress: CountProgress) -> tuple[list[tuple[float, Reply]], Run]:
    """Return every call's deadline in seconds and its reply, and the run of the load beside them."""
    plan = session.plan
    queries = make_queries(session.facts, session.faces, ["generate", "edit"], plan.distinct, plan.steps)
    for method in queries.values():
        for query in method:
            query.message.ClearField("min_steps")  # the server may cut steps, down to its own floor
    arrivals = poisson(plan.rate, float("inf"), plan.most, plan.seed)
    rng = random.Random(plan.seed)  # noqa: S311
    replies: list[tuple[float, Reply]] = []

    async def one(caller: Caller, query: Query, deadline_s: float) -> None:
        replies.append((deadline_s, await caller(query, timeout_s=deadline_s)))
        progress(len(replies), len(arrivals))

    async with (
        callers(session.connection, plan.clients, plan.timeout_s) as busy,
        callers(session.connection, _CONNECTIONS, plan.timeout_s) as made,
    ):
        load = asyncio.create_task(closed_loop(busy, session.mixed(), _WARM_S + arrivals[-1], 1_000_000, lambda _done, _all: None))
        await asyncio.sleep(_WARM_S)
        loop = asyncio.get_running_loop()
        start, tasks = loop.time(), []
        for number, (at, caller) in enumerate(zip(arrivals, cycle(made), strict=False)):
            await asyncio.sleep(max(0.0, start + at - loop.time()))
            kind = queries[rng.choice(_METHODS)]
            deadline_s = math.exp(rng.uniform(math.log(SHORTEST_S), math.log(LONGEST_S)))
            tasks.append(asyncio.create_task(one(caller, kind[number % len(kind)], deadline_s)))
        await asyncio.gather(*tasks)
        return replies, await load


def results_of(replies: Sequence[tuple[float, Reply]], counters: Mapping[str, float]) -> dict[str, Any]:
    """Return the results of the calls with deadlines; ``counters`` are the engine's, over the whole run."""
    refused = [reply for _, reply in replies if reply.refused]
    accepted = [(deadline_s, reply) for deadline_s, reply in replies if not reply.refused]
    good = [(deadline_s, reply) for deadline_s, reply in accepted if reply.code == "OK"]
    steps = [reply.steps for _, reply in good]
    return {
        "calls": len(replies),
        "refused": len(refused),
        "refused_ms": percentiles([1e3 * (reply.done - reply.sent) for reply in refused]),
        "accepted": len(accepted),
        "in_time": len(good),
        "share_in_time": len(good) / len(accepted) if accepted else 1.0,
        "bound": BOUND,
        "failed": dict(Counter(reply.code for _, reply in accepted if reply.code != "OK")),
        "degraded": sum(reply.degraded for _, reply in good),
        "without_steps": sum(count == 0 for count in steps),
        "steps": {str(count): steps.count(count) for count in sorted(set(steps))},
        "left_ms": percentiles([1e3 * (deadline_s - (reply.done - reply.sent)) for deadline_s, reply in good]),
        "shortest_ms": 1e3 * min((deadline_s for deadline_s, _ in good), default=float("nan")),
        "engine": dict(counters),
    }


def run_deadlines(plan: LoadPlan, arguments: Sequence[str], output: Output) -> dict[str, Any]:
    """Start a server, run the scenario on it, print and return its results."""
    port = _free_port()
    with ServerProcess([*arguments, "--metrics-port", str(port)]) as process:
        session = Session(plan, Connection(process.address))
        with output.progress(plan.scenario) as progress:
            replies, load = asyncio.run(measure(session, progress))
        seen = scrape(f"127.0.0.1:{port}")
        counters = {
            "rejected": seen.value("f2edge_rejected_total", reason="deadline"),
            "failed_at_deadline": seen.value("f2edge_failed_total", reason="deadline"),
            "wasted_steps": seen.value("f2edge_wasted_steps_total"),
            "steps": seen.value("f2edge_steps_total"),
        }
        results = results_of(replies, counters)
        results["load"] = {"calls": len(load.samples), "codes": dict(Counter(sample.reply.code for sample in load.samples))}
        results["server_errors"] = process.problems()
    show(results, output)
    return results


def show(results: Mapping[str, Any], output: Output) -> None:
    """Print the results."""
    holds = "holds" if results["share_in_time"] >= results["bound"] else "DOES NOT HOLD"
    output.line(
        f"{results['calls']} calls with deadlines of {1e3 * SHORTEST_S:.0f} … {1e3 * LONGEST_S:.0f} ms beside "
        f"{results['load']['calls']} others: {results['refused']} refused at once, "
        f"{results['in_time']} of {results['accepted']} accepted ones in time "
        f"({100 * results['share_in_time']:.1f} %, ≥ {100 * results['bound']:.0f} %: {holds})"
    )
    rows = [(f"{steps} steps", str(count)) for steps, count in results["steps"].items()]
    output.table(("answered with", ">calls"), [*rows, ("fewer steps than asked for", str(results["degraded"]))])
    left, refused, engine = results["left_ms"], results["refused_ms"], results["engine"]
    output.line(
        f"time left at the answer: median {left.get('p50', float('nan')):.0f} ms, least {left.get('min', float('nan')):.0f} ms; shortest "
        f"deadline met {results['shortest_ms']:.0f} ms; refused within {refused.get('p50', float('nan')):.1f} ms (median)"
    )
    output.line(
        f"failed: {results['failed'] or 'none'}; the engine failed {engine['failed_at_deadline']:.0f} at a deadline, and "
        f"{engine['wasted_steps']:.0f} of {engine['steps']:.0f} steps were for nothing"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
