"""Rates and age quantiles of a run, in constant memory."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

_GROWTH = 1.05  # ratio of neighbouring histogram bins: quantiles are exact to 5 %
_RECENT_S = 3.0


class AgeHistogram:
    """Quantiles of durations in ms, from a logarithmic histogram of 0.1 ms … 10 min."""

    def __init__(self) -> None:
        self._counts = np.zeros(330, dtype=np.int64)
        self.count = 0

    def add(self, ms: float) -> None:
        index = 0 if ms <= 0.1 else min(len(self._counts) - 1, math.ceil(math.log(ms / 0.1) / math.log(_GROWTH)))
        self._counts[index] += 1
        self.count += 1

    def quantile(self, share: float) -> float | None:
        """Return the upper edge in ms of the bin that holds a quantile; None before the first duration."""
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


class Accuracy:
    """Share of the displayed attributes that are correct."""

    def __init__(self) -> None:
        self._right = self._all = 0

    def add(self, right: int, judged: int) -> None:
        self._right += right
        self._all += judged

    @property
    def share(self) -> float | None:
        return self._right / self._all if self._all else None
