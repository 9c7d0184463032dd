"""Reports of frames: the faces, their answers and all ages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from f2edge.camera.answers import AnswerBook, Shown
from f2edge.camera.frames import Box, Frame, KnownFace, overlap
from f2edge.camera.quality import Quality
from f2edge.camera.track import Track

_SAME_FACE = 0.4


@dataclass(frozen=True, eq=False)
class View:
    """Frame after detection and tracking: live tracks, and the quality of the confirmed ones in this frame."""

    frame: Frame
    tracks: tuple[Track, ...]
    quality: Mapping[int, Quality]


@dataclass(frozen=True)
class FaceNow:
    """Face at the time of a report.

    Attributes:
        number: track number.
        box: x, y, width, height in pixels.
        seen_for_s: seconds since its first detection.
        unseen_ms: ms since its last detection; 0 if it is in this frame.
        score: confidence of its last detection.
        gate: "" if its quality is good in this frame, else the reason; also "unseen" and "new".
        shown: attributes by slot; empty before the first answer.
        answer_age_ms: ms since the capture of the newest analyzed frame.
        words: question, answer and its age in ms.
        truth: true attributes; demo only.
        unfamiliar, include_sensitive: of the newest report (:class:`f2edge.results.FaceReport`).
    """

    number: int
    box: Box
    seen_for_s: float
    unseen_ms: float
    score: float
    gate: str
    shown: Mapping[str, Shown]
    answer_age_ms: float | None
    words: tuple[tuple[str, str, float], ...]
    truth: Mapping[str, str] | None = None
    unfamiliar: float | None = None
    include_sensitive: bool = False

    @property
    def described(self) -> bool:
        """Whether it has attributes or answers."""
        return bool(self.shown or self.words)


@dataclass(frozen=True, eq=False)
class Seen:
    """Report of a frame.

    Attributes:
        age_ms: ms from capture to the report.
        dropped: number of frames so far that were replaced before they were processed.
    """

    frame: Frame
    faces: tuple[FaceNow, ...]
    age_ms: float
    dropped: int


def report(view: View, book: AnswerBook, now_s: float, dropped: int) -> Seen:
    """Return the report of a view at a time."""
    frame = view.frame
    faces = [_face(track, view, book, now_s) for track in view.tracks]
    return Seen(frame, tuple(faces), max(0.0, 1e3 * (now_s - frame.captured_s)), dropped)


def _face(track: Track, view: View, book: AnswerBook, now_s: float) -> FaceNow:
    facts = book.facts(track.number)
    seen_now = track.seen_s >= view.frame.captured_s
    quality = view.quality.get(track.number)
    gate = "new" if not track.confirmed else "unseen" if not seen_now else "" if quality is None else quality.reason
    return FaceNow(
        number=track.number,
        box=track.box,
        seen_for_s=max(0.0, view.frame.captured_s - track.began_s),
        unseen_ms=max(0.0, 1e3 * (view.frame.captured_s - track.seen_s)),
        score=track.detection.score,
        gate=gate,
        shown=facts.shown,
        answer_age_ms=None if facts.captured_s is None else max(0.0, 1e3 * (now_s - facts.captured_s)),
        words=tuple((q, w.text, max(0.0, 1e3 * (now_s - w.captured_s))) for q, w in facts.words.items()),
        truth=_truth(track.box, view.frame.known or ()),
        unfamiliar=facts.unfamiliar,
        include_sensitive=facts.include_sensitive,
    )


def _truth(box: Box, known: Sequence[KnownFace]) -> Mapping[str, str] | None:
    best = max(known, key=lambda face: overlap(face.box, box), default=None)
    return best.slots if best is not None and best.slots and overlap(best.box, box) >= _SAME_FACE else None
