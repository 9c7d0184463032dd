"""Schedules that distilled weights were trained for: ``trained_for`` of a bundle's manifest and of a student's weights file.

>>> TrainedFor.parse({"guidance": 0.0, "steps": [6], "teacher_guidance": 3.0}).steps
(6,)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from f2edge.bundle.checked_json import require, typed


@dataclass(frozen=True)
class TrainedFor:
    """What a student's weights stand in for.

    Attributes:
        guidance: guidance to draw with; 0 for a student that learned its teacher's.
        steps: numbers of steps to draw in.
        teacher_guidance: guidance of the teacher whose pictures the student draws.
    """

    guidance: float
    steps: tuple[int, ...]
    teacher_guidance: float

    @classmethod
    def parse(cls, row: Any) -> TrainedFor:
        """Return the object of a parsed JSON document; raises :class:`~f2edge.errors.BundleError` naming what is wrong."""
        typed(row, cls, "trained_for")
        found = cls(row["guidance"], tuple(row["steps"]), row["teacher_guidance"])
        distinct = 0 < len(found.steps) == len(set(found.steps))
        require(
            {
                "guidance and teacher_guidance in 0 … 100": all(0 <= g <= 100 for g in (found.guidance, found.teacher_guidance)),
                "steps, distinct numbers in 1 … 1024": distinct and all(1 <= n <= 1024 for n in found.steps),
            },
            "trained_for",
        )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the object as :meth:`parse` reads it."""
        return {**asdict(self), "steps": list(self.steps)}

    def default(self, generation: Mapping[str, Any]) -> dict[str, Any]:
        """Return a default schedule of a manifest for these weights: with their guidance, in the most steps that they were trained for."""
        return {**generation, "guidance": self.guidance, "steps": max(self.steps)}

    @property
    def described(self) -> str:
        """For people."""
        steps = " or ".join(map(str, self.steps))
        return f"{steps} steps at guidance {self.guidance:g}, in place of its teacher's guidance {self.teacher_guidance:g}"
