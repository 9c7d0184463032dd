"""Times of steps, measured as they run, and estimates from them: when work will be done, and how many steps fit before a deadline.

>>> times = StepTimes()
>>> for ms in (900.0, 20.0, 22.0, 21.0): times.add("step", 2, ms)     # the first run loads the graph and is not counted
>>> times.ms("step", 2), times.ms("step", 4)
(21.0, 42.0)
>>> fitting_steps(12, 4, 100.0, lambda steps: 21.0 * steps)
4
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Sequence
from statistics import median

#: A median of so many recent values follows a machine that slows down within a second or two, and ignores single outliers.
WINDOW = 15
#: A size that did not occur in so many runs of its kind is forgotten: the machine may have changed since.
MEMORY = 200


class StepTimes:
    """Recent durations by kind of work and size (rows or branches); ``WINDOW`` values of each size at most.

    Attributes:
        version: grows whenever an answer may have changed.
    """

    def __init__(self) -> None:
        self.version = 0
        self._recent: dict[str, dict[int, deque[float]]] = {}
        self._medians: dict[str, dict[int, float]] = {}
        self._newest: dict[str, dict[int, int]] = {}
        self._runs: Counter[str] = Counter()

    def add(self, kind: str, size: int, ms: float) -> None:
        """Add a run of ``ms``.  The very first of a kind loads its graph and is not counted."""
        self._runs[kind] += 1
        if self._runs[kind] == 1:
            return
        sizes, medians = self._recent.setdefault(kind, {}), self._medians.setdefault(kind, {})
        newest = self._newest.setdefault(kind, {})
        recent = sizes.setdefault(size, deque(maxlen=WINDOW))
        recent.append(ms)
        medians[size], newest[size] = median(recent), self._runs[kind]
        for old in [s for s, run in newest.items() if run <= self._runs[kind] - MEMORY]:
            del sizes[old], medians[old], newest[old]
        self.version += 1

    def largest(self, kind: str) -> int:
        """Return the largest size that is known, 0 where none is."""
        return max(self._medians.get(kind, {}), default=0)

    def ms(self, kind: str, size: int = 1) -> float:
        """Return the expected duration: the median at this size, or between the nearest sizes known.

        Below the smallest size known its time is taken, above the largest it grows in proportion; 0 where nothing is known, so
        that an unknown time refuses no request.
        """
        medians = self._medians.get(kind)
        if not medians:
            return 0.0
        if size in medians:
            return medians[size]
        known = sorted(medians)
        at = bisect_left(known, size)
        if at == 0:
            return medians[known[0]]
        low = known[at - 1]
        if at == len(known):
            return medians[low] * size / low
        high = known[at]
        return medians[low] + (medians[high] - medians[low]) * (size - low) / (high - low)


def finish_ms(ahead: Sequence[int], steps: int, rows: int, step_ms: Callable[[int], float]) -> float:
    """Return the time until a request of ``steps`` steps is done.

    Args:
        ahead: steps left of the requests before it, in order of service.
        steps: of the request.
        rows: how many requests share a step.
        step_ms: duration of a step by its number of rows.
    """
    left = [*ahead, steps]
    elapsed_ms = 0.0
    while left[-1] > 0:
        active = [i for i, remaining in enumerate(left) if remaining > 0][:rows]
        count = min(left[i] for i in active)  # until then the same rows run
        elapsed_ms += count * step_ms(len(active))
        for i in active:
            left[i] -= count
    return elapsed_ms


def fitting_steps(wanted: int, floor: int, budget_ms: float, total_ms: Callable[[int], float]) -> int:
    """Return the most steps of ``floor … wanted`` that fit in the budget, by a total that grows with the steps; ``floor`` where none do."""
    low, high = min(floor, wanted), wanted
    while low < high:
        middle = (low + high + 1) // 2
        if total_ms(middle) <= budget_ms:
            low = middle
        else:
            high = middle - 1
    return low
