"""Requests in the engine: the handle of their owner, the state of each, and the stage that follows.  :mod:`f2edge.engine.executor` runs it.

N image tokens, G token grid.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Event as Flag
from threading import Lock
from types import MappingProxyType
from typing import Any, ClassVar

from f2edge.decoding.autoregressive import TextStream
from f2edge.decoding.grids import Grid
from f2edge.decoding.parallel import GridRow, StepEvent
from f2edge.decoding.presets import Presets
from f2edge.decoding.repair import Refinements
from f2edge.decoding.schedule import Schedule
from f2edge.engine.requests import Done, Event, Failed, Priority, ReplyKind, Result, Timings
from f2edge.engine.scheduler import Stage
from f2edge.imaging.regions import Cells, Region
from f2edge.inference import ImagePrefix, Pixels, PromptPrefix, TextRow
from f2edge.results import FaceReport
from f2edge.spec.attributes import AttributeSchema
from f2edge.spec.layout import Ids
from f2edge.spec.lexicon import Wording

logger = logging.getLogger(__name__)


class RequestHandle:
    """A request in the engine, for its owner.

    Args:
        number: id, unique in its engine.
        on_event: called with every event, on the engine's thread.
    """

    def __init__(self, number: int, on_event: Callable[[Event], None] | None = None) -> None:
        self.id = number
        self._on_event = on_event
        self._cancelled = False
        self._end: Done | Failed | None = None
        self._ended = Flag()
        self._lock = Lock()

    def cancel(self) -> None:
        """Stop it before its next step; no effect once it has ended.  Any thread; returns at once, :class:`Failed` follows."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether its owner has cancelled it."""
        return self._cancelled

    @property
    def ended(self) -> bool:
        """Whether Done or Failed was emitted."""
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> Done:
        """Wait for the end, from any thread but the engine's.

        Raises:
            TimeoutError: no end within ``timeout`` seconds.
            Exception: what the request failed with, see :class:`~f2edge.engine.requests.Failed`.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"request {self.id} has not ended within {timeout} seconds; it is still in the engine")
        assert self._end is not None
        if isinstance(self._end, Failed):
            raise self._end.error
        return self._end

    def emit(self, event: Event) -> None:
        """Pass an event to the owner.  The first end is the last event; an ``on_event`` that raises has its request cancelled."""
        with self._lock:
            if self._end is not None:
                return
            if isinstance(event, Done | Failed):
                self._end = event
        try:
            if self._on_event:
                self._on_event(event)
        except Exception:
            logger.exception("on_event of request %d failed; the request is cancelled", self.id)
            self._cancelled = True
        if isinstance(event, Done | Failed):
            self._ended.set()


@dataclass(eq=False, kw_only=True)
class RequestState:
    """State common to all requests.

    Attributes:
        kind: "generate", "edit", "ask", "describe" or "analyze".
        deadline: seconds of the engine's clock; infinity for none.
        due: place in the order of its priority.
        reply: what becomes of the result after the engine; None where nothing does.
        stage: what it does next; None while it is queued.
        started, first: when its first stage began, when its first step or token was done.
        result: set by its last stage.
    """

    family: ClassVar[str]
    handle: RequestHandle
    kind: str
    priority: Priority
    arrived: float
    deadline: float
    due: float
    reply: ReplyKind | None = None
    stage: Stage | None = None
    started: float | None = None
    first: float | None = None
    result: Result | None = None

    @property
    def order(self) -> tuple[Priority, float, int]:
        """Place among the requests of its family."""
        return self.priority, self.due, self.handle.id

    @property
    def next_stage(self) -> Stage:
        """The first stage of :data:`STAGES` that the request needs now."""
        return next(stage for stage, needed in STAGES[type(self)] if needed(self))

    def timings(self, now: float) -> Timings:
        """Return the timings until now; what has not happened yet counts as happening now."""
        started, first = (now if moment is None else moment for moment in (self.started, self.first))
        return Timings(*(1e3 * (moment - self.arrived) for moment in (started, first, now)))

    def done(self, now: float) -> Done:
        """Return the event of its end."""
        assert self.result is not None
        return Done(self.result, self.timings(now), 0, 0, ended=now)


@dataclass(eq=False, kw_only=True)
class ImageState(RequestState):
    """A generated picture.

    Attributes:
        prompt_ids: text tokens of the prompt; prompt_key: the same with specials, the key of its prefix; wording: what became of its words.
        schedule: as asked for, until a deadline cuts it; preset: the name of the one that it is, "" for none.
        presets: what a deadline may choose from; empty where options of the caller's own forbid that.
        floor: fewest steps that a deadline may cut it to; hard_floor: fewest steps where nothing else keeps the deadline.
        row: its grid and plan; None before the first step.
        proposal: the grid with every position filled.
        previewed: the step that was last emitted.
        steps_wanted: steps of the plan without any cut; known once the plan is made.
        truncated: time ran out, and the proposal became the result, or the best attempt before the repair in progress.
        refinements: what follows the first drawing, a layout and a check; None where nothing does.
        mending: the row of a refinement in progress; ``row`` stays that of the first drawing.
    """

    family: ClassVar[str] = "images"
    prompt: str
    prompt_ids: tuple[int, ...]
    prompt_key: tuple[int, ...]
    wording: Wording
    seed: int
    schedule: Schedule
    preset: str
    presets: Presets
    floor: int
    hard_floor: int
    preview_every: int
    preview_images: bool
    prefix: PromptPrefix | None = None
    row: GridRow | None = None
    proposal: Grid | None = None
    previewed: int = 0
    steps_wanted: int = 0
    truncated: bool = False
    refinements: Refinements | None = None
    mending: GridRow | None = None
    step_ms: list[float] = field(default_factory=list)

    @property
    def current(self) -> GridRow:
        """The row of its next step, once there is one."""
        assert self.row is not None
        return self.mending or self.row

    @property
    def steps_left(self) -> int:
        """Steps still to be run, by the plan or by what was asked."""
        if self.row is None:
            return self.schedule.steps
        return 0 if self.truncated else self.current.plan.steps - self.current.step

    @property
    def steps_needed(self) -> int:
        """Steps still to be run before the proposal may be the result."""
        return 0 if self.deliverable else max(0, self.floor - (0 if self.row is None else self.row.step))

    @property
    def branches(self) -> int:
        """Sequences that its next step puts through the transformer."""
        if self.row is None or self.current.finished:
            return 2 if self.schedule.guidance > 0 else 1
        return 2 if self.current.plan.guidance[self.current.step] > 0 else 1

    @property
    def finished(self) -> bool:
        """Whether no step follows, unless a check finds something to draw again."""
        return self.truncated or (self.row is not None and self.current.finished)

    @property
    def check_due(self) -> bool:
        """Whether the finished picture, or its finished refinement, is to be read."""
        return self.refinements is not None and self.refinements.current is not None and self.finished and not self.truncated

    @property
    def deliverable(self) -> bool:
        """Whether there is a whole picture already, which repairs can only better."""
        return self.truncated or (self.row is not None and self.row.finished)

    @property
    def preview_due(self) -> bool:
        """Whether the step just done is to be emitted; the last one is not, its picture is the result."""
        row = self.row
        if row is None or not self.preview_every or row.finished:  # repairs are not shown
            return False
        return row.step % self.preview_every == 0 and row.step > self.previewed

    def progress(self) -> StepEvent:
        """Return the event of the step just done, without a picture."""
        assert self.row is not None
        assert self.proposal is not None
        self.previewed = self.row.step
        return StepEvent(self.row.step, self.row.plan.steps, self.row.codes[None], self.proposal.ids[None], self.step_ms[-1])

    def done(self, now: float) -> Done:
        assert self.result is not None
        assert self.row is not None
        planned = self.row.plan.steps
        degraded = (self.truncated and not self.row.finished) or planned < self.steps_wanted
        return Done(self.result, self.timings(now), self.row.step, planned, degraded, now)


@dataclass(eq=False, kw_only=True)
class EditState(ImageState):
    """A region of a picture decoded anew; ``original`` int64 (N,) and ``cells`` bool (G, G) come from its first stage."""

    pixels: Pixels  # (3, Y, X)
    region: Region
    image_wh: tuple[int, int]
    keep_outside: bool
    original: Ids | None = None
    cells: Cells | None = None


@dataclass(eq=False, kw_only=True)
class FaceState(RequestState):
    """Work on the prefixes of given faces, one face after another; ``image_keys`` are the keys of their prefixes."""

    family: ClassVar[str] = "answers"
    pixels: tuple[Pixels, ...]  # each (3, Y, X)
    image_keys: tuple[bytes, ...]
    prefix: ImagePrefix | None = None

    @property
    def current(self) -> int:
        """Index of the face that is worked on."""
        return 0


@dataclass(eq=False, kw_only=True)
class AnswerState(FaceState):
    """An answer about one face."""

    question_ids: tuple[int, ...]
    max_tokens: int
    stream: TextStream
    text: TextRow | None = None
    tokens: list[int] = field(default_factory=list)

    def done(self, now: float) -> Done:
        assert self.result is not None
        return Done(self.result, self.timings(now), len(self.tokens), len(self.tokens), ended=now)


@dataclass(eq=False, kw_only=True)
class ReportState(FaceState):
    """Reports of several faces."""

    schema: AttributeSchema
    reports: list[FaceReport] = field(default_factory=list)

    @property
    def current(self) -> int:
        return len(self.reports)


_IMAGE: tuple[tuple[Stage, Callable[[Any], bool]], ...] = (
    (Stage.PROMPT, lambda image: image.prefix is None),
    (Stage.PLACE, lambda image: image.check_due and image.refinements.placing),
    (Stage.CHECK, lambda image: image.check_due),
    (Stage.DRAW, lambda image: image.finished),
    (Stage.PREVIEW, lambda image: image.preview_images and image.preview_due),
    (Stage.STEP, lambda _: True),
)
#: The stages of each kind of request with what it needs them for; the first that is needed is the next.  A request ends with its result.
STAGES: Mapping[type[RequestState], tuple[tuple[Stage, Callable[[Any], bool]], ...]] = MappingProxyType(
    {
        ImageState: _IMAGE,
        EditState: ((Stage.ENCODE, lambda edit: edit.cells is None), *_IMAGE),
        AnswerState: (
            (Stage.ENCODE, lambda answer: answer.prefix is None),
            (Stage.QUESTION, lambda answer: answer.text is None),
            (Stage.TOKEN, lambda _: True),
        ),
        ReportState: (
            (Stage.ENCODE, lambda report: report.prefix is None),
            (Stage.REPORT, lambda _: True),
        ),
    }
)
