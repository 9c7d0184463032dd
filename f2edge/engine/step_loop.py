"""The step loop, one batch at a time: requests join and leave between batches.  It has no thread; :class:`f2edge.engine.engine.Engine`
runs it in one.

>>> loop = StepLoop(FacePipeline.load("nano"), Limits())                                                        # doctest: +SKIP
>>> handle = loop.submit(GenerateRequest("an old man"))                                                         # doctest: +SKIP
>>> while loop.run_batch(): pass                                                                                # doctest: +SKIP
>>> handle.result().steps                                                                                       # doctest: +SKIP
12
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import count
from math import inf
from threading import RLock
from time import monotonic

from f2edge.engine.admission import Admission
from f2edge.engine.executor import Executor
from f2edge.engine.prepare import prepare
from f2edge.engine.promises import GAP
from f2edge.engine.requests import EngineStats, Event, Failed, Limits, Priority, ReplyKind, Request
from f2edge.engine.scheduler import ScheduledBatch, Scheduler, Stage, startable
from f2edge.engine.sequences import AnswerState, ImageState, RequestHandle, RequestState
from f2edge.engine.stats import Counters
from f2edge.engine.step_times import StepTimes
from f2edge.errors import CancelledError, DeadlineExceededError, DeadlineUnreachableError, EngineClosedError, InputError, QueueFullError
from f2edge.pipeline import FacePipeline

logger = logging.getLogger(__name__)


class StepLoop:
    """Requests in progress and the batches that advance them.

    ``submit`` and ``stats`` may be called from any thread; ``run_batch`` and ``abandon`` from one.

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
        self.admission = Admission(limits, self.times, lambda: pipeline.backend.workers, lambda: clock() < self._live_until)
        self.counters = Counters()
        self.scheduler = Scheduler(limits, self.admission.rows, self.admission.cost_ms)
        self._pipeline = pipeline
        self._limits = limits
        self._clock = clock
        self._executor = Executor(pipeline, clock, self._steps_that_fit, limits.padded)
        self._slots = {"images": limits.image_rows, "answers": limits.answer_rows}
        self._requests: dict[int, RequestState] = {}
        self._numbers = count(1)
        self._live_until = -inf
        self._paused: float | None = None

    def submit(
        self,
        request: Request,
        *,
        priority: Priority | None = None,
        deadline: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        reply: ReplyKind | None = None,
    ) -> RequestHandle:
        """See :meth:`f2edge.engine.engine.Engine.submit`."""
        arrived = self._clock()
        self._check_open()  # before pictures are resized in vain
        handle = RequestHandle(next(self._numbers), on_event)
        state = prepare(self._pipeline, self._limits, request, handle, arrived, priority, deadline, reply)
        with self.lock:
            self._check_open()
            try:
                self.admission.check(state, self._requests.values(), self._clock())
            except (QueueFullError, DeadlineUnreachableError) as refusal:
                late = isinstance(refusal, DeadlineUnreachableError)
                self.counters.rejected["deadline" if late else "queue_full"] += 1
                if late and not self._requests:
                    self.times.doubt()
                raise
            self._accept(state)
            if state.priority is Priority.LIVE and state.family == "answers":
                self._live_until = arrived + self._limits.live_memory_s
        return handle

    def submit_internal(self, request: Request) -> RequestHandle:
        """Accept a request of the engine itself (warm-up, trials), whatever is queued."""
        handle = RequestHandle(next(self._numbers))
        state = prepare(self._pipeline, self._limits, request, handle, self._clock(), Priority.BACKGROUND, None)
        with self.lock:
            self._accept(state)
        return handle

    def check_room(self, family: str) -> None:
        """See :meth:`f2edge.engine.engine.Engine.check_room`."""
        with self.lock:
            try:
                self.admission.check_room(family, self._requests.values())
            except QueueFullError:
                self.counters.rejected["queue_full"] += 1
                raise

    def add_reply(self, kind: ReplyKind, ms: float) -> None:
        """See :meth:`f2edge.engine.engine.Engine.add_reply`."""
        with self.lock:
            self.admission.promises.add_reply(kind, ms)

    def reset_counters(self) -> None:
        """Count from zero again."""
        with self.lock:
            self.counters = Counters()
            self.scheduler.reset_counts()
            self._pipeline.inference.images.reset_counts()
            self._pipeline.inference.prompts.reset_counts()

    def __len__(self) -> int:
        """Return the number of requests queued or in progress."""
        return len(self._requests)

    def run_batch(self) -> bool:
        """End what is cancelled or late, let others begin, run one batch; return whether there was one to run."""
        batch = self._next_batch()
        if batch is None:
            self._executor.release()
            self._paused = None
            return False
        size = self._executor.size(batch.stage, batch.requests)
        start = self._clock()
        gap_ms = None if self._paused is None else 1e3 * (start - self._paused)
        for request in batch.requests:
            request.started = start if request.started is None else request.started
        whole = self._run(batch.stage, batch.requests)
        self._paused = self._clock()
        ms = 1e3 * (self._paused - start)
        with self.lock:
            self.scheduler.charge(batch, ms)
            if gap_ms is not None:
                self.times.add(GAP, 1, gap_ms)
            self.counters.add_batch(batch.stage.value, len(batch.requests), ms)
            if whole:
                self.times.add(batch.stage.value, size, ms)
        for request in batch.requests:
            if request.result is not None:
                self._finish(request)
        if batch.stage in (Stage.ENCODE, Stage.PROMPT):
            for other in self._present():  # others that wait for the same picture or prompt have it now
                if other.stage is batch.stage:
                    self._executor.begin(other)
        return True

    def abandon(self, error: Exception) -> None:
        """End every request with ``error``."""
        for request in self._present():
            self._fail(request, error)

    def stats(self) -> EngineStats:
        """Return a snapshot of the counters."""
        with self.lock:
            requests = self._present()
            work = {"images": 0.0, "answers": 0.0}
            for request in requests:
                work[request.family] += self.admission.work_ms(request)
            return self.counters.snapshot(requests, work, self.scheduler.preemptions, self._pipeline.inference)

    def _present(self) -> list[RequestState]:
        with self.lock:
            return list(self._requests.values())

    def _check_open(self) -> None:
        if not self.open:
            with self.lock:
                self.counters.rejected["closed"] += 1
            raise EngineClosedError("the engine takes no new work: it is shutting down; send the request to another one")

    def _accept(self, request: RequestState) -> None:
        self._requests[request.handle.id] = request
        self.counters.accepted[request.kind] += 1

    def _next_batch(self) -> ScheduledBatch[RequestState] | None:
        now = self._clock()
        for request in self._present():
            if request.handle.cancelled:
                self._fail(request, CancelledError("the request was cancelled by its owner"))
            elif now >= request.deadline:
                self._fail(request, DeadlineExceededError("the deadline passed before the work was done"))
        requests = self._present()
        for request in startable(requests, self._slots):
            self._executor.begin(request)
        with self.lock:
            urgent = self.admission.promises.urgent(requests, now)
            for request in urgent:
                if request.stage is None:
                    self._executor.begin(request)
            return self.admission.promises.batch(urgent) if urgent else self.scheduler.choose(requests)

    def _run(self, stage: Stage, requests: Sequence[RequestState]) -> bool:
        """Run a stage; where it fails for several together, for each alone, so that one fault fails one request.

        Returns whether no run failed.
        """
        try:
            self._executor.run(stage, requests)
        except Exception as error:  # whatever it is, it must not take the others along
            if len(requests) == 1:
                self._blame(requests[0], stage, error)
                return False
            logger.warning("a %s of %d requests failed and is run for each alone", stage.value, len(requests), exc_info=True)
            with self.lock:
                self.counters.faults += 1
                self.counters.isolated += 1
            for request in requests:
                self._run(stage, [request])
            return False
        self.failures = 0
        return True

    def _blame(self, request: RequestState, stage: Stage, error: Exception) -> None:
        if not isinstance(error, InputError):
            logger.error("the %s of request %d failed", stage.value, request.handle.id, exc_info=error)
            self.failures += 1
            with self.lock:
                self.counters.faults += 1
        self._fail(request, error)

    def _finish(self, request: RequestState) -> None:
        done = request.done(self._clock())
        with self.lock:
            if self._requests.pop(request.handle.id, None) is None:
                return
            self.counters.done[request.kind] += 1
            self.counters.degraded += done.degraded
            if isinstance(request, AnswerState):
                self.admission.add_answer(request.kind, len(request.tokens))
        request.handle.emit(done)

    def _fail(self, request: RequestState, error: Exception) -> None:
        with self.lock:
            if self._requests.pop(request.handle.id, None) is None:
                return
            self.counters.add_failure(request, error)
        request.handle.emit(Failed(error, request.timings(self._clock())))

    def _steps_that_fit(self, request: ImageState, wanted: int) -> int:
        with self.lock:
            return self.admission.steps_that_fit(request, wanted, self._requests.values(), self._clock())
