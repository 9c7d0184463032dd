"""From slots and two seeds to the continuous measures of a face: identity fixes the bones, the picture's seed the rest.

Lengths are in pixels of a 128-pixel picture; ``size`` scales everything when it is painted.  Head coordinates have their origin between
the eyes, x to the viewer's right, y downwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

EYE_LINE_Y = 59.0  # of a 128-pixel picture
CROWN_Y = -45.0  # head coordinates: top of the skull


@dataclass(frozen=True)
class Geometry:
    """Measures of one face in one picture.

    Attributes:
        half_width, jaw, chin_half, chin_y: outline of the head.
        neck, shoulder: half-width of the neck, height offset of the shoulders (negative: higher).
        eye_x, eye_w, eye_h, iris: half the distance between the eyes, half-size of one eye, radius of the iris.
        brow_y, nose_y, mouth_y, mouth_w: heights, and half-width of the mouth at rest.
        nose_w: half-width of the nose.
        yaw: -1 … 1, negative to the viewer's left.
        tilt: degrees, clockwise.
        scale, dx, dy: the head's placement.
        phase: seed of decorative variation (strands, dots), 0 … 2³¹.
        tint: nuisance of skin, hair, clothes and background, each three small RGB offsets.
        choice: indices for free choices (hat, mask and tie colors).
    """

    half_width: float
    jaw: float
    chin_half: float
    chin_y: float
    neck: float
    shoulder: float
    eye_x: float
    eye_w: float
    eye_h: float
    iris: float
    brow_y: float
    nose_y: float
    nose_w: float
    mouth_y: float
    mouth_w: float
    yaw: float
    tilt: float
    scale: float
    dx: float
    dy: float
    phase: int
    tint: tuple[tuple[int, int, int], ...]
    choice: tuple[int, ...]

    def turn(self, x: float, depth: float = 8.0) -> float:
        """Where a point at ``x`` of the face lands once the head turned; ``depth`` is how far it stands out."""
        far = 1.0 - 0.13 * abs(self.yaw) if x * self.yaw > 0 else 1.0
        return x * far + self.yaw * depth


#: width at the cheeks, at the jaw, at the chin, and the chin's height
_SHAPES = {
    "oval": (35.5, 28.0, 13.0, 43.0),
    "round": (39.5, 34.0, 16.0, 40.5),
    "square": (36.5, 35.0, 24.5, 41.5),
    "heart": (38.5, 25.5, 7.0, 44.0),
}


def measure(slots: Mapping[str, str], identity: int, seed: int) -> Geometry:
    """The measures of ``slots``; identity and seed are non-negative integers below 2⁶³."""
    bones = np.random.default_rng([identity, 11]).uniform(-1.0, 1.0, 12)
    rng = np.random.default_rng([seed, 12])
    free = rng.uniform(-1.0, 1.0, 8)
    width, jaw, chin_half, chin_y = _SHAPES[slots["face_shape"]]
    masculine, chubby = slots["gender_presentation"] == "masculine", slots["build"] == "chubby"
    width += 2.5 * chubby + 0.8 * bones[0]
    jaw += 3.2 * chubby + 1.6 * masculine + 0.8 * bones[1]
    chin_half += 2.0 * chubby + 2.0 * masculine + 0.8 * bones[2]
    round_eyes = slots["eye_shape"] == "round"
    yaw = {"front": 0.0, "left": -1.0, "right": 1.0}[slots["head_pose"]]
    yaw = yaw * (0.92 + 0.08 * free[0]) + (0.06 * free[0] if yaw == 0 else 0.0)
    tilt = 2.0 * free[1]
    if slots["action"] == "head_wagging":
        tilt = 11.0 if free[1] > 0 else -11.0
    return Geometry(
        half_width=width,
        jaw=min(jaw, width + 0.5),
        chin_half=chin_half,
        chin_y=chin_y + 0.8 * bones[3],
        neck=(21.0 if masculine else 13.5) + 3.5 * chubby,
        shoulder=(-3.0 if masculine else 2.5) - 4.0 * chubby,
        eye_x=16.3 + 0.7 * bones[4],
        eye_w=(9.3 if round_eyes else 10.3) + 0.4 * bones[5],
        eye_h=(7.4 if round_eyes else 4.3) + 0.3 * bones[6],
        iris=5.1 + 0.3 * bones[7],
        brow_y=-14.5 + 0.7 * bones[8],
        nose_y=15.0 + 0.9 * bones[9],
        nose_w=(9.6 if slots["nose_size"] == "big" else 5.0) + 0.3 * bones[10],
        mouth_y=27.0 + 0.6 * bones[11],
        mouth_w=12.0 + 0.8 * bones[2],
        yaw=yaw,
        tilt=tilt,
        scale=1.0 + 0.02 * free[2],
        dx=1.8 * free[3],
        dy=1.2 * free[4],
        phase=int(rng.integers(2**31)),
        tint=tuple((int(r), int(g), int(b)) for r, g, b in rng.integers(-7, 8, (4, 3))),
        choice=tuple(int(v) for v in rng.integers(0, 1 << 20, 6)),
    )
