"""Energy of a piece of work, where the machine lets it be read: a Jetson's board by tegrastats, CPUs by RAPL, an NVIDIA GPU by NVML.

    with closing(Power.open("auto")) as power:
        calls, drawn = power.drawn(work)          # work() for some seconds: meters are slower than calls
        print(drawn.total / calls, "J each;", power.covers, power.missing)

What a meter covers differs: ``covers`` says it, and a figure without it says nothing.  tegrastats stands for the whole board, so "auto"
takes it alone; RAPL (CPU packages and their DRAM) and NVML (one GPU) have nothing in common and are added.  The meters themselves are in
:mod:`bench.hardware.power_meters`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from f2edge.errors import F2EdgeError, InputError

Result = TypeVar("Result")
#: What ``--power`` takes besides "auto" and "none".
METERS = ("tegrastats", "rapl", "nvml")
#: A power that was last told longer ago is not held any further.
STALE_S = 3.0


class PowerError(F2EdgeError, RuntimeError):
    """A meter that this machine lacks, that may not be read, or that stopped."""


class Meter(Protocol):
    """Something that counts joules from when it was opened."""

    @property
    def name(self) -> str:
        """One of :data:`METERS`."""
        ...

    @property
    def covers(self) -> str:
        """What draws the energy that is counted, in words."""
        ...

    def joules(self) -> float:
        """So far; never less than before.  Raises :class:`PowerError` where the meter stopped."""
        ...

    def close(self) -> None: ...


class Held:
    """Joules of a power that is told from time to time: each reading holds until the next.  Safe between a reader's thread and others.

    Readings below zero (offsets of a sensor at rest) count as zero.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._joules = self._watts = 0.0
        self._at: float | None = None
        self._ended = ""

    def add(self, watts: float) -> None:
        """The power from now on."""
        with self._lock:
            now = self._clock()
            if self._at is not None:
                self._joules += self._watts * (now - self._at)
            self._at, self._watts = now, max(watts, 0.0)

    def end(self, reason: str) -> None:
        """No more readings will come."""
        with self._lock:
            self._ended = reason

    def joules(self) -> float:
        """Since the first reading; raises :class:`PowerError` before it, after :meth:`end`, and when readings stay away."""
        with self._lock:
            if self._ended:
                raise PowerError(self._ended)
            if self._at is None:
                raise PowerError("no reading of the power yet")
            age = self._clock() - self._at
            if age > STALE_S:
                raise PowerError(f"no reading of the power for {age:.1f} s")
            return self._joules + self._watts * age


@dataclass(frozen=True)
class Drawn:
    """Energy of a piece of work: ``joules`` by meter, over ``seconds``."""

    seconds: float
    joules: Mapping[str, float]

    @property
    def total(self) -> float:
        """Joules of all meters together."""
        return sum(self.joules.values())

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.total / self.seconds


class Power:
    """The meters of a run, none of which covers what another does.

    Attributes:
        meters: those that can be read.
        missing: of those that cannot, name and reason.
    """

    def __init__(self, meters: Sequence[Meter], missing: Mapping[str, str] | None = None) -> None:
        self.meters, self.missing = tuple(meters), dict(missing or {})

    @classmethod
    def open(cls, choice: str = "auto", openers: Mapping[str, Callable[[], Meter]] | None = None) -> Power:
        """The meters of this machine.

        Args:
            choice: "auto", "none", or one of :data:`METERS`.
            openers: by name, how to open each meter; :data:`bench.hardware.power_meters.OPENERS` by default.

        Raises:
            InputError: an unknown choice, or a meter asked for by name that cannot be read.
        """
        if choice not in {"auto", "none", *METERS}:
            raise InputError(f"--power {choice!r}: choose auto, none, {', '.join(METERS)}")
        if choice == "none":
            return cls(())
        if openers is None:
            from bench.hardware.power_meters import OPENERS

            openers = OPENERS
        meters, missing = list[Meter](), dict[str, str]()
        for name in METERS if choice == "auto" else (choice,):
            try:
                meters.append(openers[name]())
            except PowerError as error:
                missing[name] = str(error)
                continue
            if name == "tegrastats":
                break  # the whole board: CPU and GPU are in it
        if choice != "auto" and not meters:
            raise InputError(f"--power {choice}: {missing[choice]}")
        return cls(meters, missing)

    @property
    def covers(self) -> str:
        """What the sum of all meters stands for."""
        return " + ".join(meter.covers for meter in self.meters)

    def drawn(self, work: Callable[[], Result]) -> tuple[Result, Drawn]:
        """What ``work`` gives, and the energy meanwhile of all that a meter covers, this process's or not; raises :class:`PowerError`."""
        before, start = {meter.name: meter.joules() for meter in self.meters}, time.monotonic()
        result = work()
        joules = {meter.name: meter.joules() - before[meter.name] for meter in self.meters}
        return result, Drawn(max(time.monotonic() - start, 1e-9), joules)

    def close(self) -> None:
        """Close every meter."""
        for meter in self.meters:
            meter.close()
