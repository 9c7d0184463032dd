"""Frames and boxes.  Boxes are ``(x, y, width, height)`` in pixels of the frame, x to the right, y down."""

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
    """Face known to the source: its box and, in the demo, its true attributes."""

    box: Box
    slots: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a source.

    Attributes:
        image: (Y, X, 3) uint8, BGR.
        number: index from 0 within a source, across reconnects.
        captured_s: capture time in seconds: monotonic clock for live sources, media time for files.
        known: faces known to the source, or None.
    """

    image: Picture
    number: int
    captured_s: float
    known: tuple[KnownFace, ...] | None = None

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[0]


def overlap(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes, in [0, 1]; 0 if either has no area."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return min(1.0, shared / (a[2] * a[3] + b[2] * b[3] - shared))


def inside(box: Box, size_wh: tuple[int, int]) -> float:
    """Return the share of a box within the frame, in [0, 1]."""
    width = min(box[0] + box[2], size_wh[0]) - max(box[0], 0)
    height = min(box[1] + box[3], size_wh[1]) - max(box[1], 0)
    area = box[2] * box[3]
    return 0.0 if width <= 0 or height <= 0 or area <= 0 else min(1.0, width * height / area)


def grown(box: Box, by: float, size_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the box enlarged by ``by`` of its sides on every side, as integer left, top, right, bottom within the frame."""
    x, y, width, height = box
    left, top = max(0, round(x - by * width)), max(0, round(y - by * height))
    right, bottom = min(size_wh[0], round(x + (1 + by) * width)), min(size_wh[1], round(y + (1 + by) * height))
    return left, top, max(left, right), max(top, bottom)
