"""Admission by measured step times: how much work is queued, when a request will be done, and whether to accept it.

Refusing early is better than failing late: a caller refused at once can go elsewhere, or wait for the time in the error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from math import inf

from f2edge.engine.requests import Limits, Priority
from f2edge.engine.scheduler import Stage
from f2edge.engine.sequences import AnswerState, EditState, ImageState, ReportState, RequestState
from f2edge.engine.step_times import StepTimes, finish_ms, fitting_steps
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
    """

    def __init__(self, limits: Limits, times: StepTimes, workers: Callable[[], int], live: Callable[[], bool]) -> None:
        self._limits = limits
        self._times = times
        self._workers = workers
        self._live = live
        self._quantum_ms = limits.quantum_ms
        self._answer_tokens = ASSUMED_TOKENS
        self._known_rows: tuple[object, int] = (None, 1)

    @contextmanager
    def without_quantum(self) -> Iterator[None]:
        """Let image steps take as many rows as the limits allow, to measure them."""
        self._quantum_ms = inf
        try:
            yield
        finally:
            self._quantum_ms = self._limits.quantum_ms

    def add_answer(self, tokens: int) -> None:
        """Count the tokens of an answer that has ended."""
        self._answer_tokens += 0.1 * (tokens - self._answer_tokens)

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
        budget_ms = 1e3 * (request.deadline - now) - self._limits.margin_ms
        return fitting_steps(wanted, request.floor, budget_ms, lambda steps: self._image_ms(request, steps, others))

    def last_chance(self, request: ImageState, now: float) -> bool:
        """Return whether another step and the drawing would end after the deadline, while the proposal may already be the result."""
        if request.deadline == inf or request.row is None or request.row.step < request.floor:
            return False
        needed_ms = self._step_ms(1, request.branches) + self.cost_ms(Stage.DRAW) + self._limits.margin_ms
        return 1e3 * (request.deadline - now) < needed_ms

    def check(self, request: RequestState, requests: Collection[RequestState], now: float) -> None:
        """Accept a new request, or refuse it.

        Raises:
            QueueFullError: too many requests of its class, or too much work.
            DeadlineUnreachableError: it cannot be done in time.
        """
        others, work_ms = self.check_room(request.family, requests)
        most_ms = self._limits.max_image_work_ms if request.family == "images" else self._limits.max_answer_work_ms
        excess_ms = work_ms + self.work_ms(request) - most_ms
        if others and excess_ms > 0:
            raise QueueFullError(f"{request.family}: {work_ms / 1e3:.1f} s of work are queued; try again later", _retry_ms(excess_ms))
        needed_ms = self._image_ms(request, request.floor, requests) if isinstance(request, ImageState) else self._words_ms(request, others)
        left_ms = 1e3 * (request.deadline - now) - self._limits.margin_ms
        if needed_ms > left_ms or request.deadline <= now:
            raise DeadlineUnreachableError(f"this takes about {needed_ms:.0f} ms, the deadline leaves {max(left_ms, 0.0):.0f} ms")

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
        return encode + prompt + self.cost_ms(Stage.DRAW)

    def _words_ms(self, request: RequestState, others: Iterable[RequestState]) -> float:
        """Return the least time until an answer's first token or a report's end, behind those before it."""
        ahead = [other for other in others if other.order < request.order]
        return sum(self._first_token_ms(each) if isinstance(each, AnswerState) else self.work_ms(each) for each in (*ahead, request))

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
