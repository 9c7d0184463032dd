"""Requests on their way through the engine: what is known of each, and what is left to do.  Data only; :mod:`f2edge.engine.executor` does
it.

N image tokens, G token grid.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event as Flag
from threading import Lock
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from f2edge.decoding.autoregressive import TextStream
from f2edge.decoding.parallel import GridRow
from f2edge.decoding.schedule import Schedule
from f2edge.engine.answer_rows import TextRow
from f2edge.engine.requests import Done, Event, Failed, Priority, Result, Timings
from f2edge.engine.scheduler import Stage
from f2edge.imaging.regions import Cells, Region
from f2edge.prefix_cache import PromptPrefix
from f2edge.results import FaceReport
from f2edge.spec.attributes import AttributeSchema
from f2edge.spec.layout import Ids
from f2edge.understanding import ImagePrefix

logger = logging.getLogger(__name__)


class Ticket:
    """A request in the engine, for its owner.

    Args:
        number: of the request, unique in its engine.
        on_event: told every event, on the engine's thread.
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
        """Whether its owner has asked for the end."""
        return self._cancelled

    @property
    def ended(self) -> bool:
        """Whether Done or Failed was told."""
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

    def tell(self, event: Event) -> None:
        """For the engine: pass an event on.  The first end is the last event; a listener that raises has its request cancelled."""
        with self._lock:
            if self._end is not None:
                return
            if isinstance(event, Done | Failed):
                self._end = event
        try:
            if self._on_event:
                self._on_event(event)
        except Exception:
            logger.exception("the listener of request %d failed; the request is cancelled", self.id)
            self._cancelled = True
        if isinstance(event, Done | Failed):
            self._ended.set()


@dataclass(eq=False, kw_only=True)
class Job:
    """What every request has.

    Attributes:
        kind: "generate", "edit", "ask", "describe" or "analyze".
        deadline: seconds of the engine's clock; infinity for none.
        due: place in its lane's order.
        stage: what it does next; None while it is queued.
        result: set by its last stage.
    """

    family: ClassVar[str]
    ticket: Ticket
    kind: str
    lane: Priority
    arrived: float
    deadline: float
    due: float
    stage: Stage | None = None
    started: float | None = None
    first: float | None = None
    result: Result | None = None

    def seen(self, now: float) -> None:
        """Its first step or token is done, if it was not before."""
        if self.first is None:
            self.first = now

    def timings(self, now: float) -> Timings:
        """Until now; what has not happened yet counts as happening now."""
        started, first = (now if moment is None else moment for moment in (self.started, self.first))
        return Timings(*(1e3 * (moment - self.arrived) for moment in (started, first, now)))

    def done(self, now: float) -> Done:
        """The end that tells its result."""
        assert self.result is not None
        return Done(self.result, self.timings(now), 0, 0)


@dataclass(eq=False, kw_only=True)
class EditWork:
    """What an edit has beyond a generation; ``original`` int64 (N,) and ``cells`` bool (G, G) come from its first stage."""

    pixels: NDArray[np.float32]  # (3, Y, X)
    region: Region
    image_wh: tuple[int, int]
    keep_outside: bool
    original: Ids | None = None
    cells: Cells | None = None


@dataclass(eq=False, kw_only=True)
class ImageJob(Job):
    """A picture in the making.

    Attributes:
        prompt_ids: text tokens of the prompt; prompt_key: the same with specials, which its prefix is remembered by.
        schedule: as asked for.
        floor: fewest steps that a deadline may cut it to.
        row: its grid and plan; None before the first step.
        proposal: int64 (N,), every position filled.
        steps_wanted: of the plan without any cut; known once the plan is made.
        truncated: time ran out between two steps and the proposal became the result.
    """

    family: ClassVar[str] = "images"
    prompt: str
    prompt_ids: tuple[int, ...]
    prompt_key: tuple[int, ...]
    seed: int
    schedule: Schedule
    floor: int
    preview_every: int
    preview_images: bool
    edit: EditWork | None = None
    prefix: PromptPrefix | None = None
    row: GridRow | None = None
    proposal: Ids | None = None
    steps_wanted: int = 0
    truncated: bool = False
    step_ms: list[float] = field(default_factory=list)

    @property
    def steps_left(self) -> int:
        """Steps still to be run, by the plan or by what was asked."""
        if self.row is None:
            return self.schedule.steps
        return 0 if self.truncated else self.row.plan.steps - self.row.step

    @property
    def branches(self) -> int:
        """Sequences that its next step puts through the transformer."""
        if self.row is None or self.row.finished:
            return 2 if self.schedule.guidance > 0 else 1
        return 2 if self.row.plan.guidance[self.row.step] > 0 else 1

    def done(self, now: float) -> Done:
        assert self.result is not None
        assert self.row is not None
        planned = self.row.plan.steps
        degraded = self.truncated or planned < self.steps_wanted
        return Done(self.result, self.timings(now), self.row.step, planned, degraded)


@dataclass(eq=False, kw_only=True)
class AnswerJob(Job):
    """An answer in the making; ``image_key`` is what its picture's prefix is remembered by."""

    family: ClassVar[str] = "answers"
    pixels: NDArray[np.float32]  # (3, Y, X)
    image_key: bytes
    question_ids: tuple[int, ...]
    max_tokens: int
    stream: TextStream
    prefix: ImagePrefix | None = None
    text: TextRow | None = None
    tokens: list[int] = field(default_factory=list)

    def done(self, now: float) -> Done:
        assert self.result is not None
        return Done(self.result, self.timings(now), len(self.tokens), len(self.tokens))


@dataclass(eq=False, kw_only=True)
class ReportJob(Job):
    """Reports of several pictures, one after another."""

    family: ClassVar[str] = "answers"
    pixels: tuple[NDArray[np.float32], ...]  # each (3, Y, X)
    image_keys: tuple[bytes, ...]
    schema: AttributeSchema
    prefix: ImagePrefix | None = None
    reports: list[FaceReport] = field(default_factory=list)
