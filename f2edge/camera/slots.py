"""Single-item slot between two threads in which the newest item wins.

>>> slot = LatestSlot[int]()
>>> slot.put(1), slot.put(2), slot.take(), slot.dropped
(True, True, 2, 1)
"""

from __future__ import annotations

from collections import deque
from threading import Condition
from time import monotonic
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class LatestSlot(Generic[Thing]):
    """Slot for at most one item; a new item replaces the old one.

    Attributes:
        dropped: number of items replaced before they were taken.
        taken: number of items taken.
    """

    def __init__(self) -> None:
        self._place: deque[Thing] = deque(maxlen=1)
        self._changed = Condition()
        self._closed = False
        self.dropped = 0
        self.taken = 0

    def put(self, thing: Thing) -> bool:
        """Put an item without waiting; return False, and drop it, after :meth:`close`."""
        with self._changed:
            if self._closed:
                return False
            self.dropped += len(self._place)
            self._place.append(thing)
            self._changed.notify_all()
            return True

    def take(self, timeout_s: float | None = 0.0) -> Thing | None:
        """Remove and return the item; None if there is none within ``timeout_s`` seconds (None waits for an item or the end)."""
        end = None if timeout_s is None else monotonic() + timeout_s
        with self._changed:
            while not self._place and not self._closed:
                rest = None if end is None else end - monotonic()
                if rest is not None and rest <= 0:
                    return None
                self._changed.wait(rest)
            if not self._place:
                return None
            self.taken += 1
            return self._place.popleft()

    def close(self) -> None:
        """Refuse further items; takers get the remaining one, then None at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def finished(self) -> bool:
        """Whether the slot is closed and empty."""
        with self._changed:
            return self._closed and not self._place
