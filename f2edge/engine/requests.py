"""Requests to the engine and its events: plain frozen data, checked where it is made.

One request is one face, one answer or one report.  :mod:`f2edge.engine.engine` runs many of them at once; every request's tokens are those
it would have alone.  Times are milliseconds unless a name says otherwise; deadlines are points in seconds on ``time.monotonic``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TypeAlias

from PIL import Image

from f2edge.decoding.parallel import StepEvent
from f2edge.decoding.repair import checked_rounds
from f2edge.errors import InputError
from f2edge.imaging.images import ImageSource
from f2edge.imaging.map_pictures import LayoutSource
from f2edge.imaging.region_map import STRENGTH, checked_strength
from f2edge.imaging.regions import Region
from f2edge.results import Answer, EditedFace, FaceReport, GeneratedFace, GenerateOptions


class Priority(IntEnum):
    """Lower goes first; each lower priority has a guaranteed share of the engine's time (:class:`Limits`), so none starves."""

    LIVE = 0
    NORMAL = 1
    BACKGROUND = 2


@dataclass(frozen=True)
class GenerateRequest:
    """Request for a face from words.

    Attributes:
        prompt: text, checked at submission.
        seed: in ``[0, 2^64)``.
        options: what is None follows the bundle's defaults.
        preview_every: emit a :class:`StepEvent` after every so many steps (the last one excepted: its picture is the result); 0 for none.
        preview_images: let each event carry a picture too; it costs one run of the tokenizer's decoder.
        min_steps: with a deadline the engine may cut the steps to what fits, never below this; None takes :attr:`Limits.min_steps`.
            A value of at least ``options.steps`` forbids cutting.
        check: most repairs after reading the finished picture (:mod:`f2edge.decoding.repair`); 0 does not read it.
        layout: a map of the regions as they are to lie (:mod:`f2edge.imaging.region_map`).
        layout_from: a face whose regions are wanted instead.
        layout_strength: 0 … 1, how much of a draft by the map is kept (:mod:`f2edge.decoding.placement`).
    """

    prompt: str
    seed: int = 0
    options: GenerateOptions = field(default_factory=GenerateOptions)
    preview_every: int = 0
    preview_images: bool = False
    min_steps: int | None = None
    check: int = 0
    layout: LayoutSource | None = None
    layout_from: ImageSource | None = None
    layout_strength: float = STRENGTH

    def __post_init__(self) -> None:
        _check_previews(self.preview_every, self.min_steps)
        checked_rounds(self.check)
        checked_strength(self.layout_strength)


@dataclass(frozen=True)
class EditRequest:
    """Request for a region of a face decoded anew; see :meth:`f2edge.pipeline.FacePipeline.edit` for ``region`` and ``keep_outside``."""

    image: Image.Image
    prompt: str
    region: Region
    seed: int = 0
    options: GenerateOptions = field(default_factory=GenerateOptions)
    keep_outside: bool = True
    preview_every: int = 0
    preview_images: bool = False
    min_steps: int | None = None
    check: int = 0

    def __post_init__(self) -> None:
        _check_previews(self.preview_every, self.min_steps)
        checked_rounds(self.check)


@dataclass(frozen=True)
class AskRequest:
    """Request for an answer of at most ``max_tokens`` tokens to a question about a face."""

    image: Image.Image
    question: str
    max_tokens: int = 64

    def __post_init__(self) -> None:
        _check_max_tokens(self.max_tokens)


@dataclass(frozen=True)
class DescribeRequest:
    """Request for a face in words, by the bundle's own question."""

    image: Image.Image
    max_tokens: int = 128

    def __post_init__(self) -> None:
        _check_max_tokens(self.max_tokens)


@dataclass(frozen=True)
class AnalyzeRequest:
    """Request for attributes of one face or several; ``attributes`` None takes the whole schema.  One face is one step of the engine."""

    images: tuple[Image.Image, ...]
    attributes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.images) <= 64:
            raise InputError(f"analyze takes 1 … 64 images, got {len(self.images)}")


ImageRequest: TypeAlias = GenerateRequest | EditRequest
AnswerRequest: TypeAlias = AskRequest | DescribeRequest | AnalyzeRequest
Request: TypeAlias = ImageRequest | AnswerRequest
Result: TypeAlias = GeneratedFace | EditedFace | Answer | tuple[FaceReport, ...]


@dataclass(frozen=True)
class ReplyKind:
    """What becomes of a result after the engine, for its measured time: a file format or "words", and its pixels, if it has any."""

    name: str
    pixels: int = 1


@dataclass(frozen=True)
class Timings:
    """Times of one request from its submission: to its first run, to the end of its first step or token, to its result."""

    queued_ms: float
    first_ms: float
    total_ms: float


@dataclass(frozen=True)
class Token:
    """Event: a piece of an answer's text, as soon as it is certain; never half a character, never empty."""

    text: str


@dataclass(frozen=True)
class Report:
    """Event: the report of face ``index`` of an :class:`AnalyzeRequest`; the :class:`Done` that follows has all of them."""

    index: int
    report: FaceReport


@dataclass(frozen=True)
class Done:
    """Event: the request has ended.

    Attributes:
        result: a :class:`GeneratedFace`, an :class:`EditedFace`, an :class:`Answer` or a tuple of :class:`FaceReport`.
        timings: of this request.
        steps: decoding steps done (images) or tokens (answers); 0 for reports.
        steps_planned: steps of the plan followed; above ``steps`` only where time ran out and the last proposal became the result.
        degraded: fewer steps were planned or done than were asked for, to meet the deadline.
        ended: when the engine was done with it, on ``time.monotonic``; 0 where that is not known (from a server).
    """

    result: Result
    timings: Timings
    steps: int
    steps_planned: int
    degraded: bool = False
    ended: float = 0.0


@dataclass(frozen=True)
class Failed:
    """Event: the request has ended without a result.

    ``error`` is an :class:`InputError` (a region that the picture does not show), :class:`CancelledError`, :class:`DeadlineExceededError`,
    :class:`EngineClosedError` or :class:`BackendError`; anything else is a defect, which a server must not show to clients.
    """

    error: Exception
    timings: Timings


#: Every request emits any number of the first three, then exactly one :class:`Done` or :class:`Failed`.  A StepEvent has one row.
Event: TypeAlias = StepEvent | Token | Report | Done | Failed


@dataclass(frozen=True)
class Limits:
    """Limits of what the engine accepts, and how it shares its time.

    Attributes:
        image_rows, answer_rows: rows of one forward pass, and the requests of each priority that are in progress at once.
        padded_rows: row counts that image steps are padded up to, ascending; empty for none (right where shapes cost nothing: CPU).
        max_images, max_answers: requests queued or running; more are refused.
        max_image_work_ms, max_answer_work_ms: the same in estimated engine time.
        normal_share, background_share: of engine time, guaranteed to these priorities while they have work.
        quantum_ms: an image step takes no more rows than are expected to take this long (at least one).
        live_memory_s: for so long after a live answer was asked for, an image step moreover takes no longer than an answer takes to its
            first token, so that the next one waits half its own time on average.
        patience_s: a request without a deadline is served, within its priority, as if it were due so long after its arrival.
        min_steps: floor of the steps of an image with a deadline; below it only where nothing else keeps the deadline.
        margin_ms: kept free before a deadline for the way to the caller, which no server can measure.  What follows the engine in the
            server (encoding, sending) is measured and kept free beside it.
    """

    image_rows: int = 8
    answer_rows: int = 8
    padded_rows: tuple[int, ...] = ()
    max_images: int = 32
    max_answers: int = 64
    max_image_work_ms: float = 120_000.0
    max_answer_work_ms: float = 60_000.0
    normal_share: float = 0.25
    background_share: float = 0.05
    quantum_ms: float = 200.0
    live_memory_s: float = 10.0
    patience_s: float = 30.0
    min_steps: int = 4
    margin_ms: float = 5.0

    def padded(self, rows: int) -> int:
        """Return the row count that an image step of so many rows runs with."""
        return next((size for size in self.padded_rows if size >= rows), rows)

    def __post_init__(self) -> None:
        for name in ("image_rows", "answer_rows", "max_images", "max_answers", "min_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"engine limits: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_image_work_ms", "max_answer_work_ms", "quantum_ms", "live_memory_s", "patience_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"engine limits: {name} must be above 0, got {getattr(self, name)}")
        if not (self.normal_share > 0 and self.background_share > 0 and self.normal_share + self.background_share <= 0.9):
            raise InputError("engine limits: the shares must be above 0 and together at most 0.9, or live work is not live")
        if self.margin_ms < 0:
            raise InputError(f"engine limits: margin_ms must be at least 0, got {self.margin_ms}")
        if self.padded_rows and (list(self.padded_rows) != sorted(set(self.padded_rows)) or self.padded_rows[-1] != self.image_rows):
            raise InputError(f"engine limits: padded_rows must ascend to image_rows ({self.image_rows}), got {self.padded_rows}")


class EngineState(Enum):
    """State of an engine; only READY takes work and should be reported as ready."""

    STARTING = "starting"  #: warming up
    READY = "ready"
    FAULTY = "faulty"  #: the backend failed several times in a row; work is taken and tried, one success makes it READY
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True)
class EngineStats:
    """Counters since the start, and gauges of now; plain numbers, to be copied into metrics outside the engine's thread.

    Attributes:
        queued: gauge by priority ("live", "normal", "background"): accepted, nothing of it run yet.
        running: gauge by priority.
        work_ms: gauge by class ("images", "answers"): estimated engine time still to be spent.
        accepted, done: by request class name without "Request", lower case ("generate", "ask" …).
        failed: by reason: "cancelled", "deadline", "closed", "input", "backend", "other".
        cancelled_at: requests cancelled or expired while "queued" or "running".
        rejected: by reason: "queue_full", "work_full", "deadline", "closed".
        turns: batches run, by stage ("prompt", "step", "check", "place", "draw", "preview", "encode", "question", "token", "report").
        turn_ms: engine time by stage.
        rows: histogram by stage: ``rows["step"][4]`` steps had four rows.
        image_steps: decoding steps counted by row; ``wasted_steps`` of them belonged to images that were never finished.
        preemptions: times that work in progress of a lower priority had to wait for a higher one.
        faults: forward passes that failed; ``isolated``: batches that were run again row by row.
        prefix_hits, prefix_misses: of the cache of image prefixes; ``prompt_*`` of that of prompts.
        degraded: results with fewer steps than asked for.
    """

    queued: Mapping[str, int]
    running: Mapping[str, int]
    work_ms: Mapping[str, float]
    accepted: Mapping[str, int]
    done: Mapping[str, int]
    failed: Mapping[str, int]
    cancelled_at: Mapping[str, int]
    rejected: Mapping[str, int]
    turns: Mapping[str, int]
    turn_ms: Mapping[str, float]
    rows: Mapping[str, Mapping[int, int]]
    image_steps: int
    wasted_steps: int
    preemptions: int
    faults: int
    isolated: int
    prefix_hits: int
    prefix_misses: int
    prompt_hits: int
    prompt_misses: int
    degraded: int


def _check_previews(preview_every: int, min_steps: int | None) -> None:
    if preview_every < 0:
        raise InputError(f"preview_every must be 0 (none) or a number of steps, got {preview_every}")
    if min_steps is not None and min_steps < 1:
        raise InputError(f"min_steps must be at least 1, got {min_steps}")


def _check_max_tokens(max_tokens: int) -> None:
    if max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, got {max_tokens}")
