"""Admission by measured step times: how much work is queued, when a request will be done, and whether to accept it.

Refusing early is better than failing late: a caller refused at once can go elsewhere, or wait for the time in the error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from math import inf

from f2edge.engine.promises import Promises
from f2edge.engine.requests import Limits, Priority
from f2edge.engine.scheduler import Stage
from f2edge.engine.sequences import AnswerState, EditState, ImageState, ReportState, RequestState
from f2edge.engine.step_times import LONG_WINDOW, StepTimes, finish_ms, fitting_steps, high_quantile
from f2edge.errors import DeadlineUnreachableError, QueueFullError

#: Bounds of ``retry_after_ms`` of a refusal.
SHORTEST_RETRY_MS, LONGEST_RETRY_MS = 50.0, 30_000.0
#: Tokens of an answer, before any has ended; then the running mean.
ASSUMED_TOKENS = 16.0


class Admission:
    """Estimates and decisions; holds no request.

    Args:
        limits: of counts and work.
        times: measured, by :class:`~f2edge.engine.scheduler.Stage` value; steps by branches.
        workers: returns how many pieces of work the backend does side by side.
        live: returns whether live answers were requested lately.

    Attributes:
        promises: which deadlines can be kept.
    """

    def __init__(self, limits: Limits, times: StepTimes, workers: Callable[[], int], live: Callable[[], bool]) -> None:
        self._limits = limits
        self._times = times
        self._workers = workers
        self._live = live
        self._quantum_ms = limits.quantum_ms
        self._answer_tokens = ASSUMED_TOKENS
        self._lengths: dict[str, deque[float]] = {}
        self._known_rows: tuple[object, int] = (None, 1)
        self.promises = Promises(limits, times, self.rows, self._most_tokens)

    @contextmanager
    def without_quantum(self) -> Iterator[None]:
        """Let image steps take as many rows as the limits allow, to measure them."""
        self._quantum_ms = inf
        try:
            yield
        finally:
            self._quantum_ms = self._limits.quantum_ms

    def add_answer(self, kind: str, tokens: int) -> None:
        """Count the tokens of an answer that has ended."""
        self._answer_tokens += 0.1 * (tokens - self._answer_tokens)
        self._lengths.setdefault(kind, deque(maxlen=LONG_WINDOW)).append(float(tokens))

    def rows(self, stage: Stage) -> int:
        """Return how many requests share a batch of this stage: forward passes take many, everything else runs side by side."""
        if stage in (Stage.QUESTION, Stage.TOKEN):
            return self._limits.answer_rows
        if stage is not Stage.STEP:
            return self._workers()
        live = self._live()
        state = self._times.version, self._quantum_ms, live
        if self._known_rows[0] != state:
            self._known_rows = state, self._image_rows(live=live)
        return self._known_rows[1]

    def cost_ms(self, stage: Stage, rows: int = 1) -> float:
        """Return what a batch of so many requests takes."""
        return self._step_ms(rows) if stage is Stage.STEP else self._times.ms(stage.value, rows)

    def work_ms(self, request: RequestState) -> float:
        """Return the engine time that a request still needs, in the batches of a busy engine."""
        if isinstance(request, ImageState):
            rows = self.rows(Stage.STEP)
            return self._around_ms(request) + request.steps_left * self._step_ms(rows, request.branches) / rows
        if isinstance(request, ReportState):
            return (len(request.pixels) - len(request.reports)) * (self.cost_ms(Stage.ENCODE) + self.cost_ms(Stage.REPORT))
        assert isinstance(request, AnswerState)
        tokens = max(1.0, min(float(request.max_tokens), self._answer_tokens) - len(request.tokens))
        return self._first_token_ms(request) + tokens * self.cost_ms(Stage.TOKEN, self._limits.answer_rows) / self._limits.answer_rows

    def steps_that_fit(self, request: ImageState, wanted: int, requests: Iterable[RequestState], now: float) -> int:
        """Return the steps to plan: ``wanted``, or what the deadline leaves room for, but never below the request's floor."""
        if request.deadline == inf:
            return wanted
        others = list(requests)
        spare_ms = self.promises.margin_ms(request) + self._excess_ms(Stage.STEP) + self._excess_ms(Stage.DRAW)
        budget_ms = 1e3 * (request.deadline - now) - spare_ms
        return fitting_steps(wanted, request.floor, budget_ms, lambda steps: self._image_ms(request, steps, others))

    def check(self, request: RequestState, requests: Collection[RequestState], now: float) -> None:
        """Accept a new request, or refuse it.

        Raises:
            QueueFullError: too many requests of its class, or too much work.
            DeadlineUnreachableError: it cannot be done in time, or not without breaking a promise made to another.
        """
        others, work_ms = self.check_room(request.family, requests)
        most_ms = self._limits.max_image_work_ms if request.family == "images" else self._limits.max_answer_work_ms
        excess_ms = work_ms + self.work_ms(request) - most_ms
        if others and excess_ms > 0:
            raise QueueFullError(f"{request.family}: {work_ms / 1e3:.1f} s of work are queued; try again later", _retry_ms(excess_ms))
        broken = self.promises.broken_by(request, list(requests), now)
        if broken is not None:
            needed_ms, margin_ms = self.promises.needed_ms(request), self.promises.margin_ms(request)
            left_ms = max(0.0, 1e3 * (request.deadline - now) - margin_ms)
            crowd = "" if broken is request and needed_ms > left_ms else f", and {len(requests)} other requests are there"
            raise DeadlineUnreachableError(f"this takes about {needed_ms:.0f} ms, the deadline leaves {left_ms:.0f} ms{crowd}")

    def check_room(self, family: str, requests: Iterable[RequestState]) -> tuple[list[RequestState], float]:
        """Return the requests of a family and their work in ms; raises :class:`QueueFullError` where another is one too many."""
        present = [request for request in requests if request.family == family]
        work_ms = sum(map(self.work_ms, present))
        count = self._limits.max_images if family == "images" else self._limits.max_answers
        if len(present) >= count:
            raise QueueFullError(f"{len(present)} {family} are queued, that is all; try again later", _retry_ms(work_ms / len(present)))
        return present, work_ms

    def _image_ms(self, request: ImageState, steps: int, requests: Iterable[RequestState]) -> float:
        """Return the time until a picture of so many steps is drawn, behind those before it and beside the words that go first."""
        images = [other for other in requests if isinstance(other, ImageState) and other is not request]
        ahead = [other for other in images if other.order < request.order]
        rows = self.rows(Stage.STEP)
        batch = min(rows, 1 + len(images))  # those behind fill the rest of the same steps
        around = sum(map(self._around_ms, (*ahead, request)))
        alone = around + finish_ms([other.steps_left for other in ahead], steps, rows, lambda n: self._step_ms(max(n, batch)))
        words = sum(self.work_ms(other) for other in requests if not isinstance(other, ImageState) and other.priority < request.priority)
        shares = {Priority.LIVE: 1.0, Priority.NORMAL: self._limits.normal_share, Priority.BACKGROUND: self._limits.background_share}
        return min(alone + words, alone / shares[request.priority])

    def _around_ms(self, request: ImageState) -> float:
        """Return what a picture still needs before and after its steps."""
        encode = self.cost_ms(Stage.ENCODE) if isinstance(request, EditState) and request.cells is None else 0.0
        prompt = self.cost_ms(Stage.PROMPT) if request.prefix is None else 0.0
        refinements = request.refinements
        check = 0.0 if refinements is None else self.cost_ms(Stage.PLACE if refinements.placing else Stage.CHECK)
        return encode + prompt + check + self.cost_ms(Stage.DRAW)

    def _most_tokens(self, answer: AnswerState) -> float:
        """Return the tokens that an answer of its kind must be reckoned with."""
        known = self._lengths.get(answer.kind)
        most = ASSUMED_TOKENS if known is None else high_quantile(known)
        return max(1.0, min(float(answer.max_tokens), most + 1.0) - len(answer.tokens))

    def _excess_ms(self, stage: Stage) -> float:
        """Return by how much a run of a stage may exceed what is expected of it."""
        size = 2 * self._limits.padded(1) if stage is Stage.STEP else 1
        return self._times.high_ms(stage.value, size) - self._times.ms(stage.value, size)

    def _first_token_ms(self, request: AnswerState) -> float:
        if request.text is not None:
            return 0.0
        return self.cost_ms(Stage.QUESTION) + (self.cost_ms(Stage.ENCODE) if request.prefix is None else 0.0)

    def _image_rows(self, *, live: bool) -> int:
        """Return the rows that fit in the quantum; sizes that are not known are tried, up to twice the largest known."""
        largest = self._times.largest(Stage.STEP.value)
        quantum_ms = self._quantum_ms
        if live:
            quantum_ms = min(quantum_ms, self.cost_ms(Stage.ENCODE) + self.cost_ms(Stage.QUESTION))
        rows = 1
        while rows < self._limits.image_rows:
            branches = 2 * self._limits.padded(rows + 1)
            if 0 < 2 * largest < branches or self._times.ms(Stage.STEP.value, min(branches, largest)) > quantum_ms:
                break
            rows += 1
        return rows

    def _step_ms(self, rows: int, branches: int = 2) -> float:
        return self._times.ms(Stage.STEP.value, branches * self._limits.padded(rows))


def _retry_ms(ms: float) -> float:
    return min(max(ms, SHORTEST_RETRY_MS), LONGEST_RETRY_MS)
