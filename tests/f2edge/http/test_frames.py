"""Frames over HTTP: lines in, lines out, while the request goes on."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from f2edge.spec.attributes import F2EDGE_SCHEMA
from tests.f2edge.http.test_rest import HTTP
from tests.support.serving import ScriptedEngine, ServerThread, photo, scripted, serving

PATH, LINES = "/v1/analyze-stream", "application/x-ndjson"


@pytest.fixture
def server() -> Iterator[ServerThread]:
    with serving(scripted(ScriptedEngine()), HTTP) as thread:
        yield thread


def frame(number: int, **fields: Any) -> bytes:
    row = {"frame_id": number, "image": base64.b64encode(photo()).decode(), **fields}
    return json.dumps(row).encode() + b"\n"


class Stream:
    """A request that stays open: lines are sent one by one."""

    def __init__(self, server: ServerThread, kind: str = LINES) -> None:
        assert server.server.http_address is not None
        self._connection = http.client.HTTPConnection(server.server.http_address.removeprefix("http://").rstrip("/"), timeout=20)
        self._connection.putrequest("POST", PATH)
        self._connection.putheader("Content-Type", kind)
        self._connection.putheader("Transfer-Encoding", "chunked")
        self._connection.endheaders()
        self._response: http.client.HTTPResponse | None = None

    def send(self, data: bytes) -> None:
        self._connection.send(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self) -> None:
        self._connection.send(b"0\r\n\r\n")

    @property
    def response(self) -> http.client.HTTPResponse:
        if self._response is None:
            self._response = self._connection.getresponse()
        return self._response

    def line(self) -> Any:
        return json.loads(self.response.readline())


def test_reports_come_while_frames_are_sent(server: ServerThread) -> None:
    stream = Stream(server)
    stream.send(frame(1, settings={"attributes": ["hat"]})[:40])
    stream.send(frame(1, settings={"attributes": ["hat"]})[40:])
    first = stream.line()
    assert (first["frame_id"], [slot["name"] for slot in first["reports"][0]["slots"]]) == ("1", ["hat"])
    stream.send(frame(2, settings={"include_sensitive": True}))
    second = stream.line()
    assert second["reports"][0]["include_sensitive"] is True
    assert len(second["reports"][0]["slots"]) == len(F2EDGE_SCHEMA)
    stream.send(frame(3, settings={"attributes": ["age"]}))
    assert stream.line()["problem"]["reason"] == "SENSITIVE"
    stream.send(frame(4).rstrip())  # the last line may have no end
    stream.end()
    assert stream.line()["frame_id"] == "4"
    assert stream.response.readline() == b""


def test_a_line_that_is_none_ends_the_stream(server: ServerThread) -> None:
    stream = Stream(server)
    stream.send(frame(1))
    assert stream.line()["frame_id"] == "1"
    stream.send(b"[1]\n")
    assert stream.line()["error"]["code"] == "MESSAGE"
    assert stream.response.readline() == b""


@pytest.mark.parametrize(
    ("kind", "data", "status"), [("text/plain", b"", 415), (LINES, b"{\n", 400), (LINES, b"x" * 7_000_000, 413), (LINES, b"\n\n", 200)]
)
def test_what_is_no_stream_of_frames(server: ServerThread, kind: str, data: bytes, status: int) -> None:
    stream = Stream(server, kind)
    if data:
        stream.send(data)
    stream.end()
    assert stream.response.status == status
