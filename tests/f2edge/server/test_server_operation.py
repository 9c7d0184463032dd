"""A server's days: health, drain, signals, hanging engines, figures, and callers who know nothing but the wire."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from f2edge.cli.top import SampleKey, Scrape, render, scrape, summary
from f2edge.engine.requests import EngineState
from f2edge.errors import BackendError, InputError, ServerUnavailableError
from f2edge.server.engine_protocol import Served
from f2edge.server.lifecycle import serve
from f2edge.server.settings import ServerSettings
from f2edge.v1 import face_pb2 as pb
from tests.support.serving import (
    GOOD,
    PROMPT,
    SETTINGS,
    WORDS,
    ScriptedEngine,
    ServerThread,
    details,
    eventually,
    photo,
    refused,
    requests_of_every_method,
    scripted,
    serving,
    stub,
)

pytestmark = pytest.mark.runtime


# Health, drain ----------------------------------------------------------------------------------------------------------------------------

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def health(address: str, service: str = "") -> Any:
    with grpc.insecure_channel(address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def test_health_follows_the_engine(engine: ScriptedEngine) -> None:
    with serving(None, replace(SETTINGS, start_wait_s=0.1)) as server, stub(server.address) as face:
        assert health(server.address) == NOT_SERVING
        error = refused(lambda: face.Generate(pb.GenerateRequest(**GOOD)))
        assert (error.code(), details(error)["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "STARTING")
        engine.state = EngineState.STARTING
        server.run(server.server.use(scripted(engine)))
        time.sleep(0.3)
        assert health(server.address) == NOT_SERVING
        for state, age_ms, expected in (
            (EngineState.READY, 1.0, SERVING),
            (EngineState.READY, 60_000.0, NOT_SERVING),
            (EngineState.READY, 1.0, SERVING),
            (EngineState.FAULTY, 1.0, NOT_SERVING),
        ):
            engine.state, engine.heartbeat_age_ms = state, age_ms
            for name in ("", "f2edge.v1.FaceService"):
                assert eventually(lambda name=name, expected=expected: health(server.address, name) == expected)  # type: ignore[misc]
        with pytest.raises(grpc.RpcError) as caught:
            health(server.address, "another.Service")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_calls_that_come_while_the_model_loads_wait_for_it(engine: ScriptedEngine) -> None:
    engine.state = EngineState.STARTING
    with serving(None) as server, stub(server.address) as face:
        calls = [face.Generate(pb.GenerateRequest(prompt=PROMPT, seed=seed)) for seed in range(4)]
        model = face.GetModel.future(pb.GetModelRequest())
        time.sleep(0.2)
        server.run(server.server.use(scripted(engine)))
        time.sleep(0.2)
        assert engine.submitted == []
        engine.state = EngineState.READY
        assert [list(call)[-1].result.decoding.seed for call in calls] == [0, 1, 2, 3]
        assert model.result().name == "scripted"


def test_a_server_that_is_told_to_end_while_it_loads_lets_nobody_wait() -> None:
    thread = ServerThread(SETTINGS).start()
    with stub(thread.address) as face:
        call = face.Generate(pb.GenerateRequest(**GOOD))
        time.sleep(0.2)
        start = time.monotonic()
        thread.stop(5.0)
        assert time.monotonic() - start < 4
        assert refused(lambda: call).code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_a_model_that_cannot_be_loaded_ends_the_server_at_once() -> None:
    """Nobody has come yet, so there is no balancer to wait for."""

    def load() -> Served:
        raise BackendError("no such device")

    with pytest.raises(BackendError, match="no such device"):
        asyncio.run(asyncio.wait_for(serve(replace(SETTINGS, lame_duck_s=60.0), load, asyncio.Event(), lambda _server: None), 20))


def test_health_answers_while_everything_is_busy(server: ServerThread, face: Any, engine: ScriptedEngine) -> None:
    engine.steps, engine.step_s = 1000, 0.01
    calls = [face.Generate(pb.GenerateRequest(**GOOD)) for _ in range(20)]
    large = photo((1500, 1500), "JPEG")
    calls += [face.Ask(pb.AskRequest(image=large, question="what?")) for _ in range(10)]
    assert eventually(lambda: len(engine.submitted) == 30)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        assert health(server.address) == SERVING
        took.append(time.perf_counter() - start)
    assert min(took) < 0.05
    for call in calls:
        call.cancel()


def test_a_drain_finishes_what_was_accepted_and_takes_no_more(engine: ScriptedEngine) -> None:
    engine.gate.clear()
    thread = ServerThread(SETTINGS, scripted(engine)).start()
    with stub(thread.address) as face:
        calls = [face.Generate(pb.GenerateRequest(prompt=PROMPT, seed=seed)) for seed in range(4)]
        stream = requests_of_every_method()["AnalyzeStream"](face)
        assert eventually(lambda: len(engine.submitted) == 5)
        drained: list[bool] = []
        stopper = threading.Thread(target=lambda: drained.append(thread.stop(10.0)))
        stopper.start()
        assert eventually(lambda: thread.server._calls.closed)
        error = refused(lambda: face.Generate(pb.GenerateRequest(**GOOD)))
        assert error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}  # gRPC's, for one that came as it stopped
        engine.gate.set()
        assert [list(call)[-1].result.decoding.seed for call in calls] == [0, 1, 2, 3]
        assert [answer.frame_id for answer in _read(stream)] == [0]
        stopper.join(20)
    assert drained == [True]
    assert engine.closed


def _read(call: Any) -> list[Any]:
    """What a stream sends before the server asks its caller to go elsewhere."""
    answers: list[Any] = []
    with pytest.raises(grpc.RpcError) as caught:
        answers.extend(iter(call))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    return answers


def test_the_grace_period_ends(engine: ScriptedEngine) -> None:
    engine.gate.clear()
    thread = ServerThread(SETTINGS, scripted(engine)).start()
    with stub(thread.address) as face:
        call = face.Generate(pb.GenerateRequest(**GOOD))
        assert eventually(lambda: len(engine.submitted) == 1)
        start = time.monotonic()
        assert thread.stop(0.3) is False
        assert time.monotonic() - start < 8
        assert refused(lambda: call).code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


PROCESS = """
import asyncio, sys, threading
from f2edge.cli.serve import _serve
from f2edge.server.logs import log_as_json
from f2edge.server.settings import ServerSettings
from tests.support.serving import ScriptedEngine, scripted
log_as_json()
engine = ScriptedEngine(steps=int(sys.argv[1]), step_s=0.02)
if len(sys.argv) > 2:
    threading.Timer(0.5, lambda: setattr(engine, "heartbeat_age_ms", 1e9)).start()
settings = ServerSettings(port=0, lame_duck_s=0.1, grace_s=20, hang_exit_s=30)
raise SystemExit(asyncio.run(_serve(settings, lambda: scripted(engine))))
"""


class Process:
    def __init__(self, *arguments: str) -> None:
        folder = Path(__file__).parents[3]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().rpartition(" ")[2].strip()

    def end(self) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and log."""
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, [json.loads(line) for line in err.splitlines() if line.startswith("{")]


def test_the_first_signal_drains_and_the_log_is_json() -> None:
    server = Process("20")
    with stub(server.address) as face:
        assert eventually(lambda: health(server.address) == SERVING, 20)
        call = face.Generate(pb.GenerateRequest(**GOOD), metadata=[("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")])
        time.sleep(0.1)
        os.kill(server.process.pid, signal.SIGTERM)
        assert list(call)[-1].WhichOneof("event") == "result"
    code, log = server.end()
    assert code == 0
    (line,) = [line for line in log if line["message"] == "call"]
    assert (line["method"], line["code"], line["trace_id"]) == ("Generate", "OK", "a" * 32)
    assert line["ms"] > 0
    assert PROMPT not in json.dumps(log)
    assert log[-1]["message"] == "stopped"


def test_sigterm_under_load_loses_no_accepted_call() -> None:
    """A process full of work is told to end: every call that it had accepted ends with its result, and the process with 0."""
    server = Process("40")
    with stub(server.address) as face:
        assert eventually(lambda: health(server.address) == SERVING, 20)
        pictures = [face.Generate(pb.GenerateRequest(prompt=PROMPT, seed=seed)) for seed in range(12)]
        answers = [face.Ask(pb.AskRequest(image=photo(), question="what?")) for _ in range(12)]
        assert [next(answer).piece for answer in answers] == [WORDS[0]] * 12  # accepted, and at work
        time.sleep(0.2)
        os.kill(server.process.pid, signal.SIGTERM)
        assert [list(picture)[-1].result.decoding.seed for picture in pictures] == list(range(12))
        assert [list(answer)[-1].answer.text for answer in answers] == ["".join(WORDS)] * 12
    code, log = server.end()
    assert code == 0
    assert log[-1]["message"] == "stopped"
    assert log[-1]["finished"] is True
    assert sum(line.get("code") == "OK" for line in log if line["message"] == "call") == 24


def test_a_second_signal_ends_at_once() -> None:
    server = Process("100000")
    with stub(server.address) as face:
        assert eventually(lambda: health(server.address) == SERVING, 20)
        call = face.Generate(pb.GenerateRequest(**GOOD))
        os.kill(server.process.pid, signal.SIGTERM)
        assert eventually(lambda: server.process.poll() is not None or health_fails(server.address), 10)
        start = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        code, _ = server.end()
        assert refused(lambda: call).code() == grpc.StatusCode.UNAVAILABLE
    assert code == 130
    assert time.monotonic() - start < 5


def health_fails(address: str) -> bool:
    try:
        return bool(health(address) != SERVING)
    except grpc.RpcError:
        return True


def test_a_hanging_engine_ends_the_process_with_an_error() -> None:
    server = Process("20", "hang")
    code, log = server.end()
    assert code == 1
    assert "the engine is given up" in [line["message"] for line in log]


# Scrape --------------------------------------------------------------------------------------------------------------------------------


def test_figures_count_what_happened(server: ServerThread, face: Any, engine: ScriptedEngine) -> None:
    for _ in range(3):
        list(face.Generate(pb.GenerateRequest(**GOOD)))
    refused(lambda: face.Generate(pb.GenerateRequest()))
    list(face.AnalyzeStream(iter([pb.AnalyzeStreamRequest(image=photo())])))
    engine.gate.clear()
    waiting = face.Generate(pb.GenerateRequest(**GOOD))
    assert eventually(lambda: len(engine.submitted) == 5)
    figures = scrape(f"127.0.0.1:{server.server.metrics_port}")
    assert figures.value("f2edge_requests_total", method="Generate", code="OK") == 3
    assert figures.value("f2edge_requests_total", method="Generate", code="INVALID_ARGUMENT") == 1
    assert figures.value("f2edge_requests_total", method="Ask", code="OK") == 0
    assert figures.value("f2edge_open_calls", method="Generate") == 1
    assert figures.value("f2edge_request_seconds_count", method="Generate") == 4
    assert figures.value("f2edge_first_token_seconds_count", method="Generate") == 3
    assert figures.value("f2edge_frames_total") == 1
    assert figures.value("f2edge_running", priority="normal") == 1
    assert figures.value("f2edge_steps_total") == engine.steps_done == 32
    assert figures.value("f2edge_batch_size_bucket", task="step", le="1.0") == 32
    assert figures.value("f2edge_model_info", model="scripted", version="0", backend="none") == 1
    engine.gate.set()
    list(waiting)


def test_top_shows_what_the_server_does(server: ServerThread, face: Any) -> None:
    from rich.console import Console

    before = scrape(f"127.0.0.1:{server.server.metrics_port}")
    list(face.Generate(pb.GenerateRequest(**GOOD)))
    after = scrape(f"127.0.0.1:{server.server.metrics_port}")
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(render(before, after))
    shown = console.export_text()
    assert shown.startswith("scripted · heartbeat 1 ms ago")
    assert re.search(r"Generate +0 +\d+\.\d +1 +0 +≤ \d", shown)
    table = summary(after)
    assert table["calls"]["Generate"]["ended"] == {"OK": 1}  # type: ignore[index]
    assert table["steps"] == 8


def test_a_quantile_is_the_edge_of_its_bucket() -> None:
    buckets = {"0.1": 50.0, "0.5": 99.0, "+Inf": 100.0}
    figures = Scrape({("f2edge_x_bucket", (("le", edge),)): count for edge, count in buckets.items()}, 0.0)
    assert figures.quantile_ms("f2edge_x", 0.5) == 100
    assert figures.quantile_ms("f2edge_x", 0.6) == 500
    assert figures.quantile_ms("f2edge_x", 1.0) == float("inf")
    assert figures.quantile_ms("f2edge_y", 0.5) is None


def test_calls_of_more_than_five_minutes_have_no_number_in_json() -> None:
    edges = {"300.0": 0.0, "+Inf": 1.0}
    samples: dict[SampleKey, float] = {("f2edge_open_calls", (("method", "Ask"),)): 0.0}
    for edge, count in edges.items():
        samples["f2edge_request_seconds_bucket", (("le", edge), ("method", "Ask"))] = count
    table = summary(Scrape(samples, 0.0))
    assert table["calls"]["Ask"]["p99_ms"] is None  # type: ignore[index]
    json.dumps(table, allow_nan=False)


@pytest.mark.parametrize("page", [b"<html>nothing here</html>", b"", b"# HELP go_threads Of another program.\ngo_threads 7\n", b"\xff"])
def test_top_is_not_taken_in_by_another_server(page: bytes) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.handle_request)
        thread.start()
        with pytest.raises(ServerUnavailableError, match="no metrics at"):
            scrape(f"127.0.0.1:{other.server_port}")
        thread.join(10)


@pytest.mark.parametrize("address", ["", ":1", "host", "host:", "host:0", "host:99999", "host:\u00b2", "host:1/x"])
def test_top_wants_a_host_and_a_port(address: str) -> None:
    with pytest.raises(InputError, match="give HOST:PORT"):
        scrape(address)


# The contract alone ----------------------------------------------------------------------------------------------------------------------


def test_a_client_from_reflection_alone_can_generate_and_ask(server: ServerThread) -> None:
    """No stub and no code of this package: everything comes over the wire."""
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "f2edge.v1.FaceService" in database.get_services()
        file = database.FindFileContainingSymbol("f2edge.v1.FaceService")
        assert isinstance(file, descriptor_pb2.FileDescriptorProto)
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        methods = pool.FindServiceByName("f2edge.v1.FaceService").methods_by_name

        def call(name: str, **fields: Any) -> list[Any]:
            answer = GetMessageClass(methods[name].output_type)
            remote = channel.unary_stream(f"/f2edge.v1.FaceService/{name}", response_deserializer=answer.FromString)
            return list(remote(GetMessageClass(methods[name].input_type)(**fields).SerializeToString()))

        picture = call("Generate", prompt=PROMPT)[-1].result.picture.image
        assert call("Ask", image=picture, question="what color is the hair?")[-1].answer.text == "the hair is red"


def test_help_does_not_load_grpc() -> None:
    program = (
        "import sys\nfrom f2edge.cli.main import run\nrun(['serve', '--help'])\n"
        "print(sorted({'grpc', 'google'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == "[]\n"
    assert "--token-file" in done.stdout


@pytest.mark.parametrize("change", [{"deadline_s": 0}, {"port": 70000}, {"streams": 0}, {"decode_threads": 9}, {"grace_s": -1.0}])
def test_settings_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ServerSettings(**change)
