"""Fuzzing of a real server with hostile calls: ``python -m bench fuzz --duration 600``.

It starts ``f2edge serve`` on 127.0.0.1, sends one attempt after another and measures the process around each: processor time and peak
memory.  A finding is an undocumented status, more than 200 ms of processor time or 200 MB for a refused call, a call of more than 20 s, an
error message that shows internals, a failed health check, or the end of the server.
``tests/f2edge/server/test_server_fuzz.py`` does the same in a minute, with Hypothesis.  ``--out`` keeps the attempts behind
findings.  ``--wire`` attacks below gRPC's client library instead (:mod:`bench.load.wire.siege`).
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import grpc
import typer

from bench.load.fuzz_inputs import METHODS, Attempt, HostileCalls
from bench.load.server import ServerProcess, Watch, check
from bench.load.wire import siege
from bench.options import AsJson, BundleName, Threads
from bench.results import Results, unwritable
from f2edge.cli.console import Output
from f2edge.errors import InputError
from f2edge.server.rpc import SERVICE

#: Largest cost of a call of at most 4 MiB.
PROCESSOR_MS, MEMORY_MB, LONGEST_S = 200.0, 200.0, 20.0
#: Documented codes; gRPC adds UNIMPLEMENTED, INTERNAL and UNKNOWN for a wrong number of messages.
DOCUMENTED = frozenset({"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED"})
_WRONG_COUNT = frozenset({"UNIMPLEMENTED", "INTERNAL", "UNKNOWN"})
_PLACES = ("Traceback", "site-packages", str(Path(__file__).parents[2]), sys.prefix, tempfile.gettempdir() + "/")
_CHECK_EVERY = 25
_KEPT = 20
_NOTHING_SENT_S = 0.5


@dataclass
class Findings:
    """Results of a fuzzing run.

    Attributes:
        codes: by kind of attempt.
        refused_ms, refused_mb: processor time and growth of memory of the costliest refused call.
        answered_ms: processor time of the costliest answered call, the model's work included.
        found: findings in words.
    """

    calls: int = 0
    connections: int = 0
    codes: dict[str, Counter[str]] = field(default_factory=dict)
    refused_ms: float = 0.0
    refused_mb: float = 0.0
    answered_ms: float = 0.0
    found: list[str] = field(default_factory=list)


def send(channel: grpc.Channel, attempt: Attempt) -> tuple[str, str]:
    """Make a call; return its code and message."""
    # gRPC keeps a call without a message open until its deadline, at no cost
    arguments = {"timeout": LONGEST_S if attempt.messages else _NOTHING_SENT_S, "metadata": attempt.metadata}
    if attempt.gzip:
        arguments["compression"] = grpc.Compression.Gzip
    path = f"/{SERVICE.full_name}/{attempt.method}"
    try:
        if METHODS[attempt.method].client_streaming or len(attempt.messages) != 1:
            list(channel.stream_stream(path)(iter(attempt.messages), **arguments))
        else:
            list(channel.unary_stream(path)(attempt.messages[0], **arguments))
    except grpc.RpcError as error:
        return str(error.code().name), str(error.details())
    return "OK", ""


def judge(attempt: Attempt, code: str, message: str, cost: tuple[float, float], seconds: float) -> list[str]:
    """Return the findings about a finished call."""
    ms, mb = cost
    allowed = DOCUMENTED | _WRONG_COUNT if len(attempt.messages) != 1 else DOCUMENTED
    wrong = []
    if code not in allowed:
        wrong.append(f"ended with {code}: {message[:200]}")
    if any(place in message for place in _PLACES):
        wrong.append(f"shows internals: {message[:200]}")
    if code not in ("OK", "DEADLINE_EXCEEDED") and len(attempt.messages) <= 1 and (ms > PROCESSOR_MS or mb > MEMORY_MB):
        wrong.append(f"was refused after {ms:.0f} ms of processor time and {mb:.0f} MB")
    if seconds > LONGEST_S or mb > MEMORY_MB:
        wrong.append(f"took {seconds:.1f} s and {mb:.0f} MB")
    return [f"{attempt.kind}, {attempt.method}: {what}" for what in wrong]


def run(server: ServerProcess, seconds: float, seed: int, output: Output, out: Path | None) -> Findings:
    """Send attempts until ``seconds`` have passed, the server has ended, or enough findings are kept."""
    findings, inputs, watch = Findings(), HostileCalls(seed), Watch(server.pid)
    start = time.perf_counter()
    with grpc.insecure_channel(server.address) as channel, output.progress("fuzz") as progress:
        check(channel)
        while (elapsed := time.perf_counter() - start) < seconds and len(findings.found) < _KEPT:
            progress(int(elapsed), int(seconds))
            attempt, begun = inputs.next(), time.perf_counter()
            watch.begin()
            code, message = send(channel, attempt)
            try:
                cost = watch.end()
            except (OSError, StopIteration):
                findings.found.append(f"{attempt.kind}, {attempt.method}: the server ended")
                _keep(attempt, len(findings.found), out)
                break
            _count(findings, attempt, code, cost)
            wrong = judge(attempt, code, message, cost, time.perf_counter() - begun)
            if findings.calls % _CHECK_EVERY == 0:
                wrong += _raw_connection(server.address, inputs, findings)
                state = check(channel)
                wrong += [f"after {attempt.kind}: health says {state}"] if state != "SERVING" else []
            if wrong:
                findings.found += wrong
                _keep(attempt, len(findings.found), out)
    return findings


def _count(findings: Findings, attempt: Attempt, code: str, cost: tuple[float, float]) -> None:
    findings.calls += 1
    findings.codes.setdefault(attempt.kind, Counter())[code] += 1
    if code in ("OK", "DEADLINE_EXCEEDED") or len(attempt.messages) > 1:
        findings.answered_ms = max(findings.answered_ms, cost[0])
    else:
        findings.refused_ms, findings.refused_mb = max(findings.refused_ms, cost[0]), max(findings.refused_mb, cost[1])


def _raw_connection(address: str, inputs: HostileCalls, findings: Findings) -> list[str]:
    """Send bytes that are not gRPC over a separate connection."""
    host, _, port = address.rpartition(":")
    findings.connections += 1
    try:
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(inputs.frames())
            raw.settimeout(0.2)
            raw.recv(4096)
    except (TimeoutError, ConnectionResetError, BrokenPipeError):
        pass
    except OSError as error:
        return [f"a raw connection: {error.strerror}"]
    return []


def _keep(attempt: Attempt, number: int, out: Path | None) -> None:
    if out is None:
        return
    try:
        folder = out / f"finding-{number:02d}-{attempt.method}"
        folder.mkdir(parents=True, exist_ok=True)
        for index, message in enumerate(attempt.messages):
            (folder / f"{index}.bin").write_bytes(message)
    except OSError as error:
        raise unwritable(out, error) from error


def report(findings: Findings, seconds: float) -> Results:
    """Return the results as one document."""
    return {
        "seconds": seconds,
        "calls": findings.calls,
        "raw_connections": findings.connections,
        "codes": {kind: dict(codes) for kind, codes in sorted(findings.codes.items())},
        "refused_processor_ms_most": findings.refused_ms,
        "refused_memory_mb_most": findings.refused_mb,
        "answered_processor_ms_most": findings.answered_ms,
        "found": findings.found,
    }


def _show(document: Results, output: Output) -> None:
    rows = [(kind, ", ".join(f"{count} {code}" for code, count in codes.items())) for kind, codes in document["codes"].items()]
    output.table(("attempts", "ended with…"), rows)
    output.line(
        f"{document['calls']} calls and {document['raw_connections']} raw connections in {document['seconds']:.0f} s; refused "
        f"calls took at most {document['refused_processor_ms_most']:.0f} ms of processor and {document['refused_memory_mb_most']:.0f} MB"
    )
    output.line(f"findings: {len(document['found'])}")
    for what in document["found"]:
        output.line(f"  {what}")


def _arguments(bundle: str, threads: int | None) -> Sequence[str]:
    return ["--bundle", bundle, *([] if threads is None else ["--threads", str(threads)])]


def fuzz(
    *,
    seconds: Annotated[float, typer.Option("--duration", min=1.0, max=86_400.0, help="Seconds.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Seed of the attempts.")] = 1,
    bundle: BundleName = "nano",
    threads: Threads = None,
    wire: Annotated[bool, typer.Option("--wire", help="Attack below the client library, beside honest clients.")] = False,
    rate: Annotated[float, typer.Option(help="With --wire: conversations a second.")] = 200.0,
    pictures: Annotated[int, typer.Option(help="With --wire: hostile pictures sent one at a time, before.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Folder for the attempts behind findings.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fuzz a server with hostile calls; exit with code 1 if there are findings."""
    output = Output(json=as_json)
    if not Path("/proc/self/clear_refs").exists():
        raise InputError("the fuzzing bench reads the server's memory from /proc, which this system lacks; run it on Linux")
    if wire:
        with ServerProcess(_arguments(bundle, threads)) as server:
            costs = siege.hostile_pictures(server, pictures, seed, output)
            figures = siege.besiege(server, seconds, seed, rate, output)
            broken = siege.findings(costs, figures, server.problems())
        siege.show(costs, figures, broken, output)
        print(json.dumps({"pictures": costs, "siege": figures, "found": broken}))
        if broken:
            raise typer.Exit(1)
        return
    with ServerProcess(_arguments(bundle, threads)) as server:
        begun = time.perf_counter()
        findings = run(server, seconds, seed, output, out)
        document = report(findings, time.perf_counter() - begun)
    _show(document, output)
    print(json.dumps(document))
    if findings.found:
        raise typer.Exit(1)
