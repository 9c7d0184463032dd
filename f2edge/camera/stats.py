"""Rates and ages over the whole run, in constant memory."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

_GROWTH = 1.05  # from one class of a histogram to the next: quantiles are right to 5 %
_RECENT_S = 3.0


class Ages:
    """Quantiles of durations in milliseconds, from a histogram with classes of equal ratio: 0.1 ms … 10 min."""

    def __init__(self) -> None:
        self._counts = np.zeros(330, dtype=np.int64)
        self.count = 0

    def add(self, ms: float) -> None:
        index = 0 if ms <= 0.1 else min(len(self._counts) - 1, math.ceil(math.log(ms / 0.1) / math.log(_GROWTH)))
        self._counts[index] += 1
        self.count += 1

    def quantile(self, share: float) -> float | None:
        """The upper end of the class that holds this quantile; None before the first duration."""
        if self.count == 0:
            return None
        index = int(np.searchsorted(np.cumsum(self._counts), max(1, math.ceil(share * self.count))))
        return 0.1 * _GROWTH**index


class Rate:
    """Events per second over the last three seconds."""

    def __init__(self) -> None:
        self._times: deque[tuple[float, int]] = deque(maxlen=4096)

    def add(self, now_s: float, count: int = 1) -> None:
        self._times.append((now_s, count))

    def per_second(self, now_s: float) -> float:
        while self._times and now_s - self._times[0][0] > _RECENT_S:
            self._times.popleft()
        if len(self._times) < 2:
            return 0.0
        span = max(now_s - self._times[0][0], 1e-3)
        return sum(count for _, count in list(self._times)[1:]) / span


class Agreement:
    """How often what is shown is what the source knows to be true, by slot."""

    def __init__(self) -> None:
        self._right = self._all = 0

    def add(self, right: int, judged: int) -> None:
        self._right += right
        self._all += judged

    @property
    def share(self) -> float | None:
        return self._right / self._all if self._all else None
