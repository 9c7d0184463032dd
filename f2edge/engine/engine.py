"""Step-level continuous batching: one thread owns the backend and runs the next step of all requests together.

>>> engine = Engine(FacePipeline.load("nano"))                                                                  # doctest: +SKIP
>>> engine.submit(GenerateRequest("an old man with a beard", seed=7)).result().result.image.save("face.png")    # doctest: +SKIP

Requests at different steps, with different prompts, seeds and guidance, share one forward pass, as do answers about different faces; they
join and leave between batches.  Noise is a function of the request alone, so no face depends on the other requests in the batch.

=============  ==========================================================================================
requests       requests, events, limits, statistics
prepare        from a request to its state, on the caller's thread
sequences      handle and state of a request, and the table of its stages
admission      what is accepted and what is refused
promises       which deadlines can be kept, and what is urgent
scheduler      which batch is next: priorities, shares, order
executor       what each stage computes
step_loop      the loop, batch by batch
step_times     how long steps take, when work will be done, how many steps fit
=============  ==========================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from threading import Condition, Thread
from time import monotonic

from PIL import Image

from f2edge.engine.requests import (
    AnalyzeRequest,
    AskRequest,
    EngineState,
    EngineStats,
    Event,
    GenerateRequest,
    Limits,
    Priority,
    ReplyKind,
    Request,
)
from f2edge.engine.sequences import RequestHandle
from f2edge.engine.step_loop import StepLoop
from f2edge.errors import BackendError, EngineClosedError
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions

__all__ = ["Engine", "RequestHandle"]

logger = logging.getLogger(__name__)

#: An idle engine's thread wakes this often, to be seen alive.
BEAT_S = 0.25
#: So many failures in a row make the engine FAULTY; it then tries a small piece of work this often, until one succeeds.
FAILURES, TRIAL_EVERY_S = 3, 1.0


class Engine:
    """Runs requests of many callers on one pipeline.

    Args:
        pipeline: its backend must not be used by others meanwhile.
        limits: of the queues and the time.
        warm_up: run the usual batch sizes before READY, which also fills the table of step times.
    """

    def __init__(self, pipeline: FacePipeline, limits: Limits | None = None, *, warm_up: bool = True) -> None:
        self._limits = limits or Limits()
        self._pipeline = pipeline
        self._loop = StepLoop(pipeline, self._limits)
        self._changed = Condition(self._loop.lock)
        self._state = EngineState.STARTING
        self._stop = False
        self._cause: Exception | None = None
        self._beat = self._tried = monotonic()
        self._exercises = 0
        self._loop.open = False
        self._thread = Thread(target=self._main, args=(warm_up,), name="f2edge-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: Request,
        *,
        priority: Priority | None = None,
        deadline: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        reply: ReplyKind | None = None,
    ) -> RequestHandle:
        """Accept a request or refuse it at once.

        Checks texts and options and resizes pictures on the calling thread (call it where pictures were decoded, not in an event loop).

        Args:
            request: what to do.
            priority: None is LIVE for answers and reports, NORMAL for images.
            deadline: on ``time.monotonic``; None for none.
            on_event: called with every event, on the engine's thread: it must return at once (``loop.call_soon_threadsafe``).
            reply: what becomes of the result, so that the time of that is kept free before the deadline; see :meth:`add_reply`.

        Raises:
            InputError: what the pipeline's methods raise for the same values.
            QueueFullError: with ``retry_after_ms``.
            DeadlineUnreachableError: by measured step times it cannot be done in time, even with the fewest steps allowed, or only at
                the cost of a deadline accepted before.
            EngineClosedError: starting, draining or stopped.
        """
        handle = self._loop.submit(request, priority=priority, deadline=deadline, on_event=on_event, reply=reply)
        with self._changed:
            self._changed.notify_all()
        return handle

    def add_reply(self, kind: ReplyKind, ms: float) -> None:
        """Count what followed the end of a request with this ``reply``: the next ones keep so much time free before their deadlines."""
        self._loop.add_reply(kind, ms)

    def check_room(self, family: str) -> None:
        """Raise :class:`QueueFullError` where no more "images" or "answers" are taken now; call it before opening a picture."""
        self._loop.check_room(family)

    @property
    def state(self) -> EngineState:
        """The present state.  Readiness is READY and a fresh heartbeat."""
        if self._state is EngineState.READY and self._loop.failures >= FAILURES:
            return EngineState.FAULTY
        return self._state

    @property
    def heartbeat_age_ms(self) -> float:
        """Time since the engine's thread was last between two batches; an idle engine beats four times a second."""
        return 1e3 * (monotonic() - self._beat)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait for the warm-up; False after ``timeout`` seconds.

        Raises:
            BackendError: the warm-up failed; the engine is stopped.
            EngineClosedError: it was closed meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._state is not EngineState.STARTING, timeout)
            if self._cause is not None:
                raise BackendError(f"the engine stopped, in its warm-up or by a defect: {self._cause}") from self._cause
            if self._state in (EngineState.DRAINING, EngineState.STOPPED):
                raise EngineClosedError("the engine was closed before it was ready")
            return self._state is EngineState.READY

    def stats(self) -> EngineStats:
        """Return a snapshot of the counters."""
        return self._loop.stats()

    def drain(self, grace_s: float) -> bool:
        """Take no new work, finish what was accepted, then stop; after ``grace_s`` seconds the rest fails with EngineClosedError.

        Returns whether everything was finished.
        """
        with self._changed:
            self._loop.open = False
            starting = self._state is EngineState.STARTING  # then nothing was accepted yet
            if self._state is not EngineState.STOPPED:
                self._state = EngineState.DRAINING
            self._changed.notify_all()
            finished = starting or self._changed.wait_for(lambda: not len(self._loop), max(grace_s, 0.0))
        self.close()
        return finished

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop after the present batch; everything unfinished fails with EngineClosedError.

        A batch that hangs for ``timeout_s`` is left behind with its thread, and its requests fail all the same.
        """
        with self._changed:
            self._loop.open = False
            self._stop = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.error("the engine's thread hangs in a batch; its requests are given up")
            self._abandon()

    # The engine's thread -------------------------------------------------------------------------------------------------------------

    def _main(self, warm_up: bool) -> None:
        try:
            if warm_up:
                self._warm_up()
            self._enter(EngineState.READY)
            while not self._stop:
                self._beat = monotonic()
                worked = self._loop.run_batch()
                with self._changed:
                    if not len(self._loop):
                        self._changed.notify_all()  # wakes drain()
                if not worked:
                    self._idle()
        except Exception as error:  # a defect outside any request's work: no caller may wait for an answer that will never come
            logger.exception("the engine's thread ends")
            self._cause = error
        self._abandon()

    def _idle(self) -> None:
        if self.state is EngineState.FAULTY and monotonic() - self._tried >= TRIAL_EVERY_S:
            self._tried = monotonic()
            self._exercise(1)  # they run in the loop
        with self._changed:
            if not len(self._loop) and not self._stop:
                self._changed.wait(BEAT_S)

    def _enter(self, state: EngineState) -> None:
        with self._changed:
            if self._state is EngineState.STARTING and not self._stop:
                self._state = state
                self._loop.open = True
            self._changed.notify_all()

    def _abandon(self) -> None:
        with self._changed:
            self._loop.open = False
            self._stop = True
            self._state = EngineState.STOPPED
            self._changed.notify_all()
        self._loop.abandon(EngineClosedError("the engine was closed before the work was done; send the request again"))

    def _warm_up(self) -> None:
        """Run every batch size that will occur, or powers of two where any size may; then count from zero."""
        most = max(self._limits.image_rows, self._limits.answer_rows)
        sizes = self._limits.padded_rows or tuple(sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most}))
        with self._loop.admission.without_quantum():
            for size in (1, 1, *sizes):  # the first of all loads the graphs
                handles = self._exercise(size)
                while not self._stop and self._loop.run_batch():
                    self._beat = monotonic()
                if self._stop:
                    return
                for handle in handles:
                    handle.result(0)
        self._loop.reset_counters()

    def _exercise(self, size: int) -> list[RequestHandle]:
        """Submit small requests of every kind that the bundle can do, ``size`` of each at once (of reports one)."""
        self._exercises += 1  # another face and prompt each time: a cached prefix cannot be measured
        side = self._pipeline.bundle.configuration.tokenizer.image_size
        face = Image.new("RGB", (side, side), (self._exercises % 256, 128, 128))
        handles = []
        if self._pipeline.bundle.has("t2i_step"):
            request = GenerateRequest(f"face {self._exercises % 256}", options=GenerateOptions(steps=2))
            handles += [self._loop.submit_internal(request) for _ in range(min(size, self._limits.image_rows))]
            checked = replace(request, prompt="a face with a hat", check=1)  # a bundle that knows no hats reads nothing
            handles += [self._loop.submit_internal(checked)] if size == 1 and self._pipeline.bundle.has("mmu_extend") else []
            placed = replace(request, layout_from=face)
            handles += [self._loop.submit_internal(placed)] if size == 1 and self._pipeline.bundle.has("regions") else []
        if self._pipeline.bundle.has("mmu_extend"):
            handles += [self._loop.submit_internal(AskRequest(face, "what?", 4)) for _ in range(min(size, self._limits.answer_rows))]
            handles += [self._loop.submit_internal(AnalyzeRequest((face,)))] if size == 1 else []
        return handles
