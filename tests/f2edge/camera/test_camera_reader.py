"""A live source is kept going: reconnects, stalls, damaged frames, and it gives up only where there is no hope."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread

import cv2
import pytest

from f2edge.camera.frames import Frame
from f2edge.camera.slots import LatestSlot
from f2edge.camera.source.errors import FrameError, SourceLostError
from f2edge.camera.source.reader import Reader, ReaderSettings
from f2edge.camera.source.sources import Source, SourceOptions, open_source
from f2edge.camera.source.url import parse_source
from f2edge.errors import BackendError, InputError
from tests.support.camera_fake import ScriptedSource, Step, picture

pytestmark = pytest.mark.runtime

QUICK = ReaderSettings(stall_s=0.3, first_wait_s=0.01, longest_wait_s=0.05, give_up_s=0.4)


class Watched:
    """A reader with its events and frames."""

    def __init__(self, open_next: Callable[[], Source], settings: ReaderSettings = QUICK, *, reconnects: bool = True) -> None:
        self.events: list[tuple[str, str]] = []
        self.slot: LatestSlot[Frame] = LatestSlot()
        self.reader = Reader(open_next, self.slot, lambda kind, reason: self.events.append((kind, reason)), settings, reconnects=reconnects)

    def __enter__(self) -> Watched:  # noqa: PYI034  Self is younger than Python 3.10
        self.reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.stop()

    def until(self, happened: Callable[[], object], timeout_s: float = 10.0) -> None:
        end = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < end, self.events
            time.sleep(0.005)

    def drain(self) -> list[Frame]:
        frames = []
        while not self.slot.finished:
            frame = self.slot.take(0.1)
            if frame is not None:
                frames.append(frame)
        return frames


def connected(watched: Watched, times: int) -> bool:
    return watched.reader.connections == times


def lost(watched: Watched, times: int) -> bool:
    return sum(kind == "lost" for kind, _ in watched.events) == times


def test_a_lost_source_is_opened_again_and_frames_go_on_counting() -> None:
    scripts: Iterator[list[Step]] = iter([[*[picture()] * 3, SourceLostError("gone")], [picture()] * 3, [picture()] * 3])
    sources: list[ScriptedSource] = []

    def open_next() -> ScriptedSource:
        sources.append(ScriptedSource(next(scripts, ["hang"])))
        return sources[-1]

    with Watched(open_next) as watched:
        watched.until(lambda: watched.reader.connections == 3)
        watched.until(lambda: (frame := watched.slot.take(0.05)) is not None and frame.number == 8)
    assert [kind for kind, _ in watched.events][:5] == ["connected", "lost", "connected", "lost", "connected"]
    assert watched.events[1] == ("lost", "gone")
    assert watched.events[3] == ("lost", "the source ended")
    assert all(source.closed for source in sources[:3])


def test_a_source_that_stalls_is_left_behind_and_closes_itself_later() -> None:
    hanging = ScriptedSource([picture(), "hang"])
    after = ScriptedSource([picture()] * 500)
    sources = iter([hanging, after])
    with Watched(lambda: next(sources)) as watched:
        watched.until(lambda: watched.reader.connections == 2)
        assert ("lost", "no frame for 0.3 s") in watched.events
        hanging.release()
        watched.until(lambda: hanging.closed)


def test_a_camera_that_hangs_again_and_again_costs_three_threads_at_most() -> None:
    hanging: list[ScriptedSource] = []

    def open_next() -> ScriptedSource:
        hanging.append(ScriptedSource([picture(), "hang"]))
        return hanging[-1]

    before = threading.active_count()
    with Watched(open_next, ReaderSettings(stall_s=0.05, first_wait_s=0.01, longest_wait_s=0.02)) as watched:
        watched.until(lambda: len(hanging) == 3)
        time.sleep(0.4)
        assert len(hanging) == 3
        assert threading.active_count() <= before + 4
        hanging[0].release()
        watched.until(lambda: len(hanging) == 4)
        for source in hanging:
            source.release()


def test_damaged_frames_are_passed_over_and_told_ever_more_rarely() -> None:
    script: list[Step] = [picture(seed=1), *[FrameError("damaged at rtsp://me:secret@cam/1")] * 9, picture(seed=2)]
    with Watched(lambda: ScriptedSource(script), reconnects=False) as watched:
        frames = watched.drain()
    assert (frames[-1].image == picture(seed=2)).all()
    told = [reason for kind, reason in watched.events if kind == "corrupt"]
    assert len(told) == 4
    assert told[-1].endswith("(8 in a row)")
    assert not any("secret" in reason for reason in told)


def test_a_source_that_never_answers_is_given_up_with_its_reason() -> None:
    def open_next() -> Source:
        raise SourceLostError("camera 3: cannot be opened")

    with Watched(open_next) as watched:
        assert watched.drain() == []
    assert isinstance(watched.reader.failure, SourceLostError)
    assert "camera 3" in str(watched.reader.failure)
    assert [kind for kind, _ in watched.events] == ["lost"]


def test_what_no_reconnecting_mends_ends_at_once() -> None:
    def open_next() -> Source:
        raise BackendError("no GStreamer")

    with Watched(open_next) as watched:
        assert watched.drain() == []
    assert isinstance(watched.reader.failure, BackendError)


def test_frames_faster_than_the_limit_are_passed_over() -> None:
    with Watched(lambda: ScriptedSource([picture()] * 60, 0.005), ReaderSettings(most_fps=20), reconnects=False) as watched:
        frames = watched.drain()
    gaps = [b.captured_s - a.captured_s for a, b in itertools.pairwise(frames)]
    assert frames
    assert all(gap > 0.045 for gap in gaps)


def test_waits_double_up_to_their_limit() -> None:
    settings = ReaderSettings(first_wait_s=0.1, longest_wait_s=1.0)
    assert [settings.wait_s(n) for n in (1, 2, 3, 4, 5, 5000)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    with pytest.raises(InputError, match="reader settings"):
        ReaderSettings(stall_s=0)


def test_a_pipe_that_is_killed_and_restored_twenty_times_is_back_within_two_seconds_each_time(tmp_path: Path) -> None:
    path = tmp_path / "camera"
    os.mkfifo(path)
    jpeg = cv2.imencode(".jpg", picture())[1].tobytes()
    url = parse_source(str(path))
    assert (url.kind, url.live) == ("pipe", True)
    stop = threading.Event()

    def write_for_a_while() -> None:
        try:
            with path.open("wb", buffering=0) as pipe:
                while not stop.is_set():
                    pipe.write(jpeg)
                    time.sleep(0.01)
        except BrokenPipeError:
            pass

    settings, threads = ReaderSettings(stall_s=5), threading.active_count()
    with Watched(lambda: open_source(url, SourceOptions(timeout_s=4)), settings) as watched:
        waits = []
        for round_ in range(1, 21):
            stop.clear()
            writer = Thread(target=write_for_a_while)
            began = time.monotonic()
            writer.start()
            watched.until(partial(connected, watched, round_))
            waits.append(time.monotonic() - began)
            stop.set()
            writer.join(5)
            watched.until(partial(lost, watched, round_))
        assert max(waits) < 2
        assert threading.active_count() < threads + 10  # twenty rounds leave no thread each
