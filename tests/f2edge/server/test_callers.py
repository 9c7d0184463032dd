"""Callers who leave early, or say too much about themselves: what is logged of them, what they leave behind, what they hear."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import time
from typing import Any

import grpc
import pytest

from bench.load.wire.held import SERVICE
from bench.load.wire.http2 import Connection
from f2edge.server import listener
from f2edge.v1 import face_pb2 as pb
from tests.support.serving import ScriptedEngine, ServerThread, eventually, requests_of_every_method, stub

_LIMIT = 16 << 10


def test_a_caller_who_hangs_up_leaves_no_batch_behind(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is cancelled keeps its memory for good."""
    ended: list[str] = []
    execute = listener._execute

    async def noting(*arguments: Any) -> None:
        outcome = "cancelled"
        try:
            await execute(*arguments)
            outcome = "whole"
        except Exception:  # noqa: BLE001  a batch that fails is one that ended
            outcome = "whole"
        finally:
            ended.append(outcome)

    monkeypatch.setattr(listener, "_execute", noting)
    for _ in range(8):
        with Connection(server.address) as connection:
            connection.call(SERVICE + b"Ask", b"", end=False)
            time.sleep(0.02)
    assert eventually(lambda: len(ended) >= 16)
    assert set(ended) == {"whole"}


def test_calls_that_are_cancelled_are_logged_as_such(
    face: Any, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it happens: before the request is read, while it waits, between two steps, while the answer is sent."""
    engine.steps, engine.step_s = 8, 0.002
    rng, methods, done = random.Random(5), requests_of_every_method(), 0
    monkeypatch.setattr(logging.getLogger("f2edge"), "propagate", True)  # which a command in this process may have ended
    with caplog.at_level("INFO", logger="f2edge"):
        for _ in range(20):
            for start in methods.values():
                call = start(face)
                time.sleep(0.02 * rng.random() ** 2)
                done += call.cancel()
        assert eventually(lambda: not engine.open_requests)
        assert face.GetModel(pb.GetModelRequest()).name == "scripted"
    codes = {record.code for record in caplog.records if record.message == "call"}  # type: ignore[attr-defined]
    assert done > 20
    assert "CANCELLED" in codes <= {"CANCELLED", "OK"}
    assert [record.message for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == []


@pytest.mark.slow
@pytest.mark.parametrize(("size", "taken"), [(_LIMIT - 1024, True), (_LIMIT + 1024, False), (4 * _LIMIT, False)])
def test_the_limit_of_headers_is_the_same_every_time(server: ServerThread, size: int, taken: bool) -> None:
    codes = set()
    for _ in range(3):
        with stub(server.address) as face:
            for _ in range(20):
                try:
                    face.GetModel(pb.GetModelRequest(), metadata=[("x-note", "n" * size)], timeout=10)
                    codes.add(grpc.StatusCode.OK)
                except grpc.RpcError as error:
                    codes.add(error.code())
    assert codes == {grpc.StatusCode.OK if taken else grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_threads_of_a_server_share_two_heaps() -> None:
    """glibc reports every heap; a process that has not been told has one for each of these threads."""
    code = (
        "import ctypes, sys, threading; from f2edge.backends.memory import few_heaps\n"
        "if sys.argv[1] == 'few': few_heaps()\n"
        "barrier = threading.Barrier(8); libc = ctypes.CDLL(None)\n"
        "def work(): barrier.wait(); kept = libc.malloc(1000); barrier.wait()\n"
        "threads = [threading.Thread(target=work) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]; libc.malloc_stats()"
    )

    def heaps(kind: str) -> int:
        environment = {key: value for key, value in os.environ.items() if key != "MALLOC_ARENA_MAX"}
        done = subprocess.run([sys.executable, "-c", code, kind], capture_output=True, text=True, check=True, env=environment)
        return done.stderr.count("Arena")

    assert heaps("few") <= 2 < heaps("many")
