"""Times of steps, measured as they run: what is to be expected, what must be reckoned with, and how many steps fit before a deadline.

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
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from math import ceil
from statistics import median

#: A median of so many recent values follows a machine that slows down within a second or two, and ignores single outliers.
WINDOW = 15
#: What must be reckoned with is a high quantile of more values: a promise is kept on bad moments too.
LONG_WINDOW, HIGH = 120, 0.98
#: A size that did not occur in so many runs of its kind is forgotten: the machine may have changed since.
MEMORY = 200


class StepTimes:
    """Recent durations by kind of work and size (rows, branches or pixels); ``LONG_WINDOW`` values of each size at most.

    Attributes:
        version: grows whenever an answer may have changed.
    """

    def __init__(self) -> None:
        self.version = 0
        self._recent: dict[str, dict[int, deque[float]]] = {}
        self._medians: dict[str, dict[int, float]] = {}
        self._highs: dict[str, dict[int, float]] = {}
        self._newest: dict[str, dict[int, int]] = {}
        self._runs: Counter[str] = Counter()

    def add(self, kind: str, size: int, ms: float) -> None:
        """Add a run of ``ms``.  The very first of a kind loads its graph and is not counted."""
        self._runs[kind] += 1
        if self._runs[kind] == 1:
            return
        sizes, medians = self._recent.setdefault(kind, {}), self._medians.setdefault(kind, {})
        newest, highs = self._newest.setdefault(kind, {}), self._highs.setdefault(kind, {})
        recent = sizes.setdefault(size, deque(maxlen=LONG_WINDOW))
        recent.append(ms)
        medians[size], newest[size] = median(islice(reversed(recent), WINDOW)), self._runs[kind]
        highs[size] = high_quantile(recent)
        for old in [s for s, run in newest.items() if run <= self._runs[kind] - MEMORY]:
            del sizes[old], medians[old], newest[old], highs[old]
        self.version += 1

    def doubt(self) -> None:
        """Forget the slowest run of every kind and size: an engine that refuses work while it has none would never learn otherwise."""
        for kind, sizes in self._recent.items():
            for size, recent in sizes.items():
                if len(recent) > 1:
                    recent.remove(max(recent))
                    self._medians[kind][size], self._highs[kind][size] = median(islice(reversed(recent), WINDOW)), high_quantile(recent)
        self.version += 1

    def largest(self, kind: str) -> int:
        """Return the largest size that is known, 0 where none is."""
        return max(self._medians.get(kind, {}), default=0)

    def ms(self, kind: str, size: int = 1) -> float:
        """Return the expected duration: the median at this size, or between the nearest sizes known.

        Below the smallest size known its time is taken, above the largest it grows in proportion; 0 where nothing is known, so
        that an unknown time refuses no request.
        """
        return _at(self._medians.get(kind), size)

    def high_ms(self, kind: str, size: int = 1) -> float:
        """Return the duration to be reckoned with: the same of the high quantile ``HIGH``."""
        return _at(self._highs.get(kind), size)


def high_quantile(values: Sequence[float] | deque[float]) -> float:
    """Return the quantile ``HIGH`` of some values, the next one above where it lies between two."""
    return sorted(values)[ceil(HIGH * len(values)) - 1]


def _at(known: Mapping[int, float] | None, size: int) -> float:
    if not known:
        return 0.0
    if size in known:
        return known[size]
    sizes = sorted(known)
    at = bisect_left(sizes, size)
    if at == 0:
        return known[sizes[0]]
    low = sizes[at - 1]
    if at == len(sizes):
        return known[low] * size / low
    high = sizes[at]
    return known[low] + (known[high] - known[low]) * (size - low) / (high - low)


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
