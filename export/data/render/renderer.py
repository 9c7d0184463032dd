"""Faces with ground truth: slots and two seeds in, a portrait with regions and landmarks out.

>>> face = sample_face(7)
>>> face.image.shape, face.slots["action"]

Painting goes from back to front on one skia raster surface; the figure is a separate layer, so that lighting applies to it only.
Everything is a function of (slots, identity, seed, size): the same call gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import skia
from numpy.typing import NDArray

from export.data.render.brush import Brush, oval, smooth
from export.data.render.eyes import eye_center, paint_brows, paint_eyes
from export.data.render.geometry import CROWN_Y, EYE_LINE_Y, measure
from export.data.render.hair import back_path, paint_back, paint_cap
from export.data.render.head import EAR_Y, ear_sides, ear_x, head_path, lean, paint_ears, paint_head
from export.data.render.look import Look, look_at
from export.data.render.marks import FACE_MARKS, OPTIONAL_MARKS, PICTURE_MARKS
from export.data.render.mouth import beard_path, corner_points, paint_beard, paint_mouth, paint_mustache, paint_nose
from export.data.render.scene import body_path, neck_path, paint_backdrop, paint_body, paint_light, paint_neckwear
from export.data.render.worn import crown_path, paint_earrings, paint_eyewear, paint_hat, paint_mask
from export.data.slots import SPLITS, check, sample_person, sample_slots, visible
from f2edge.errors import InputError

Mask = NDArray[np.bool_]

#: Version of the pictures: changes whenever the same seed gives another picture.
RENDER_VERSION = 2

BLUR_SIGMA = 1.45  # of a 128-pixel picture


@dataclass(frozen=True)
class Face:
    """One rendered portrait.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        slots: what can be seen, by slot name.
        regions: (size, size) bool by name of :data:`REGIONS`; empty if not asked for.  Regions overlap.
        landmarks: (5, 2) float32, x and y in pixels: left eye, right eye, nose tip, left and right mouth corner (the viewer's left).
        identity: seed of the person's bones.
        seed: seed of the picture.
    """

    image: NDArray[np.uint8]
    slots: Mapping[str, str]
    landmarks: NDArray[np.float32]
    identity: int
    seed: int
    regions: Mapping[str, Mask] = field(default_factory=dict)


def _place_head(canvas: skia.Canvas, look: Look) -> None:
    g = look.g
    canvas.translate(64 + g.dx, EYE_LINE_Y + g.dy)
    canvas.translate(0, 30)
    canvas.rotate(g.tilt)
    canvas.translate(0, -30)
    canvas.scale(g.scale, g.scale)


def _paint_figure(brush: Brush, look: Look) -> None:
    canvas, mark = brush.canvas, look.expression.mark
    canvas.save()
    _place_head(canvas, look)
    if not look.is_("hair_length", "long"):
        paint_back(brush, look)
    canvas.restore()
    paint_body(brush, look)
    if look.is_("hair_length", "long"):
        canvas.save()
        _place_head(canvas, look)
        canvas.clipPath(_chest_window(look), skia.ClipOp.kDifference, True)
        paint_back(brush, look)
        canvas.restore()
    paint_neckwear(brush, look)
    canvas.save()
    _place_head(canvas, look)
    for paint in (paint_head, paint_beard, paint_eyes, paint_nose, paint_mouth, paint_mustache, paint_cap, paint_ears, paint_brows):
        paint(brush, look)
    for paint in (paint_mask, paint_eyewear, paint_hat, paint_earrings):
        paint(brush, look)
    if mark in FACE_MARKS:
        FACE_MARKS[mark](brush, look)
    canvas.restore()


def _chest_window(look: Look) -> skia.Path:
    """Where long hair leaves neck and chest free, head coordinates."""
    w = look.g.half_width
    return smooth([(-w + 9, 20), (-w + 7, 50), (-w + 3, 90), (w - 3, 90), (w - 7, 50), (w - 9, 20)], closed=True)


def _paint(look: Look, size: int) -> NDArray[np.uint8]:
    pixels = np.zeros((size, size, 4), np.uint8)
    surface = skia.Surface(pixels)
    canvas = surface.getCanvas()
    canvas.scale(size / 128, size / 128)
    brush = Brush(canvas)
    blurred = look.is_("sharpness", "blurry")
    if blurred:
        sigma = BLUR_SIGMA
        canvas.saveLayer(None, skia.Paint(ImageFilter=skia.ImageFilters.Blur(sigma, sigma, skia.TileMode.kClamp)))
    paint_backdrop(brush, look)
    canvas.saveLayer()
    _paint_figure(brush, look)
    paint_light(canvas, look)
    canvas.restore()
    mark = look.expression.mark
    if mark in PICTURE_MARKS and (look.sticker or mark not in OPTIONAL_MARKS):
        PICTURE_MARKS[mark](brush, look)
    if blurred:
        canvas.restore()
    return np.ascontiguousarray(pixels[:, :, :3])


def _scalp(look: Look) -> skia.Path:
    """Hair as it is or may become: top, sides and lengths (the face is cut out again)."""
    path = back_path(look, 64.0)
    if not look.is_("hat", "none"):
        path.addPath(crown_path(look, -20, CROWN_Y - 10), 0, 0)
        path.addPath(oval(lean(look, -26), -24, look.g.half_width + 20, 9), 0, 0)
    return path


def _inner_face(look: Look) -> skia.Path:
    """The face below the hair, which no hair covers."""
    g = look.g
    half = [(24.0, -16.0, 4.0), (g.half_width - 4, 2.0, 4.0), (g.jaw - 1, 28.0, 5.0)]
    right = [(g.turn(x, depth), y) for x, y, depth in half]
    left = [(g.turn(-x, depth), y) for x, y, depth in reversed(half)]
    return smooth([(g.turn(0, 4), -20), *right, (lean(look, 40), g.chin_y + 26), *left], closed=True)


def _eyes_region(look: Look) -> skia.Path:
    g = look.g
    x = g.turn(0, 9)
    return oval(x, 1.0, g.half_width - 1, 14.0)


def _brows_region(look: Look) -> skia.Path:
    return oval(look.g.turn(0, 8), look.g.brow_y, 31.0, 8.5)


def _nose_region(look: Look) -> skia.Path:
    g = look.g
    return smooth(
        [
            (g.turn(0, 9), -7),
            (g.turn(11, 11), g.nose_y),
            (g.turn(9, 11), g.nose_y + 7),
            (g.turn(-9, 11), g.nose_y + 7),
            (g.turn(-11, 11), g.nose_y),
        ],
        closed=True,
    )


def _mouth_region(look: Look) -> skia.Path:
    return oval(look.g.turn(0, 9), look.g.mouth_y + 2.5, 19.0, 11.5)


def _ears_region(look: Look) -> skia.Path:
    path = skia.Path()
    for side in ear_sides(look):
        path.addPath(oval(ear_x(look, side) + side, EAR_Y + 5, 10.0, 18.0), 0, 0)
    return path


def _hat_region(look: Look) -> skia.Path:
    path = crown_path(look, -20, CROWN_Y - 12)
    path.addPath(oval(lean(look, -26), -24, look.g.half_width + 20, 9), 0, 0)
    return path


_HEAD_REGIONS: dict[str, Callable[[Look], skia.Path]] = {
    "hair": _scalp,
    "eyes": _eyes_region,
    "brows": _brows_region,
    "nose": _nose_region,
    "mouth": _mouth_region,
    "chin": beard_path,
    "ears": _ears_region,
    "skin": head_path,
    "hat": _hat_region,
}
_BODY_REGIONS: dict[str, Callable[[Look], skia.Path]] = {"neck": neck_path, "clothing": body_path}

#: Names of the region masks, in the order in which they are stored.
REGIONS: tuple[str, ...] = (*_HEAD_REGIONS, *_BODY_REGIONS, "background")


def _fill_mask(size: int, paint: Callable[[skia.Canvas], None]) -> Mask:
    """Coverage of what ``paint`` fills, thresholded at one half."""
    cover = np.zeros((size, size), np.uint8)
    surface = skia.Surface.MakeRasterDirect(skia.ImageInfo.MakeA8(size, size), cover, size)
    canvas = surface.getCanvas()
    canvas.scale(size / 128, size / 128)
    paint(canvas)
    return np.asarray(cover > 127)


_SOLID = skia.Paint(AntiAlias=True, Color=0xFFFFFFFF)
_ERASE = skia.Paint(AntiAlias=True, Color=0xFFFFFFFF, BlendMode=skia.BlendMode.kClear)


def _regions(look: Look, size: int) -> dict[str, Mask]:
    """All masks of :data:`REGIONS`."""

    def on_head(name: str) -> Callable[[skia.Canvas], None]:
        def paint(canvas: skia.Canvas) -> None:
            _place_head(canvas, look)
            canvas.drawPath(_HEAD_REGIONS[name](look), _SOLID)
            if name == "hair":
                canvas.drawPath(_inner_face(look), _ERASE)

        return paint

    def on_body(name: str) -> Callable[[skia.Canvas], None]:
        return lambda canvas: canvas.drawPath(_BODY_REGIONS[name](look), _SOLID)

    masks = {name: _fill_mask(size, on_head(name)) for name in _HEAD_REGIONS}
    for name in _BODY_REGIONS:
        masks[name] = _fill_mask(size, on_body(name))
    masks["clothing"] &= ~masks["skin"]
    figure = masks["skin"] | masks["ears"] | masks["clothing"] | masks["neck"]
    if look.slots["hair_length"] != "bald":
        figure |= masks["hair"]
    if look.slots["hat"] != "none":
        figure |= masks["hat"]
    masks["background"] = ~figure
    return {name: masks[name] for name in REGIONS}


def _landmarks(look: Look, size: int) -> NDArray[np.float32]:
    g = look.g
    points = [*(eye_center(g, side) for side in (-1, 1)), (g.turn(0, 11), g.nose_y), *corner_points(look)]
    matrix = skia.Matrix()
    matrix.preScale(size / 128, size / 128)
    matrix.preTranslate(64 + g.dx, EYE_LINE_Y + g.dy + 30)
    matrix.preRotate(g.tilt)
    matrix.preTranslate(0, -30)
    matrix.preScale(g.scale, g.scale)
    mapped = matrix.mapPoints([skia.Point(x, y) for x, y in points])
    return np.array([(p.x(), p.y()) for p in mapped], np.float32)  # (5, 2)


def render(slots: Mapping[str, str], *, identity: int, seed: int, size: int = 128, with_regions: bool = True) -> Face:
    """The portrait of ``slots``.

    Args:
        slots: a value for each of the 40 slots; combinations that :func:`export.data.slots.sample_slots` never makes are painted too.
        identity: non-negative; the same identity has the same bones.
        seed: non-negative; placement, colors and other nuisance.
        size: width and height in pixels, 32 … 1024.
        with_regions: also draw the region masks.

    Raises:
        InputError: for missing or unknown slots, or a size or seed out of range.
    """
    check(slots)
    if not 32 <= size <= 1024:
        raise InputError(f"size {size} is out of range; choose 32 … 1024 pixels")
    if identity < 0 or seed < 0:
        raise InputError(f"identity {identity} and seed {seed} must not be negative")
    look = look_at(slots, measure(slots, identity, seed))
    regions: dict[str, Any] = _regions(look, size) if with_regions else {}
    return Face(_paint(look, size), visible(slots), _landmarks(look, size), identity, seed, regions)


def sample_face(seed: int, split: str = "train", size: int = 128, *, with_regions: bool = True) -> Face:
    """A random face, the same for the same seed and split; seeds 2k and 2k + 1 show one person.

    Raises:
        InputError: for an unknown split or a size or seed out of range.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; choose one of: {', '.join(SPLITS)}")
    if seed < 0:
        raise InputError(f"seed {seed} must not be negative")
    stream = SPLITS.index(split)
    person_rng = np.random.default_rng([seed // 2, stream, 21])
    person = sample_person(person_rng)
    identity = int(person_rng.integers(2**62))
    slots = sample_slots(np.random.default_rng([seed, stream, 22]), split, person=person)
    return render(slots, identity=identity, seed=seed * 2 + stream, size=size, with_regions=with_regions)
