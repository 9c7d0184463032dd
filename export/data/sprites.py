"""Sprite sheet of the demo camera: held-out faces without background at several head poses, with ground truth.

    python -m export.data.sprites f2edge/camera/assets

The device shows them without skia (``f2edge/camera/source/sprites.py``).  Every person has a held-out combination of hair color, eyewear
and clothing color, so the demo shows new faces.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import skia
from numpy.typing import NDArray
from PIL import Image

from export.data.render.brush import Brush
from export.data.render.geometry import measure
from export.data.render.look import Look, look_at
from export.data.render.marks import PICTURE_MARKS
from export.data.render.renderer import RENDER_VERSION, _paint_figure
from export.data.render.scene import paint_light
from export.data.slots import sample_slots, visible

#: Yaw of the head poses; the model's "left" is about -0.9, "right" 0.9, and poses between have no ground truth.
YAWS = (-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9)
#: Margins of a sprite beyond the 128-unit picture, in units, so that no shoulder is cut off.
MARGIN_X, BELOW = 20, 4
PIXELS_PER_UNIT = 2
#: (seed of a held-out person, action), chosen by hand for variety.
PEOPLE: tuple[tuple[int, str], ...] = (
    (7, "smile"), (23, "smile"), (26, "listen_to_music"), (17, "none"), (11, "smile"), (27, "gaze"), (33, "none"), (28, "wink"),
)  # fmt: skip
#: Slots that depend on the scene, not on the person.
_OF_THE_PICTURE = ("background", "sharpness")
_QUALITY = 70


@dataclass(frozen=True)
class DemoPerson:
    """A full assignment of slots, and the seeds of identity and picture."""

    slots: Mapping[str, str]
    identity: int
    seed: int


def person(seed: int, action: str) -> DemoPerson:
    """Return a held-out person with an action, in even light and sharp."""
    rng = np.random.default_rng([seed, 77])
    slots = sample_slots(rng, "heldout")
    slots |= {"action": action, "emotion": "neutral", "head_pose": "front", "lighting": "even", "sharpness": "sharp", "face_mask": "none"}
    return DemoPerson(slots, int(rng.integers(2**62)), seed)


def cut_out(who: DemoPerson, yaw: float) -> NDArray[np.uint8]:
    """Paint a person at a head pose, (height, width, 4) uint8 RGBA with straight alpha."""
    geometry = replace(measure(who.slots, who.identity, who.seed), yaw=yaw)
    look: Look = look_at(who.slots, geometry)
    width, height = (128 + 2 * MARGIN_X) * PIXELS_PER_UNIT, (128 + BELOW) * PIXELS_PER_UNIT
    pixels = np.zeros((height, width, 4), np.uint8)
    canvas = skia.Surface(pixels).getCanvas()
    canvas.scale(PIXELS_PER_UNIT, PIXELS_PER_UNIT)
    canvas.translate(MARGIN_X, 0)
    brush = Brush(canvas)
    canvas.saveLayer()
    _paint_figure(brush, look)
    paint_light(canvas, look)
    canvas.restore()
    if look.expression.mark in PICTURE_MARKS:
        PICTURE_MARKS[look.expression.mark](brush, look)
    alpha = pixels[..., 3:].astype(np.float32)  # (Y, X, 1)
    color = pixels[..., :3] * np.divide(255, alpha, out=np.zeros_like(alpha), where=alpha > 0)
    return np.dstack([np.rint(color).clip(0, 255).astype(np.uint8), pixels[..., 3]])


def truth(who: DemoPerson) -> dict[str, str]:
    """Return the slots that every picture of the person shows, at any pose and background."""
    return {name: value for name, value in visible(who.slots).items() if name not in (*_OF_THE_PICTURE, "head_pose")}


def sheet() -> tuple[Image.Image, dict[str, object]]:
    """Return the sheet, with a row per person and a column per pose, and its description."""
    people = [person(seed, action) for seed, action in PEOPLE]
    rows = [np.concatenate([cut_out(who, yaw) for yaw in YAWS], axis=1) for who in people]
    description = {
        "render_version": RENDER_VERSION,
        "yaws": YAWS,
        "pixels_per_unit": PIXELS_PER_UNIT,
        "margin_x_units": MARGIN_X,
        "below_units": BELOW,
        "people": [truth(who) for who in people],
    }
    return Image.fromarray(np.concatenate(rows)), description


def main(folder: Path) -> None:
    """Write ``people.webp`` and ``people.json`` to ``folder``."""
    picture, description = sheet()
    picture.save(folder / "people.webp", quality=_QUALITY, alpha_quality=75, method=6)
    (folder / "people.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
