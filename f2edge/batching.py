"""Step-level continuous batching: one thread owns the backend and runs everybody's next step together.

>>> engine = Engine(FacePipeline.load("nano"))                                                                  # doctest: +SKIP
>>> engine.submit(GenerateRequest("an old man with a beard", seed=7)).result().result.image.save("face.png")    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable

from f2edge.pipeline import FacePipeline
from f2edge.requests import Done, EngineState, EngineStats, Event, Limits, Priority, Request


class Ticket:
    """A request in the engine."""

    id: int

    def cancel(self) -> None:
        """Stop it before its next step; no effect once it has ended.  Any thread; returns at once, :class:`Failed` follows."""

    def result(self, timeout: float | None = None) -> Done:
        """Wait for the end, from any thread but the engine's; raises the request's error, or TimeoutError after ``timeout`` seconds."""

    @property
    def ended(self) -> bool:
        """Whether Done or Failed was told."""


class Engine:
    """Runs requests of many callers on one pipeline.

    Args:
        pipeline: its backend must not be used by others meanwhile.
        limits: of the queues and the time.
        warm_up: run every batch size once before READY, which also fills the table of step times.
    """

    def __init__(self, pipeline: FacePipeline, limits: Limits | None = None, *, warm_up: bool = True) -> None: ...

    def submit(
        self,
        request: Request,
        *,
        priority: Priority | None = None,
        deadline: float | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Ticket:
        """Accept a request or refuse it at once.

        Checks texts and options and resizes pictures on the calling thread (call it where pictures were decoded, not in an event loop).

        Args:
            request: what to do.
            priority: None is LIVE for answers and reports, NORMAL for images.
            deadline: on ``time.monotonic``; None for none.
            on_event: told every event, on the engine's thread: it must return at once and hand over (``loop.call_soon_threadsafe``).

        Raises:
            InputError: what the pipeline's methods raise for the same values.
            QueueFullError: with ``retry_after_ms``.
            DeadlineUnreachableError: by measured step times it cannot be done in time, even with the fewest steps allowed.
            EngineClosedError: draining or stopped.
        """

    @property
    def state(self) -> EngineState:
        """Of now; readiness is READY and a fresh heartbeat."""

    @property
    def heartbeat_age_ms(self) -> float:
        """Since the engine's thread was last seen between two steps; an idle engine beats four times a second."""

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait for the warm-up; False after ``timeout`` seconds.  Raises BackendError where the warm-up failed."""

    def stats(self) -> EngineStats:
        """A snapshot of the counters."""

    def drain(self, grace_s: float) -> bool:
        """Take no new work, finish what was accepted, then stop; after ``grace_s`` seconds the rest fails with EngineClosedError.

        Returns whether everything was finished.
        """

    def close(self) -> None:
        """Stop after the present step; everything unfinished fails with EngineClosedError."""
