"""The step loop, one turn at a time: requests join and leave between turns.  No thread of its own; :class:`f2edge.engine.engine.Engine`
has one.

>>> loop = StepLoop(FacePipeline.load("nano"), Limits())                                                        # doctest: +SKIP
>>> ticket = loop.submit(GenerateRequest("an old man"))                                                         # doctest: +SKIP
>>> while loop.turn(): pass                                                                                     # doctest: +SKIP
>>> ticket.result().steps                                                                                       # doctest: +SKIP
12
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from math import inf
from threading import RLock
from time import monotonic

from f2edge.engine.admission import Admission
from f2edge.engine.executor import Stages
from f2edge.engine.prepare import Intake
from f2edge.engine.requests import EngineStats, Event, Failed, Limits, Priority, Request
from f2edge.engine.scheduler import Queued, Ready, Scheduler, Stage, Turn, beginners
from f2edge.engine.sequences import AnswerJob, ImageJob, Job, Ticket
from f2edge.engine.stats import Counters
from f2edge.engine.step_times import StepTimes
from f2edge.errors import CancelledError, DeadlineExceededError, DeadlineUnreachableError, EngineClosedError, InputError, QueueFullError
from f2edge.pipeline import FacePipeline

logger = logging.getLogger(__name__)


class StepLoop:
    """Requests in progress and the turns that bring them on.

    ``submit`` and ``stats`` may be called from any thread; ``turn`` and ``abandon`` from one.

    Args:
        pipeline: what computes.
        limits: of queues and time.
        clock: seconds; deadlines are on it.

    Attributes:
        lock: held while requests come and go.
        open: whether new requests are taken.
        failures: runs of a single request that failed since one last succeeded, for reasons that lie not in the request.
    """

    def __init__(self, pipeline: FacePipeline, limits: Limits, clock: Callable[[], float] = monotonic) -> None:
        self.lock = RLock()
        self.open = True
        self.failures = 0
        self.times = StepTimes()
        self.admission = Admission(limits, self.times, lambda: pipeline.backend.workers)
        self.counters = Counters()
        self.scheduler = Scheduler(limits, self.admission.rows, self.admission.cost_ms)
        self._pipeline = pipeline
        self._clock = clock
        self._intake = Intake(pipeline, limits)
        self._stages = Stages(pipeline, clock, self._steps_that_fit, limits.padded)
        self._slots = {"images": limits.image_rows, "answers": limits.answer_rows}
        self._jobs: dict[int, Job] = {}
        self._numbers = count(1)
        self._live_memory_s = limits.live_memory_s
        self._live_until = -inf

    def submit(
        self,
        request: Request,
        *,
        priority: Priority | None = None,
        deadline: float | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Ticket:
        """See :meth:`f2edge.engine.engine.Engine.submit`."""
        arrived = self._clock()
        self._check_open()  # before pictures are resized in vain
        ticket = Ticket(next(self._numbers), on_event)
        job = self._intake.job(request, ticket, arrived, priority, deadline)
        with self.lock:
            self._check_open()
            try:
                self.admission.check(job, self._jobs.values(), self._clock())
            except (QueueFullError, DeadlineUnreachableError) as refusal:
                self.counters.rejected["deadline" if isinstance(refusal, DeadlineUnreachableError) else "queue_full"] += 1
                raise
            self._jobs[ticket.id] = job
            self.counters.accepted[job.kind] += 1
            if job.lane is Priority.LIVE and job.family == "answers":
                self._live_until = arrived + self._live_memory_s
        return ticket

    def check_room(self, family: str) -> None:
        """See :meth:`f2edge.engine.engine.Engine.check_room`."""
        with self.lock:
            try:
                self.admission.check_room(family, self._jobs.values())
            except QueueFullError:
                self.counters.rejected["queue_full"] += 1
                raise

    def submit_own(self, request: Request) -> Ticket:
        """A request of the engine itself (warm-up, trials), taken in any case."""
        ticket = Ticket(next(self._numbers))
        job = self._intake.job(request, ticket, self._clock(), Priority.BACKGROUND, None)
        with self.lock:
            self._jobs[ticket.id] = job
            self.counters.accepted[job.kind] += 1
        return ticket

    def reset_counters(self) -> None:
        """Begin to count anew."""
        with self.lock:
            self.counters = Counters()
            self.scheduler.preemptions = 0
            for remembered in (self._pipeline.understanding.prefixes, self._pipeline.prompts.recent):
                remembered.hits = remembered.misses = 0

    def __len__(self) -> int:
        """Requests queued or in progress."""
        return len(self._jobs)

    def turn(self) -> bool:
        """End what is cancelled or late, let others begin, run one turn; whether there was one to run."""
        turn = self._next()
        if turn is None:
            self._stages.rest()
            return False
        jobs = [self._jobs[number] for number in turn.requests]
        size = self._stages.size(turn.stage, jobs)
        start = self._clock()
        for job in jobs:
            job.started = start if job.started is None else job.started
        whole = self._run(turn.stage, jobs)
        ms = 1e3 * (self._clock() - start)
        with self.lock:
            self.scheduler.charge(turn, ms)
            self.counters.turn(turn.stage.value, len(jobs), ms)
            if whole:
                self.times.add(turn.stage.value, size, ms)
        for job in jobs:
            if job.result is not None:
                self._finish(job)
        if turn.stage in (Stage.ENCODE, Stage.PROMPT):
            self._pass_on(turn.stage)
        return True

    def abandon(self, error: Exception) -> None:
        """End every request with ``error``."""
        for job in list(self._jobs.values()):
            self._fail(job, error)

    def stats(self) -> EngineStats:
        """A snapshot of the counters."""
        with self.lock:
            jobs = list(self._jobs.values())
            work = {"images": 0.0, "answers": 0.0}
            for job in jobs:
                work[job.family] += self.admission.work_ms(job)
            return self.counters.snapshot(jobs, work, self.scheduler.preemptions, self._pipeline)

    def _check_open(self) -> None:
        if not self.open:
            with self.lock:
                self.counters.rejected["closed"] += 1
            raise EngineClosedError("the engine takes no new work: it is shutting down; send the request to another one")

    def _next(self) -> Turn | None:
        now = self._clock()
        self.admission.live = now < self._live_until
        for job in list(self._jobs.values()):
            if job.ticket.cancelled:
                self._fail(job, CancelledError("the request was cancelled by its owner"))
            elif now >= job.deadline:
                self._fail(job, DeadlineExceededError("the deadline passed before the work was done"))
            elif isinstance(job, ImageJob) and job.stage is Stage.STEP and self.admission.last_chance(job, now):
                job.truncated, job.stage = True, Stage.DRAW
        with self.lock:
            jobs = list(self._jobs.values())
        begun = Counter((job.family, job.lane) for job in jobs if job.stage is not None)
        queued = [Queued(job.ticket.id, job.family, job.lane, job.due) for job in jobs if job.stage is None]
        for number in beginners(queued, begun, self._slots):
            self._stages.begin(self._jobs[number])
        ready = [Ready(job.ticket.id, job.lane, job.due, job.stage) for job in jobs if job.stage is not None]
        with self.lock:
            return self.scheduler.choose(ready)

    def _run(self, stage: Stage, jobs: Sequence[Job]) -> bool:
        """Run a stage; where it fails for several together, for each alone, so that only the culprit fails.  Whether all went well."""
        try:
            self._stages.run(stage, jobs)
        except Exception as error:  # whatever it is, it must not take the others along
            if len(jobs) == 1:
                self._blame(jobs[0], stage, error)
                return False
            logger.warning("a %s of %d requests failed and is run for each alone", stage.value, len(jobs), exc_info=True)
            with self.lock:
                self.counters.faults += 1
                self.counters.isolated += 1
            for job in jobs:
                self._run(stage, [job])
            return False
        self.failures = 0
        return True

    def _blame(self, job: Job, stage: Stage, error: Exception) -> None:
        if not isinstance(error, InputError):
            logger.error("the %s of request %d failed", stage.value, job.ticket.id, exc_info=error)
            self.failures += 1
            with self.lock:
                self.counters.faults += 1
        self._fail(job, error)

    def _pass_on(self, stage: Stage) -> None:
        """Others that wait for the same picture or prompt have it now."""
        for job in list(self._jobs.values()):
            if job.stage is stage:
                self._stages.begin(job)

    def _finish(self, job: Job) -> None:
        done = job.done(self._clock())
        with self.lock:
            if self._jobs.pop(job.ticket.id, None) is None:
                return
            self.counters.done[job.kind] += 1
            self.counters.degraded += done.degraded
            if isinstance(job, AnswerJob):
                self.admission.heard(len(job.tokens))
        job.ticket.tell(done)

    def _fail(self, job: Job, error: Exception) -> None:
        with self.lock:
            if self._jobs.pop(job.ticket.id, None) is None:
                return
            self.counters.failure(job, error)
        job.ticket.tell(Failed(error, job.timings(self._clock())))

    def _steps_that_fit(self, job: ImageJob, wanted: int) -> int:
        with self.lock:
            return self.admission.steps_that_fit(job, wanted, self._jobs.values(), self._clock())
