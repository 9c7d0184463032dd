"""Hair: what falls behind the head, the cap on top, bangs and sideburns, in three textures."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import skia

from export.data.render.brush import Brush, Point, arcs, argb, dark, discs, light, linear, smooth
from export.data.render.geometry import CROWN_Y
from export.data.render.head import lean
from export.data.render.look import Look


def _along(points: list[Point], step: float) -> list[Point]:
    """Points at equal distance on the polyline through ``points``."""
    result, rest = [points[0]], step
    for (ax, ay), (bx, by) in pairwise(points):
        length = math.hypot(bx - ax, by - ay)
        place = rest
        while place < length:
            result.append((ax + (bx - ax) * place / length, ay + (by - ay) * place / length))
            place += step
        rest = place - length
    return result


def outer_line(look: Look, volume: float = 7.0) -> list[Point]:
    """Outside of the hair on top, from the viewer's left temple to the right one."""
    g = look.g
    w, sway = g.half_width + volume * 0.62, -2.0 * g.yaw
    half = [
        (0.0, CROWN_Y - volume),
        (w * 0.42, CROWN_Y - volume * 0.8),
        (w * 0.75, CROWN_Y + 7 - volume * 0.4),
        (w * 0.97, -24.0),
        (w + 1.2, -6.0),
        (w + 0.4, 2.0),
    ]
    right = [(x + sway, y) for x, y in half]
    left = [(-x + sway, y) for x, y in reversed(half[1:])]
    return [*left, *right]


def hairline(look: Look) -> list[Point]:
    """Inside edge of the hair on top, from the right temple to the left one."""
    g = look.g
    w = g.half_width
    if look.is_("hairline", "receding") and look.is_("bangs", "none"):
        half = [(w - 3.0, -1.0), (w - 3.5, -16.0), (w - 6, -29.0), (w - 15, -40.5), (w * 0.3, -35.0)]
        middle = (g.turn(0, 2), -33.5)
        depth = 2.0
    else:
        half = [(w - 3.0, 0.0), (w - 4.5, -12.0), (w - 9, -20.5), (w - 19, -25.5)]
        middle = (g.turn(2.0, 4), -28.5)
        depth = 4.0
    right = [(g.turn(x, depth), y) for x, y in half]
    left = [(g.turn(-x, depth), y) for x, y in reversed(half)]
    return [*right, middle, *left]


def cap_path(look: Look) -> skia.Path:
    """Hair on top of the head."""
    return smooth([*outer_line(look), *hairline(look)], closed=True)


def back_bottom(look: Look) -> float:
    """Where hanging hair ends, head coordinates."""
    return {"medium": 38.0, "long": 76.0}.get(look.slots["hair_length"], 0.0)


def back_path(look: Look, bottom: float) -> skia.Path:
    """Hair behind the head, hanging down to ``bottom``."""
    g = look.g
    w, sway = g.half_width + 6.0, -3.0 * g.yaw
    half = [
        (0.0, CROWN_Y - 7),
        (w * 0.6, CROWN_Y - 2),
        (w * 0.98, -22.0),
        (w + 2.5, 2.0),
        (w + 3.5, 22.0),
        (w + 2.5, bottom - 5),
        (w - 6.0, bottom + 1),
        (w * 0.5, bottom - 3),
    ]
    right = [(x + sway, y) for x, y in half]
    left = [(-x + sway, y) for x, y in reversed(half[1:])]
    return smooth([*right, *left], closed=True)


def paint_back(brush: Brush, look: Look) -> None:
    """Medium and long hair behind the neck and over the shoulders."""
    if look.slots["hair_length"] not in ("medium", "long"):
        return
    bottom, texture, dice = back_bottom(look), look.slots["hair_texture"], look.dice(5)
    path = back_path(look, bottom)
    base, edge = dark(look.hair, 0.16), rim(look)
    w, sway = look.g.half_width + 6.0, -3.0 * look.g.yaw
    sides = [(s, [(s * (w + 2.0) + sway, y) for y in (-20.0, 0.0, 20.0, bottom - 5)]) for s in (-1, 1)]
    if texture != "straight":
        bumps = discs(
            (x, y, 6.4 if texture == "curly" else 5.0) for _, line in sides for x, y in _along(line, 8.5 if texture == "curly" else 13.0)
        )
        brush.stroke(bumps, edge, 2.4)
        brush.stroke(path, edge, 2.4)
        brush.fill(bumps, base)
    else:
        brush.stroke(path, edge, 2.4)
    brush.shade(path, linear((0, -50), (0, bottom), [argb(look.hair), argb(base), argb(dark(look.hair, 0.3))]))
    for side in (-1, 1):
        for k in range(3):
            x = side * (w - 1.5 - 4.0 * k) + sway
            paint_strand(brush, look, [(x, -8.0), (x + side * 1.0, 14.0), (x, bottom - 3)], dice, k)


def rim(look: Look) -> tuple[int, int, int]:
    """Outline of hair, lighter than black hair so that it stands off a dark backdrop."""
    return (86, 84, 108) if look.is_("hair_color", "black") else dark(look.hair, 0.5)


def paint_strand(brush: Brush, look: Look, line: list[Point], dice: random.Random, index: int) -> None:
    """One strand: straight, in waves or as a row of curls."""
    bright = index % 2 == 0
    color = (light(look.hair, 0.3) if not look.is_("hair_color", "black") else (92, 92, 126)) if bright else dark(look.hair, 0.4)
    texture = look.slots["hair_texture"]
    if texture == "straight":
        brush.line(line, color, 1.5, 0.75)
        return
    spots = _along(line, 5.0 if texture == "wavy" else 5.6)
    if texture == "wavy":
        brush.line([(x + (2.2 if i % 2 else -2.2), y) for i, (x, y) in enumerate(spots)] if len(spots) > 1 else line, color, 1.7, 0.9)
        return
    centers = [(x + dice.uniform(-1, 1), y + dice.uniform(-1, 1)) for x, y in spots]
    brush.stroke(arcs(centers, (2.9, 2.9), [dice.uniform(0.0, 360.0) for _ in spots], 250.0), color, 1.5, 0.95)


def paint_cap(brush: Brush, look: Look) -> None:
    """Hair on top, bangs and sideburns; nothing when bald."""
    if look.is_("hair_length", "bald"):
        paint_scalp(brush, look)
        return
    dice, texture, edge = look.dice(6), look.slots["hair_texture"], rim(look)
    cap, outside = cap_path(look), outer_line(look)
    if texture != "straight":
        size, step = (6.2, 8.0) if texture == "curly" else (4.6, 11.0)
        bumps = discs((x, y + 1.5, size) for x, y in _along(outside, step))
        brush.stroke(bumps, edge, 2.2)
        brush.fill(bumps, look.hair)
    brush.stroke(cap, edge, 2.2)
    brush.shade(cap, linear((0, CROWN_Y - 8), (0, -8), [argb(light(look.hair, 0.2)), argb(look.hair), argb(dark(look.hair, 0.22))]))
    paint_sideburns(brush, look)
    paint_bangs(brush, look)
    brush.canvas.save()
    brush.canvas.clipPath(cap, True)
    high = CROWN_Y - 3
    for k, t in enumerate((-0.92, -0.74, -0.56, -0.4, -0.22, -0.06, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9)):
        x = t * look.g.half_width - 2 * look.g.yaw
        start = (x * 0.55, high + abs(t) * 6)
        paint_strand(brush, look, [start, (x * 0.95, -34 + abs(t) * 6), (x * 1.12, -20 + abs(t) * 14)], dice, k)
    brush.canvas.restore()
    if look.is_("bangs", "none") and texture != "curly":
        brush.line([(look.g.turn(-20, 0), -37), (look.g.turn(-6, 0), -42.5), (look.g.turn(10, 0), -42)], light(look.hair, 0.6), 3.0, 0.32)


def paint_scalp(brush: Brush, look: Look) -> None:
    """The shine of a bald head."""
    brush.glow(look.g.turn(-8, 0), -36, 13, light(look.skin, 0.9), 0.75)
    brush.line([(look.g.turn(-17, 0), -33), (look.g.turn(-9, 0), -39.5), (look.g.turn(0, 0), -41)], light(look.skin, 0.85), 2.2, 0.8)


def paint_bangs(brush: Brush, look: Look) -> None:
    """Bangs cut straight, or swept to one side."""
    kind, g, edge = look.slots["bangs"], look.g, rim(look)
    if kind == "none":
        return
    w = g.half_width
    if kind == "straight":
        low = -20.0
        shape = smooth(
            [
                (g.turn(-w + 2, 3), -8),
                (g.turn(-w + 3, 3), -36),
                (g.turn(0, 2), -43),
                (g.turn(w - 3, 3), -36),
                (g.turn(w - 2, 3), -8),
                (g.turn(w - 6, 4), low),
                (g.turn(w * 0.4, 4), low + 1),
                (g.turn(0, 4), low + 0.5),
                (g.turn(-w * 0.4, 4), low + 1),
                (g.turn(-w + 6, 4), low),
            ],
            closed=True,
        )
        strands = [[(g.turn(x, 2), -38.0), (g.turn(x * 1.1, 4), low - 1)] for x in (-24, -16, -8, 0, 8, 16, 24)]
    else:
        shape = smooth(
            [
                (g.turn(w - 2, 3), -6),
                (g.turn(w - 6, 3), -26),
                (g.turn(20, 2), -42),
                (g.turn(-w + 6, 2), -36),
                (g.turn(-w + 2, 3), -6),
                (g.turn(-w + 7, 4), -13),
                (g.turn(-14, 4), -21),
                (g.turn(4, 4), -29),
                (g.turn(19, 4), -37),
                (g.turn(w - 9, 4), -24),
            ],
            closed=True,
        )
        strands = [
            [(g.turn(18 - 7 * k, 2), -40.0 + k), (g.turn(2 - 7 * k, 3), -32.0 + 2.2 * k), (g.turn(-13 - 5 * k, 4), -23.0 + 2.5 * k)]
            for k in range(4)
        ]
    brush.shade(shape, linear((0, -46), (0, -12), [argb(light(look.hair, 0.12)), argb(look.hair), argb(dark(look.hair, 0.1))]))
    brush.stroke(shape, edge, 1.3)
    dice = look.dice(7)
    for k, line in enumerate(strands):
        paint_strand(brush, look, line, dice, k)


def paint_sideburns(brush: Brush, look: Look) -> None:
    """Short hair's sideburns in front of the ears."""
    if look.is_("sideburns", "none") or look.slots["hair_length"] in ("medium", "long"):
        return
    g = look.g
    for side in (-1, 1):
        edge = side * (g.half_width - 0.5)
        strip = smooth(
            [
                (edge + lean(look, -8), -10),
                (edge + lean(look, 10), 8),
                (edge - side * 1.5 + lean(look, 20), 21),
                (g.turn(edge - side * 7, 4), 19),
                (g.turn(edge - side * 6.5, 4), 4),
                (g.turn(edge - side * 6, 4), -10),
            ],
            closed=True,
        )
        brush.fill(strip, look.brow)
        brush.stroke(strip, dark(look.brow, 0.5), 1.0)
