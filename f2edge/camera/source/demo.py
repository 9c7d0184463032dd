"""Virtual camera: rendered people walk in, look around, turn and leave before changing backgrounds, with known attributes.

The picture is a function of time alone, so two runs show the same scene.  Face boxes come with the frame, because the Haar cascade,
trained on photographs, finds only about a fifth of these drawn faces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from f2edge.camera.crops import FACE_IN_PORTRAIT
from f2edge.camera.frames import Box, KnownFace, Picture, inside
from f2edge.camera.source.sprites import load_cast
from f2edge.errors import InputError

_VISIT_S = 14.0
_SCENE_S = 9.0
_FADE_S = 1.0
_SPARE = 1.15  # width of a background in frame widths; the excess is for panning
_HIDDEN = 0.2  # covered share of a face above which it does not count as visible
#: Backgrounds: upper and lower color, and those of the lights (RGB).
_SCENES = (
    ((242, 196, 160), (118, 92, 138), ((255, 236, 200), (255, 208, 150), (230, 150, 160))),
    ((186, 222, 224), (58, 116, 138), ((240, 255, 250), (150, 220, 210), (255, 240, 190))),
    ((206, 224, 170), (64, 110, 84), ((250, 255, 210), (170, 214, 130), (255, 226, 150))),
    ((92, 98, 152), (26, 28, 56), ((255, 200, 120), (120, 170, 255), (240, 120, 180))),
)


@dataclass(frozen=True)
class Stance:
    """Position of a person: upper middle and side of the portrait's square (pixels), tilt (degrees) and turn of the head."""

    person: int
    x: float
    y: float
    side: float
    tilt: float
    yaw: float


class Scene:
    """Scene of the virtual camera.

    Args:
        size_wh: frame size in pixels, each side 64 … 4096.
        people: number in view at once, 1 … 4.
    """

    def __init__(self, size_wh: tuple[int, int] = (960, 540), people: int = 3) -> None:
        if not 1 <= people <= 4:
            raise InputError(f"demo camera: people must lie in 1 … 4, got {people}")
        if not all(64 <= side <= 4096 for side in size_wh):
            raise InputError(f"demo camera: sides must lie in 64 … 4096 pixels, got {size_wh[0]}x{size_wh[1]}")
        self.size_wh = size_wh
        self._people = people
        self._cast = load_cast()
        self._backgrounds = [_background(size_wh, index) for index in range(len(_SCENES))]

    def at(self, time_s: float) -> tuple[Picture, tuple[KnownFace, ...]]:
        """Return the picture (BGR) at a time and the faces visible in it."""
        image = self._behind(time_s)
        stances = sorted((self._stance(place, time_s) for place in range(self._people)), key=lambda stance: stance.side)
        known: list[KnownFace] = []
        for stance in stances:
            picture, slots = self._cast.turn(stance.person, stance.yaw)
            matrix = self._placement(stance, picture.shape[0])
            cover = _paste(image, picture, matrix)
            known = [face for face in known if _covered(face.box, cover) < _HIDDEN]
            face = KnownFace(self._face_box(matrix, stance), slots)
            if inside(face.box, self.size_wh) > 1 - _HIDDEN:
                known.append(face)
        return image, tuple(known)

    def _stance(self, place: int, time_s: float) -> Stance:
        """Return the stance of the person at a place: enters from the nearer side, looks around, leaves."""
        width, height = self.size_wh
        clock = time_s / _VISIT_S + 0.31 * place + 0.16
        visit, phase = math.floor(clock), clock % 1.0
        person = (place + self._people * visit) % len(self._cast.people)
        spread = max(self._people, 2)
        home = 0.5 + 0.92 * ((place + 0.5 + 0.5 * (spread - self._people)) / spread - 0.5)
        outside = -0.32 if home < 0.5 or (home == 0.5 and visit % 2) else 1.32
        away = 1 - _smooth(phase / 0.13) + _smooth((phase - 0.88) / 0.12)
        x = home + (outside - home) * away + 0.018 * math.sin(1.1 * time_s + place)
        heading = math.copysign(away * 4, outside - home) * (-1 if phase < 0.5 else 1) if away > 0.02 else 0.0
        looking = 1.15 * math.sin(0.75 * time_s + 1.9 * place) ** 3
        size = (0.54 if self._people < 4 else 0.44) * (1 + 0.09 * math.sin(0.53 * time_s + 2.1 * place))
        side = size * height * min(1.0, width / height / 0.32 / spread / 1.6)
        y = height * (0.085 + 0.035 * math.sin(1.7 * place)) + 3 * math.sin(2.3 * time_s + place) - (size - 0.54) * height * 0.3
        yaw = float(np.clip(heading or looking, -1, 1))
        return Stance(person, x * width, y, side, 3.2 * math.sin(0.9 * time_s + place), yaw)

    def _placement(self, stance: Stance, picture_height: int) -> NDArray[np.float64]:
        """Return the (2, 3) affine map from a picture's pixels to the frame's."""
        cast, scale = self._cast, stance.side / self._cast.side
        pivot = (cast.left + cast.side / 2, cast.side * 0.9)
        matrix = np.asarray(cv2.getRotationMatrix2D(pivot, stance.tilt, scale), dtype=np.float64)
        matrix[:, 2] += (stance.x - pivot[0], stance.y + 0.9 * stance.side - pivot[1])
        lowest = matrix[1, 1] * picture_height + matrix[1, 2]
        matrix[1, 2] += max(0.0, self.size_wh[1] - lowest + 8)  # the chest reaches the lower edge
        return matrix

    def _face_box(self, matrix: NDArray[np.float64], stance: Stance) -> Box:
        left, top, side = (part * self._cast.side for part in FACE_IN_PORTRAIT)
        x, y = matrix @ (self._cast.left + left + side / 2, top + side / 2, 1.0)
        edge = FACE_IN_PORTRAIT[2] * stance.side
        return float(x) - edge / 2, float(y) - edge / 2, edge, edge

    def _behind(self, time_s: float) -> Picture:
        width, height = self.size_wh
        clock = time_s / _SCENE_S
        pan = round((0.5 + 0.5 * math.sin(0.23 * time_s)) * (self._backgrounds[0].shape[1] - width))
        now: Picture = self._backgrounds[math.floor(clock) % len(_SCENES)][:height, pan : pan + width]
        fade = (clock % 1.0 - 1) * _SCENE_S / _FADE_S + 1
        if fade <= 0:
            return np.array(now, dtype=np.uint8)
        following = self._backgrounds[(math.floor(clock) + 1) % len(_SCENES)][:height, pan : pan + width]
        return np.asarray(cv2.addWeighted(now, 1 - fade, following, fade, 0), dtype=np.uint8)


def _smooth(x: float) -> float:
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def _paste(image: Picture, picture: NDArray[np.uint8], matrix: NDArray[np.float64]) -> tuple[int, int, NDArray[np.uint8]]:
    """Compose a picture over the frame through an affine map; return left, top and alpha of the changed part."""
    height, width = image.shape[:2]
    corners = matrix @ np.array([[0, picture.shape[1], 0, picture.shape[1]], [0, 0, picture.shape[0], picture.shape[0]], [1, 1, 1, 1]])
    left, top = (int(v) for v in np.clip(np.floor(corners.min(1)), 0, (width, height)))
    right, bottom = (int(v) for v in np.clip(np.ceil(corners.max(1)), 0, (width, height)))
    if right <= left or bottom <= top:
        return left, top, np.zeros((0, 0), np.uint8)
    shifted = matrix - np.array([[0, 0, left], [0, 0, top]])
    patch = cv2.warpAffine(picture, shifted, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    alpha = np.ascontiguousarray(patch[..., 3], dtype=np.uint8)
    under = image[top:bottom, left:right]
    rest = cv2.cvtColor(255 - alpha, cv2.COLOR_GRAY2BGR)
    cv2.add(cv2.multiply(under, rest, scale=1 / 255), np.ascontiguousarray(patch[..., :3]), dst=under)
    return left, top, alpha


def _covered(box: Box, cover: tuple[int, int, NDArray[np.uint8]]) -> float:
    """Return the share of a box covered by a picture pasted later."""
    left, top, alpha = cover
    x, y = int(box[0]) - left, int(box[1]) - top
    part = alpha[max(0, y) : max(0, y + int(box[3])), max(0, x) : max(0, x + int(box[2]))]
    return float((part > 127).sum()) / max(1.0, box[2] * box[3])


def _background(size_wh: tuple[int, int], index: int) -> Picture:
    """Return a soft gradient with out-of-focus lights, wider than the frame, painted at a quarter of its size."""
    full = (round(size_wh[0] * _SPARE), size_wh[1])
    width, height = max(8, full[0] // 4), max(8, full[1] // 4)
    above, below, lights = _SCENES[index]
    rng = np.random.default_rng([index, 5])
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    image = np.array(above, np.float32) * (1 - ramp) + np.array(below, np.float32) * ramp
    image = np.ascontiguousarray(np.broadcast_to(image, (height, width, 3)))
    for _ in range(26):
        layer = np.zeros((height, width), np.float32)
        center = (int(rng.uniform(0, width)), int(rng.uniform(0, height * 0.9)))
        cv2.circle(layer, center, max(2, int(rng.uniform(0.02, 0.13) * height)), 1.0, -1, cv2.LINE_AA)
        layer = cv2.GaussianBlur(layer, (0, 0), 0.008 * height + 0.3) * np.float32(rng.uniform(0.06, 0.26))
        image += (np.array(lights[int(rng.integers(len(lights)))], np.float32) - image) * layer[..., None]
    small = image[..., ::-1].clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(small, full, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
