"""Energy of a piece of work: a Jetson's board by tegrastats, CPUs by RAPL, an NVIDIA GPU by NVML.

    with closing(Power.open("auto")) as power:
        calls, energy = power.measure(work)       # work() runs for some seconds: meters update more slowly than calls take
        print(energy.total / calls, "J each;", power.covers, power.missing)

``covers`` names what a result includes.  tegrastats covers the whole board, so "auto" uses it alone; RAPL (CPU packages and their DRAM) and
NVML (one GPU) do not overlap and are added.  The meters are in :mod:`engines.power.power_meters`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from engines.power.meter import Meter, PowerError
from engines.power.power_meters import OPENERS
from f2edge.errors import InputError

Result = TypeVar("Result")
#: Values of ``--power`` besides "auto" and "none".
METERS = ("tegrastats", "rapl", "nvml")


@dataclass(frozen=True)
class Energy:
    """Energy of a piece of work: ``joules`` by meter, over ``seconds``."""

    seconds: float
    joules: Mapping[str, float]

    @property
    def total(self) -> float:
        """Return the joules of all meters together."""
        return sum(self.joules.values())

    @property
    def watts(self) -> float:
        """Return the mean power."""
        return self.total / self.seconds


class Power:
    """The meters of a run; they do not overlap.

    Attributes:
        meters: that can be read.
        missing: name and reason of those that cannot.
    """

    def __init__(self, meters: Sequence[Meter], missing: Mapping[str, str] | None = None) -> None:
        self.meters, self.missing = tuple(meters), dict(missing or {})

    @classmethod
    def open(cls, choice: str = "auto", openers: Mapping[str, Callable[[], Meter]] = OPENERS) -> Power:
        """Open the meters of this machine.

        Args:
            choice: "auto", "none", or one of :data:`METERS`.
            openers: function that opens each meter, by name.

        Raises:
            InputError: an unknown choice, or a meter asked for by name that cannot be read.
        """
        if choice not in {"auto", "none", *METERS}:
            raise InputError(f"--power {choice!r}: choose auto, none, {', '.join(METERS)}")
        if choice == "none":
            return cls(())
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
        """Return what the sum of all meters includes, in words."""
        return " + ".join(meter.covers for meter in self.meters)

    def measure(self, work: Callable[[], Result]) -> tuple[Result, Energy]:
        """Return the result of ``work`` and the energy of everything that the meters cover meanwhile; raise :class:`PowerError`."""
        before, start = {meter.name: meter.joules() for meter in self.meters}, time.monotonic()
        result = work()
        joules = {meter.name: meter.joules() - before[meter.name] for meter in self.meters}
        return result, Energy(max(time.monotonic() - start, 1e-9), joules)

    def close(self) -> None:
        """Close every meter."""
        for meter in self.meters:
            meter.close()
