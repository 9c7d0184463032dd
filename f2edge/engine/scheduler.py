"""Whose turn it is: the engine's policy, without threads, tensors or clocks.

A turn is one unit of work: one stage of one request, or of several that share a forward pass or run side by side.  Three rules, each a law
that is tested:

1. Between lanes (LIVE, NORMAL, BACKGROUND): the highest goes first, but a lane that waits earns credit, its guaranteed share of the time
   spent on others, and has its turn once the credit pays for it (:class:`Shares`).  So live work waits for one turn at most while nobody
   is owed anything, and no lane starves.
2. Between the stages of a lane: equal shares of time (:class:`FairTurns`), so that cheap preparations are soon done and neither new
   requests nor those in progress can hold the others up.
3. Between requests at one stage: by due time, which is fixed on arrival (a deadline, or arrival plus patience); whoever waits long enough
   is before every newcomer.  Requests of other lanes at that stage ride along in rows that would be empty.

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
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from f2edge.engine.requests import Limits, Priority

Key = TypeVar("Key", bound=Hashable)


class Stage(Enum):
    """Units of work; the value is their name in statistics.  In a tie the earlier one goes first."""

    ENCODE = "encode"  #: a picture: the prefix of questions about it, or the tokens and cells of an edit
    PROMPT = "prompt"  #: a prompt's prefix
    QUESTION = "question"  #: questions' prefill, and the first token of each answer
    TOKEN = "token"  # noqa: S105  one more token of each answer
    REPORT = "report"  #: all attributes of one face
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
        """The next of the keys that have work, given what each one's next unit is expected to cost."""
        owed = [key for key in self._floors if key in costs_ms and self._credit_ms[key] >= max(costs_ms[key], 1e-3)]
        if owed:
            return max(owed, key=lambda key: self._credit_ms[key] - costs_ms[key])
        return next(key for key in self._floors if key in costs_ms)

    def charge(self, key: Key, ms: float, waiting: Collection[Key]) -> None:
        """``key`` had the engine for ``ms``, while the keys in ``waiting`` had work.

        Idle keys earn nothing and keep nothing; who had a turn while others waited owes one turn at most.
        """
        alone = not set(waiting) - {key}
        for other, floor in self._floors.items():
            earned = self._credit_ms[other] + floor * ms
            if other == key:
                self._credit_ms[other] = 0.0 if alone else max(earned - ms, -ms)
            else:
                self._credit_ms[other] = earned if other in waiting else 0.0


class FairTurns(Generic[Key]):
    """Equal shares of time among the keys that have work (start-time fair queueing); idling earns nothing."""

    def __init__(self) -> None:
        self._spent_ms: dict[Key, float] = {}
        self._now_ms = 0.0

    def choose(self, ready: Iterable[Key]) -> Key:
        """The key that had least; the first of ``ready`` in a tie."""
        return min(ready, key=self._start)

    def charge(self, key: Key, ms: float) -> None:
        """``key`` had the engine for ``ms``."""
        self._now_ms = self._start(key)
        self._spent_ms[key] = self._now_ms + ms

    def _start(self, key: Key) -> float:
        return max(self._spent_ms.get(key, 0.0), self._now_ms)


@dataclass(frozen=True)
class Ready:
    """A request that could run its ``stage`` now."""

    request: int
    lane: Priority
    due: float
    stage: Stage


@dataclass(frozen=True)
class Turn:
    """One unit of work: a stage of these requests, on the account of ``lane``."""

    lane: Priority
    stage: Stage
    requests: tuple[int, ...]


class Scheduler:
    """Chooses turns by the three rules.

    Args:
        limits: for the lanes' shares.
        rows: how many requests may share a turn of a stage.
        cost_ms: what a turn of a stage with so many requests is expected to take.

    Attributes:
        preemptions: times that a lane with work in progress had to wait for a higher one.
    """

    def __init__(self, limits: Limits, rows: Callable[[Stage], int], cost_ms: Callable[[Stage, int], float]) -> None:
        self.preemptions = 0
        self._rows, self._cost_ms = rows, cost_ms
        self._lanes = Shares({Priority.LIVE: 0.0, Priority.NORMAL: limits.normal_share, Priority.BACKGROUND: limits.background_share})
        self._stages: dict[Priority, FairTurns[Stage]] = {lane: FairTurns() for lane in Priority}
        self._waiting: frozenset[Priority] = frozenset()
        self._last: Priority | None = None

    def choose(self, ready: Sequence[Ready]) -> Turn | None:
        """The next turn, or None where nothing is ready.  Tell :meth:`charge` what it took."""
        stages = {
            lane: self._stages[lane].choose([s for s in Stage if s in present])
            for lane in Priority
            if (present := {r.stage for r in ready if r.lane == lane})
        }
        self._waiting = frozenset(stages)
        if not stages:
            self._last = None
            return None
        rows = {stage: min(sum(r.stage is stage for r in ready), self._rows(stage)) for stage in set(stages.values())}
        lane = self._lanes.choose({key: self._cost_ms(stage, rows[stage]) for key, stage in stages.items()})
        if self._last is not None and lane < self._last and self._last in stages:
            self.preemptions += 1
        self._last = lane
        stage = stages[lane]
        together = sorted((r for r in ready if r.stage is stage), key=lambda r: (r.lane != lane, r.lane, r.due, r.request))
        return Turn(lane, stage, tuple(r.request for r in together[: rows[stage]]))

    def charge(self, turn: Turn, ms: float) -> None:
        """The turn chosen last took ``ms``."""
        self._lanes.charge(turn.lane, ms, self._waiting)
        self._stages[turn.lane].charge(turn.stage, ms)


@dataclass(frozen=True)
class Queued:
    """A request of a ``family`` ("images", "answers") that has not begun."""

    request: int
    family: str
    lane: Priority
    due: float


def beginners(queued: Iterable[Queued], begun: Mapping[tuple[str, Priority], int], slots: Mapping[str, int]) -> list[int]:
    """Queued requests that begin now: by due time, as many as a family has slots in each lane.

    Every lane has slots of its own, so that a full lower lane never keeps a higher one out; what is in progress, and with it the memory
    of its caches, is bounded by lanes times slots.
    """
    taken = Counter(begun)
    chosen: list[int] = []
    for candidate in sorted(queued, key=lambda q: (q.due, q.request)):
        place = (candidate.family, candidate.lane)
        if taken[place] < slots[candidate.family]:
            taken[place] += 1
            chosen.append(candidate.request)
    return chosen
