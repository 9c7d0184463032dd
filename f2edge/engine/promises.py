"""Promises: an accepted deadline is kept.  What accepted requests need at least, and whether there is time for anything else.

What a request *needs* is the least that makes an answer of it: its prefills, the steps up to its floor, its picture; of an answer all its
tokens.  In the order of deadlines needs add up; a promise is safe while, after one more batch of anything, the needs of all requests up to
it and its reply still fit before its deadline.  Times are medians of those measured and the excess of their high quantile
(:mod:`f2edge.engine.step_times`), which adds up as independent excesses do.

A new request is accepted where all promises stay safe with it.  While they are, batches are chosen by the scheduler and pictures get as
many steps as there is time for; where one is not, only what is needed runs, in the order of deadlines, and a picture that has its floor is
drawn as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, sqrt

from f2edge.engine.requests import Limits, ReplyKind
from f2edge.engine.scheduler import ScheduledBatch, Stage
from f2edge.engine.sequences import AnswerState, EditState, ImageState, ReportState, RequestState
from f2edge.engine.step_times import StepTimes

#: What follows the engine, before it was measured so many times.
UNMEASURED_REPLY_MS, MEASURED = 20.0, 10
#: Name of the time between two batches in the table of times.
GAP = "gap"


#: Milliseconds of a kind of work at a size, expected or to be reckoned with.
Time = Callable[[str, int], float]


@dataclass
class _Needs:
    """Needs of several requests: runs of each stage, steps and tokens of each row."""

    runs: Counter[Stage] = field(default_factory=Counter)
    steps: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)

    def add(self, request: RequestState, tokens: Callable[[AnswerState], float]) -> _Needs:
        """Add those of another request."""
        if isinstance(request, ImageState):
            self.runs[Stage.ENCODE] += isinstance(request, EditState) and request.cells is None
            self.runs[Stage.PROMPT] += request.prefix is None
            self.runs[Stage.DRAW] += 1
            self.steps.append(request.steps_needed)
        elif isinstance(request, ReportState):
            left = len(request.pixels) - len(request.reports)
            self.runs[Stage.ENCODE] += left - (request.prefix is not None)
            self.runs[Stage.REPORT] += left
        elif isinstance(request, AnswerState):
            self.runs[Stage.ENCODE] += request.prefix is None
            self.runs[Stage.QUESTION] += request.text is None
            self.tokens.append(tokens(request))
        return self


class Promises:
    """Whether deadlines can be kept; holds no request.

    Args:
        limits: of margins and padding.
        times: measured, by :class:`~f2edge.engine.scheduler.Stage` value.
        rows: returns how many requests share a batch of a stage.
        tokens: returns the tokens that an answer still needs.
    """

    def __init__(self, limits: Limits, times: StepTimes, rows: Callable[[Stage], int], tokens: Callable[[AnswerState], float]) -> None:
        self._limits, self._times, self._rows, self._tokens = limits, times, rows, tokens
        self._replies: Counter[str] = Counter()

    def add_reply(self, kind: ReplyKind, ms: float) -> None:
        """Count what followed the engine's end of a request."""
        self._replies[kind.name] += 1
        self._times.add(f"reply {kind.name}", kind.pixels, ms)

    def margin_ms(self, request: RequestState) -> float:
        """Return what is kept free before a request's deadline."""
        kind = request.reply
        if kind is None:
            return self._limits.margin_ms
        reply_ms = self._times.high_ms(f"reply {kind.name}", kind.pixels)
        if self._replies[kind.name] < MEASURED:
            reply_ms = max(reply_ms, UNMEASURED_REPLY_MS)
        return self._limits.margin_ms + reply_ms

    def needed_ms(self, request: RequestState) -> float:
        """Return the time that a request needs by itself."""
        return self._total_ms(_Needs().add(request, self._tokens), self._times.high_ms)

    def broken_by(self, new: RequestState, present: Sequence[RequestState], now: float) -> RequestState | None:
        """Return the request whose promise a new one would break, itself included; None where all stay safe."""
        if new.deadline <= now:
            return new
        if self._all_safe([*present, new], now):
            return None
        wait_ms = self._longest_batch_ms(present)
        safe = {id(request) for slack, request in self._slacks(present, now) if slack >= wait_ms}
        later = ((slack, r) for slack, r in self._slacks([*present, new], now) if r is new or id(r) in safe)
        return next((r for slack, r in later if slack < wait_ms), None)

    def urgent(self, requests: Sequence[RequestState], now: float) -> list[RequestState]:
        """Return the requests of which only what is needed may run now, in the order of deadlines; [] where all promises are safe.

        A picture that must be drawn as it is gets marked so.
        """
        if self._all_safe(requests, now):
            return []
        slacks, longest_ms = self._slacks(requests, now), self._longest_batch_ms(requests)
        unsafe = {id(request) for slack, request in slacks if slack <= longest_ms}
        if not unsafe:
            return []
        chosen = [request for _, request in slacks[: 1 + max(i for i, (_, r) in enumerate(slacks) if id(r) in unsafe)]]
        lost = min(slack for slack, _ in slacks) < 0 and min(slack for slack, _ in self._slacks(chosen, now, self._times.ms)) < 0
        for request in chosen:
            if isinstance(request, ImageState) and request.row is not None and not request.truncated:
                request.previewed = request.row.step  # a preview is not needed
                enough = request.hard_floor if lost else request.floor
                request.truncated = (request.deliverable or request.row.step >= enough) and (lost or id(request) in unsafe)
                request.stage = request.next_stage
        return [r for r in chosen if not _optional(r)]

    def batch(self, urgent: Sequence[RequestState]) -> ScheduledBatch[RequestState]:
        """Return the batch that the first of urgent requests needs, with others that need the same."""
        first = urgent[0]
        assert first.stage is not None
        alike = [request for request in urgent if request.stage is first.stage]
        return ScheduledBatch(first.priority, first.stage, tuple(alike[: self._rows(first.stage)]))

    def _all_safe(self, requests: Sequence[RequestState], now: float) -> bool:
        """Return whether the first deadline leaves time for all requests together, which it mostly does."""
        bound = [request for request in requests if request.deadline < inf]
        if not bound:
            return True
        needs = _Needs()
        for request in bound:
            needs.add(request, self._tokens)
        left_ms = 1e3 * (min(r.deadline for r in bound) - now) - max(map(self.margin_ms, bound))
        return left_ms > self._total_ms(needs, self._times.high_ms) + self._longest_batch_ms(requests)

    def _slacks(self, requests: Iterable[RequestState], now: float, time: Time | None = None) -> list[tuple[float, RequestState]]:
        """Return the requests with a deadline in its order, each with the ms that can be lost before its promise breaks."""
        needs, found = _Needs(), []
        for request in sorted((r for r in requests if r.deadline < inf), key=lambda r: (r.deadline, r.handle.id)):
            needs.add(request, self._tokens)
            left_ms = 1e3 * (request.deadline - now) - self.margin_ms(request)
            found.append((left_ms - self._total_ms(needs, time or self._times.high_ms), request))
        return found

    def _longest_batch_ms(self, requests: Iterable[RequestState]) -> float:
        """Return the longest that the next batch of these requests may take."""
        stages: Counter[Stage] = Counter()
        for request in requests:
            stages[request.next_stage if request.stage is None else request.stage] += 1
            stages[Stage.STEP] += isinstance(request, ImageState) and request.stage is not Stage.STEP  # it may come to that
        times = (self._batch_ms(stage, min(count, self._rows(stage)), self._times.high_ms) for stage, count in stages.items())
        return max(times, default=0.0)

    def _total_ms(self, needs: _Needs, time: Time) -> float:
        """Return the time of all needs: what is expected, and by how much their sum may exceed that; single runs are slow by turns."""
        runs = [self._shared(Stage.STEP, needs.steps), self._shared(Stage.TOKEN, needs.tokens)]
        for stage, count in needs.runs.items():
            rows = min(count, self._rows(stage))
            runs.append((float(ceil(count / rows)) if count else 0.0, stage, rows))
        expected_ms = sum(count * self._batch_ms(stage, rows, self._times.ms) for count, stage, rows in runs)
        excess = (self._batch_ms(stage, rows, time) - self._batch_ms(stage, rows, self._times.ms) for _, stage, rows in runs)
        return expected_ms + sqrt(sum(count * more**2 for (count, _, _), more in zip(runs, excess, strict=True)))

    def _shared(self, stage: Stage, left: Sequence[float]) -> tuple[float, Stage, int]:
        """Return the runs of rows that share batches and have so many left each: the longest of them, or all of them in full batches."""
        active = [runs for runs in left if runs > 0]
        rows = min(len(active), self._rows(stage))
        return (max(*active, sum(active) / rows) if active else 0.0), stage, rows

    def _batch_ms(self, stage: Stage, rows: int, time: Time) -> float:
        """Return what a batch of so many rows takes with the pause before it, two branches for each row of a step."""
        if rows < 1:
            return 0.0
        size = 2 * self._limits.padded(rows) if stage is Stage.STEP else rows
        return time(stage.value, size) + time(GAP, 1)


def _optional(request: RequestState) -> bool:
    """Return whether what a request does next only betters its picture."""
    return isinstance(request, ImageState) and (
        request.stage in (Stage.CHECK, Stage.PLACE) or (request.stage is Stage.STEP and not request.steps_needed)
    )
