"""Counters of the engine, and the frozen snapshot that others read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from f2edge.engine.requests import EngineStats, Priority
from f2edge.engine.sequences import ImageState, RequestState
from f2edge.errors import BackendError, CancelledError, DeadlineExceededError, EngineClosedError, InputError
from f2edge.inference import Inference

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (CancelledError, "cancelled"),
    (DeadlineExceededError, "deadline"),
    (EngineClosedError, "closed"),
    (InputError, "input"),
    (BackendError, "backend"),
)


def reason_of(error: Exception) -> str:
    """Return an error's label in statistics."""
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), "other")


@dataclass(eq=False)
class Counters:
    """See :class:`~f2edge.engine.requests.EngineStats` for the meaning of each; changed under the engine's lock."""

    accepted: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    cancelled_at: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    turn_ms: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    rows: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    image_steps: int = 0
    wasted_steps: int = 0
    faults: int = 0
    isolated: int = 0
    degraded: int = 0

    def add_batch(self, stage: str, rows: int, ms: float) -> None:
        """Count a batch that has run."""
        self.turns[stage] += 1
        self.turn_ms[stage] += ms
        self.rows[stage][rows] += 1
        if stage == "step":
            self.image_steps += rows

    def add_failure(self, request: RequestState, error: Exception) -> None:
        """Count a request that ended without a result."""
        reason = reason_of(error)
        self.failed[reason] += 1
        if reason in ("cancelled", "deadline"):
            self.cancelled_at["queued" if request.started is None else "running"] += 1
        if isinstance(request, ImageState) and request.row is not None:
            self.wasted_steps += request.row.step

    def snapshot(self, requests: Iterable[RequestState], work_ms: dict[str, float], preemptions: int, inference: Inference) -> EngineStats:
        """Return a copy of everything."""
        present = Counter((request.priority, request.started is not None) for request in requests)
        faces, prompts = inference.images, inference.prompts
        return EngineStats(
            queued={priority.name.lower(): present[priority, False] for priority in Priority},
            running={priority.name.lower(): present[priority, True] for priority in Priority},
            work_ms=work_ms,
            accepted=dict(self.accepted),
            done=dict(self.done),
            failed=dict(self.failed),
            cancelled_at=dict(self.cancelled_at),
            rejected=dict(self.rejected),
            turns=dict(self.turns),
            turn_ms=dict(self.turn_ms),
            rows={stage: dict(histogram) for stage, histogram in self.rows.items()},
            image_steps=self.image_steps,
            wasted_steps=self.wasted_steps,
            preemptions=preemptions,
            faults=self.faults,
            isolated=self.isolated,
            prefix_hits=faces.hits,
            prefix_misses=faces.misses,
            prompt_hits=prompts.hits,
            prompt_misses=prompts.misses,
            degraded=self.degraded,
        )
