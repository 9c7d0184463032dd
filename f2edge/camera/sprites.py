"""The people of the demo camera: pictures with transparency, made by ``export/data/sprites.py``, and what is true about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Pixels of chest added below a sprite by repeating its last row, so that it reaches the frame's lower edge.
_CHEST = 300
#: Beyond it the head counts as turned, within the second it faces the camera; between them the pose is not judged.
_TURNED, _FRONT = 0.75, 0.15


@dataclass(frozen=True, eq=False)
class Person:
    """One person.

    Attributes:
        pictures: for each turn of the head (Y, X, 4) uint8, BGR multiplied by alpha, and alpha.
        slots: what every picture shows.
    """

    pictures: tuple[NDArray[np.uint8], ...]
    slots: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Cast:
    """Everybody.

    Attributes:
        people: in the order of the sheet.
        yaws: turns of the head, ascending, in [-1, 1], one for each picture of a person.
        left: of the portrait's square within a picture, in pixels; its top is 0.
        side: of that square.
    """

    people: tuple[Person, ...]
    yaws: tuple[float, ...]
    left: int
    side: int

    def turn(self, person: int, yaw: float) -> tuple[NDArray[np.uint8], dict[str, str]]:
        """The picture nearest to a turn of the head, and what it shows, the pose included where it is clear."""
        index = min(range(len(self.yaws)), key=lambda i: abs(self.yaws[i] - yaw))
        shown, who = self.yaws[index], self.people[person]
        slots = dict(who.slots)
        if abs(shown) >= _TURNED or abs(shown) <= _FRONT:
            slots["head_pose"] = "front" if abs(shown) <= _FRONT else "left" if shown < 0 else "right"
        return who.pictures[index], slots


def load_cast() -> Cast:
    """Read the sheet that ships with the package (about 80 ms)."""
    assets = files("f2edge.camera") / "assets"
    about = json.loads((assets / "people.json").read_text(encoding="utf-8"))
    with (assets / "people.webp").open("rb") as file:
        sheet = np.asarray(Image.open(file, formats=("WEBP",)).convert("RGBA"))  # (people * Y, yaws * X, 4)
    unit, margin, yaws = about["pixels_per_unit"], about["margin_x_units"], tuple(about["yaws"])
    height, width = sheet.shape[0] // len(about["people"]), sheet.shape[1] // len(yaws)
    people = []
    for row, slots in enumerate(about["people"]):
        strip = sheet[row * height : (row + 1) * height]
        people.append(Person(tuple(_prepared(strip[:, i * width : (i + 1) * width]) for i in range(len(yaws))), slots))
    return Cast(tuple(people), yaws, margin * unit, 128 * unit)


def _prepared(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = picture[..., 3:].astype(np.uint16)
    color = (picture[..., 2::-1] * alpha + 127) // 255
    ready = np.dstack([color.astype(np.uint8), picture[..., 3]])
    return np.ascontiguousarray(np.concatenate([ready, _chest(ready)]))


def _chest(ready: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What lies below a picture: its last row, running out into the cloth's color, and darker further down."""
    row = ready[-1:].astype(np.float32)  # (1, X, 4)
    alpha = row[..., 3:]
    smooth = cv2.GaussianBlur(row, (0, 0), 2.5, borderType=cv2.BORDER_CONSTANT)
    even = smooth[..., :3] / np.maximum(smooth[..., 3:], 1) * alpha
    cloth = np.median(ready[-1][ready[-1, :, 3] == 255][:, :3], axis=0).astype(np.float32) * (alpha / 255)
    down = np.linspace(0, 1, _CHEST, dtype=np.float32)[:, None, None]
    gone = np.minimum(1, down * 7) ** 0.7
    color = (even * (1 - gone) + cloth * gone) * (1 - 0.35 * down)
    return np.dstack([color.clip(0, 255), np.broadcast_to(alpha, (_CHEST, *alpha.shape[1:]))]).astype(np.uint8)
