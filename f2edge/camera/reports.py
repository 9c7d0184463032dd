"""What is said about a frame: its faces with what is known of each, and how old everything is."""

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
    """A frame after detection and tracking: tracks alive, and the quality of those seen in this frame and confirmed."""

    frame: Frame
    tracks: tuple[Track, ...]
    quality: Mapping[int, Quality]


@dataclass(frozen=True)
class FaceNow:
    """A face at the time of a report.

    Attributes:
        number: of its track.
        box: in pixels.
        seen_for_s: since its first detection.
        unseen_ms: since its last detection; 0 where it is in this frame.
        score: of its last detection.
        gate: "" where its quality is good in this frame, else the reason why not; "unseen" and "new" are reasons too.
        shown: attributes by slot; empty before the first answer.
        answer_age_ms: since the capture of the newest frame that they come from.
        words: question, answer and its age in ms.
        truth: what the source knows to be true; demo only.
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

    @property
    def described(self) -> bool:
        """Whether anything about it is said."""
        return bool(self.shown or self.words)


@dataclass(frozen=True, eq=False)
class Seen:
    """A frame as it is reported.

    Attributes:
        age_ms: from capture to the report.
        dropped: frames so far that were replaced by a later one before they were looked at.
    """

    frame: Frame
    faces: tuple[FaceNow, ...]
    age_ms: float
    dropped: int


def report(view: View, book: AnswerBook, now_s: float, dropped: int) -> Seen:
    """Put together what is known about a frame at a time."""
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
    )


def _truth(box: Box, known: Sequence[KnownFace]) -> Mapping[str, str] | None:
    best = max(known, key=lambda face: overlap(face.box, box), default=None)
    return best.slots if best is not None and best.slots and overlap(best.box, box) >= _SAME_FACE else None
