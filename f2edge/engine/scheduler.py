"""Which batch runs next: the engine's policy, without threads, tensors or clocks.

A batch is one unit of work: one stage of one request, or of several that share a forward pass or run side by side.  Three rules, each
tested by a law:

1. Between priorities (LIVE, NORMAL, BACKGROUND): the highest goes first, but a priority that waits earns credit, its guaranteed share of
   the time spent on others, and goes first once the credit pays for it (:class:`Shares`).  So live work waits for one batch at most while
   no credit is due, and no priority starves.
2. Between the stages of a priority: equal shares of time (:class:`FairQueue`), so that cheap preparations are soon done and neither new
   requests nor those in progress can hold the others up.
3. Between requests at one stage: by due time, which is fixed on arrival (a deadline, or arrival plus patience); a request that waits long
   enough goes before every newcomer.  Requests of other priorities at that stage fill rows that would be empty.

>>> shares = Shares({"live": 0.0, "images": 0.25})
>>> order = []
>>> for _ in range(10):
...     order.append(shares.choose({"live": 10.0, "images": 10.0}))
...     shares.charge(order[-1], 10.0, ("live", "images"))
>>> "".join(name[0] for name in order)
'llllilllil'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from f2edge.engine.requests import Limits, Priority

Key = TypeVar("Key", bound=Hashable)


class Stage(Enum):
    """Units of work; the value is their name in statistics.  In a tie the earlier one goes first."""

    ENCODE = "encode"  #: a picture: the prefix of questions about it, or the tokens and cells of an edit
    PROMPT = "prompt"  #: a prompt's prefix
    QUESTION = "question"  #: questions' prefill, and the first token of each answer
    TOKEN = "token"  # noqa: S105  one more token of each answer
    REPORT = "report"  #: all attributes of one face
    CHECK = "check"  #: a finished picture read by the model, and what is to be drawn again
    PLACE = "place"  #: the regions of a finished picture read, and a draft by its layout
    DRAW = "draw"  #: the finished picture of one request
    PREVIEW = "preview"  #: an unfinished one
    STEP = "step"  #: one step of parallel decoding


class Shares(Generic[Key]):
    """Strict priority with guaranteed shares.

    Args:
        floors: share of the time that each key has at least while it has work, in the order of priority; together below 1.
    """

    def __init__(self, floors: Mapping[Key, float]) -> None:
        self._floors = dict(floors)
        self._credit_ms = dict.fromkeys(self._floors, 0.0)

    def choose(self, costs_ms: Mapping[Key, float]) -> Key:
        """Return the next of the keys that have work, given what each one's next batch is expected to cost."""
        owed = [key for key in self._floors if key in costs_ms and self._credit_ms[key] >= max(costs_ms[key], 1e-3)]
        if owed:
            return max(owed, key=lambda key: self._credit_ms[key] - costs_ms[key])
        return next(key for key in self._floors if key in costs_ms)

    def charge(self, key: Key, ms: float, waiting: Collection[Key]) -> None:
        """Account for ``ms`` of ``key``, while the keys in ``waiting`` had work.

        Idle keys earn nothing and keep nothing; a key that ran while others waited owes the time of one batch at most.
        """
        alone = not set(waiting) - {key}
        for other, floor in self._floors.items():
            earned = self._credit_ms[other] + floor * ms
            if other == key:
                self._credit_ms[other] = 0.0 if alone else max(earned - ms, -ms)
            else:
                self._credit_ms[other] = earned if other in waiting else 0.0


class FairQueue(Generic[Key]):
    """Equal shares of time among the keys that have work (start-time fair queueing); idling earns nothing."""

    def __init__(self) -> None:
        self._spent_ms: dict[Key, float] = {}
        self._now_ms = 0.0

    def choose(self, ready: Iterable[Key]) -> Key:
        """Return the key that had least; the first of ``ready`` in a tie."""
        return min(ready, key=self._start)

    def charge(self, key: Key, ms: float) -> None:
        """Account for ``ms`` of ``key``."""
        self._now_ms = self._start(key)
        self._spent_ms[key] = self._now_ms + ms

    def _start(self, key: Key) -> float:
        return max(self._spent_ms.get(key, 0.0), self._now_ms)


class Schedulable(Protocol):
    """What scheduling knows of a request; see :class:`f2edge.engine.sequences.RequestState`."""

    @property
    def family(self) -> str: ...

    @property
    def priority(self) -> Priority: ...

    @property
    def stage(self) -> Stage | None: ...

    @property
    def order(self) -> tuple[Priority, float, int]: ...


Item = TypeVar("Item", bound=Schedulable)


@dataclass(frozen=True)
class ScheduledBatch(Generic[Item]):
    """One unit of work: a stage of these requests, charged to ``priority``."""

    priority: Priority
    stage: Stage
    requests: tuple[Item, ...]


class Scheduler:
    """Chooses batches by the three rules.

    Args:
        limits: for the shares of the priorities.
        rows: how many requests may share a batch of a stage.
        cost_ms: what a batch of a stage with so many requests is expected to take.

    Attributes:
        preemptions: times that a priority with work in progress had to wait for a higher one.
    """

    def __init__(self, limits: Limits, rows: Callable[[Stage], int], cost_ms: Callable[[Stage, int], float]) -> None:
        self.preemptions = 0
        self._rows, self._cost_ms = rows, cost_ms
        self._shares = Shares({Priority.LIVE: 0.0, Priority.NORMAL: limits.normal_share, Priority.BACKGROUND: limits.background_share})
        self._stages: dict[Priority, FairQueue[Stage]] = {priority: FairQueue() for priority in Priority}
        self._waiting: frozenset[Priority] = frozenset()
        self._last: Priority | None = None

    def choose(self, requests: Iterable[Item]) -> ScheduledBatch[Item] | None:
        """Return the next batch, or None where nothing has a stage to run.  Pass what it took to :meth:`charge`."""
        ready = [request for request in requests if request.stage is not None]
        stages = {
            priority: self._stages[priority].choose([s for s in Stage if s in present])
            for priority in Priority
            if (present := {r.stage for r in ready if r.priority == priority})
        }
        self._waiting = frozenset(stages)
        if not stages:
            self._last = None
            return None
        rows = {stage: min(sum(r.stage is stage for r in ready), self._rows(stage)) for stage in set(stages.values())}
        first = self._shares.choose({key: self._cost_ms(stage, rows[stage]) for key, stage in stages.items()})
        if self._last is not None and first < self._last and self._last in stages:
            self.preemptions += 1
        self._last = first
        stage = stages[first]
        together = sorted((r for r in ready if r.stage is stage), key=lambda r: (r.priority != first, r.order))
        return ScheduledBatch(first, stage, tuple(together[: rows[stage]]))

    def reset_counts(self) -> None:
        """Count preemptions from zero again."""
        self.preemptions = 0

    def charge(self, batch: ScheduledBatch[Any], ms: float) -> None:
        """Account for ``ms``, the time of the batch chosen last."""
        self._shares.charge(batch.priority, ms, self._waiting)
        self._stages[batch.priority].charge(batch.stage, ms)


def startable(requests: Iterable[Item], slots: Mapping[str, int]) -> list[Item]:
    """Return the queued requests that begin now: by due time, as many as a family has slots in each priority.

    Every priority has its own slots, so that a full lower one never keeps a higher one out; what is in progress, and with it the memory
    of its caches, is bounded by priorities times slots.
    """
    requests = list(requests)
    taken = Counter((request.family, request.priority) for request in requests if request.stage is not None)
    chosen: list[Item] = []
    for candidate in sorted((r for r in requests if r.stage is None), key=lambda r: r.order[1:]):
        place = (candidate.family, candidate.priority)
        if taken[place] < slots[candidate.family]:
            taken[place] += 1
            chosen.append(candidate)
    return chosen
