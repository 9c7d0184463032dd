"""A frame, and boxes in it.  Boxes are ``(x, y, width, height)`` in pixels of the frame, x to the right, y down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Picture: TypeAlias = NDArray[np.uint8]
Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class KnownFace:
    """A face that the source itself vouches for: its box and, for the demo, what is true about it."""

    box: Box
    slots: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a source.

    Attributes:
        image: (Y, X, 3) uint8, BGR as OpenCV has it.
        number: counts from 0 within a source, across reconnects.
        captured_s: when it was taken: of the monotonic clock for live sources, of the recording for files.
        known: the faces in it where the source knows them, else None.
    """

    image: Picture
    number: int
    captured_s: float
    known: tuple[KnownFace, ...] | None = None

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[0]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]; 0 where either has no area."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return min(1.0, shared / (a[2] * a[3] + b[2] * b[3] - shared))


def inside(box: Box, size_wh: tuple[int, int]) -> float:
    """The share of a box that lies within the frame, in [0, 1]."""
    width = min(box[0] + box[2], size_wh[0]) - max(box[0], 0)
    height = min(box[1] + box[3], size_wh[1]) - max(box[1], 0)
    area = box[2] * box[3]
    return 0.0 if width <= 0 or height <= 0 or area <= 0 else min(1.0, width * height / area)


def grown(box: Box, by: float, size_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box with ``by`` of its sides added all around, as whole pixels left, top, right, bottom within the frame."""
    x, y, width, height = box
    left, top = max(0, round(x - by * width)), max(0, round(y - by * height))
    right, bottom = min(size_wh[0], round(x + (1 + by) * width)), min(size_wh[1], round(y + (1 + by) * height))
    return left, top, max(left, right), max(top, bottom)
