"""What the engine counts while it runs, and the frozen snapshot that others read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from f2edge.engine.requests import EngineStats, Priority
from f2edge.engine.sequences import ImageJob, Job
from f2edge.errors import BackendError, CancelledError, DeadlineExceededError, EngineClosedError, InputError
from f2edge.pipeline import FacePipeline

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (CancelledError, "cancelled"),
    (DeadlineExceededError, "deadline"),
    (EngineClosedError, "closed"),
    (InputError, "input"),
    (BackendError, "backend"),
)


def reason_of(error: Exception) -> str:
    """An error's label in statistics."""
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

    def turn(self, stage: str, rows: int, ms: float) -> None:
        """A turn is over."""
        self.turns[stage] += 1
        self.turn_ms[stage] += ms
        self.rows[stage][rows] += 1
        if stage == "step":
            self.image_steps += rows

    def failure(self, job: Job, error: Exception) -> None:
        """A request ended without a result."""
        reason = reason_of(error)
        self.failed[reason] += 1
        if reason in ("cancelled", "deadline"):
            self.cancelled_at["queued" if job.started is None else "running"] += 1
        if isinstance(job, ImageJob) and job.row is not None:
            self.wasted_steps += job.row.step

    def snapshot(self, jobs: Iterable[Job], work_ms: dict[str, float], preemptions: int, pipeline: FacePipeline) -> EngineStats:
        """Copies of everything."""
        lanes = Counter((job.lane, job.started is not None) for job in jobs)
        faces, prompts = pipeline.understanding.prefixes, pipeline.prompts.recent
        return EngineStats(
            queued={lane.name.lower(): lanes[lane, False] for lane in Priority},
            running={lane.name.lower(): lanes[lane, True] for lane in Priority},
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
