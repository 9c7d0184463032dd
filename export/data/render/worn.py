"""Worn things: glasses, hats, earrings, mask."""

from __future__ import annotations

import skia

from export.data.render.brush import RGB, WHITE, Brush, argb, dark, light, linear, oval, rounded, smooth
from export.data.render.geometry import CROWN_Y
from export.data.render.head import EAR_Y, ear_sides, ear_x, lean
from export.data.render.look import Look

_HATS: tuple[RGB, ...] = ((146, 28, 62), (28, 58, 128), (18, 122, 118), (122, 60, 150), (226, 122, 30), (82, 104, 40))


def lens_path(look: Look, side: int, dark_lens: bool) -> skia.Path:
    """Outline of one lens."""
    g = look.g
    x = g.turn(side * g.eye_x, 9)
    w = 14.2 * (0.9 if side * g.yaw > 0.3 else 1.0)
    return rounded(x - w, -10.2, x + w, 12.0 if dark_lens else 12.4, 8.0 if dark_lens else 10.0)


def paint_eyewear(brush: Brush, look: Look) -> None:
    """Thick frames; sunglasses have dark lenses."""
    kind, g = look.slots["eyewear"], look.g
    if kind == "none":
        return
    shaded = kind == "sunglasses"
    frame: RGB = ((24, 20, 26), (92, 22, 22), (20, 34, 84), (30, 30, 30))[g.choice[3] % 4] if not shaded else (14, 14, 18)
    for side in (-1, 1):
        lens = lens_path(look, side, shaded)
        x = g.turn(side * g.eye_x, 9)
        if shaded:
            brush.shade(lens, linear((0, -10), (0, 12), [argb((18, 18, 26)), argb((58, 52, 78))]))
            brush.line([(x - 8, 3), (x - 1, -6)], WHITE, 3.0, 0.55)
            brush.line([(x - 2, 5), (x + 3, -2)], WHITE, 1.6, 0.4)
        else:
            brush.fill(lens, (226, 236, 246), 0.09)
            brush.line([(x + 5, -7), (x + 9.5, -2)], WHITE, 1.8, 0.8)
        brush.stroke(lens, frame, 3.0)
        edge = side * (g.half_width + 1) + lean(look, 0)
        brush.line([(g.turn(side * (g.eye_x + 13.5), 9), -4), (edge, -3)], frame, 2.8)
    left, right = g.turn(-g.eye_x, 9), g.turn(g.eye_x, 9)
    brush.line([(left + 13.0, -3), ((left + right) / 2, -5), (right - 13.0, -3)], frame, 3.0)


def hat_color(look: Look) -> RGB:
    """A free choice among colors that no hair has."""
    return _HATS[look.g.choice[4] % len(_HATS)]


def crown_path(look: Look, brim: float, top: float) -> skia.Path:
    """A dome over the skull from height ``brim`` up to ``top``."""
    g = look.g
    w, sway = g.half_width + 5.5, lean(look, -40)
    half = [(0.0, top), (w * 0.5, top + 2.5), (w * 0.88, top + 14), (w, brim - 7), (w * 0.99, brim + 1)]
    right = [(x + sway, y) for x, y in half]
    left = [(-x + sway, y) for x, y in reversed(half[1:])]
    return smooth([*left, *right, (sway, brim - 2)], closed=True)


def paint_hat(brush: Brush, look: Look) -> None:
    """Cap with a visor, knitted beanie, or hat with a wide brim."""
    kind = look.slots["hat"]
    if kind != "none":
        {"cap": _paint_cap, "beanie": _paint_beanie, "brimmed": _paint_brimmed}[kind](brush, look, hat_color(look))


def _dome(brush: Brush, path: skia.Path, color: RGB) -> None:
    brush.shade(path, linear((-30, -55), (36, -20), [argb(light(color, 0.22)), argb(color), argb(dark(color, 0.3))]))
    brush.stroke(path, dark(color, 0.55), 1.5)


def _paint_cap(brush: Brush, look: Look, color: RGB) -> None:
    g, sway = look.g, lean(look, -40)
    _dome(brush, crown_path(look, -24, CROWN_Y - 9), color)
    brush.disc(sway, CROWN_Y - 9, 2.8, dark(color, 0.25))
    for side in (-1, 1):
        brush.line([(sway, CROWN_Y - 8), (sway + side * 14, -42), (sway + side * 17, -28)], dark(color, 0.45), 1.2)
    brush.disc(g.turn(0, 6), -37, 6.4, WHITE, 0.95)
    brush.disc(g.turn(0, 6), -37, 3.2, color)
    w, x = g.half_width, g.turn(0, 9)
    visor = smooth(
        [
            (x - w + 1, -25),
            (x - w * 0.5, -31),
            (x, -32.5),
            (x + w * 0.5, -31),
            (x + w - 1, -25),
            (x + w * 0.86, -19),
            (x, -21.5),
            (x - w * 0.86, -19),
        ],
        closed=True,
    )
    brush.fill(visor, dark(color, 0.42))
    brush.stroke(visor, dark(color, 0.7), 1.5)
    brush.line([(x - w * 0.6, -27.5), (x, -29.5), (x + w * 0.6, -27.5)], light(color, 0.4), 1.6, 0.7)


def _paint_beanie(brush: Brush, look: Look, color: RGB) -> None:
    g, sway = look.g, lean(look, -40)
    _dome(brush, crown_path(look, -26, CROWN_Y - 7), color)
    for t in (-0.66, -0.33, 0.0, 0.33, 0.66):
        brush.line([(sway + t * 12, CROWN_Y - 5), (sway + t * g.half_width * 1.1, -30)], dark(color, 0.35), 1.4, 0.8)
    w, x = g.half_width + 6.5, lean(look, -26)
    cuff = rounded(x - w, -33, x + w, -20, 5)
    brush.fill(cuff, light(color, 0.28))
    brush.stroke(cuff, dark(color, 0.55), 1.5)
    for k in range(-5, 6):
        brush.line([(x + k * w / 5.7, -31), (x + k * w / 5.7, -22)], dark(color, 0.2), 1.5)
    brush.disc(sway, CROWN_Y - 8.5, 6.4, dark(color, 0.4))
    brush.disc(sway, CROWN_Y - 8.5, 5.4, (250, 246, 240))


def _paint_brimmed(brush: Brush, look: Look, color: RGB) -> None:
    x = lean(look, -26)
    brim = oval(x, -24, look.g.half_width + 20, 8.5)
    brush.fill(brim, dark(color, 0.25))
    brush.stroke(brim, dark(color, 0.6), 1.6)
    w = look.g.half_width - 2
    crown = smooth(
        [(x - w, -26), (x - w * 0.86, -50), (x - w * 0.4, -55), (x, -52), (x + w * 0.4, -55), (x + w * 0.86, -50), (x + w, -26), (x, -21)],
        closed=True,
    )
    _dome(brush, crown, color)
    band = smooth([(x - w * 0.99, -35), (x, -31), (x + w * 0.99, -35), (x + w, -27), (x, -22.5), (x - w, -27)], closed=True)
    brush.fill(band, (250, 236, 196))
    brush.stroke(band, dark(color, 0.6), 1.2)
    brush.line([(x - w - 14, -21), (x, -17.5), (x + w + 14, -21)], light(color, 0.3), 1.6, 0.8)


def paint_earrings(brush: Brush, look: Look) -> None:
    """Studs or hoops on the ears that can be seen."""
    kind = look.slots["earrings"]
    if kind == "none":
        return
    for side in ear_sides(look):
        x, y = ear_x(look, side) + side * 1.0, EAR_Y + 9.5
        if kind == "studs":
            brush.disc(x, y, 4.0, (60, 70, 120))
            brush.disc(x, y, 3.2, (226, 246, 255))
            brush.disc(x - 1, y - 1, 1.2, WHITE)
        else:
            brush.ring(x + side * 1.0, y + 7, 7.2, (104, 62, 0), 4.0)
            brush.ring(x + side * 1.0, y + 7, 7.2, (255, 200, 30), 2.5)


def mask_path(look: Look) -> skia.Path:
    """The area that a mask covers."""
    g = look.g
    y = g.chin_y
    half = [(g.half_width - 4.0, 12.0), (g.jaw - 1.0, 28.0), (g.chin_half * 0.75 + 3, y + 2.5)]
    right = [(x + lean(look, py) + g.yaw * 2, py) for x, py in half]
    left = [(-x + lean(look, py) + g.yaw * 2, py) for x, py in reversed(half)]
    return smooth([(g.turn(0, 11), 6.5), (g.turn(14, 10), 9.5), *right, *left, (g.turn(-14, 10), 9.5)], closed=True)


def paint_mask(brush: Brush, look: Look) -> None:
    """A pleated mask with ear loops."""
    if look.is_("face_mask", "none"):
        return
    g, mask = look.g, mask_path(look)
    color: RGB = ((152, 214, 232), (236, 240, 244), (150, 226, 198))[g.choice[5] % 3]
    for side in ear_sides(look):
        x = ear_x(look, side)
        brush.line([(g.turn(side * 27, 9), 13), (x - side * 2, 4)], WHITE, 1.8)
        brush.line([(g.turn(side * 25, 8), 32), (x - side * 2, 10)], WHITE, 1.8)
    brush.shade(mask, linear((0, 6), (0, g.chin_y + 3), [argb(light(color, 0.4)), argb(color), argb(dark(color, 0.2))]))
    brush.stroke(mask, dark(color, 0.5), 1.5)
    for y, w in ((17, 25), (24, 24), (31, 20)):
        brush.line([(g.turn(-w, 7), y), (g.turn(0, 9), y + 2.4), (g.turn(w, 7), y)], dark(color, 0.36), 1.4)
