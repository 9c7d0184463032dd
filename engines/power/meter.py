"""Power meters: what one is, and how readings of power become energy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from f2edge.errors import F2EdgeError

#: Seconds after which a reading of power is stale.
STALE_S = 3.0


class PowerError(F2EdgeError, RuntimeError):
    """A meter that this machine lacks, that may not be read, or that stopped."""


class Meter(Protocol):
    """Counter of joules since it was opened."""

    @property
    def name(self) -> str:
        """Return one of :data:`engines.power.power.METERS`."""
        ...

    @property
    def covers(self) -> str:
        """Return what consumes the counted energy, in words."""
        ...

    def joules(self) -> float:
        """Return the energy so far, never less than before; raise :class:`PowerError` where the meter stopped."""
        ...

    def close(self) -> None: ...


class PowerIntegral:
    """Joules from readings of power, each held until the next.  Thread-safe.

    Readings below zero (sensor offsets at rest) count as zero.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._joules = self._watts = 0.0
        self._at: float | None = None
        self._ended = ""

    def add(self, watts: float) -> None:
        """Set the power from now on."""
        with self._lock:
            now = self._clock()
            if self._at is not None:
                self._joules += self._watts * (now - self._at)
            self._at, self._watts = now, max(watts, 0.0)

    def end(self, reason: str) -> None:
        """Mark the end of the readings."""
        with self._lock:
            self._ended = reason

    def joules(self) -> float:
        """Return the energy since the first reading; raise :class:`PowerError` before it, after :meth:`end`, or if stale."""
        with self._lock:
            if self._ended:
                raise PowerError(self._ended)
            if self._at is None:
                raise PowerError("no reading of the power yet")
            age = self._clock() - self._at
            if age > STALE_S:
                raise PowerError(f"no reading of the power for {age:.1f} s")
            return self._joules + self._watts * age
