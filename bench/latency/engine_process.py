"""One engine (a bundle on a backend with so many threads) in a process of its own, which makes calls when it is told to.

    with closing(Engine(Setting("nano", "onnxruntime", 2))) as engine:
        engine.milliseconds(Turn("analyze", batch=4), number=0)

So engines can take turns and still share neither memory nor threads; what ``memory`` says is the engine's alone, without PyTorch and
without the bench.  Messages are lines of JSON: the child reads them from its standard input and answers each with one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any

from bench.latency.baseline import memory
from bench.latency.calls import Calls, Turn
from f2edge.errors import BackendError, F2EdgeError, InputError
from f2edge.pipeline import FacePipeline


@dataclass(frozen=True)
class Setting:
    """What runs: name or folder of a bundle, a backend, CPU threads (None: every usable core)."""

    bundle: str
    backend: str = "auto"
    threads: int | None = None


class Engine:
    """The parent's side.

    Attributes:
        backend: name of the backend that runs; "auto" has been decided.
        ready_ms: from loading to the first face.

    Raises:
        BackendError: the backend cannot run here, or its process ended.
        InputError: a bundle or an option that cannot be used.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        command = [sys.executable, "-m", "bench.latency.engine_process", json.dumps(asdict(setting))]
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8"
        )
        try:
            ready = self._answer()
        except BaseException:
            self.close()
            raise
        self.backend, self.ready_ms = str(ready["backend"]), float(ready["ready_ms"])

    def milliseconds(self, turn: Turn, number: int) -> float:
        """Of one call; see :meth:`bench.latency.calls.Calls.milliseconds`."""
        return float(self._ask({"turn": asdict(turn), "number": number})["ms"])

    def keep_calling(self, turn: Turn, seconds: float) -> int:
        """Make one call after the other, at least one, until ``seconds`` are over; returns their number."""
        return int(self._ask({"turn": asdict(turn), "seconds": seconds})["calls"])

    def memory(self) -> dict[str, int] | None:
        """Bytes as :func:`bench.latency.baseline.memory` has them, or None where the system does not tell."""
        told: dict[str, int] | None = self._ask({"memory": True})["memory"]
        return told

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer's absence tells why
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or [f"exit code {code}"]
            raise BackendError(f"{self.setting.bundle} on {self.setting.backend}: its process ended: {said[-1]}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise (InputError if answer["input"] else BackendError)(answer["refused"])
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def _memory() -> dict[str, int] | None:
    try:
        return memory()
    except InputError:
        return None


def _done(calls: Calls, message: dict[str, Any]) -> dict[str, Any]:
    """The answer to one message."""
    if "memory" in message:
        return {"memory": _memory()}
    turn = Turn(**message["turn"])
    if "seconds" not in message:
        return {"ms": calls.milliseconds(turn, message["number"])}
    made, until = 0, time.monotonic() + message["seconds"]
    while not made or time.monotonic() < until:
        calls.milliseconds(turn, made)
        made += 1
    return {"calls": made}


def main() -> None:
    """The child's side; ends with its standard input, or with the first failure that has a name."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        setting, start = Setting(**json.loads(sys.argv[1])), time.perf_counter()
        pipeline = FacePipeline.load(setting.bundle, backend=setting.backend, threads=setting.threads)
        calls = Calls(pipeline)
        say({"backend": pipeline.backend.name, "ready_ms": 1e3 * (time.perf_counter() - start)})
        for line in sys.stdin:
            say(_done(calls, json.loads(line)))
    except F2EdgeError as error:
        say({"refused": str(error), "input": isinstance(error, InputError)})


if __name__ == "__main__":
    main()
