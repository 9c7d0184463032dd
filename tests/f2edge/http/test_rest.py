"""REST over a socket: what comes back, what is refused, and that it is what gRPC would have said."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from f2edge.cli.main import run
from f2edge.engine.requests import AskRequest, EditRequest, Priority
from f2edge.errors import InputError, QueueFullError
from f2edge.pipeline import FacePipeline
from f2edge.provenance.label import read_label
from f2edge.server.settings import ServerSettings
from f2edge.server.tokens import new_token
from f2edge.v1 import face_pb2 as pb
from tests.support.serving import (
    FACTS,
    GOOD,
    SETTINGS,
    WORDS,
    ScriptedEngine,
    ServerThread,
    details,
    eventually,
    paper_pipeline,
    paper_served,
    photo,
    refused,
    scripted,
    serving,
    stub,
)

HTTP = replace(SETTINGS, http_port=0)


def data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def client_of(server: ServerThread, **options: Any) -> httpx.Client:
    assert server.server.http_address is not None
    return httpx.Client(base_url=server.server.http_address, timeout=20, trust_env=False, **options)


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    found = []
    for block in response.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def server(engine: ScriptedEngine) -> Iterator[ServerThread]:
    with serving(scripted(engine), HTTP) as thread:
        yield thread


@pytest.fixture
def http(server: ServerThread) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        yield client


# Answers ---------------------------------------------------------------------------------------------------------------------------------


def test_a_face_comes_as_json_with_its_marks(http: httpx.Client, engine: ScriptedEngine) -> None:
    asked = {"prompt": "a smiling woman", "seed": 7, "options": {"steps": 8}, "priority": "PRIORITY_BACKGROUND"}
    response = http.post("/v1/generate", json=asked)
    assert response.status_code == 200, response.text
    result = response.json()
    assert result["decoding"]["seed"] == "7"
    assert result["wording"] == {"unmatched": ["pirate", "eye patch"], "corrected": {"galsses": "glasses"}}
    assert len(result["picture"]["tokens"]) == FACTS.tokens
    label = read_label(base64.b64decode(result["picture"]["image"]))
    assert label is not None
    assert label.synthetic
    request, priority, deadline = engine.submitted[0]
    assert (request.prompt, request.seed, request.options.steps, priority, deadline) == ("a smiling woman", 7, 8, Priority.BACKGROUND, None)


def test_a_face_comes_as_a_file(http: httpx.Client) -> None:
    for kind in ("png", "jpeg", "webp"):
        response = http.post("/v1/generate", json={**GOOD, "seed": 9}, headers={"accept": f"image/{kind}"})
        assert (response.status_code, response.headers["content-type"], response.headers["x-seed"]) == (200, f"image/{kind}", "9")
        assert Image.open(io.BytesIO(response.content)).format == kind.upper()
        label = read_label(response.content)
        assert label is not None
        assert label.synthetic


def test_previews_come_as_events(http: httpx.Client) -> None:
    asked = {**GOOD, "previews": {"every_steps": 1, "picture_side": 32}}
    response = http.post("/v1/generate", json=asked, headers={"accept": "text/event-stream"})
    assert response.headers["content-type"] == "text/event-stream"
    *previews, (name, result) = events(response)
    assert name == "result"
    assert {name for name, _ in previews} == {"preview"}
    assert 1 <= len(previews) <= 7
    assert Image.open(io.BytesIO(base64.b64decode(previews[0][1]["picture"]))).format == "JPEG"
    assert result["decoding"]["steps"] == 8


def test_a_form_with_files_says_the_same_as_json(http: httpx.Client, engine: ScriptedEngine) -> None:
    form = {"question": "what hair?", "max_tokens": "9", "priority": "PRIORITY_NORMAL"}
    by_form = http.post("/v1/ask", data=form, files={"image": photo()})
    by_json = http.post("/v1/ask", json={**form, "image": base64.b64encode(photo()).decode()})
    by_uri = http.post("/v1/ask", json={**form, "image": data_uri(photo())})
    assert by_form.json()["text"] == by_json.json()["text"] == by_uri.json()["text"] == "".join(WORDS)
    first, *others = (request for request, _, _ in engine.submitted)
    for other in others:
        assert isinstance(other, AskRequest)
        assert (other.question, other.max_tokens) == (first.question, first.max_tokens) == ("what hair?", 9)
        assert np.array_equal(np.asarray(other.image), np.asarray(first.image))


def test_nested_fields_of_a_form(http: httpx.Client, engine: ScriptedEngine) -> None:
    box = {"box.x": "0.1", "box.y": "0", "box.width": "0.5", "box.height": "1"}
    form = {"prompt": "red hair", **box, "redraw_outside": "true", "seed": "5", "options.guidance_ramp": "true"}
    response = http.post("/v1/edit", data=form, files={"image": photo()})
    assert response.status_code == 200, response.text
    request = engine.submitted[0][0]
    assert isinstance(request, EditRequest)
    assert (request.region, request.keep_outside, request.seed) == ((0.1, 0.0, 0.5, 1.0), False, 5)
    assert request.options.guidance_ramp is True


def test_answers_come_in_pieces(http: httpx.Client) -> None:
    for path, form in (("/v1/ask", {"question": "what?"}), ("/v1/describe", {})):
        *pieces, (name, answer) = events(http.post(path, data=form, files={"image": photo()}, headers={"accept": "text/event-stream"}))
        assert name == "answer"
        assert "".join(piece["text"] for _, piece in pieces) == answer["text"] == "".join(WORDS)


def test_a_report_and_the_model(http: httpx.Client) -> None:
    plain = http.post("/v1/analyze", files={"image": photo()}).json()["report"]["slots"]
    named = http.post("/v1/analyze", data={"attributes": ["hat", "beard"]}, files={"image": photo()}).json()["report"]["slots"]
    assert [slot["name"] for slot in named] == ["hat", "beard"]
    assert {slot["name"] for slot in plain} == set(FACTS.schema)
    model = http.get("/v1/model").json()
    assert (model["name"], model["image_side"], model["limits"]["deadline_s"]) == ("scripted", 32, 300.0)


def test_both_doors_give_the_same_tokens(tmp_path: Path) -> None:
    pipeline: FacePipeline = paper_pipeline(tmp_path)
    with serving(paper_served(pipeline), HTTP) as thread, client_of(thread) as http, stub(thread.address) as face:
        message = pb.GenerateRequest(prompt="an old man", seed=3)
        *_, last = face.Generate(message, timeout=60)
        found = http.post("/v1/generate", json={"prompt": "an old man", "seed": 3}).json()
        assert found["picture"]["tokens"] == list(last.result.picture.tokens)
        *_, answer = face.Ask(pb.AskRequest(image=photo(), question="what?"), timeout=60)
        assert http.post("/v1/ask", data={"question": "what?"}, files={"image": photo()}).json()["tokens"] == list(answer.answer.tokens)


# Refusals --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "message", "path"),
    [
        ("Generate", pb.GenerateRequest(prompt=""), "/v1/generate"),
        ("Generate", pb.GenerateRequest(prompt="a", options=pb.DecodingOptions(steps=5000)), "/v1/generate"),
        ("Generate", pb.GenerateRequest(prompt="a", priority=pb.PRIORITY_LIVE), "/v1/generate"),
        ("Edit", pb.EditRequest(prompt="a", image=b"GIF89a"), "/v1/edit"),
        ("Edit", pb.EditRequest(prompt="a", image=b"GIF89a", name="hair"), "/v1/edit"),
        ("Ask", pb.AskRequest(image=photo((8, 8)), question="what?"), "/v1/ask"),
        ("Describe", pb.DescribeRequest(image=photo(), max_tokens=4000), "/v1/describe"),
        ("Analyze", pb.AnalyzeRequest(image=photo(), attributes=["wings"]), "/v1/analyze"),
    ],
)
def test_errors_are_those_of_grpc(server: ServerThread, http: httpx.Client, method: str, message: Any, path: str) -> None:
    from google.protobuf.json_format import MessageToDict

    with stub(server.address) as face:
        call = getattr(face, method)
        error = refused(lambda: call(message, timeout=20) if method != "Analyze" else [call(message, timeout=20)])
    answer = http.post(path, json=MessageToDict(message, preserving_proto_field_name=True))
    found = answer.json()["error"]
    assert answer.status_code == 400
    assert found["message"] == error.details()
    assert found["status"] == error.code().name == "INVALID_ARGUMENT"
    assert found["code"] == details(error)["ErrorInfo"].reason
    assert found["param"] == details(error)["BadRequest"].field_violations[0].field
    assert found["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "MESSAGE"),
        (b"[1]", "application/json", 400, "MESSAGE"),
        (b'{"prompt": NaN}', "application/json", 400, "MESSAGE"),
        (b'{"prompt": 5}', "application/json", 400, "MESSAGE"),
        (b'{"prompt": "a", "options": 5}', "application/json", 400, "MESSAGE"),
        (b'{"prompt": "a", "options": "abc"}', "application/json", 400, "MESSAGE"),
        (b'{"prompt": "a", "seed": -1}', "application/json", 400, "MESSAGE"),
        (b'{"prompt": "a", "wings": 2}', "application/json", 400, "MESSAGE"),
        (b'{"options":' * 20_000, "application/json", 400, "MESSAGE"),
        (b"\xff\xfe", "application/json", 400, "MESSAGE"),
        (b'{"prompt": "a"}', "text/plain", 415, "MEDIA"),
        (b"prompt=a", "application/x-www-form-urlencoded", 415, "MEDIA"),
        (b"nothing", "multipart/form-data", 415, "MEDIA"),
        (b"--x\r\nnothing", "multipart/form-data; boundary=x", 400, "MESSAGE"),
    ],
)
def test_bodies_of_another_form(http: httpx.Client, content: bytes, kind: str, status: int, code: str) -> None:
    response = http.post("/v1/generate", content=content, headers={"content-type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
    assert "\n" not in response.json()["error"]["message"]
    assert "Traceback" not in response.text


def test_nothing_is_fetched(http: httpx.Client, engine: ScriptedEngine) -> None:
    for address in ("http://127.0.0.1:1/x.png", "HTTPS://example.org/x.png", "file:///etc/passwd"):
        response = http.post("/v1/describe", json={"image": address})
        assert response.status_code == 400
        assert "nothing is fetched" in response.json()["error"]["message"]
    assert engine.submitted == []


def test_paths_and_verbs(http: httpx.Client) -> None:
    assert http.get("/v1/wings").json()["error"]["code"] == "PATH"
    assert http.get("/v1/wings").status_code == 404
    assert http.get("/v1/generate").status_code == 405
    assert http.post("/v1/model", json={}).status_code == 405


def test_a_full_queue_says_when_to_come_back(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.refusal = QueueFullError("full", retry_after_ms=1500.0)
    response = http.post("/v1/generate", json=GOOD)
    assert (response.status_code, response.headers["retry-after"], response.headers["retry-after-ms"]) == (429, "2", "1500")
    assert response.json()["error"]["retry_after_ms"] == 1500.0


def test_an_error_within_a_stream_is_an_event(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.failure = RuntimeError("secret inside")
    response = http.post("/v1/ask", data={"question": "what?"}, files={"image": photo()}, headers={"accept": "text/event-stream"})
    *_, (name, document) = events(response)
    assert (name, document["error"]["code"]) == ("error", "INTERNAL")
    assert "secret" not in response.text


# Limits ----------------------------------------------------------------------------------------------------------------------------------


def test_deadlines_reach_the_engine_and_end_calls(http: httpx.Client, engine: ScriptedEngine) -> None:
    assert http.post("/v1/generate", json=GOOD, headers={"x-deadline-ms": "20000"}).status_code == 200
    assert engine.submitted[0][2] == pytest.approx(time.monotonic() + 20, abs=5)
    engine.gate.clear()
    response = http.post("/v1/generate", json=GOOD, headers={"x-deadline-ms": "100"})
    assert (response.status_code, response.json()["error"]["code"]) == (408, "DEADLINE")
    assert http.post("/v1/generate", json=GOOD, headers={"x-deadline-ms": "soon"}).json()["error"]["param"] == "x-deadline-ms"
    assert eventually(lambda: not engine.open_requests)


def raw(server: ServerThread, data: bytes) -> socket.socket:
    assert server.server.http_address is not None
    host, _, port = server.server.http_address.removeprefix("http://").rpartition(":")
    connection = socket.create_connection((host, int(port)), 20)
    connection.sendall(data)
    return connection


HEAD = b"POST /v1/describe HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_large_body_is_refused_before_it_is_sent(server: ServerThread) -> None:
    with raw(server, HEAD + b"Content-Length: 100000000\r\n\r\n") as connection:
        answer = connection.makefile("rb").read()  # the connection is closed too
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"SIZE"' in answer


def test_a_large_body_without_a_length_is_refused_on_its_way(server: ServerThread) -> None:
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    with raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 1000:
                connection.sendall(chunk)
                sent += 1
    assert sent < 500  # 32 MB: about 6 are read, 8 discarded, some wait in the system


def test_a_body_that_does_not_arrive_ends_in_time(server: ServerThread) -> None:
    server.server._calls.uploads._seconds = 0.3
    with raw(server, HEAD + b"Content-Length: 1000\r\n\r\n{") as connection:
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"not complete within 0.3 s" in answer


def test_a_head_that_does_not_arrive_ends_in_time(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    from f2edge.http import listener

    monkeypatch.setattr(listener, "_LOOK_S", 0.2)
    with raw(server, b"POST /v1/describe HTTP/1.1\r\nHost: ") as slow, raw(server, b"") as silent:
        for connection in (slow, silent):
            connection.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""


def test_connections_are_counted(engine: ScriptedEngine) -> None:
    with serving(scripted(engine), replace(HTTP, connections=4)) as thread:
        kept = [raw(thread, b"") for _ in range(4)]
        assert eventually(lambda: len(thread.server._http._state.connections) == 4)  # type: ignore[union-attr]
        with raw(thread, b"") as extra, contextlib.suppress(ConnectionResetError):
            assert extra.recv(1) == b""
        kept.pop().close()
        assert eventually(lambda: len(thread.server._http._state.connections) == 3)  # type: ignore[union-attr]
        with client_of(thread) as http:
            assert http.get("/healthz").status_code == 200
        for connection in kept:
            connection.close()


def test_answers_do_not_wait_for_acknowledgements(server: ServerThread, http: httpx.Client) -> None:
    assert http.get("/healthz").status_code == 200
    (connection,) = server.server._http._state.connections  # type: ignore[union-attr]
    assert connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_client_that_leaves_frees_the_engine(server: ServerThread, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    body = json.dumps(GOOD).encode()
    connection = raw(server, HEAD.replace(b"describe", b"generate") + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert eventually(lambda: len(engine.open_requests) == 1)
    connection.close()
    assert eventually(lambda: not engine.open_requests)
    assert engine.steps_done == 0


# Who may ask -----------------------------------------------------------------------------------------------------------------------------


def test_tokens(engine: ScriptedEngine, tmp_path: Path) -> None:
    token = new_token(tmp_path / "tokens.txt", "alice")
    with serving(scripted(engine), replace(HTTP, token_file=tmp_path / "tokens.txt")) as thread, client_of(thread) as http:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {token}"}):
            response = http.post("/v1/generate", json=GOOD, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "TOKEN")
            assert response.headers["www-authenticate"] == "Bearer"
            assert http.get("/v1/models", headers=headers).status_code == 401
        assert http.get("/healthz").status_code == 200
        assert http.post("/v1/generate", json=GOOD, headers={"authorization": f"Bearer {token}"}).status_code == 200
        engine.gate.clear()
        (tmp_path / "tokens.txt").write_text("", encoding="utf-8")
        assert http.post("/v1/generate", json=GOOD, headers={"authorization": f"Bearer {token}"}).status_code == 401
    assert len(engine.submitted) <= 2


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://example.org"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "example.org"}, 403),
        ({"host": "localhost.example.org:8080"}, 403),
        ({"host": "localhost:8080", "origin": "http://localhost:8080"}, 200),
        ({"host": "[::1]:8080"}, 200),
    ],
)
def test_pages_of_others_are_refused(http: httpx.Client, headers: dict[str, str], status: int) -> None:
    assert http.get("/v1/model", headers=headers).status_code == status


def test_an_address_beyond_this_machine_needs_tls(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="--tls-cert"):
        ServerSettings(http_host="0.0.0.0", http_port=8080)
    assert ServerSettings(http_host="0.0.0.0", http_port=8080, insecure=True).http_port == 8080
    for wrong in ("8080", "127.0.0.1:", "127.0.0.1:eighty", "127.0.0.1:99999"):
        assert run(["serve", "--http", wrong]) == 2
        assert "--http" in capsys.readouterr().err


def test_a_port_in_use_is_named(server: ServerThread) -> None:
    port = int(str(server.server.http_address).rpartition(":")[2])
    with pytest.raises(InputError, match=f"--http 127.0.0.1:{port}: cannot be bound"), serving(None, replace(HTTP, http_port=port)):
        pass


# Operation -------------------------------------------------------------------------------------------------------------------------------


def test_request_ids_and_metrics(server: ServerThread, http: httpx.Client) -> None:
    assert http.post("/v1/generate", json=GOOD, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert http.post("/v1/generate", json={}, headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"
    http.post("/v1/generate", content=b"{", headers={"content-type": "application/json"})
    value = server.server.metrics.registry.get_sample_value
    assert value("f2edge_requests_total", {"method": "Generate", "code": "OK"}) == 1
    assert value("f2edge_requests_total", {"method": "Generate", "code": "INVALID_ARGUMENT"}) == 2


def test_a_drain_finishes_what_was_accepted(engine: ScriptedEngine) -> None:
    engine.gate.clear()
    body = json.dumps(GOOD).encode()
    with serving(scripted(engine), HTTP) as thread:
        head = HEAD.replace(b"describe", b"generate") + b"Content-Length: %d\r\n\r\n" % len(body)
        with raw(thread, head + body) as connection, raw(thread, b"") as idle:
            assert eventually(lambda: len(engine.open_requests) == 1)
            threading.Timer(0.3, engine.gate.set).start()
            assert thread.stop(grace_s=10)
            answer = connection.makefile("rb").read()
            assert idle.recv(1) == b""
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"decoding"' in answer


def test_before_the_model_is_loaded() -> None:
    with serving(None, replace(HTTP, start_wait_s=0.1)) as thread, client_of(thread) as http:
        assert http.get("/healthz").status_code == 503
        for path in ("/v1/model", "/v1/models"):
            assert http.get(path).json()["error"]["code"] == "STARTING"
        response = http.post("/v1/images/generations", json=GOOD)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "STARTING")
