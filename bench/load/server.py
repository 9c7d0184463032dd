"""Server under test: a child process on loopback or the one that the user names; samplers of its health and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from f2edge.client.connection import Connection
from f2edge.errors import InputError, ServerUnavailableError

#: Seconds for loading and warming up, and for stopping.
_START_S, _STOP_S = 180.0, 60.0
_LAST_LOG_LINES = 5
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class ServerProcess:
    """``f2edge serve`` as a child process on 127.0.0.1; stopped at the end of its ``with`` block.

    Args:
        arguments: of ``serve``, besides host and port.
        port: 0 takes a free port.
    """

    def __init__(self, arguments: Sequence[str], port: int = 0) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  lives as long as the process
        command = [sys.executable, "-m", "f2edge", "serve", "--host", "127.0.0.1", "--port", str(port), "--quiet", *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)  # noqa: S603
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().rpartition(" ")[2].strip()

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> ServerProcess:  # noqa: PYI034  Self is younger than Python 3.10
        ready = False
        try:
            ready = bool(self.address) and wait_serving(Connection(self.address), _START_S, lambda: self._process.poll() is None)
        finally:
            words = "" if ready else self._last_words()
            if not ready:
                self.stop()
        if not ready:
            raise ServerUnavailableError(f"`f2edge serve` did not become ready: {words}")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def terminate(self) -> None:
        """Send SIGTERM: the server finishes accepted calls and ends."""
        self._process.terminate()

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        return self._process.wait(_STOP_S)

    def stop(self) -> None:
        """Terminate the server; kill it if it does not end in time."""
        if self._process.poll() is None:
            self.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def problems(self) -> list[str]:
        """Return the errors in its log: message and last line of the traceback."""
        found = []
        self._log.flush()
        self._log.seek(0)
        for line in self._log.read().splitlines():
            record = json.loads(line) if line.startswith("{") else {}
            if record.get("level") == "error":
                found.append(" | ".join([record["message"], *record.get("traceback", "").splitlines()[-1:]]))
        return found

    def _last_words(self) -> str:
        self._log.seek(0)
        return " | ".join(self._log.read().splitlines()[-_LAST_LOG_LINES:]) or "no output"


def wait_serving(connection: Connection, seconds: float, alive: Any = lambda: True) -> bool:
    """Wait until the health check returns SERVING; return False after ``seconds``, or once ``alive`` is false."""
    until = time.monotonic() + seconds
    with _channel(connection) as channel:
        while time.monotonic() < until and alive():
            if check(channel) == "SERVING":
                return True
            time.sleep(0.05)
    return False


def check(channel: grpc.Channel, timeout_s: float = 5.0) -> str:
    """Make one health check; return "SERVING", "NOT_SERVING", or the status code of its failure."""
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
    except grpc.RpcError as error:
        return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@contextmanager
def target(server: str | None, arguments: Sequence[str]) -> Iterator[tuple[Connection, ServerProcess | None]]:
    """Yield the connection to load and, if the bench started the server, its process.

    Raises:
        InputError: ``server`` together with options of a started server.
        ServerUnavailableError: it does not start.
    """
    if server is not None:
        if arguments:
            raise InputError(f"--server {server} runs already; leave out {' '.join(arguments[::2])}")
        yield Connection.from_environment(server), None
        return
    with ServerProcess(arguments) as process:
        yield Connection(process.address), process


class Sampler:
    """Thread that samples a value periodically, in a ``with`` block.

    Attributes:
        seen: (seconds since the start, value) of every sample.
    """

    def __init__(self, look: Any, every_s: float) -> None:
        self.seen: list[tuple[float, float]] = []
        self._look = look
        self._every_s = every_s
        self._end = Event()
        self._thread = Thread(target=self._run, name="bench-sampler", daemon=True)

    def __enter__(self) -> Sampler:  # noqa: PYI034
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.perf_counter()
        while not self._end.is_set():
            value = self._look()
            if value is not None:
                self.seen.append((time.perf_counter() - start, value))
            self._end.wait(self._every_s)


@contextmanager
def health_sampler(connection: Connection, every_s: float = 0.05) -> Iterator[Sampler]:
    """Sample the milliseconds of health checks over a separate connection; one that is not SERVING counts as infinite."""
    with _channel(connection) as channel:

        def look() -> float:
            start = time.perf_counter()
            answer = check(channel)
            return 1e3 * (time.perf_counter() - start) if answer == "SERVING" else float("inf")

        look()  # connect
        with Sampler(look, every_s) as sampler:
            yield sampler


class Watch:
    """Processor time and peak memory of a process around a call (Linux)."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def begin(self) -> None:
        (self._folder / "clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        self._before = self._ms(), self._mb("VmRSS")

    def end(self) -> tuple[float, float]:
        """Milliseconds and megabytes since :meth:`begin`."""
        ms, mb = self._before
        return self._ms() - ms, self._mb("VmHWM") - mb

    def _ms(self) -> float:
        fields = (self._folder / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return 1e3 * _TICK_S * (int(fields[11]) + int(fields[12]))

    def _mb(self, name: str) -> float:
        lines = (self._folder / "status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name + ":"))


def _channel(connection: Connection) -> grpc.Channel:
    credentials = connection.credentials()
    if credentials:
        return grpc.secure_channel(connection.target, credentials, connection.options)
    return grpc.insecure_channel(connection.target, connection.options)
