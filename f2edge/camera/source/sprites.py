"""People of the demo camera: pictures with transparency, made by ``export/data/sprites.py``, and their true attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Pixels of chest painted below a sprite, so that it reaches the frame's lower edge.
_CHEST = 320
#: Rows at the sprite's lower edge that are left out: the renderer draws the hem's outline there.
_HEM = 9
_COARSE = 4  # rows painted as one; there is nothing sharp in a chest
_HAIR_TIPS, _PENDANTS = 70, 10  # pixels below the cut at which the longest hair and ties end, and what else hangs from a neck
#: Approximate colors of clothes (BGR), to separate cloth from hair and neckwear.
_CLOTHS = {
    "white": (230, 230, 230),
    "black": (35, 30, 30),
    "red": (50, 40, 190),
    "blue": (160, 70, 40),
    "green": (40, 120, 40),
    "yellow": (50, 190, 220),
}
#: Turn beyond which the head counts as turned, and below which it counts as frontal; in between the pose is not judged.
_TURNED, _FRONT = 0.75, 0.15


@dataclass(frozen=True, eq=False)
class DemoPerson:
    """One person of the demo.

    Attributes:
        pictures: (Y, X, 4) uint8 for each turn of the head, premultiplied BGR and alpha.
        slots: attributes visible in every picture.
    """

    pictures: tuple[NDArray[np.uint8], ...]
    slots: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Cast:
    """All people of the demo.

    Attributes:
        people: people in the order of the sheet.
        yaws: turns of the head, ascending, in [-1, 1], one for each picture of a person.
        left: left edge of the portrait's square within a picture, in pixels; its top is 0.
        side: side of that square, in pixels.
    """

    people: tuple[DemoPerson, ...]
    yaws: tuple[float, ...]
    left: int
    side: int

    def turn(self, person: int, yaw: float) -> tuple[NDArray[np.uint8], dict[str, str]]:
        """Return the picture nearest to a turn of the head, and its attributes, including the pose if it is clear."""
        index = min(range(len(self.yaws)), key=lambda i: abs(self.yaws[i] - yaw))
        shown, who = self.yaws[index], self.people[person]
        slots = dict(who.slots)
        if abs(shown) >= _TURNED or abs(shown) <= _FRONT:
            slots["head_pose"] = "front" if abs(shown) <= _FRONT else "left" if shown < 0 else "right"
        return who.pictures[index], slots


@cache
def load_cast() -> Cast:
    """Read the sheet in the package, once (0.2 s); its pictures must not be modified."""
    assets = files("f2edge.camera") / "assets"
    about = json.loads((assets / "people.json").read_text(encoding="utf-8"))
    with (assets / "people.webp").open("rb") as file:
        sheet = np.asarray(Image.open(file, formats=("WEBP",)).convert("RGBA"))  # (people * Y, yaws * X, 4)
    unit, margin, yaws = about["pixels_per_unit"], about["margin_x_units"], tuple(about["yaws"])
    height, width = sheet.shape[0] // len(about["people"]), sheet.shape[1] // len(yaws)
    people = []
    for row, slots in enumerate(about["people"]):
        strip = sheet[row * height : (row + 1) * height]
        cloth = np.array(_CLOTHS[slots["clothing_color"]], dtype=np.float32)
        tie = slots.get("necktie") == "tie"
        people.append(DemoPerson(tuple(_prepared(strip[:, i * width : (i + 1) * width], cloth, tie=tie) for i in range(len(yaws))), slots))
    return Cast(tuple(people), yaws, margin * unit, 128 * unit)


def _prepared(picture: NDArray[np.uint8], cloth: NDArray[np.float32], *, tie: bool) -> NDArray[np.uint8]:
    alpha = picture[:-_HEM, :, 3:].astype(np.uint16)
    color = (picture[:-_HEM, :, 2::-1] * alpha + 127) // 255
    ready = np.dstack([color.astype(np.uint8), picture[:-_HEM, :, 3]])
    return np.ascontiguousarray(np.concatenate([ready, _chest(ready, cloth, tie=tie)]))


def _chest(ready: NDArray[np.uint8], cloth: NDArray[np.float32], *, tie: bool) -> NDArray[np.uint8]:
    """Return the chest below a picture: the cloth of its last row, wider and darker downwards, with the ends of the hair."""
    row = ready[-1].astype(np.float32)  # (X, 4)
    solid = np.flatnonzero(row[:, 3] == 255)
    first, last = int(solid[0]), int(solid[-1])
    away = np.abs(row[:, :3] - cloth).max(1)
    cloth = np.median(row[solid][away[solid] <= np.quantile(away[solid], 0.3), :3], axis=0)
    other = (np.abs(row[:, :3] - cloth).max(1) > 40) & (row[:, 3] == 255)  # hair, ties
    bare = np.where(other[:, None], np.append(cloth, 255), row).astype(np.float32)
    bare[first : first + 4, :3] = bare[last - 3 : last + 1, :3] = 0.5 * cloth
    down = np.linspace(0, 1, _CHEST // _COARSE, dtype=np.float32)[:, None]  # (Y, 1)
    middle, half = (first + last) / 2, (last - first) / 2
    across = ((np.arange(len(row)) - middle) / (1 + 0.07 * np.sqrt(down)) + middle).astype(np.float32)  # (Y, X)
    body = cv2.remap(bare[None], across, np.zeros_like(across), cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    sleeve = np.exp(-(((np.abs(across - middle) / half - 0.66 + 0.05 * down) * half / 2.2) ** 2)) * np.clip(6 * down - 0.4, 0, 1)
    body[..., :3] *= (1 - 0.3 * down[..., None]) * (1 - 0.3 * sleeve[..., None])
    reach = cv2.blur(cv2.blur(other.astype(np.float32)[None], (15, 1)), (15, 1))  # thick hair reaches lower, its edges less
    length = np.where((np.abs(np.arange(len(row)) - middle) > 0.4 * half) | tie, _HAIR_TIPS, _PENDANTS)
    tips = np.clip((reach * 1.6 - down * _CHEST / length) * 6, 0, 1)[..., None] * other[None, :, None]
    painted = (body * (1 - tips) + row * tips).clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(painted, (len(row), _CHEST), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
