"""Named qualities: ``fast``, ``balanced`` and ``best`` are schedules of a bundle, in its manifest with what was measured of each.

A bundle without them has the three made from its default schedule: ``balanced`` is the default.  A deadline that leaves no time for all
steps takes the options of the preset whose number of steps is nearest to what fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import log

from f2edge.decoding.schedule import Schedule
from f2edge.errors import InputError

QUALITIES = ("fast", "balanced", "best")
#: Steps of presets that nobody searched, as a share of the default's; at least ``_FEWEST``.
_SHARES, _FEWEST = (1 / 3, 1.0, 2.0), 4


@dataclass(frozen=True)
class Preset:
    """A schedule by name.

    Attributes:
        measured: figures by name, such as "attributes"; empty where nothing was measured.
    """

    schedule: Schedule
    measured: Mapping[str, float] = field(default_factory=dict)


Presets = Mapping[str, Preset]


def built_in(default: Schedule) -> dict[str, Preset]:
    """Return the presets of a bundle that has none of its own: its default with a third and twice its steps."""
    steps = [max(min(_FEWEST, default.steps), round(share * default.steps)) for share in _SHARES]
    return {name: Preset(replace(default, steps=min(count, 1024))) for name, count in zip(QUALITIES, steps, strict=True)}


def for_edits(presets: Presets, default: Schedule) -> dict[str, Preset]:
    """Return the presets of edits: the default schedule of edits with each preset's steps."""
    return {name: Preset(replace(default, steps=preset.schedule.steps)) for name, preset in presets.items()}


def check_quality(name: str) -> str:
    """Return the name of a preset; raises :class:`InputError` for others."""
    if name not in QUALITIES:
        raise InputError(f"generation options: unknown quality {name!r}; choose one of: {', '.join(QUALITIES)}")
    return name


def name_of(schedule: Schedule, presets: Presets, asked: str | None = None) -> str:
    """Return the name of the preset that a schedule is, "" where it is none; of several that are equal, the one asked for."""
    names = [name for name, preset in presets.items() if preset.schedule == schedule]
    return asked if asked in names else next(iter(names), "")


def nearest(presets: Presets, steps: int) -> tuple[str, Schedule]:
    """Return the preset for so many steps, and its schedule with exactly so many."""
    name = min(presets, key=lambda name: abs(log(presets[name].schedule.steps / steps)))
    return name, replace(presets[name].schedule, steps=steps)
