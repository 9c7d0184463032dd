"""``python -m bench fuzz --wire``: every attacker at once, honest clients beside them, and what the server holds before, during, after.

First hostile pictures, one at a time, for what each costs.  Then a quiet run of honest clients, the same beside the attackers, and a look
at the server when everybody has left.  A finding is a promise of docs/serving.md that was not kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import grpc

from bench.hardware.memory import resident_mb
from bench.load.loops import Run
from bench.load.plan import LoadPlan, Session
from bench.load.report import health_results, order_statistic
from bench.load.server import Sampler, ServerProcess, Watch, check, health_sampler
from bench.load.wire.attackers import attacking
from bench.load.wire.pictures import bombs, damaged
from f2edge.cli.console import Output
from f2edge.client.connection import Connection
from f2edge.v1 import face_pb2 as pb

#: What docs/serving.md promises.
PICTURE_MS, HEALTH_MS, MEMORY_BACK_MB, TIMES_SLOWER = 200.0, 100.0, 50.0, 3.0
_HONEST, _MIX = 2, "analyze=2,ask=1"
_IDLE_S, _SETTLE_S = 20.0, 20.0
_LEFT_OVER = 8
_CALL_S = 20.0


@dataclass(frozen=True)
class Resources:
    """What a process holds: resident megabytes, open files, threads."""

    mb: float
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Resources:
        """Look at a process (Linux)."""
        folder = Path(f"/proc/{pid}")
        return cls(resident_mb(pid) or 0.0, len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir())))


def hostile_pictures(server: ServerProcess, count: int, seed: int, output: Output) -> dict[str, Any]:
    """Send bombs and damaged pictures one at a time; processor time of the costliest, and the codes."""
    watch, slowest, codes = Watch(server.pid), (0.0, ""), dict[str, int]()
    with grpc.insecure_channel(server.address) as channel, output.progress("pictures") as progress:
        check(channel)
        for number, (name, picture) in enumerate(_pictures(count, seed)):
            progress(number, count)
            message = pb.AnalyzeRequest(image=picture, attributes=["age"]).SerializeToString()
            watch.begin()
            code = _code(channel, message)
            ms, _ = watch.end()
            codes[code] = codes.get(code, 0) + 1
            slowest = max(slowest, (ms, f"{name}, {code}"))
    return {"pictures": count, "codes": codes, "processor_ms_most": slowest[0], "costliest": slowest[1]}


def _code(channel: grpc.Channel, message: bytes) -> str:
    try:
        channel.unary_unary("/f2edge.v1.FaceService/Analyze")(message, timeout=_CALL_S)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def _pictures(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    small = (("a damaged picture", picture) for picture in damaged(seed))
    return islice(chain(bombs().items(), small), count)


def besiege(server: ServerProcess, seconds: float, seed: int, rate: float, output: Output) -> dict[str, Any]:
    """Run honest clients alone, then beside the attackers; figures of both, and of what the server holds."""
    connection = Connection(server.address)
    with health_sampler(connection) as idle_health:
        idle = _honest(connection, min(_IDLE_S, seconds), seed, output, "idle")
    before = Resources.of(server.pid)
    with (
        attacking(server.address, seconds, seed=seed, rate=rate) as counts,
        health_sampler(connection) as health,
        Sampler(lambda: resident_mb(server.pid), 0.5) as memory,
    ):
        run = _honest(connection, seconds, seed, output, "siege")
        attacks = counts()
    after = _settled(server, before)
    return {
        "seconds": seconds,
        "attacks": attacks,
        "honest": {
            "calls": len(run.samples),
            "errors": [f"{s.method}: {s.reply.code}" for s in run.samples if not s.ok],
            "idle_p99_ms": order_statistic(idle.samples, 99),
            "p99_ms": order_statistic(run.samples, 99),
        },
        "health": health_results(health),
        "idle_health": health_results(idle_health),
        "before": vars(before),
        "peak_mb": max((mb for _, mb in memory.seen), default=before.mb),
        "after": vars(after),
    }


def findings(pictures: dict[str, Any], siege: dict[str, Any], problems: list[str]) -> list[str]:
    """Return the promises that were not kept, in words."""
    honest, health, before, after = siege["honest"], siege["health"]["ms"], siege["before"], siege["after"]
    slower = honest["p99_ms"] / honest["idle_p99_ms"]
    checks = {
        f"a picture took {pictures['processor_ms_most']:.0f} ms of processor time ({pictures['costliest']})": (
            pictures["processor_ms_most"] > PICTURE_MS
        ),
        f"{len(honest['errors'])} honest calls failed: {honest['errors'][:5]}": bool(honest["errors"]),
        f"honest p99 grew {slower:.1f} times": slower > TIMES_SLOWER,
        f"health took {health.get('max')} ms": not health.get("max", float("inf")) <= HEALTH_MS,
        f"memory stayed at {after['mb']:.0f} MB, from {before['mb']:.0f}": after["mb"] - before["mb"] > MEMORY_BACK_MB,
        f"{after['files']} open files, {before['files']} before": after["files"] - before["files"] > _LEFT_OVER,
        f"{after['threads']} threads, {before['threads']} before": after["threads"] - before["threads"] > _LEFT_OVER,
        f"{siege['attacks'].get('unreachable')} connections were not taken": siege["attacks"].get("unreachable", 1) > 0,
        f"the server's log has {len(problems)} errors: {problems[:3]}": bool(problems),
    }
    return [what for what, broken in checks.items() if broken]


def show(pictures: dict[str, Any], siege: dict[str, Any], found: list[str], output: Output) -> None:
    """Print what was measured."""
    honest, health = siege["honest"], siege["health"]["ms"]
    output.table(("attack", "times"), [(name, str(count)) for name, count in sorted(siege["attacks"].items())])
    output.line(
        f"{pictures['pictures']} hostile pictures, {pictures['codes']}; the costliest took "
        f"{pictures['processor_ms_most']:.0f} ms of processor time"
    )
    output.line(
        f"honest clients: {honest['calls']} calls, {len(honest['errors'])} errors, p99 {honest['p99_ms']:.0f} ms "
        f"({honest['idle_p99_ms']:.0f} alone); health at most {health.get('max', float('nan')):.1f} ms in {health['samples']} checks "
        f"({siege['idle_health']['ms'].get('max', float('nan')):.1f} without attackers)"
    )
    for name in ("before", "after"):
        held = siege[name]
        output.line(f"{name}: {held['mb']:.0f} MB, {held['files']} open files, {held['threads']} threads")
    output.line(f"peak: {siege['peak_mb']:.0f} MB")
    output.line(f"findings: {len(found)}")
    for what in found:
        output.line(f"  {what}")


def _honest(connection: Connection, seconds: float, seed: int, output: Output, name: str) -> Run:
    plan = LoadPlan(scenario="closed", clients=_HONEST, seconds=seconds, most=100_000, mix=_MIX, distinct=16, seed=seed)
    with output.progress(name) as progress:
        return asyncio.run(Session(plan, connection).run(progress))


def _settled(server: ServerProcess, before: Resources) -> Resources:
    """Wait until the server holds what it held before, or long enough."""
    until = time.monotonic() + _SETTLE_S
    while True:
        after = Resources.of(server.pid)
        quiet = after.mb - before.mb <= MEMORY_BACK_MB and after.files <= before.files + _LEFT_OVER
        if quiet or time.monotonic() > until:
            return after
        time.sleep(0.5)
