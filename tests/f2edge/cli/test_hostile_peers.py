"""The command line and untrusted peers: nothing that a server or a metrics page sends controls the terminal or forges a line."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from rich.console import Console

from f2edge.cli.console import Output
from f2edge.cli.main import run
from f2edge.cli.top import render, scrape, summary
from f2edge.errors import ServerUnavailableError
from f2edge.text import printable
from f2edge.v1 import face_pb2 as pb
from f2edge.v1 import face_pb2_grpc
from f2edge.wire import model_message
from tests.support.serving import ScriptedEngine, photo, scripted

#: Clears the screen, sets the title, forges a line of the program's own, turns the writing direction, and an eight-bit escape.
EVIL = "\x1b[2J\x1b]0;owned\x07\nf2edge: error: forged\r\u202e\x9b31m red"


def steers(text: str) -> bool:
    return any(not character.isprintable() for character in text.replace("\n", ""))


class Hostile(face_pb2_grpc.FaceServiceServicer):
    """A server whose every text is hostile."""

    def GetModel(self, _request: Any, _context: Any) -> pb.GetModelResponse:
        response = model_message(scripted(ScriptedEngine()).facts, pb.RequestLimits())
        for field in ("name", "description", "licence", "backend", "f2edge_version"):
            if hasattr(response, field) and isinstance(getattr(response, field), str):
                setattr(response, field, EVIL)
        return response

    def Ask(self, _request: Any, _context: Any) -> Iterator[pb.AskResponse]:
        yield pb.AskResponse(piece=EVIL)
        yield pb.AskResponse(answer=pb.Answer(text=EVIL, tokens=[1]))

    def Describe(self, _request: Any, context: Any) -> Iterator[pb.DescribeResponse]:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, EVIL)
        yield pb.DescribeResponse()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    face_pb2_grpc.add_FaceServiceServicer_to_server(Hostile(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def face(tmp_path: Path) -> str:
    (tmp_path / "face.png").write_bytes(photo())
    return str(tmp_path / "face.png")


@pytest.mark.parametrize(
    ("arguments", "code", "lines"),
    [(["ask", "{face}", "who?"], 0, 1), (["ask", "{face}", "who?", "--json"], 0, 1), (["describe", "{face}"], 2, 1), (["info"], 0, None)],
)
def test_a_servers_text_is_shown_without_its_power(
    *, arguments: list[str], code: int, lines: int | None, address: str, face: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([argument.format(face=face) for argument in arguments] + ["--server", address]) == code
    out, err = capsys.readouterr()
    assert "owned" in out + err
    assert not steers(out + err)
    assert "\nf2edge: error: forged" not in out + err
    assert lines is None or (out + err).count("\n") == lines


def test_streamed_pieces_are_shown_without_their_power(
    address: str, face: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Output, "streams", property(lambda _self: True))
    assert run(["ask", face, "who?", "--server", address]) == 0
    out, _ = capsys.readouterr()
    assert "owned" in out
    assert not steers(out)
    assert out.count("\n") == 1


def test_printable_keeps_words_and_nothing_else() -> None:
    assert printable("née 12 €\u00a0ok\t\x1b[0m") == "née 12 € ok  [0m"


# Metrics ---------------------------------------------------------------------------------------------------------------------------------

HEAD = b'f2edge_model_info{model="x",version="1",backend="y"} 1\n'
PAGES = {
    "not a number": HEAD + b'f2edge_open_calls{method="Ask"} NaN\nf2edge_steps_total NaN\nf2edge_engine_heartbeat_age_seconds NaN\n',
    "infinite": HEAD + b'f2edge_open_calls{method="Ask"} +Inf\nf2edge_queue_depth{priority="live"} -Inf\nf2edge_steps_total 1e400\n',
    "escapes": HEAD.replace(b'"x"', b'"\x1b[2J\xc2\x9b31m"') + b'f2edge_open_calls{method="[bold red]\x1b]0;owned\x07"} 1\n',
    "buckets": HEAD
    + b'f2edge_open_calls{method="A"} 1\n# TYPE f2edge_request_seconds histogram\n'
    + b'f2edge_request_seconds_bucket{method="A",le="NaN"} 5\nf2edge_request_seconds_bucket{method="A",le="red"} 7\n'
    + b'f2edge_request_seconds_bucket{method="A"} 9\nf2edge_request_seconds_bucket{method="A",le="0.1"} 1\n',
    "many": HEAD + b"".join(b'f2edge_open_calls{method="m%d"} 1\n' % number for number in range(5000)),
}


@contextmanager
def page_server(page: bytes, status: int = 200) -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_hostile_metrics_give_a_table_or_one_line(page: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with page_server(page) as server:
        code = run(["top", server, "--once"])
        out, err = capsys.readouterr()
        assert code == 0
        assert err == ""
        assert not steers(out)
        assert run(["top", server, "--json"]) == 0
        json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        found = scrape(server)
    assert len(summary(found)["calls"]) <= 64  # type: ignore[arg-type]
    console = Console(width=120, file=io.StringIO())
    console.print(render(found, found))


@pytest.mark.parametrize(("page", "status"), [(b'f2edge_x{a="', 200), (b"f2edge_x{} {} {}\n", 200), (HEAD, 500), (b"\x00" * 1000, 200)])
def test_a_page_that_is_none_is_one_line(page: bytes, status: int) -> None:
    with page_server(page, status) as server, pytest.raises(ServerUnavailableError, match="no metrics at"):
        scrape(server)
