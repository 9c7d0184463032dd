"""Load tests of a server: ``python -m bench load``.

    python -m bench load --scenario closed --clients 8                  # as fast as eight clients go
    python -m bench load --scenario open --rate 6 --slo generate=1500,ask=300
    python -m bench load --scenario server --bound 2000                 # MLPerf-style: the highest Poisson rate with p99 below 2 s
    python -m bench load --scenario deadlines --count 500               # random deadlines beside a load
    python -m bench load --soak 600 --out runs/soak

It starts a server on 127.0.0.1 and stops it afterwards; ``--server HOST:PORT`` uses a running one.  Every run is bounded in requests and
time.  The scenarios named after MLPerf have its arrival patterns and metrics, but are not MLPerf results.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.load import loops
from bench.load.deadlines import run_deadlines
from bench.load.loops import CountProgress, Run
from bench.load.plan import LoadPlan, Scenario, Session, parse_scenario
from bench.load.report import health_results, order_statistic, plot, results_of, show
from bench.load.server import ServerProcess, health_sampler, target
from bench.load.slo import measure_slo, show_slo
from bench.load.soak import CLIENTS, held_samplers, memory_sampler, replies_alone, soak, soak_results
from bench.load.wire.attackers import attacking
from bench.load.work import DEFAULT_MIX, callers
from bench.options import AsJson, Steps
from bench.results import Results, write_json
from bench.results import document as to_line
from f2edge.cli.console import Output
from f2edge.cli.serve import SWITCH_S
from f2edge.client.connection import Connection
from f2edge.errors import InputError, ServerError

_LISTED = 5


def run_scenario(plan: LoadPlan, connection: Connection, output: Output, out: Path | None) -> Results:
    """Run the plan's scenario on a server; print and plot its results."""
    session = Session(plan, connection)
    with health_sampler(connection) as health, output.progress(plan.scenario) as progress:
        if plan.scenario == "server":
            peak, trials, run = asyncio.run(session.peak(progress))
            extra = {"peak_per_second": peak, "bound_ms": plan.bound_ms, "trials": trials}
        else:
            run = asyncio.run(session.run(progress))
            extra = {}
    results = {**results_of(run, session.slo), **extra, "health": health_results(health)}
    results["mlperf_style"] = mlperf_style(plan, run, results)
    show(plan.scenario, results, output)
    if results["mlperf_style"]:
        output.line(f"MLPerf-style {plan.scenario}: {results['mlperf_style']}")
    _finish(run, session.slo, out, plan.scenario, output)
    return results


def mlperf_style(plan: LoadPlan, run: Run, results: Mapping[str, Any]) -> str:
    """Return the metric that MLPerf defines for such a run, in words; "" for other scenarios."""
    few = "" if len(run.samples) >= 1024 else f" (of {len(run.samples)} samples only)"
    if plan.scenario == "single-stream":
        return f"90th percentile {order_statistic(run.samples, 90):.1f} ms{few}"
    if plan.scenario == "multi-stream":
        slowest = [
            max(run.samples[at : at + loops.STREAMS], key=lambda s: s.latency_ms) for at in range(0, len(run.samples), loops.STREAMS)
        ]
        return f"99th percentile of queries of {loops.STREAMS}: {order_statistic(slowest, 99):.1f} ms{few}"
    if plan.scenario == "server":
        return f"{results['peak_per_second']:.2f} requests a second with p99 within {plan.bound_ms:g} ms{few}"
    return f"{results['per_second']:.2f} samples a second{few}" if plan.scenario == "offline" else ""


def run_soak(plan: LoadPlan, connection: Connection, process: ServerProcess | None, output: Output, out: Path | None) -> Results:
    """Run a soak test; see :mod:`bench.load.soak`."""
    session = Session(plan, connection)

    async def everything(alone_progress: CountProgress, progress: CountProgress) -> Any:
        async with callers(connection, plan.clients, plan.timeout_s) as made:
            alone, run_alone = await replies_alone(made[0], session.queries, alone_progress)
            failed = [s for s in run_alone.samples if not s.ok]
            if failed:
                raise ServerError(f"{failed[0].method} fails without load already: {failed[0].reply.code}; choose another --mix")
            pid = process.pid if process else None
            files, threads = held_samplers(pid)
            besieged = attacking(connection.target, plan.seconds, seed=plan.seed) if plan.wire else contextlib.nullcontext(dict)
            with memory_sampler(pid) as memory, health_sampler(connection) as health, files, threads, besieged as attacks:
                run, findings = await soak(made, session.mixed(), alone, seconds=plan.seconds, seed=plan.seed, progress=progress)
                counts = await asyncio.to_thread(attacks)
            return run, run_alone, soak_results(findings, memory, health, (files, threads), plan.seconds, wire=plan.wire), counts

    with output.progress("soak") as progress:
        run, run_alone, found, attacks = asyncio.run(everything(lambda _done, _all: None, progress))
    results = {
        **results_of(run, session.slo),
        "alone": results_of(run_alone, session.slo)["latency_ms"],
        "soak": found,
        "attacks": attacks,
    }
    show(f"soak of {plan.clients} clients", results, output)
    drift = "unknown" if found["memory_drift_mb"] is None else f"{found['memory_drift_mb']:+.1f} MB"
    checks = found["health"]["ms"]
    output.line(
        f"errors {found['errors']}, replies that differ from those without load {found['different_replies']}, memory drift {drift}, "
        f"open files {found['open_files_growth']}, threads {found['threads_growth']} more, "
        f"health at most {checks.get('max', float('nan')):.1f} ms in {checks['samples']} checks"
    )
    if attacks:
        output.line("beside them: " + ", ".join(f"{count} {name}" for name, count in sorted(attacks.items())))
    for case in (*found["first_errors"], *found["first_different"]):
        output.line(f"  {case}")
    _finish(run, session.slo, out, "soak", output)
    return results


def _finish(run: Run, slo: Mapping[str, float], out: Path | None, name: str, output: Output) -> None:
    if out is not None and run.samples:
        plot(run, slo, out / f"{name}.png", name)
        output.line(f"plot: {out / f'{name}.png'}")


def load(
    *,
    scenario: Annotated[str, typer.Option(metavar="|".join(Scenario), help="Shape of the load; slo: docs/serving.md.")] = "closed",
    soak_seconds: Annotated[
        float | None, typer.Option("--soak", help="Run a soak test of this many seconds instead.", show_default=False)
    ] = None,
    wire: Annotated[bool, typer.Option("--wire", help="With --soak: attackers beside the clients, below gRPC's library.")] = False,
    clients: Annotated[int | None, typer.Option(help="Closed loop: clients.  [default: 8; 16 for a soak]", show_default=False)] = None,
    rate: Annotated[float, typer.Option(help="Open loop: requests per second.  Server scenario: the first rate tried.")] = 2.0,
    seconds: Annotated[float, typer.Option("--duration", help="Seconds of a run, of each trial, of each part of slo.")] = 30.0,
    most: Annotated[int, typer.Option("--count", help="Largest number of requests; their number in the offline scenario.")] = 10_000,
    bound: Annotated[float, typer.Option(help="Server scenario: bound of p99 in milliseconds.")] = 2000.0,
    mix: Annotated[str, typer.Option(help="Methods and weights.")] = DEFAULT_MIX,
    slo: Annotated[str, typer.Option(help="Bounds for goodput: milliseconds, or METHOD=MILLISECONDS,…")] = "",
    distinct: Annotated[int, typer.Option(help="Number of different requests of each method.")] = 64,
    steps: Steps = None,
    seed: Annotated[int, typer.Option(help="Seed of arrivals and of the order of requests.")] = 1,
    timeout: Annotated[float, typer.Option(help="Deadline of each call, in seconds.")] = 120.0,
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Use this running server instead of starting one.")] = None,
    bundle: Annotated[str | None, typer.Option(help="Bundle of the started server.  [default: nano]", show_default=False)] = None,
    backend: Annotated[str | None, typer.Option(help="Backend of the started server.  [default: auto]", show_default=False)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the started server.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for load.json and the plot.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put load on a server and measure latency, throughput and errors."""
    plan = LoadPlan(
        scenario="soak" if soak_seconds is not None else parse_scenario(scenario).value,
        clients=clients if clients is not None else CLIENTS if soak_seconds is not None else 8,
        rate=rate,
        seconds=seconds if soak_seconds is None else soak_seconds,
        most=most,
        bound_ms=bound,
        mix=mix,
        slo=slo,
        distinct=distinct,
        steps=steps,
        seed=seed,
        timeout_s=timeout,
        wire=wire and soak_seconds is not None,
    )
    options = {"--bundle": bundle, "--backend": backend, "--threads": threads}
    arguments = [text for option, value in options.items() if value is not None for text in (option, str(value))]
    output = Output(json=as_json)
    sys.setswitchinterval(SWITCH_S)  # the threads of callers must not delay the health checks
    results: Results
    if plan.wire and server is not None:
        raise InputError("--wire attacks a server of its own and no other; leave out --server")
    if plan.scenario == "slo":
        if server is not None:
            raise InputError("--scenario slo restarts its server, so it cannot use a running one; leave out --server")
        with output.progress(plan.scenario) as progress:
            results = asyncio.run(measure_slo(arguments, plan.seconds, plan.distinct, plan.steps, progress))
        show_slo(results, output)
    elif plan.scenario == "deadlines":
        if server is not None:
            raise InputError("--scenario deadlines reads the counters of a server of its own; leave out --server")
        results = run_deadlines(plan, arguments, output)
    else:
        with target(server, arguments) as (connection, process):
            soaks = plan.scenario == "soak"
            results = run_soak(plan, connection, process, output, out) if soaks else run_scenario(plan, connection, output, out)
            results["server_errors"] = process.problems() if process else None
        for problem in (results["server_errors"] or ())[:_LISTED]:
            output.line(f"the server's log: {problem}")
    document = {"plan": asdict(plan), "server": server or "started", **results}
    if out is not None:
        write_json(document, out / "load.json")
    print(to_line(document))
