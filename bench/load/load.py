"""How a server behaves under load: ``python -m bench load``.

    python -m bench load --scenario closed --clients 8                  # as fast as eight clients go
    python -m bench load --scenario open --rate 6 --slo generate=1500,ask=300
    python -m bench load --scenario server --bound 2000                 # MLPerf-style: the highest Poisson rate with p99 below 2 s
    python -m bench load --soak 600 --out runs/soak

It starts a server of its own on 127.0.0.1 and ends it; ``--server HOST:PORT`` asks one that runs already, and only that one.  Every run is
bounded in requests and in time.  The scenarios named after MLPerf have its arrival patterns and its metrics, and are no MLPerf results.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.load import loops
from bench.load.loops import Progress, Run
from bench.load.plan import Plan, Scenario, Session
from bench.load.report import figures_of, health_figures, order_statistic, plot, show
from bench.load.server import ServerProcess, health_sampler, target
from bench.load.slo import promises, show_promises
from bench.load.soak import CLIENTS, figures_of_soak, held_samplers, memory_sampler, replies_alone, soak
from bench.load.wire.attackers import attacking
from bench.load.work import DEFAULT_MIX, callers
from f2edge.cli.console import Output
from f2edge.cli.serve import SWITCH_S
from f2edge.client.connection import Connection
from f2edge.errors import InputError, ServerError

_LISTED = 5


def run_scenario(plan: Plan, connection: Connection, speak: Output, out: Path | None) -> dict[str, Any]:
    """Put the plan's load on a server; figures, shown and plotted."""
    session = Session(plan, connection)
    with health_sampler(connection) as health, speak.progress(plan.scenario) as progress:
        if plan.scenario == "server":
            peak, trials, run = asyncio.run(session.peak(progress))
            extra = {"peak_per_second": peak, "bound_ms": plan.bound_ms, "trials": trials}
        else:
            run = asyncio.run(session.run(progress))
            extra = {}
    figures = {**figures_of(run, session.slo), **extra, "health": health_figures(health)}
    figures["mlperf_style"] = mlperf_style(plan, run, figures)
    show(plan.scenario, figures, speak)
    if figures["mlperf_style"]:
        speak.line(f"MLPerf-style {plan.scenario}: {figures['mlperf_style']}")
    _finish(run, session.slo, out, plan.scenario, speak)
    return figures


def mlperf_style(plan: Plan, run: Run, figures: Mapping[str, Any]) -> str:
    """The figure that MLPerf would take from such a run, in words; "" where it has no such scenario."""
    few = "" if len(run.samples) >= 1024 else f" (of {len(run.samples)} samples only)"
    if plan.scenario == "single-stream":
        return f"90th percentile {order_statistic(run.samples, 90):.1f} ms{few}"
    if plan.scenario == "multi-stream":
        slowest = [
            max(run.samples[at : at + loops.STREAMS], key=lambda s: s.latency_ms) for at in range(0, len(run.samples), loops.STREAMS)
        ]
        return f"99th percentile of queries of {loops.STREAMS}: {order_statistic(slowest, 99):.1f} ms{few}"
    if plan.scenario == "server":
        return f"{figures['peak_per_second']:.2f} requests a second with p99 within {plan.bound_ms:g} ms{few}"
    return f"{figures['per_second']:.2f} samples a second{few}" if plan.scenario == "offline" else ""


def run_soak(plan: Plan, connection: Connection, process: ServerProcess | None, speak: Output, out: Path | None) -> dict[str, Any]:
    """The soak; see :mod:`bench.load.soak`."""
    session = Session(plan, connection)

    async def everything(alone_progress: Progress, progress: Progress) -> Any:
        async with callers(connection, plan.clients, plan.timeout_s) as made:
            alone, run_alone = await replies_alone(made[0], session.queries, alone_progress)
            failed = [s for s in run_alone.samples if not s.ok]
            if failed:
                raise ServerError(f"{failed[0].method} fails when it is alone already: {failed[0].reply.code}; choose another --mix")
            pid = process.pid if process else None
            files, threads = held_samplers(pid)
            besieged = attacking(connection.target, plan.seconds, seed=plan.seed) if plan.wire else contextlib.nullcontext(dict)
            with memory_sampler(pid) as memory, health_sampler(connection) as health, files, threads, besieged as attacks:
                run, findings = await soak(made, session.mixed(), alone, seconds=plan.seconds, seed=plan.seed, progress=progress)
                counts = await asyncio.to_thread(attacks)
            return run, run_alone, figures_of_soak(findings, memory, health, (files, threads), plan.seconds, wire=plan.wire), counts

    with speak.progress("soak") as progress:
        run, run_alone, found, attacks = asyncio.run(everything(lambda _done, _all: None, progress))
    figures = {
        **figures_of(run, session.slo),
        "alone": figures_of(run_alone, session.slo)["latency_ms"],
        "soak": found,
        "attacks": attacks,
    }
    show(f"soak of {plan.clients} clients", figures, speak)
    drift = "not seen" if found["memory_drift_mb"] is None else f"{found['memory_drift_mb']:+.1f} MB"
    checks = found["health"]["ms"]
    speak.line(
        f"errors {found['errors']}, replies unlike those alone {found['different_replies']}, memory drift {drift}, "
        f"open files {found['open_files_growth']}, threads {found['threads_growth']} more, "
        f"health at most {checks.get('max', float('nan')):.1f} ms in {checks['samples']} checks"
    )
    if attacks:
        speak.line("beside them: " + ", ".join(f"{count} {name}" for name, count in sorted(attacks.items())))
    for case in (*found["first_errors"], *found["first_different"]):
        speak.line(f"  {case}")
    _finish(run, session.slo, out, "soak", speak)
    return figures


def _finish(run: Run, slo: Mapping[str, float], out: Path | None, name: str, speak: Output) -> None:
    if out is not None and run.samples:
        plot(run, slo, out / f"{name}.png", name)
        speak.line(f"plot: {out / f'{name}.png'}")


def load(
    *,
    scenario: Annotated[
        Scenario, typer.Option(help="Shape of the load; promises measures what docs/serving.md promises.")
    ] = Scenario.closed,
    soak_seconds: Annotated[float | None, typer.Option("--soak", help="Soak for so many seconds instead.", show_default=False)] = None,
    wire: Annotated[bool, typer.Option("--wire", help="With --soak: attackers beside the clients, below gRPC's library.")] = False,
    clients: Annotated[int | None, typer.Option(help="Of the closed loop.  [default: 8; 16 for a soak]", show_default=False)] = None,
    rate: Annotated[float, typer.Option(help="Open loop: requests a second.  Server scenario: the first rate tried.")] = 2.0,
    seconds: Annotated[float, typer.Option("--duration", help="Seconds of a run, of each trial, of each part.")] = 30.0,
    most: Annotated[int, typer.Option("--count", help="Requests at most; all of them where offline.")] = 10_000,
    bound: Annotated[float, typer.Option(help="Server scenario: milliseconds that p99 must stay within.")] = 2000.0,
    mix: Annotated[str, typer.Option(help="Methods and weights.")] = DEFAULT_MIX,
    slo: Annotated[str, typer.Option(help="Milliseconds, or METHOD=MILLISECONDS,…, for goodput.")] = "",
    distinct: Annotated[int, typer.Option(help="Different requests of each method.")] = 64,
    steps: Annotated[int | None, typer.Option(help="Decoding steps; the model's own by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals and of the order of requests.")] = 1,
    timeout: Annotated[float, typer.Option(help="Deadline of each call, in seconds.")] = 120.0,
    server: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Ask this server; by default one is started here.")] = None,
    bundle: Annotated[str | None, typer.Option(help="Of the server started here.  [default: nano]", show_default=False)] = None,
    backend: Annotated[str | None, typer.Option(help="Of the server started here.  [default: auto]", show_default=False)] = None,
    threads: Annotated[int | None, typer.Option(help="Of the server started here.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for load.json and the plot.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")] = False,
) -> None:
    """Put load on a server and measure what it gives."""
    plan = Plan(
        scenario="soak" if soak_seconds is not None else scenario.value,
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
    speak = Output(json=as_json)
    sys.setswitchinterval(SWITCH_S)  # callers' threads must not keep the sampler of health checks waiting
    figures: dict[str, Any]
    if plan.wire and server is not None:
        raise InputError("--wire attacks a server of its own and no other; leave out --server")
    if plan.scenario == "promises":
        if server is not None:
            raise InputError("--scenario promises restarts its server, so it needs one of its own; leave out --server")
        with speak.progress(plan.scenario) as progress:
            figures = asyncio.run(promises(arguments, plan.seconds, plan.distinct, plan.steps, progress))
        show_promises(figures, speak)
    else:
        with target(server, arguments) as (connection, process):
            soaks = plan.scenario == "soak"
            figures = run_soak(plan, connection, process, speak, out) if soaks else run_scenario(plan, connection, speak, out)
            figures["server_errors"] = process.problems() if process else None
        for problem in (figures["server_errors"] or ())[:_LISTED]:
            speak.line(f"the server's log: {problem}")
    document = {"plan": asdict(plan), "server": server or "own", **figures}
    _write(document, out)
    print(json.dumps(document, allow_nan=False))


def _write(document: Mapping[str, Any], out: Path | None) -> None:
    if out is None:
        return
    with contextlib.suppress(FileExistsError):
        out.mkdir(parents=True, exist_ok=True)
    try:
        (out / "load.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
