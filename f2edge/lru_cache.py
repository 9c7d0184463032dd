"""Thread-safe least-recently-used cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class LRUCache(Generic[Key, Result]):
    """Cache of the ``size`` results used last.

    Two threads that miss the same key at once both compute it; either result is valid.

    Attributes:
        hits, misses: counts of :meth:`get`.
    """

    def __init__(self, size: int) -> None:
        self.hits = self.misses = 0
        self._size = size
        self._results: OrderedDict[Key, Result] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, key: Key) -> bool:
        with self._lock:
            return key in self._results

    def __len__(self) -> int:
        with self._lock:
            return len(self._results)

    def get(self, key: Key, make: Callable[[], Result]) -> Result:
        """Return the cached result of ``key``; on a miss, compute it with ``make`` and cache it."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                self.hits += 1
                return self._results[key]
            self.misses += 1
        result = make()
        with self._lock:
            self._results[key] = result
            while len(self._results) > self._size:
                self._results.popitem(last=False)
        return result

    def reset_counts(self) -> None:
        """Count hits and misses from zero again."""
        self.hits = self.misses = 0

    def clear(self) -> None:
        """Drop every result; the counts stay."""
        with self._lock:
            self._results.clear()
