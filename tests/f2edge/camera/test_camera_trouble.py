"""Trouble from end to end: bad frames, huge frames, sources killed and restored, full disks.  Events say so, nothing dies, memory stays."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from f2edge.camera.frames import Frame
from f2edge.camera.run import ModelInput, Request, run
from f2edge.camera.slots import LatestSlot
from f2edge.camera.source.reader import Reader
from f2edge.camera.source.sources import SourceOptions, open_source
from f2edge.camera.source.url import parse_source
from f2edge.errors import OutputError
from f2edge.spec.attributes import F2EDGE_SCHEMA
from tests.support.camera_fake import NAMES, ScriptedModel, picture

pytestmark = pytest.mark.runtime

FACES = ModelInput(F2EDGE_SCHEMA, None, 128)
WHOLE = "region:0,0,1,1"


def jpeg(width: int = 160, height: int = 120, seed: int = 0) -> bytes:
    return bytes(cv2.imencode(".jpg", picture(width, height, seed))[1].tobytes())


def smooth_jpeg(width: int, height: int) -> bytes:
    image = cv2.resize(picture(32, 18), (width, height), interpolation=cv2.INTER_LINEAR)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes())


@contextmanager
def writing(path: Path, pieces: Iterator[bytes]) -> Iterator[None]:
    """A pipe that somebody writes into."""
    os.mkfifo(path)

    def write() -> None:
        try:
            with path.open("wb", buffering=0) as pipe:
                for piece in pieces:
                    pipe.write(piece)
                    time.sleep(0.02)
        except BrokenPipeError:
            pass

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.slow
def test_corrupt_tiny_and_huge_frames_of_a_pipe_are_told_of_and_the_rest_is_described(tmp_path: Path) -> None:
    good, huge = jpeg(), smooth_jpeg(7680, 4320)
    damaged = good[:400] + bytes(300) + good[-2:]
    bad = [jpeg(1, 1), damaged, b"\xff\xd8\xff\xe0 no picture \xff\xd9"]
    stop = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield from [good] * 6
        for piece in bad:
            yield piece
            yield from [good] * 4
        yield huge
        while not stop.is_set():
            yield good

    path, out = tmp_path / "camera", tmp_path / "out.avi"
    lines, heard = io.StringIO(), list[tuple[str, str]]()

    def on_event(kind: str, reason: str) -> None:
        heard.append((kind, reason))

    with writing(path, pieces()):
        request = Request(url=parse_source(str(path)), detector=WHOLE, attributes=NAMES, duration_s=4.0, record=out)
        stats = run(request, ScriptedModel(), FACES, lines, on_event)
        stop.set()
    kinds = Counter(kind for kind, _ in heard)
    assert kinds["corrupt"] >= 2
    assert kinds["connected"] == 1
    assert "1 x 1 pixels" in " ".join(reason for kind, reason in heard if kind == "corrupt")
    assert (stats["frames"] or 0) > 3
    documents = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert documents[-1]["type"] == "summary"
    assert any(face["attributes"] for document in documents if document["type"] == "frame" for face in document["faces"])
    assert cv2.VideoCapture(str(out)).read()[0]


@pytest.mark.slow
def test_a_disk_that_fills_ends_the_recording_and_the_lines_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([1 << 40])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(left, 1 << 20)))
    lines, heard = io.StringIO(), list[str]()
    request = Request(url=parse_source("demo"), detector="given", attributes=NAMES, size_wh=(160, 96), duration_s=5.0)
    with_file = Request(**{**request.__dict__, "record": tmp_path / "out.mp4"})
    stats = run(with_file, ScriptedModel(), FACES, lines, lambda kind, _: heard.append(kind))
    assert heard.count("record") == 1
    video = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) >= 30
    assert video.read()[0]
    assert sum('"type":"frame"' in line for line in lines.getvalue().splitlines()) == stats["frames"]


def test_with_nothing_left_to_write_to_the_camera_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([1 << 40])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(left, 1 << 20)))
    request = Request(url=parse_source("demo"), detector="given", attributes=NAMES, size_wh=(160, 96), record=tmp_path / "out.mp4")
    with pytest.raises(OutputError, match="free some space"):
        run(request, ScriptedModel(), FACES, None, lambda *_: None)


def test_a_recording_alone_ends_well(tmp_path: Path) -> None:
    request = Request(url=parse_source("demo"), detector="given", attributes=NAMES, size_wh=(160, 96), duration_s=0.5)
    kept = Request(**{**request.__dict__, "record": tmp_path / "out.mkv", "still": tmp_path / "last.png"})
    heard: list[str] = []
    run(kept, ScriptedModel(), FACES, None, lambda kind, _: heard.append(kind))
    assert heard == ["connected", "ended"]
    assert np.asarray(cv2.imread(str(tmp_path / "last.png"))).shape == (96, 160, 3)
    assert cv2.VideoCapture(str(tmp_path / "out.mkv")).read()[0]


def test_a_still_that_cannot_be_written_is_told_of(tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []
    request = Request(url=parse_source("demo"), detector="given", attributes=NAMES, size_wh=(160, 96), duration_s=0.5)
    (tmp_path / "still.png").mkdir()
    with_still = Request(**{**request.__dict__, "still": tmp_path / "still.png"})
    run(with_still, ScriptedModel(), FACES, None, lambda kind, reason: heard.append((kind, reason)))
    assert [kind for kind, _ in heard].count("output") == 1


class Streamer:
    """Serves MJPEG by HTTP, as network cameras do, and can be killed and started again on its port."""

    def __init__(self) -> None:
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self._open = threading.Event()

    def start(self) -> None:
        open_, data = self._open, jpeg()
        open_.set()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                try:
                    while open_.is_set():
                        self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data) + data + b"\r\n")
                        time.sleep(0.02)
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        self._open.clear()
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def until(happened: Callable[[], object], seconds: float) -> float:
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < seconds
        time.sleep(0.005)
    return time.monotonic() - began


def killed_and_restored(rounds: int) -> tuple[list[float], list[float]]:
    """Seconds from each restart to the first frame, and memory after each round."""
    camera, events = Streamer(), list[str]()
    camera.start()
    url = parse_source(f"http://127.0.0.1:{camera.port}/stream.mjpg")
    slot: LatestSlot[Frame] = LatestSlot()
    reader = Reader(lambda: open_source(url, SourceOptions(timeout_s=2.0)), slot, lambda kind, _: events.append(kind))
    reader.start()
    waits, memory = [], []
    try:
        until(lambda: reader.connections == 1, 30)
        for round_ in range(1, rounds + 1):
            camera.kill()
            until(lambda r=round_: events.count("lost") == r, 30)  # type: ignore[misc]
            camera.start()
            waits.append(until(lambda r=round_: reader.connections == r + 1, 30))  # type: ignore[misc]
            gc.collect()
            memory.append(resident_mb())
    finally:
        reader.stop()
        camera.kill()
    assert events == ["connected", *["lost", "connected"] * rounds]
    return waits, memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_network_camera_that_is_restarted_is_back_soon() -> None:
    waits, _ = killed_and_restored(2)
    assert max(waits) < 10  # seconds of a busy machine; the long test holds the promise


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_network_camera_killed_twenty_times_is_back_within_two_seconds_and_memory_stays_flat() -> None:
    waits, memory = killed_and_restored(20)
    assert max(waits) < 2.0
    assert np.mean(memory[-5:]) - np.mean(memory[3:8]) < 6.0
