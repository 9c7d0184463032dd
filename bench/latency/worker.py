"""The subprocess protocol of the latency benches: one JSON line per message, one per answer.

    with closing(Worker("bench.latency.engine", {"bundle": "nano"}, "nano")) as worker:     # the bench
        worker.ready, worker.ask({"memory": True})

    if __name__ == "__main__":                                                             # bench/latency/engine.py
        serve(start)                     # start(bundle="nano") returns the first answer and a handler of messages

A worker has its own memory and threads, so its memory is that of the measured engine alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from f2edge.errors import BackendError, F2EdgeError, InputError

Message = dict[str, Any]
Handler = Callable[[Message], Message]


class Worker:
    """A child process that runs ``python -m module ARGUMENTS``.

    Args:
        module: calls :func:`serve` as its main program.
        arguments: keyword arguments of its ``start``.
        name: for error messages.

    Attributes:
        ready: the first answer.

    Raises:
        InputError: input that the worker refused.
        BackendError: another named failure, or the end of the process.
    """

    def __init__(self, module: str, arguments: Mapping[str, Any], name: str) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", module, json.dumps(dict(arguments))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, message: Message) -> Message:
        """Send a message and wait for its answer; errors as in the constructor."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # _answer reports why
        return self._answer()

    def _answer(self) -> Message:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            errors = self._errors.read().strip().splitlines() or [f"exit code {code}"]
            raise BackendError(f"{self.name}: its process ended: {errors[-1]}")
        answer: Message = json.loads(line)
        if "error" in answer:
            raise (InputError if answer["input"] else BackendError)(answer["error"])
        return answer

    def close(self) -> None:
        """Close its input and wait; kill it after ten seconds."""
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


def serve(start: Callable[..., tuple[Message, Handler]]) -> None:
    """Run the child's side until standard input ends or the first :class:`~f2edge.errors.F2EdgeError`, which is the last answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of libraries must not reach the protocol

    def send(answer: Message) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        ready, handle = start(**json.loads(sys.argv[1]))
        send(ready)
        for line in sys.stdin:
            send(handle(json.loads(line)))
    except F2EdgeError as error:
        send({"error": str(error), "input": isinstance(error, InputError)})
