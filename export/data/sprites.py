"""The demo camera's people: held-out faces cut out of their backdrop, each at several turns of the head, on one sheet with its truth.

    python -m export.data.sprites f2edge/camera/assets

The device plays them back without skia (``f2edge/camera/sprites.py``).  Every person wears a combination of hair color, eyewear and
clothing color that training never sees, so that answers about the demo are answers about new faces.
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

#: Turns of the head; the model's "left" is about -0.9, "right" 0.9.  Between them the pose is nobody's truth.
YAWS = (-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9)
#: Units of a 128-unit picture that a sprite shows: wider than the picture, so that no shoulder is cut off.
MARGIN_X, BELOW = 20, 4
PIXELS_PER_UNIT = 2
#: (seed of a held-out person, what it does); picked by eye for variety.
PEOPLE: tuple[tuple[int, str], ...] = (
    (7, "smile"), (23, "smile"), (26, "listen_to_music"), (17, "none"), (11, "smile"), (27, "gaze"), (33, "none"), (28, "wink"),
)  # fmt: skip
#: What depends on where the person stands, not on the person.
_OF_THE_PICTURE = ("background", "sharpness")
_QUALITY = 70


@dataclass(frozen=True)
class Person:
    """A full assignment of slots, and the seeds of bones and picture."""

    slots: Mapping[str, str]
    identity: int
    seed: int


def person(seed: int, action: str) -> Person:
    """A held-out person who does ``action``, evenly lit and sharp."""
    rng = np.random.default_rng([seed, 77])
    slots = sample_slots(rng, "heldout")
    slots |= {"action": action, "emotion": "neutral", "head_pose": "front", "lighting": "even", "sharpness": "sharp", "face_mask": "none"}
    return Person(slots, int(rng.integers(2**62)), seed)


def cut_out(who: Person, yaw: float) -> NDArray[np.uint8]:
    """The person with the head turned, (height, width, 4) uint8 RGBA with straight alpha."""
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


def truth(who: Person) -> dict[str, str]:
    """What every picture of the person shows, whatever the turn and the background."""
    return {name: value for name, value in visible(who.slots).items() if name not in (*_OF_THE_PICTURE, "head_pose")}


def sheet() -> tuple[Image.Image, dict[str, object]]:
    """All people, a row for each and a column for each turn, and the description that goes with the picture."""
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
    """Write ``people.webp`` and ``people.json``."""
    picture, description = sheet()
    picture.save(folder / "people.webp", quality=_QUALITY, alpha_quality=75, method=6)
    (folder / "people.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
