"""Third stage: analyze the faces that need it, most urgent first, in one batch within the time budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, runtime_checkable

from PIL import Image

from f2edge.camera.answers import AnswerBook, Signature
from f2edge.camera.crops import Cutter, signature
from f2edge.camera.frames import Box
from f2edge.camera.reports import View
from f2edge.camera.track import Track
from f2edge.errors import InputError
from f2edge.results import Answer, FaceReport

_ANSWER_TOKENS = 24
_PATIENT_TURNS = 4  # turns after which a question is asked although faces still wait
_NEW_COST = 0.3  # weight of the newest measurement in the estimate of what a face costs


class CameraModel(Protocol):
    """Model interface of the camera, implemented by :class:`~f2edge.pipeline.FacePipeline` and by a server's client."""

    def analyze(
        self, images: Sequence[Image.Image], *, attributes: Sequence[str] | None = None, include_sensitive: bool = False
    ) -> list[FaceReport]:
        """Return a report for each face, in order."""
        ...

    def ask(self, image: Image.Image, question: str, *, max_tokens: int = 64, include_sensitive: bool = False) -> Answer:
        """Return an answer as text."""
        ...


@runtime_checkable
class AroundModel(Protocol):
    """Model that crops faces itself, such as :class:`~f2edge.camera.remote.RemoteModel`; it receives them with their surroundings."""

    def analyze_around(
        self, faces: Sequence[tuple[Image.Image, Box]], *, attributes: Sequence[str], include_sensitive: bool = False
    ) -> list[FaceReport]:
        """Return a report for each face, in order."""
        ...


@dataclass(frozen=True)
class DescribeOptions:
    """Options of the describing stage.

    Attributes:
        attributes: slots to analyze; empty for none.
        questions: questions about every face.
        budget_ms: model time per turn in ms; at least one face is always analyzed.
        most_faces: maximum number of faces per call.
        include_sensitive: sensitive traits were asked for.
    """

    attributes: tuple[str, ...]
    questions: tuple[str, ...] = ()
    budget_ms: float = 150.0
    most_faces: int = 8
    include_sensitive: bool = False

    def __post_init__(self) -> None:
        if self.budget_ms <= 0 or self.most_faces < 1:
            raise InputError(f"budget {self.budget_ms} ms and {self.most_faces} faces must be above 0")


@dataclass(frozen=True)
class _Candidate:
    track: Track
    crop: Image.Image
    signature: Signature
    urgency: float


class Describer:
    """Updater of the answer book.

    Args:
        model: model that answers.
        cutter: cropper of faces.
        book: stored answers.
        work: options of this stage.
        clock: seconds on the scale of the frames' ``captured_s``.

    Attributes:
        calls: number of analysis calls.
        faces: number of faces analyzed.
        questions: number of questions asked.
    """

    def __init__(self, model: CameraModel, cutter: Cutter, book: AnswerBook, work: DescribeOptions, clock: Callable[[], float]) -> None:
        self._model = model
        self._cutter = cutter
        self._book = book
        self._work = work
        self._clock = clock
        self._face_ms = 0.0
        self._turns_without_words = 0
        self.calls = self.faces = self.questions = 0

    def turn(self, view: View) -> bool:
        """Analyze the faces of a view that need it; return whether any did.  Errors of the model are passed on and change nothing."""
        good = [track for track in view.tracks if track.number in view.quality and view.quality[track.number].good]
        candidates = self._candidates(view, good)
        urgent = [c for c in candidates if c.urgency > 0] if self._work.attributes else []
        chosen = urgent[: self._room()]
        if chosen:
            self._analyze(view, chosen)
        self._turns_without_words += 1
        asked = (len(chosen) == len(urgent) or self._turns_without_words >= _PATIENT_TURNS) and self._ask(view, candidates)
        if asked:
            self._turns_without_words = 0
        return bool(chosen) or asked

    def _candidates(self, view: View, good: Sequence[Track]) -> list[_Candidate]:
        """Return the good faces that may need an analysis, most urgent first, larger ones first among equals."""
        found, now_s = [], view.frame.captured_s
        for track in good:
            if not self._work.questions and self._book.is_fresh(track.number, now_s):
                continue
            crop = self._cutter.cut(view.frame, track.box, track.detection)
            mark = signature(crop)
            found.append(_Candidate(track, crop, mark, self._book.urgency(track.number, now_s, mark)))
        return sorted(found, key=lambda c: (-c.urgency, -c.track.box[2] * c.track.box[3]))

    def _room(self) -> int:
        fit = int(self._work.budget_ms / self._face_ms) if self._face_ms > 0 else self._work.most_faces
        return max(1, min(fit, self._work.most_faces))

    def _analyze(self, view: View, chosen: Sequence[_Candidate]) -> None:
        start = perf_counter()
        reports = self._reports(view, chosen)
        face_ms = 1e3 * (perf_counter() - start) / len(chosen)
        self._face_ms = face_ms if self._face_ms == 0 else (1 - _NEW_COST) * self._face_ms + _NEW_COST * face_ms
        latency_s = max(0.0, self._clock() - view.frame.captured_s)
        for candidate, report in zip(chosen, reports, strict=True):
            self._book.take(candidate.track.number, report, view.frame.captured_s, latency_s, candidate.signature)
        self.calls += 1
        self.faces += len(chosen)

    def _reports(self, view: View, chosen: Sequence[_Candidate]) -> list[FaceReport]:
        names, include = self._work.attributes, self._work.include_sensitive
        if isinstance(self._model, AroundModel):
            faces = [self._cutter.surroundings(view.frame, c.track.box) for c in chosen]
            return self._model.analyze_around(faces, attributes=names, include_sensitive=include)
        return self._model.analyze([c.crop for c in chosen], attributes=names, include_sensitive=include)

    def _ask(self, view: View, candidates: Sequence[_Candidate]) -> bool:
        """Ask at most one question, so that attributes never wait for more than one; return whether one was asked."""
        crops = {c.track.number: c.crop for c in candidates}
        due = self._book.oldest_words(crops, self._work.questions, view.frame.captured_s)
        if due is None:
            return False
        number, question = due
        include = self._work.include_sensitive
        answer = self._model.ask(crops[number], question, max_tokens=_ANSWER_TOKENS, include_sensitive=include)
        self._book.answer(number, question, answer.text, view.frame.captured_s)
        self.questions += 1
        return True
