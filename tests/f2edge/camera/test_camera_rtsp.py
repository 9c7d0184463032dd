"""RTSP as cameras speak it, through OpenCV's FFmpeg against a server of our own: pictures, passwords, kills, stalls and damage."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from f2edge.camera.frames import Picture
from f2edge.camera.run import ModelInput, Request, run
from f2edge.camera.source.errors import SourceLostError
from f2edge.camera.source.reader import ReaderSettings
from f2edge.camera.source.sources import SourceOptions, open_source
from f2edge.camera.source.url import parse_source
from f2edge.spec.attributes import F2EDGE_SCHEMA
from tests.f2edge.camera.test_camera_reader import Watched
from tests.support.camera_fake import NAMES, ScriptedModel
from tests.support.rtsp_server import Colour, RtspServer

pytestmark = pytest.mark.runtime

COLOURS: tuple[Colour, ...] = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
SIZE = (160, 96)
PASSWORD = "S3cr3t@of/the:cam?#"
PERSISTENT = ReaderSettings(first_wait_s=0.05, longest_wait_s=0.2, give_up_s=60.0)


def camera(fps: float = 25.0, *, user: str = "", digest: bool = False) -> RtspServer:
    return RtspServer(COLOURS, SIZE, fps, user, PASSWORD, digest=digest)


@contextmanager
def watched(address: str, timeout_s: float = 5.0, settings: ReaderSettings = PERSISTENT) -> Iterator[Watched]:
    options = SourceOptions(timeout_s=timeout_s)
    with Watched(lambda: open_source(parse_source(address), options), settings) as reading:
        yield reading


def kinds(reading: Watched) -> list[str]:
    return [kind for kind, _ in reading.events]


def shown(image: Picture) -> Colour | None:
    """Which of COLOURS the upper half of a picture has, to within what JPEG does to it."""
    mean = image[: SIZE[1] // 2 - 16, :, ::-1].mean((0, 1))
    return next((colour for colour in COLOURS if np.abs(mean - colour).max() < 3), None)


def new_frame(reading: Watched) -> Callable[[], bool]:
    """Whether a frame came that was read after this call."""
    since = time.monotonic()

    def came() -> bool:
        frame = reading.slot.take(0.05)
        return frame is not None and frame.captured_s > since and shown(frame.image) is not None

    return came


def again(server: RtspServer) -> None:
    server.kill()
    server.start()


def secret_in(text: str) -> bool:
    return any(part in text for part in (PASSWORD, quote(PASSWORD, safe=""), "S3cr3t"))


def test_pictures_arrive_whole_and_in_order_and_sound_is_not_asked_for() -> None:
    with camera() as server:
        source = open_source(parse_source(server.address()))
        images = [capture.image for _ in range(7) if (capture := source.read()) is not None]
        source.close()
    assert {image.shape for image in images} == {(SIZE[1], SIZE[0], 3)}
    first = COLOURS.index(shown(images[0]) or (0, 0, 0))
    assert [shown(image) for image in images] == [COLOURS[(first + i) % 3] for i in range(7)]
    noise = images[0][SIZE[1] // 2 + 8 :]
    assert noise.std() > 40  # the lower half came, too, not only the first packets
    assert server.requests[:4] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]
    assert server.requests.count("SETUP") == 1


def test_a_camera_of_two_frames_a_second_is_opened_before_the_timeout() -> None:
    with camera(fps=2) as server:
        source = open_source(parse_source(server.address()), SourceOptions(timeout_s=4))
        capture = source.read()
        source.close()
    assert capture is not None
    assert shown(capture.image) is not None


def test_the_session_is_kept_alive() -> None:
    with camera() as server, watched(server.address()) as reading:
        reading.until(lambda: "GET_PARAMETER" in server.requests)
        reading.until(new_frame(reading))
        assert reading.reader.connections == 1


@pytest.mark.parametrize("digest", [False, True])
def test_credentials_are_accepted_and_written_nowhere(
    digest: bool, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    lines, heard = io.StringIO(), list[tuple[str, str]]()
    with camera(user="admin", digest=digest) as server:
        request = Request(parse_source(server.address()), "region:0,0,1,1", NAMES, duration_s=1.0)
        restart = threading.Timer(0.4, again, (server,))
        restart.start()
        run(request, ScriptedModel(), ModelInput(F2EDGE_SCHEMA, None, 128), lines, lambda *event: heard.append(event))
        restart.join()
    documents = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert {"frame", "event", "summary"} <= {document["type"] for document in documents}
    assert documents[0]["camera"] == f"rtsp://***@127.0.0.1:{server.port}/live"
    assert [kind for kind, _ in heard][:2] == ["connected", "lost"]
    assert server.refused >= 1  # the password was asked for
    out, err = capfd.readouterr()
    assert not secret_in(lines.getvalue() + repr(heard) + repr(request) + caplog.text + out + err)


def test_a_password_with_slashes_may_be_written_as_it_is() -> None:
    with RtspServer(COLOURS, SIZE, user="admin", password="a/b?c#d") as server:
        source = open_source(parse_source(f"rtsp://admin:a/b?c#d@127.0.0.1:{server.port}/live"))
        assert source.read() is not None
        source.close()


@pytest.mark.parametrize("digest", [False, True])
def test_a_wrong_password_is_told_of_and_not_told(digest: bool, capfd: pytest.CaptureFixture[str]) -> None:
    settings = ReaderSettings(first_wait_s=0.05, longest_wait_s=0.1, give_up_s=0.3)
    with RtspServer(COLOURS, SIZE, user="admin", password="another", digest=digest) as server:
        with watched(server.address(password=PASSWORD), settings=settings) as reading:
            reading.until(lambda: reading.slot.finished)
            failure = str(reading.reader.failure)
        assert server.refused >= 2
        assert "PLAY" not in server.requests
    assert kinds(reading) == ["lost"]
    told = reading.events[0][1]
    assert told == f"rtsp://***@127.0.0.1:{server.port}/live: cannot be opened; check address, credentials and network"
    assert failure.startswith(told)
    assert not secret_in(failure + "".join(capfd.readouterr()))


def recoveries(times: int) -> list[float]:
    """Seconds from a camera's return to its first frame, after kills of 0.2 s."""
    seconds = []
    with camera() as server, watched(server.address(), settings=ReaderSettings()) as reading:
        for kill in range(times):
            reading.until(new_frame(reading))
            server.kill()
            reading.until(lambda: kinds(reading).count("lost") > kill)  # noqa: B023  called before the next kill
            time.sleep(0.2)
            server.start()
            began = time.monotonic()
            reading.until(new_frame(reading))
            seconds.append(time.monotonic() - began)
        assert reading.reader.connections == times + 1
        assert kinds(reading) == ["connected", *["lost", "connected"] * times]
    return seconds


def test_a_camera_killed_and_restored_is_back_within_two_seconds() -> None:
    assert max(recoveries(3)) < 2.0


@pytest.mark.long
def test_a_camera_killed_and_restored_twenty_times_is_back_each_time() -> None:
    assert max(recoveries(20)) < 2.0


def test_a_connection_cut_inside_a_packet_is_opened_again() -> None:
    with camera() as server, watched(server.address()) as reading:
        reading.until(new_frame(reading))
        server.hang_up()
        reading.until(lambda: kinds(reading) == ["connected", "lost", "connected"])
        reading.until(new_frame(reading))


def test_a_stall_is_noticed_within_the_timeout_and_ends_when_the_camera_goes_on() -> None:
    with camera() as server, watched(server.address(), timeout_s=0.5) as reading:
        reading.until(new_frame(reading))
        server.silent.set()
        began = time.monotonic()
        reading.until(lambda: "lost" in kinds(reading))
        assert 0.3 < time.monotonic() - began < 2.5
        assert reading.events[-1] == ("lost", f"{server.address()}: no more frames")
        server.silent.clear()
        reading.until(new_frame(reading))


def test_damaged_pictures_are_an_event_and_the_connection_stays() -> None:
    with camera() as server, watched(server.address()) as reading:
        reading.until(new_frame(reading))
        server.damage = "scan"
        reading.until(lambda: kinds(reading).count("corrupt") >= 2)
        server.damage = ""
        reading.until(new_frame(reading))
        assert set(kinds(reading)) == {"connected", "corrupt"}
        assert reading.reader.connections == 1
        assert "damaged frame" in reading.events[1][1]


@pytest.mark.parametrize("damage", ["headers", "lost"])
def test_packets_that_make_no_picture_are_a_stall(damage: str) -> None:
    with camera() as server, watched(server.address(), timeout_s=0.5) as reading:
        reading.until(new_frame(reading))
        server.damage = damage
        reading.until(lambda: "lost" in kinds(reading))
        server.damage = ""
        reading.until(new_frame(reading))


def test_stopping_does_not_wait_for_a_read() -> None:
    with camera() as server, watched(server.address(), timeout_s=4.0) as reading:
        reading.until(new_frame(reading))
        server.silent.set()
        time.sleep(0.3)  # what was under way has been read
        began = time.monotonic()
        reading.reader.stop()
        assert time.monotonic() - began < 2.0
        assert reading.slot.finished or reading.slot.take() is not None


def test_no_camera_at_all_is_said_at_once() -> None:
    with camera(user="admin") as server:
        address = server.address()
    with pytest.raises(SourceLostError, match=r"rtsp://\*\*\*@127.0.0.1:\d+/live: cannot be opened"):
        open_source(parse_source(address))


def test_the_command_watches_a_camera(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with camera(user="admin", digest=True) as server:
        words = ["camera", "--source", server.address(), "--detector", "region:0.2,0.1,0.5,0.8", "--duration", "0.5", "--jsonl", str(out)]
        done = subprocess.run([sys.executable, "-m", "f2edge", *words], capture_output=True, text=True, check=True, timeout=60)
    documents = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    frames = [document for document in documents if document["type"] == "frame"]
    assert frames
    assert frames[0]["size"] == list(SIZE)
    assert documents[-1]["type"] == "summary"
    assert not secret_in(done.stdout + done.stderr + out.read_text(encoding="utf-8"))
