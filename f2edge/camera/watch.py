"""Second stage: detection, tracking and quality of the faces of a frame."""

from __future__ import annotations

from f2edge.camera.answers import AnswerBook
from f2edge.camera.detect import Detector
from f2edge.camera.frames import Frame
from f2edge.camera.quality import Gate, judge
from f2edge.camera.reports import View
from f2edge.camera.track import Tracker


class Watcher:
    """Converter of frames into views, in order.

    Args:
        detector: finds faces.
        tracker: assigns them to tracks.
        gate: quality thresholds.
        book: answers, reduced to the live tracks.
    """

    def __init__(self, detector: Detector, tracker: Tracker, gate: Gate, book: AnswerBook) -> None:
        self._detector = detector
        self._tracker = tracker
        self._gate = gate
        self._book = book

    def view(self, frame: Frame) -> View:
        """Return the view of a frame."""
        tracks = self._tracker.update(self._detector.detect(frame), frame.captured_s)
        self._book.follow(track.number for track in tracks)
        seen = [track for track in tracks if track.confirmed and track.seen_s >= frame.captured_s]
        return View(frame, tracks, {track.number: judge(frame, track.box, track.detection, self._gate) for track in seen})
