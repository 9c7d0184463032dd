"""Skull and skin: outline, ears, shading, and everything that sits in the skin (freckles, wrinkles, cheeks, chin)."""

from __future__ import annotations

import skia

from export.data.render.brush import RGB, Brush, argb, dark, discs, light, mix, oval, radial, smooth
from export.data.render.geometry import CROWN_Y
from export.data.render.look import Look

EAR_Y = 3.0


def lean(look: Look, y: float) -> float:
    """How far the outline of a turned head moves sideways at height ``y``."""
    return look.g.yaw * (1.5 + 5.0 * min(1.0, max(0.0, (y + 20) / 60)))


def head_path(look: Look) -> skia.Path:
    """Outline of the face and skull, head coordinates."""
    g = look.g
    w, square = g.half_width, look.is_("face_shape", "square")
    half = [(w * 0.55, CROWN_Y + 4), (w * 0.9, -28.0), (w, -6.0), (w * 0.985, 9.0), (g.jaw, 24.0 if not square else 27.0)]
    half.append((g.chin_half + (g.jaw - g.chin_half) * 0.3, g.chin_y - (7.5 if not square else 4.0)))
    half.append((g.chin_half * 0.62, g.chin_y - 0.8))
    right = [(x + lean(look, y), y) for x, y in half]
    left = [(-x + lean(look, y), y) for x, y in reversed(half)]
    return smooth([(lean(look, CROWN_Y), CROWN_Y), *right, *left], closed=True)


def ear_sides(look: Look) -> list[int]:
    """Which ears can be seen: -1 the viewer's left, 1 the right."""
    if abs(look.g.yaw) < 0.5:
        return [-1, 1]
    return [-1] if look.g.yaw > 0 else [1]


def ear_x(look: Look, side: int) -> float:
    """Center of an ear; the near ear of a turned head moves in."""
    near = -side * look.g.yaw
    return side * (look.g.half_width + 1.5 - 5.0 * max(0.0, near)) + lean(look, EAR_Y)


def paint_ears(brush: Brush, look: Look) -> None:
    """Ears with an inner fold; in front of the hair, behind the cheek unless the head turned."""
    for side in ear_sides(look):
        x = ear_x(look, side)
        ear = oval(x, EAR_Y, 6.0, 9.5)
        brush.canvas.save()
        if abs(look.g.yaw) < 0.5:
            brush.canvas.clipPath(head_path(look), skia.ClipOp.kDifference, True)
        brush.fill(ear, mix(look.skin, (214, 90, 80), 0.1))
        brush.stroke(ear, look.line, 1.3)
        brush.line([(x + side * 2.6, EAR_Y - 5.5), (x - side * 0.2, EAR_Y - 1), (x + side * 1.5, EAR_Y + 4.5)], look.line, 1.4, 0.65)
        brush.canvas.restore()


def paint_head(brush: Brush, look: Look) -> None:
    """The head with its modelling, and what lies in the skin."""
    g, head = look.g, head_path(look)
    if look.is_("chin", "double"):
        paint_double_chin(brush, look)
    center = (g.yaw * 6 - 4, -6.0)
    colors = [argb(light(look.skin, 0.22)), argb(look.skin), argb(mix(look.skin, dark(look.skin, 0.5), 0.22)), argb(dark(look.skin, 0.3))]
    brush.shade(head, radial(center, 56.0, colors, [0.0, 0.45, 0.72, 1.0]))
    brush.stroke(head, look.line, 1.3)
    brush.canvas.save()
    brush.canvas.clipPath(head, True)
    brush.glow(g.turn(0.0, 6), -30, 20, light(look.skin, 0.5), 0.4)
    for side in (-1, 1):
        brush.glow(g.turn(side * 22.0), 13, 13, mix(look.skin, (226, 80, 70), 0.5), 0.34)
        if look.is_("cheekbones", "high"):
            paint_cheekbone(brush, look, side)
        if look.is_("build", "chubby"):
            brush.glow(g.turn(side * 25.0), 15.5, 10.5, light(look.skin, 0.42), 0.55)
            brush.line(
                [(g.turn(side * 16.5), 20), (g.turn(side * 19.5), 26.5), (g.turn(side * 26.0), 28.5), (g.turn(side * 32.0), 25)],
                look.line,
                1.6,
                0.5,
            )
    paint_marks_of_age(brush, look)
    if look.is_("cheeks", "rosy"):
        for side in (-1, 1):
            brush.glow(g.turn(side * 23.5), 14, 12.5, (255, 62, 108) if not look.is_("skin_tone", "dark") else (206, 30, 74), 0.85)
    paint_texture(brush, look)
    brush.canvas.restore()


def paint_double_chin(brush: Brush, look: Look) -> None:
    """A second, softer chin below the first."""
    g = look.g
    x, y, w = lean(look, g.chin_y), g.chin_y, 0.5 * (g.jaw + g.chin_half)
    fold = smooth(
        [
            (x - w * 1.05, y - 12),
            (x - w * 0.84, y + 1.5),
            (x - w * 0.4, y + 8),
            (x, y + 9.5),
            (x + w * 0.4, y + 8),
            (x + w * 0.84, y + 1.5),
            (x + w * 1.05, y - 12),
        ]
    )
    brush.fill(fold, mix(look.skin, dark(look.skin, 0.5), 0.12))
    brush.stroke(fold, look.line, 2.1)
    brush.line([(x - w * 0.5, y + 4.0), (x, y + 6.2), (x + w * 0.5, y + 4.0)], light(look.skin, 0.5), 2.2, 0.8)


def paint_cheekbone(brush: Brush, look: Look, side: int) -> None:
    """A lit ridge with a dark hollow below it."""
    g = look.g
    outer, inner = g.turn(side * 33.0), g.turn(side * 18.0)
    hollow = smooth([(outer, 8), (g.turn(side * 26.0), 13.5), (inner, 22), (g.turn(side * 27.0), 20)], closed=True)
    brush.fill(hollow, dark(look.skin, 0.55), 0.62)
    brush.line([(outer, 4), (g.turn(side * 25.0), 8.5), (g.turn(side * 19.0), 13)], light(look.skin, 0.6), 2.4, 0.75)


def paint_marks_of_age(brush: Brush, look: Look) -> None:
    """Lines of the forehead, beside the eyes and from nose to mouth; all deeper when old."""
    if look.is_("age", "young"):
        return
    old, g = look.is_("age", "old"), look.g
    ink: RGB = dark(look.skin, 0.6 if not look.is_("skin_tone", "dark") else 0.75)
    alpha, width = (0.85, 1.5) if old else (0.6, 1.1)
    for y in (-33.0, -27.5, -22.5) if old else (-26.5,):
        brush.line(
            [(g.turn(-15), y + 1), (g.turn(-7), y - 0.6), (g.turn(0), y + 0.6), (g.turn(7), y - 0.6), (g.turn(15), y + 1)],
            ink,
            width,
            alpha * 0.85,
        )
    for side in (-1, 1):
        deep = 27.5 if old else 23.0
        brush.line([(g.turn(side * 8.5), 16), (g.turn(side * 14.5), 21), (g.turn(side * 16.5), deep)], ink, width + 0.2, alpha)
        if not old:
            continue
        for k in (-3.5, 0.5, 4.5):
            brush.line([(g.turn(side * 28.0), 1 + k * 0.4), (g.turn(side * 33.5), k * 1.15)], ink, 1.3, alpha)
        brush.line([(g.turn(side * 9.0), 11.5), (g.turn(side * 16.5), 13.5), (g.turn(side * 24.0), 10.5)], ink, 1.2, 0.55)
        brush.glow(g.turn(side * 24.0), 28, 9, (120, 116, 122), 0.4)


def paint_texture(brush: Brush, look: Look) -> None:
    """Freckles, or red spots."""
    g, dice = look.g, look.dice(2)
    if look.is_("skin_texture", "freckled"):
        color = dark((150, 70, 24), 0.1) if look.slots["skin_tone"] in ("light", "pale", "tan") else dark(look.skin, 0.8)
        spots = [(0.0, 6.0), (-5.5, 9.0), (5.5, 9.0)]
        spots += [
            (side * x, y) for side in (-1, 1) for x, y in ((13, 12), (18, 10), (23, 12.5), (28, 9.5), (15, 17), (20.5, 17), (26, 17.5))
        ]
        brush.fill(discs((g.turn(x + dice.uniform(-1, 1)), y + dice.uniform(-1, 1), dice.uniform(1.15, 1.6)) for x, y in spots), color, 0.9)
    elif look.is_("skin_texture", "blemished"):
        for x, y in ((-20, -24), (10, -30), (24, -19), (-27, 12), (-19, 19), (26, 20), (19, 11), (-10, 36)):
            px, py = g.turn(x + dice.uniform(-1.5, 1.5)), y + dice.uniform(-1.5, 1.5)
            brush.disc(px, py, 2.7, (216, 52, 56), 0.55)
            brush.disc(px, py, 1.8, (196, 22, 36))
            brush.disc(px - 0.5, py - 0.5, 0.7, (255, 190, 180))
