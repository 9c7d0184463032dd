"""The second stage: where the faces of a frame are, who is who, and which of them are worth asking about."""

from __future__ import annotations

from f2edge.camera.answers import AnswerBook
from f2edge.camera.detect import Detector
from f2edge.camera.frames import Frame
from f2edge.camera.quality import Gate, judge
from f2edge.camera.reports import View
from f2edge.camera.track import Tracker


class Watcher:
    """Turns frames into views, in order.

    Args:
        detector: finds faces.
        tracker: joins them.
        gate: what a face must be like.
        book: told which tracks are alive.
    """

    def __init__(self, detector: Detector, tracker: Tracker, gate: Gate, book: AnswerBook) -> None:
        self._detector = detector
        self._tracker = tracker
        self._gate = gate
        self._book = book

    def view(self, frame: Frame) -> View:
        tracks = self._tracker.update(self._detector.detect(frame), frame.captured_s)
        self._book.follow(track.number for track in tracks)
        seen = [track for track in tracks if track.confirmed and track.seen_s >= frame.captured_s]
        return View(frame, tracks, {track.number: judge(frame, track.box, track.detection, self._gate) for track in seen})
