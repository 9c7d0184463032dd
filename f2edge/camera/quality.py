"""Quality gate: a face must be large, sharp, inside the frame and facing the camera to be analyzed."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from f2edge.camera.detect import Detection
from f2edge.camera.frames import Box, Frame, grown, inside
from f2edge.errors import InputError

_PATCH = 96  # side in pixels at which sharpness is measured, so that it is independent of the face's size


@dataclass(frozen=True)
class Gate:
    """Thresholds of the quality gate.

    Attributes:
        smallest_px: minimum shorter side of the box, in pixels.
        least_inside: minimum share of the box within the frame.
        least_sharpness: minimum :func:`sharpness`; 0 accepts everything.
        largest_turn: maximum :func:`turn`, if there are landmarks.
        light: minimum and maximum mean gray value, 0 … 255.
    """

    smallest_px: float = 48.0
    least_inside: float = 0.85
    least_sharpness: float = 12.0
    largest_turn: float = 0.6
    light: tuple[float, float] = (15.0, 245.0)

    def __post_init__(self) -> None:
        if not (self.smallest_px >= 1 and 0 <= self.least_inside <= 1 and self.least_sharpness >= 0 and self.largest_turn > 0):
            raise InputError(f"quality gate is out of range: {self}")


@dataclass(frozen=True)
class Quality:
    """Measurements of a face.  ``reason`` is "" if it passes, else the defect: small, cut, blurred, turned or light."""

    inside: float
    sharpness: float
    turn: float | None
    reason: str

    @property
    def good(self) -> bool:
        return not self.reason


def judge(frame: Frame, box: Box, detection: Detection, gate: Gate) -> Quality:
    """Measure a face and compare it with the gate; the first failed test, cheap ones first, is the reason."""
    size, part = min(box[2], box[3]), inside(box, frame.size_wh)
    turned = None if detection.landmarks is None else turn(detection.landmarks)
    if size < gate.smallest_px:
        return Quality(part, 0.0, turned, "small")
    if part < gate.least_inside:
        return Quality(part, 0.0, turned, "cut")
    left, top, right, bottom = grown(box, 0.0, frame.size_wh)
    gray = cv2.cvtColor(frame.image[top:bottom, left:right], cv2.COLOR_BGR2GRAY)
    patch = np.asarray(cv2.resize(gray, (_PATCH, _PATCH), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    sharp, light = sharpness(patch), float(patch.mean())
    reason = ""
    if not gate.light[0] <= light <= gate.light[1]:
        reason = "light"
    elif sharp < gate.least_sharpness:
        reason = "blurred"
    elif turned is not None and turned > gate.largest_turn:
        reason = "turned"
    return Quality(part, sharp, turned, reason)


def sharpness(gray: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> float:
    """Return the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000) of a gray patch, divided by the patch's variance, times 100."""
    spread = float(gray.astype(np.float32).var())
    return 100 * float(cv2.Laplacian(gray, cv2.CV_32F).var()) / max(spread, 25.0)


def turn(landmarks: tuple[tuple[float, float], ...]) -> float:
    """Return the nose's offset from the middle of the eyes, in half eye distances: 0 is frontal, about 1 a profile."""
    (left, _), (right, _), (nose, _) = landmarks[:3]
    half = abs(right - left) / 2
    return 9.0 if half < 1e-6 else abs(nose - (left + right) / 2) / half
