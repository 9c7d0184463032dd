"""A server under siege: what no client library sends, peers that hold on to what they have, listeners and engines that end.

What they guard against was measured on the first release: one request ended the server, a watcher who does not read kept it from ending,
200 half-sent requests took 800 MB.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from bench.hardware.memory import resident_mb
from bench.load.wire.held import ATTACKS, HEALTH, SERVICE, half_sent, mute, silent
from bench.load.wire.http2 import DATA, GOAWAY, HEADERS, RST_STREAM, Connection, grpc_message
from bench.load.wire.mutations import Conversations, say
from f2edge.client.sync import Client
from f2edge.engine.requests import EngineState
from f2edge.imaging.images import load_image
from f2edge.server import frames, lifecycle, rpc, standard, supervisor
from f2edge.server.supervisor import answers
from f2edge.server.tokens import new_token
from f2edge.v1 import face_pb2 as pb
from tests.f2edge.server.test_security import authority, issue
from tests.support.serving import (
    GOOD,
    SETTINGS,
    ScriptedEngine,
    ServerThread,
    asking,
    details,
    eventually,
    photo,
    refused,
    requests_of_every_method,
    scripted,
    serving,
    stub,
)

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
EMPTY = grpc_message(b"")


def health(address: str) -> Any:
    with grpc.insecure_channel(address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status


@contextlib.contextmanager
def attacked(address: str, *attacks: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for attack in attacks:
            attack(address, stack)
        yield


def ends_with(connection: Connection, stream: int, seconds: float = 10.0) -> int:
    """The kind of frame that ends a stream: HEADERS with the status, RST_STREAM, or GOAWAY."""
    connection.socket.settimeout(seconds)
    for kind, flags, number, _ in connection.frames():
        if kind == GOAWAY or (number == stream and (kind == RST_STREAM or (kind in (HEADERS, DATA) and flags & 1))):
            return kind
    return GOAWAY


# The listener -----------------------------------------------------------------------------------------------------------------------------

PATHS = (SERVICE + b"Generate\xff", b"/\xff\xfe", b"\xc3\x28", b"/a\xed\xa0\x80/b", b"", b"*", b"/" + b"x" * 9000, b"/no.Such/Method")


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_is_no_text_ends_one_call_and_no_more(server: ServerThread, path: bytes) -> None:
    with Connection(server.address) as connection:
        assert ends_with(connection, connection.call(path, EMPTY)) in {HEADERS, RST_STREAM}
    with stub(server.address) as face:
        assert face.GetModel(pb.GetModelRequest(), timeout=10).name == "scripted"
    assert health(server.address) == SERVING


def test_a_path_that_is_no_text_needs_a_token_like_any_other(tmp_path: Path) -> None:
    new_token(tmp_path / "tokens.txt", "app")
    with serving(scripted(ScriptedEngine()), replace(SETTINGS, token_file=tmp_path / "tokens.txt")) as server:
        with Connection(server.address) as connection:
            connection.call(b"/\xff", EMPTY)
            connection.socket.settimeout(10)
            assert any(kind == HEADERS and b"\x0216" in body for kind, _, _, body in connection.frames() if kind != GOAWAY)
        assert health(server.address) == SERVING


def test_a_listener_that_ends_is_replaced_and_retrying_clients_see_no_error(server: ServerThread, engine: ScriptedEngine) -> None:
    said: list[int] = []
    server.server.readiness.state.set = _noting(server.server.readiness.state.set, said)  # type: ignore[method-assign]
    errors: list[Exception] = []
    end, done = threading.Event(), [0]

    def ask() -> None:
        with Client(server.address, timeout_s=60) as client:
            while not end.is_set():
                try:
                    client.analyze(load_image(photo()), attributes=["age"])  # an answer that comes whole can be asked for again
                    done[0] += 1
                except Exception as error:  # noqa: BLE001
                    errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert eventually(lambda: done[0] > 4)
    listener, before = server.server._server, done[0]
    server.run(listener._server.shutdown(None))  # type: ignore[union-attr]  # as a defect in gRPC would
    assert eventually(lambda: done[0] > before + 4)
    end.set()
    asking.join(30)
    assert errors == []
    assert server.server._server is not listener
    assert NOT_SERVING in said  # before the new listener was there
    assert eventually(lambda: health(server.address) == SERVING)


def _noting(set_status: Any, said: list[int]) -> Any:
    def noting(name: str, status: int) -> None:
        said.append(status)
        set_status(name, status)

    return noting


@pytest.mark.slow
def test_a_server_that_does_not_answer_itself_is_not_ready_and_gives_up() -> None:
    """Its listener is stopped, as far as anybody outside can tell, and no other can be had."""
    told = threading.Event()
    heard: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections and never says a word
        watch = supervisor.Supervisor(f"127.0.0.1:{deaf.getsockname()[1]}", tls=False, answered=heard.append, given_up=told.set)
        started = time.monotonic()
        watch.start()
        assert told.wait(10)
        assert time.monotonic() - started < 6
        watch.close()
    assert heard
    assert not any(heard)


@pytest.mark.slow
def test_a_server_that_is_slow_and_alive_is_not_given_up(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that is overloaded: three looks in a row have no answer, and each takes longer than a loop that hangs is granted."""
    looks: list[bool] = []

    def late(*_: object, **__: object) -> bool:
        time.sleep(0.0 if len(looks) > 4 else 0.7)
        looks.append(len(looks) > 4)
        return looks[-1]

    monkeypatch.setattr(lifecycle, "_HANGS_S", 0.6)
    monkeypatch.setattr(supervisor, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(supervisor, "answers", late)
    assert eventually(lambda: looks.count(False) >= 3 and health(server.address) == NOT_SERVING)
    assert eventually(lambda: True in looks and health(server.address) == SERVING)
    assert not server.server.readiness.given_up.is_set()


def test_the_supervisor_asks_over_the_real_port(server: ServerThread, tmp_path: Path) -> None:
    assert answers(server.address, tls=False)
    with serving(scripted(ScriptedEngine()), replace(SETTINGS, host=f"unix:{tmp_path}/f2edge.sock")) as other:
        assert answers(other.address, tls=False)
    assert not answers(other.address, tls=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert not answers(f"127.0.0.1:{port}", tls=False)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    authority(folder, "ca")
    issue(folder, "server", "ca")
    return folder


@pytest.mark.parametrize("mutual", [False, True])
def test_the_supervisor_speaks_tls(pki: Path, mutual: bool) -> None:
    settings = replace(SETTINGS, tls_cert=pki / "server.pem", tls_key=pki / "server.key", client_ca=pki / "ca.pem" if mutual else None)
    with serving(scripted(ScriptedEngine()), settings) as server:
        assert answers(server.address, tls=True)
    assert not answers(server.address, tls=True)


PROCESS = """
import asyncio, sys, threading, time
from f2edge.cli.serve import _serve
from f2edge.server.settings import ServerSettings
from tests.support.serving import ScriptedEngine, scripted
engine = ScriptedEngine(steps=8, step_s=0.02)
settings = ServerSettings(port=0, lame_duck_s=0.1, grace_s=3.0)
def hang():
    loop = next(iter(loops))
    loop.call_soon_threadsafe(time.sleep, 60)
def end():
    from f2edge.engine.requests import EngineState
    engine.state = EngineState.STOPPED
loops = []
async def main():
    loops.append(asyncio.get_running_loop())
    if len(sys.argv) > 1:
        threading.Timer(1.5, {"hang": hang, "end": end}[sys.argv[1]]).start()
    return await _serve(settings, lambda: scripted(engine))
raise SystemExit(asyncio.run(main()))
"""


class Process:
    """A server in a process of its own, over the scripted engine."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().rpartition(" ")[2].strip()
        assert eventually(lambda: health(self.address) == SERVING)

    def end(self, seconds: float) -> int:
        """The exit code; fails where the process lives longer."""
        try:
            self.process.communicate(timeout=seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.communicate()
        return int(self.process.returncode)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["hang", "end"])
def test_a_process_whose_loop_or_engine_dies_ends(what: str) -> None:
    assert Process(what).end(1.5 + 5 + 3) == 1


# Shutdown ---------------------------------------------------------------------------------------------------------------------------------

STATES = {
    "a watcher without a window": silent(4, HEALTH + b"Watch", message=EMPTY, end=True, calls=4, window=0),
    "an idle watcher": silent(1, HEALTH + b"Watch", message=EMPTY),
    "a call without a message": silent(4, SERVICE + b"Ask", calls=4),
    "a silent frame stream": silent(4, SERVICE + b"AnalyzeStream", calls=4),
    "a half-sent request": half_sent(4, seconds=1.0),
    "an answer without a window": silent(2, SERVICE + b"GetModel", message=EMPTY, end=True, calls=4, window=0),
    "mute connections": mute(20),
    "pings whose answers are not read": ATTACKS["pings whose answers are not read"],
    "reflection streams": ATTACKS["reflection streams"],
}


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_sigterm_ends_the_process_within_its_grace(state: str) -> None:
    server = Process()
    with attacked(server.address, STATES[state]):
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        assert server.end(0.1 + 3.0 + 5.0) == 0  # lame duck, grace, the engine's end


@pytest.mark.slow
def test_peers_that_only_hold_on_do_not_stretch_the_shutdown(engine: ScriptedEngine) -> None:
    """There is no accepted work, so there is nothing to wait for: a grace of a minute is not used."""
    thread = ServerThread(SETTINGS, scripted(engine)).start()
    with attacked(thread.address, *(attack for name, attack in STATES.items() if "pings" not in name)):
        time.sleep(0.3)
        started = time.monotonic()
        thread.stop(60.0)
        assert time.monotonic() - started < 15


# What peers hold ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_half_sent_requests_take_bounded_memory_and_keep_nobody_waiting() -> None:
    server = Process()
    before = resident_mb(server.process.pid) or 0.0
    try:
        with attacked(server.address, half_sent(120, seconds=4.0)), stub(server.address) as face:
            assert (resident_mb(server.process.pid) or 0.0) - before < 250  # 120 requests of 4 MiB would be 480 MB
            assert [face.GetModel(pb.GetModelRequest(), timeout=10).name for _ in range(20)] == ["scripted"] * 20
            assert health(server.address) == SERVING
        assert eventually(lambda: (resident_mb(server.process.pid) or 0.0) - before < 50)
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.end(10) == 0


def test_a_request_that_does_not_arrive_is_ended(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.server._calls.uploads, "_seconds", 0.3)
    with Connection(server.address) as connection:
        assert ends_with(connection, connection.call(SERVICE + b"Ask", end=False)) == HEADERS
    assert eventually(lambda: not server.server._calls._open)


def test_a_body_is_read_for_those_who_have_a_token_only(tmp_path: Path) -> None:
    new_token(tmp_path / "tokens.txt", "app")
    with serving(scripted(ScriptedEngine()), replace(SETTINGS, token_file=tmp_path / "tokens.txt")) as server:
        with Connection(server.address) as connection:
            stream = connection.call(SERVICE + b"Ask", grpc_message(b"x", length=4 << 20), end=False)
            assert ends_with(connection, stream) == HEADERS
        assert server.server._calls.begun == 0


def test_answers_that_nobody_reads_are_given_up(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_LONGEST_WRITE_S", 0.3)
    with attacked(server.address, silent(2, SERVICE + b"GetModel", message=EMPTY, end=True, calls=8, window=0)):
        assert eventually(lambda: server.server._calls.begun == 16)
        assert eventually(lambda: not server.server._calls._open)


def test_a_caller_who_does_not_read_makes_room(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_MOST_OPEN", 8)
    monkeypatch.setattr(rpc, "_PATIENCE_S", 0.0)
    attack = silent(2, SERVICE + b"GetModel", message=EMPTY, end=True, calls=8, window=0)
    with attacked(server.address, attack), stub(server.address) as face:
        assert eventually(lambda: server.server._calls.begun >= 8)
        assert face.GetModel(pb.GetModelRequest(), timeout=10).name == "scripted"


def test_silent_frame_streams_make_room(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    with attacked(server.address, silent(4, SERVICE + b"AnalyzeStream", calls=4)), stub(server.address) as face:
        assert eventually(lambda: len(server.server._service._streams._open) == 16)
        time.sleep(frames._FIRST_FRAME_S + 0.1)
        assert len(list(requests_of_every_method()["AnalyzeStream"](face))) == 1


def test_a_stream_with_frames_does_not_make_room(engine: ScriptedEngine) -> None:
    with serving(scripted(engine), replace(SETTINGS, streams=1)) as server, stub(server.address) as face:
        end = threading.Event()

        def one_frame() -> Iterator[pb.AnalyzeStreamRequest]:
            yield pb.AnalyzeStreamRequest(image=photo())
            end.wait(20)

        first = face.AnalyzeStream(one_frame())
        assert next(first).frame_id == 0
        time.sleep(frames._FIRST_FRAME_S + 0.1)
        error = refused(lambda: requests_of_every_method()["AnalyzeStream"](face))
        assert (error.code(), details(error)["ErrorInfo"].reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        end.set()


def test_a_stream_that_falls_silent_ends(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_LONGEST_SILENCE_S", 0.2)
    with Connection(server.address) as connection:
        assert ends_with(connection, connection.call(SERVICE + b"AnalyzeStream", end=False)) == HEADERS


def test_a_revoked_token_ends_running_calls(engine: ScriptedEngine, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.txt"
    token = new_token(tokens, "camera")
    engine.steps, engine.step_s = 10_000, 0.01
    with serving(scripted(engine), replace(SETTINGS, token_file=tokens)) as server, stub(server.address) as face:
        allowed = (("authorization", f"Bearer {token}"),)
        picture = face.Generate(pb.GenerateRequest(**GOOD), metadata=allowed)
        end = threading.Event()
        stream = face.AnalyzeStream(iter(lambda: end.wait(20) or pb.AnalyzeStreamRequest(), None), metadata=allowed)
        assert eventually(lambda: len(server.server._calls._open) == 2)
        tokens.write_text("", encoding="utf-8")
        started = time.monotonic()
        for call in (picture, stream):
            assert refused(lambda call=call: call).code() == grpc.StatusCode.UNAUTHENTICATED
        assert time.monotonic() - started < 5
        end.set()
        assert eventually(lambda: not engine.open_requests)


def test_health_streams_are_bounded_and_need_a_token(server: ServerThread, tmp_path: Path) -> None:
    with attacked(server.address, silent(20, HEALTH + b"Watch", message=EMPTY, end=True, calls=20)):
        assert eventually(lambda: len(server.server._standard._watchers._tasks) == 64)
        time.sleep(1.0)  # for the rest of the 400
        assert len(server.server._standard._watchers._tasks) == 64
        assert health(server.address) == SERVING
    assert eventually(lambda: not server.server._standard._watchers._tasks)
    new_token(tmp_path / "tokens.txt", "app")
    with serving(scripted(ScriptedEngine()), replace(SETTINGS, token_file=tmp_path / "tokens.txt")) as closed:
        with grpc.insecure_channel(closed.address) as channel, pytest.raises(grpc.RpcError) as caught:
            next(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert health(closed.address) == SERVING


def test_a_watcher_without_a_window_does_not_hold_the_state_back(server: ServerThread, engine: ScriptedEngine) -> None:
    with attacked(server.address, silent(1, HEALTH + b"Watch", message=EMPTY, end=True, window=0)):
        assert eventually(lambda: server.server._standard.begun == 1)
        for state, expected in ((EngineState.FAULTY, NOT_SERVING), (EngineState.READY, SERVING), (EngineState.FAULTY, NOT_SERVING)):
            engine.state = state
            assert eventually(lambda expected=expected: health(server.address) == expected, 5)  # type: ignore[misc]


def test_a_watcher_hears_of_changes_until_it_is_too_old(
    server: ServerThread, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch
        heard = watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(heard).status == SERVING
        engine.state = EngineState.FAULTY
        assert next(heard).status == NOT_SERVING
        monkeypatch.setattr(standard, "_LONGEST_WATCH_S", 0.2)
        error = refused(lambda: watch(health_pb2.HealthCheckRequest(service="another.Service"), timeout=20))
        assert (error.code(), details(error)["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "AGE")


def test_reflection_is_bounded_and_goes_on(server: ServerThread) -> None:
    with grpc.insecure_channel(server.address) as channel:
        info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        wanted = reflection_pb2.ServerReflectionRequest(list_services="")
        assert len(next(info(iter([wanted]))).list_services_response.service) == 3
        with attacked(server.address, ATTACKS["reflection streams"]):
            assert eventually(lambda: len(server.server._standard._reflections._tasks) == 16)
            with pytest.raises(grpc.RpcError) as caught:
                next(info(iter([wanted]), timeout=10))
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert eventually(lambda: not server.server._standard._reflections._tasks)
        assert len(next(info(iter([wanted]))).list_services_response.service) == 3


def test_connections_are_counted_and_those_without_a_word_closed() -> None:
    with serving(scripted(ScriptedEngine()), replace(SETTINGS, connections=40)) as server:
        with attacked(server.address, mute(60)):
            assert _open_connections(server.address) <= 42  # the supervisor's own among them
            assert eventually(lambda: _open_connections(server.address) < 5, 15)
        assert health(server.address) == SERVING


def _open_connections(address: str) -> int:
    """Sockets of this process that such a server has accepted (Linux)."""
    port = f"{int(address.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return sum(row[1].endswith(f":{port}") and row[3] == "01" and row[9] != "0" for row in rows)


def test_a_flood_of_resets_leaves_nothing(server: ServerThread) -> None:
    with attacked(server.address, ATTACKS["calls reset at once"]), stub(server.address) as face:
        assert face.GetModel(pb.GetModelRequest(), timeout=20).name == "scripted"
    assert eventually(lambda: not server.server._calls._open)


# Everything at once ---------------------------------------------------------------------------------------------------------------------


def test_mutated_conversations(server: ServerThread) -> None:
    """``F2EDGE_FUZZ=100`` sends a hundred times as many."""
    count = 400 * int(os.environ.get("F2EDGE_FUZZ", "1"))
    for number, data in enumerate(islice(Conversations(1), count)):
        say(server.address, data, listen_s=0.02 if number % 20 == 0 else 0.0)
        if number % 100 == 0:
            assert health(server.address) == SERVING
    with stub(server.address) as face:
        assert face.GetModel(pb.GetModelRequest(), timeout=10).name == "scripted"
    assert eventually(lambda: not server.server._calls._open)


def test_conversations_follow_from_their_seed() -> None:
    assert list(islice(Conversations(7), 20)) == list(islice(Conversations(7), 20))
    assert len(set(islice(Conversations(7), 200))) == 200


@pytest.mark.slow
def test_honest_clients_see_no_error_beside_every_attack(server: ServerThread) -> None:
    with asking(server.address, threads=2) as asked:
        for attack in ATTACKS.values():
            with attacked(server.address, attack):
                assert asked.more(2)
    assert asked.errors == []


def test_headers_that_are_no_text_are_not_written_anywhere(server: ServerThread, caplog: pytest.LogCaptureFixture) -> None:
    """gRPC's Python logged each of them whole, with a traceback, three times a call."""
    with Connection(server.address) as connection:
        stream = connection.call(SERVICE + b"GetModel", EMPTY, [(b"x-note", b"\x1b[2J\xff\xfe"), (b"authorization", b"Bearer \xff")])
        assert ends_with(connection, stream) == HEADERS
    assert "\\xff" not in caplog.text
    assert "Invalid encoding" not in caplog.text
