"""What the engine expects from measured step times: how much work is queued, when a request will be done, and whether to take it.

Refusing early is better than failing late: a caller who is told at once can go elsewhere or wait as long as it is told to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from math import inf

from f2edge.engine.requests import Limits, Priority
from f2edge.engine.scheduler import Stage
from f2edge.engine.sequences import AnswerJob, ImageJob, Job, ReportJob
from f2edge.engine.step_times import StepTimes, finish_ms, fitting_steps
from f2edge.errors import DeadlineUnreachableError, QueueFullError

#: Bounds of what a refused caller is told to wait.
SHORTEST_RETRY_MS, LONGEST_RETRY_MS = 50.0, 30_000.0
#: Tokens of an answer, before any has been heard; then the running mean.
ASSUMED_TOKENS = 16.0


class Admission:
    """Estimates and decisions; holds no request.

    Args:
        limits: of counts and work.
        times: measured, by :class:`~f2edge.engine.scheduler.Stage` value; steps by branches.
        lanes: how many pieces of work the backend does side by side.

    Attributes:
        quantum_ms: see :class:`~f2edge.engine.requests.Limits`.
        live: whether live answers were asked for of late.
    """

    def __init__(self, limits: Limits, times: StepTimes, lanes: Callable[[], int] = lambda: 1) -> None:
        self.quantum_ms = limits.quantum_ms
        self.live = False
        self._limits = limits
        self._times = times
        self._lanes = lanes
        self._answer_tokens = ASSUMED_TOKENS
        self._known_rows: tuple[object, int] = (None, 1)

    def heard(self, tokens: int) -> None:
        """An answer had so many tokens."""
        self._answer_tokens += 0.1 * (tokens - self._answer_tokens)

    def rows(self, stage: Stage) -> int:
        """How many requests share a turn of this stage: forward passes take many, everything else runs side by side."""
        if stage in (Stage.QUESTION, Stage.TOKEN):
            return self._limits.answer_rows
        if stage is not Stage.STEP:
            return self._lanes()
        state = self._times.version, self.quantum_ms, self.live
        if self._known_rows[0] != state:
            self._known_rows = state, self._image_rows()
        return self._known_rows[1]

    def cost_ms(self, stage: Stage, rows: int = 1) -> float:
        """What a turn with so many requests takes."""
        return self._step_ms(rows) if stage is Stage.STEP else self._times.ms(stage.value, rows)

    def work_ms(self, job: Job) -> float:
        """Engine time that a request still needs, with the company that a busy engine gives it."""
        if isinstance(job, ImageJob):
            rows = self.rows(Stage.STEP)
            return self._around_ms(job) + job.steps_left * self._step_ms(rows, job.branches) / rows
        if isinstance(job, ReportJob):
            return (len(job.pixels) - len(job.reports)) * (self.cost_ms(Stage.ENCODE) + self.cost_ms(Stage.REPORT))
        assert isinstance(job, AnswerJob)
        tokens = max(1.0, min(float(job.max_tokens), self._answer_tokens) - len(job.tokens))
        return self._first_token_ms(job) + tokens * self.cost_ms(Stage.TOKEN, self._limits.answer_rows) / self._limits.answer_rows

    def steps_that_fit(self, job: ImageJob, wanted: int, jobs: Iterable[Job], now: float) -> int:
        """Steps to plan: ``wanted``, or what the deadline leaves room for, but never below the request's floor."""
        if job.deadline == inf:
            return wanted
        mates = list(jobs)
        budget_ms = 1e3 * (job.deadline - now) - self._limits.margin_ms
        return fitting_steps(wanted, job.floor, budget_ms, lambda steps: self._image_ms(job, steps, mates))

    def last_chance(self, job: ImageJob, now: float) -> bool:
        """Whether another step and the drawing would end after the deadline, while what there is may already be shown."""
        if job.deadline == inf or job.row is None or job.row.step < job.floor:
            return False
        needed_ms = self._step_ms(1, job.branches) + self.cost_ms(Stage.DRAW) + self._limits.margin_ms
        return 1e3 * (job.deadline - now) < needed_ms

    def check(self, job: Job, jobs: Collection[Job], now: float) -> None:
        """Take a new request, or refuse it.

        Raises:
            QueueFullError: too many requests of its class, or too much work.
            DeadlineUnreachableError: it cannot be done in time.
        """
        mates, work_ms = self.check_room(job.family, jobs)
        most_ms = self._limits.max_image_work_ms if job.family == "images" else self._limits.max_answer_work_ms
        excess_ms = work_ms + self.work_ms(job) - most_ms
        if mates and excess_ms > 0:
            raise QueueFullError(f"{job.family}: {work_ms / 1e3:.1f} s of work are queued; try again later", _retry_ms(excess_ms))
        needed_ms = self._image_ms(job, job.floor, jobs) if isinstance(job, ImageJob) else self._words_ms(job, mates)
        left_ms = 1e3 * (job.deadline - now) - self._limits.margin_ms
        if needed_ms > left_ms or job.deadline <= now:
            raise DeadlineUnreachableError(f"this takes about {needed_ms:.0f} ms, the deadline leaves {max(left_ms, 0.0):.0f} ms")

    def check_room(self, family: str, jobs: Iterable[Job]) -> tuple[list[Job], float]:
        """The requests of a family and their work in milliseconds; raises :class:`QueueFullError` where another is one too many."""
        mates = [mate for mate in jobs if mate.family == family]
        work_ms = sum(map(self.work_ms, mates))
        count = self._limits.max_images if family == "images" else self._limits.max_answers
        if len(mates) >= count:
            raise QueueFullError(f"{len(mates)} {family} are queued, that is all; try again later", _retry_ms(work_ms / len(mates)))
        return mates, work_ms

    def _image_ms(self, job: ImageJob, steps: int, jobs: Iterable[Job]) -> float:
        """Until a picture of so many steps is drawn, behind those before it and beside the words that go first."""
        images = [mate for mate in jobs if isinstance(mate, ImageJob) and mate is not job]
        ahead = [mate for mate in images if (mate.lane, mate.due, mate.ticket.id) < (job.lane, job.due, job.ticket.id)]
        rows = self.rows(Stage.STEP)
        company = min(rows, 1 + len(images))  # those behind ride along in the same steps
        around = sum(map(self._around_ms, (*ahead, job)))
        alone = around + finish_ms([mate.steps_left for mate in ahead], steps, rows, lambda n: self._step_ms(max(n, company)))
        words = sum(self.work_ms(mate) for mate in jobs if not isinstance(mate, ImageJob) and mate.lane < job.lane)
        share = {Priority.LIVE: 1.0, Priority.NORMAL: self._limits.normal_share, Priority.BACKGROUND: self._limits.background_share}[
            job.lane
        ]
        return min(alone + words, alone / share)

    def _around_ms(self, job: ImageJob) -> float:
        """What a picture still needs before and after its steps."""
        encode = self.cost_ms(Stage.ENCODE) if job.edit and job.edit.cells is None else 0.0
        prompt = self.cost_ms(Stage.PROMPT) if job.prefix is None else 0.0
        return encode + prompt + self.cost_ms(Stage.DRAW)

    def _words_ms(self, job: Job, mates: Iterable[Job]) -> float:
        """The least time until an answer or report can be whole: its own first token or all its reports, behind those before it."""
        ahead = [mate for mate in mates if (mate.lane, mate.due, mate.ticket.id) < (job.lane, job.due, job.ticket.id)]
        first = sum(self._first_token_ms(mate) if isinstance(mate, AnswerJob) else self.work_ms(mate) for mate in ahead)
        return first + (self._first_token_ms(job) if isinstance(job, AnswerJob) else self.work_ms(job))

    def _first_token_ms(self, job: AnswerJob) -> float:
        if job.text is not None:
            return 0.0
        return self.cost_ms(Stage.QUESTION) + (self.cost_ms(Stage.ENCODE) if job.prefix is None else 0.0)

    def _image_rows(self) -> int:
        """Rows that fit in the quantum; sizes that are not known are tried, up to twice the largest known."""
        largest = self._times.largest(Stage.STEP.value)
        quantum_ms = self.quantum_ms
        if self.live:
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
