"""Camera loop: capture → watch → describe → show, as threads connected by slots, or sequentially for recordings.

:meth:`Loop.live` runs a live source: no stage waits for a later one; late frames are dropped and counted.  :meth:`Loop.every` runs a file
or folder: each frame passes all stages in media time, so results do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event as Flag
from threading import Lock, Thread
from time import monotonic
from typing import Protocol

from f2edge.camera.answers import AnswerBook
from f2edge.camera.describe import Describer
from f2edge.camera.frames import Frame
from f2edge.camera.output.events import Notify
from f2edge.camera.reports import Seen, View, report
from f2edge.camera.slots import LatestSlot
from f2edge.camera.source.errors import FrameError
from f2edge.camera.source.reader import Reader
from f2edge.camera.source.sources import Source
from f2edge.camera.source.url import redact
from f2edge.camera.stats import Accuracy, AgeHistogram, Rate
from f2edge.camera.watch import Watcher
from f2edge.errors import F2EdgeError

_TAKE_S = 0.1
_JOIN_S = 15.0  # a running model call ends by itself; abandoning it would abort the interpreter
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0


class Sink(Protocol):
    """Outputs of the loop.  ``event`` may be called from any thread, ``show`` from one."""

    def show(self, seen: Seen, stats: RunStats) -> bool:
        """Show, record and write a frame; False ends the loop."""
        ...

    def event(self, kind: str, reason: str) -> None:
        """Report an event."""
        ...


class RunStats:
    """Statistics of a run; written by the showing stage only."""

    def __init__(self, began_s: float) -> None:
        self._began_s = self._now_s = began_s
        self.frame_ages, self.answer_ages = AgeHistogram(), AgeHistogram()
        self.frames_rate, self.faces_rate = Rate(), Rate()
        self.agreement = Accuracy()
        self.frames = self.dropped = self.face_frames = self.connections = 0
        self._asked_before = 0

    def add(self, seen: Seen, now_s: float, asked: int, connections: int) -> None:
        """Count a frame; ``asked`` faces were analyzed and ``connections`` made so far."""
        self._now_s, self.connections = now_s, connections
        self.frames += 1
        self.dropped = seen.dropped
        self.frame_ages.add(seen.age_ms)
        self.frames_rate.add(now_s)
        self.faces_rate.add(now_s, asked - self._asked_before)
        self._asked_before = asked
        for face in seen.faces:
            if face.gate:
                continue
            self.face_frames += 1
            if face.answer_age_ms is not None:
                self.answer_ages.add(face.answer_age_ms)
            if face.truth is not None:
                judged = [name for name in face.shown if name in face.truth]
                self.agreement.add(sum(face.shown[name].value == face.truth[name] for name in judged), len(judged))

    def document(self, describer: Describer) -> dict[str, float | int | None]:
        """Return all statistics by name; None for what was never measured."""
        seconds = max(self._now_s - self._began_s, 1e-9)
        return {
            "seconds": round(seconds, 3),
            "frames": self.frames,
            "frames_per_second": round(self.frames / seconds, 3),
            "dropped": self.dropped,
            "connections": self.connections,
            "frame_age_ms_p50": _rounded(self.frame_ages.quantile(0.5)),
            "frame_age_ms_p99": _rounded(self.frame_ages.quantile(0.99)),
            "answer_age_ms_p50": _rounded(self.answer_ages.quantile(0.5)),
            "answer_age_ms_p99": _rounded(self.answer_ages.quantile(0.99)),
            "good_faces": self.face_frames,
            "model_calls": describer.calls,
            "faces_asked": describer.faces,
            "questions_asked": describer.questions,
            "asked_per_good_face": _rounded(describer.faces / self.face_frames if self.face_frames else None, 5),
            "accuracy": _rounded(self.agreement.share, 5),
        }


class Loop:
    """Runner of the stages.

    Args:
        watcher: detection and tracking.
        describer: analysis by the model.
        book: stored answers.
        sink: outputs.
        duration_s: seconds after the first frame at which to stop; media time for recordings.
    """

    def __init__(self, watcher: Watcher, describer: Describer, book: AnswerBook, sink: Sink, duration_s: float | None = None) -> None:
        self._watcher, self._describer, self._book, self._sink = watcher, describer, book, sink
        self._duration_s = duration_s
        self._stopped = Flag()
        self._failure: BaseException | None = None
        self._lock = Lock()
        self.stats = RunStats(monotonic())

    def stop(self) -> None:
        """Request the end of the run; callable from any thread."""
        self._stopped.set()

    def live(self, make_reader: Callable[[LatestSlot[Frame], Notify], Reader]) -> None:
        """Run a live source until its end, :meth:`stop` or the duration.

        Raises:
            F2EdgeError: the source cannot be read at all, or a stage failed.
        """
        frames, asked, shown = LatestSlot[Frame](), LatestSlot[View](), LatestSlot[View]()
        reader = make_reader(frames, self._sink.event)
        stages = [
            Thread(target=self._guarded, args=(self._watch, frames, asked, shown), name="camera-detect", daemon=True),
            Thread(target=self._guarded, args=(self._describe, asked), name="camera-describe", daemon=True),
        ]
        reader.start()
        for stage in stages:
            stage.start()
        try:
            self._show(frames, shown, reader)
        finally:
            self._stopped.set()
            reader.stop()
            for slot in (frames, asked, shown):
                slot.close()
            for stage in stages:
                stage.join(_JOIN_S)
        failure = self._failure or reader.failure
        if failure is not None:
            raise failure
        self._sink.event("ended", "")

    def every(self, source: Source) -> None:
        """Run every frame of a recording through all stages."""
        number, last_s, first_s = 0, 0.0, None
        pauses = _Pauses()
        self.stats = RunStats(0.0)
        try:
            while not self._stopped.is_set():
                try:
                    capture = source.read()
                except FrameError as error:
                    self._sink.event("corrupt", redact(str(error)))
                    continue
                if capture is None:
                    break
                last_s = capture.media_s if capture.media_s is not None else last_s
                first_s = last_s if first_s is None else first_s
                if self._duration_s is not None and last_s - first_s >= self._duration_s:
                    break
                view = self._watcher.view(Frame(capture.image, number, last_s, capture.known))
                self._turn(view, pauses)
                number += 1
                if not self._report(view, last_s, 0, 0):
                    break
        finally:
            source.close()
        self._sink.event("ended", "")

    def _watch(self, frames: LatestSlot[Frame], asked: LatestSlot[View], shown: LatestSlot[View]) -> None:
        while not frames.finished and not self._stopped.is_set():
            frame = frames.take(_TAKE_S)
            if frame is not None:
                view = self._watcher.view(frame)
                asked.put(view)
                shown.put(view)
        asked.close()
        shown.close()

    def _describe(self, asked: LatestSlot[View]) -> None:
        pauses = _Pauses()
        while not asked.finished and not self._stopped.is_set():
            view = asked.take(_TAKE_S)
            if view is not None and not self._turn(view, pauses):
                self._stopped.wait(pauses.last_s)

    def _turn(self, view: View, pauses: _Pauses) -> bool:
        """Run the describing stage; on failure emit an event, lengthen the pause and return False."""
        try:
            self._describer.turn(view)
        except F2EdgeError as error:
            self._sink.event("model", redact(str(error)))
            pauses.longer()
            return False
        pauses.over()
        return True

    def _show(self, frames: LatestSlot[Frame], shown: LatestSlot[View], reader: Reader) -> None:
        began: float | None = None
        while not shown.finished and not self._stopped.is_set():
            if self._duration_s is not None and began is not None and monotonic() - began >= self._duration_s:
                return
            view = shown.take(_TAKE_S)
            if view is None:
                continue
            if began is None:
                began = monotonic()
                self.stats = RunStats(began)
            if not self._report(view, monotonic(), frames.dropped + shown.dropped, reader.connections):
                return

    def _report(self, view: View, now_s: float, dropped: int, connections: int) -> bool:
        seen = report(view, self._book, now_s, dropped)
        self.stats.add(seen, now_s, self._describer.faces, connections)
        return self._sink.show(seen, self.stats)

    def _guarded(self, stage: Callable[..., None], *slots: LatestSlot[Frame] | LatestSlot[View]) -> None:
        """Run a stage in its thread; its failure ends the loop, which raises it."""
        try:
            stage(*slots)
        except BaseException as error:  # noqa: BLE001  raised again by the loop's own thread
            with self._lock:
                self._failure = self._failure or error
            self._stopped.set()


class _Pauses:
    """Exponential backoff of a failing model, reset by a success."""

    def __init__(self) -> None:
        self.last_s = 0.0

    def longer(self) -> None:
        self.last_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * self.last_s))

    def over(self) -> None:
        self.last_s = 0.0


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)
