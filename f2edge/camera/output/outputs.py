"""Outputs of the camera: window, recording, JSON lines, statistics file.  One that fails is closed with an event; the others continue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from time import monotonic

import cv2

from f2edge.camera.describe import Describer
from f2edge.camera.frames import Picture
from f2edge.camera.loop import RunStats
from f2edge.camera.metrics import CameraMetrics
from f2edge.camera.output.events import LineWriter, event_line, frame_line, summary_line
from f2edge.camera.output.overlay import Overlay
from f2edge.camera.output.record import Recorder, save_still
from f2edge.camera.reports import Seen
from f2edge.errors import BackendError, OutputError
from f2edge.provenance.saving import write_atomically

_STATS_EVERY_S = 1.0
_PRINT_EVERY_S = 1.0
_QUIT_KEYS = (27, ord("q"))


class Window:
    """OpenCV window.

    Raises:
        BackendError: this OpenCV has no windows.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        try:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise BackendError(
                "--show: this OpenCV is built without windows (opencv-python-headless); install it with windows, "
                "`pip install --force-reinstall --no-deps 'opencv-python<5'`, or use --record"
            ) from error

    def show(self, image: Picture) -> bool:
        """Show a picture; return False once the window is closed or q or Escape is pressed."""
        cv2.imshow(self._title, image)
        return (cv2.waitKey(1) & 0xFF) not in _QUIT_KEYS and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1

    def close(self) -> None:
        cv2.destroyWindow(self._title)


class TextReporter:
    """Printer of one line per face when its description changes, at most once per second."""

    def __init__(self, print_line: Callable[[str], None], overlay: Overlay) -> None:
        self._print = print_line
        self._overlay = overlay
        self._printed: dict[int, tuple[float, str]] = {}

    def report(self, seen: Seen) -> None:
        now = seen.frame.captured_s
        for face in seen.faces:
            parts = [f"{row.label} {row.value}" for row in self._overlay.rows(face.shown)]
            parts += [f"{question} {text}" for question, text, _ in face.words]
            text = ", ".join(parts)
            before_s, before = self._printed.get(face.number, (-_PRINT_EVERY_S, ""))
            if text and text != before and now - before_s >= _PRINT_EVERY_S:
                self._print(f"#{face.number}: {text}")
                self._printed[face.number] = now, text
        alive = {face.number for face in seen.faces}
        self._printed = {number: last for number, last in self._printed.items() if number in alive}


class Outputs:
    """All requested outputs.

    Args:
        camera: display name of the source, without credentials.
        describer: provides the counts of analyses.
        overlay: draws the pictures of window and recording.
        on_event: called with (kind, reason) of every event.
    """

    def __init__(
        self,
        camera: str,
        describer: Describer,
        overlay: Overlay,
        on_event: Callable[[str, str], None],
        *,
        lines: LineWriter | None = None,
        recorder: Recorder | None = None,
        window: Window | None = None,
        still: Path | None = None,
        stats_file: Path | None = None,
        metrics: CameraMetrics | None = None,
        reporter: TextReporter | None = None,
    ) -> None:
        self._camera, self._describer, self._overlay, self._on_event = camera, describer, overlay, on_event
        self._lines, self._recorder, self._window = lines, recorder, window
        self._stats_file, self._metrics, self._reporter = stats_file, metrics, reporter
        self._still = still
        self._last: Picture | None = None
        self._lock = Lock()
        self.failed = False
        self._stats_at = -_STATS_EVERY_S

    def show(self, seen: Seen, stats: RunStats) -> bool:
        if self._lines is not None:
            self._write(frame_line(self._camera, seen))
        if self._reporter is not None:
            self._reporter.report(seen)
        going = not self._all_failed
        if self._recorder is not None or self._window is not None or self._still is not None:
            image = self._overlay.draw(seen, self._status(seen, stats))
            self._record(image, seen.frame.captured_s)
            self._last = image if self._still is not None else None
            going = self._window.show(image) if self._window is not None else not self._all_failed
        self._expose(stats)
        return going

    def event(self, kind: str, reason: str) -> None:
        self._on_event(kind, reason)
        self._write(event_line(self._camera, kind, reason))

    def close(self, stats: RunStats) -> None:
        """Write the summary and close every output; ``failed`` is then True if no output could be written any more."""
        self.failed = self._all_failed
        self._keep()
        self._write(summary_line(self._camera, stats.document(self._describer)))
        self._stats_at = -_STATS_EVERY_S
        self._expose(stats)
        if self._recorder is not None:
            try:
                self._recorder.close()
            except OutputError as error:
                self.failed = True
                self._on_event("record", str(error))
        if self._window is not None:
            self._window.close()
        if self._metrics is not None:
            self._metrics.close()

    @property
    def _all_failed(self) -> bool:
        """Whether lines or a recording were requested and none of them can be written any more."""
        written = [lines.broken for lines in (self._lines,) if lines] + [recorder.closed for recorder in (self._recorder,) if recorder]
        return bool(written) and all(written) and self._window is None

    def _status(self, seen: Seen, stats: RunStats) -> list[tuple[str, bool]]:
        now = seen.frame.captured_s + seen.age_ms / 1e3
        described = sum(face.described and face.unseen_ms == 0 for face in seen.faces)
        oldest = max((face.answer_age_ms for face in seen.faces if face.answer_age_ms is not None and not face.gate), default=None)
        age = [] if oldest is None else [("  answers up to", False), (f"{max(1, round(oldest / 100)) / 10:.1f} s", True), ("old", False)]
        return [
            ("f2edge", True),
            (self._camera, False),
            (f"  {stats.frames_rate.per_second(now):.0f}", True),
            ("fps", False),
            (f"  {described}", True),
            ("face" if described == 1 else "faces", False),
            (f"  {stats.faces_rate.per_second(now):.0f}", True),
            ("asked/s", False),
            *age,
        ]

    def _record(self, image: Picture, time_s: float) -> None:
        if self._recorder is None or self._recorder.closed:
            return
        try:
            self._recorder.write(image, time_s)
        except OutputError as error:
            self.event("record", str(error))

    def _keep(self) -> None:
        """Write the last picture to the still file."""
        if self._still is None or self._last is None:
            return
        try:
            save_still(self._last, self._still)
        except OutputError as error:
            self.event("output", str(error))

    def _write(self, document: dict[str, object]) -> None:
        if self._lines is None:
            return
        try:
            with self._lock:
                self._lines.write(document)
        except OutputError as error:
            self._on_event("output", str(error))

    def _expose(self, stats: RunStats) -> None:
        """Update the metrics once per second; their file is replaced atomically."""
        if self._metrics is None or monotonic() - self._stats_at < _STATS_EVERY_S:
            return
        self._stats_at = monotonic()
        self._metrics.update(stats.document(self._describer))
        if self._stats_file is None:
            return
        try:
            write_atomically(self._stats_file, self._metrics.text().encode())
        except OutputError as error:
            self._stats_file = None
            self.event("output", f"stats: {error}")
