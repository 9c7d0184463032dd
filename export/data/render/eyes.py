"""Eyes and brows in all their states."""

from __future__ import annotations

from export.data.render.brush import INK, WHITE, Brush, argb, dark, discs, light, linear, mix, radial, smooth
from export.data.render.geometry import Geometry
from export.data.render.look import IRIS, Look

#: share of the full opening
_OPENING = {"wide": 1.32, "tiny": 1.25, "half": 0.62, "bored": 0.5, "narrow": 0.42, "up": 1.08, "down": 0.4, "side": 1.0, "crossed": 1.05}
#: where the pupils go, in pixels
_GAZE = {"up": (0.0, -3.2), "side": (4.6, 0.0), "down": (0.0, 2.2), "bored": (3.6, -0.4), "narrow": (0.0, -0.4), "half": (0.0, 0.6)}
_CLOSED = ("closed", "happy", "squeezed")


def eye_center(g: Geometry, side: int) -> tuple[float, float]:
    """Center of an eye, head coordinates."""
    return g.turn(side * g.eye_x), 0.0


def eye_state(look: Look, side: int) -> str:
    """State of one eye; a wink closes the viewer's right one."""
    state = look.expression.eyes
    if state == "wink":
        return "happy" if side > 0 else "open"
    return state


def paint_eyes(brush: Brush, look: Look) -> None:
    """Both eyes with bags, eye shadow and lashes."""
    for side in (-1, 1):
        state = eye_state(look, side)
        if look.is_("eye_bags", "visible"):
            paint_bag(brush, look, side)
        if look.is_("makeup", "heavy"):
            paint_shadow(brush, look, side)
        if state in _CLOSED:
            paint_closed(brush, look, side, state)
        else:
            paint_open(brush, look, side, state)


def eye_half_size(look: Look, side: int, state: str) -> tuple[float, float]:
    """Half-width and half-height; surprise and fear open eyes of any shape."""
    g = look.g
    width = g.eye_w * (0.88 if side * g.yaw > 0.3 else 1.0)
    height = 7.0 if state in ("wide", "tiny", "up") else g.eye_h
    return width, height * _OPENING.get(state, 1.0)


def paint_bag(brush: Brush, look: Look, side: int) -> None:
    x, _ = eye_center(look.g, side)
    tone = mix(dark(look.skin, 0.45), (84, 50, 120), 0.45)
    low = look.g.eye_h + 1.5
    bag = smooth(
        [
            (x - 9.5, low - 2),
            (x - 5, low + 2.2),
            (x, low + 3.4),
            (x + 5, low + 2.2),
            (x + 9.5, low - 2),
            (x + 5.5, low + 6),
            (x, low + 7.4),
            (x - 5.5, low + 6),
        ],
        closed=True,
    )
    brush.fill(bag, tone, 0.72)
    brush.line([(x - 6, low + 6.6), (x, low + 8.4), (x + 6, low + 6.6)], dark(tone, 0.4), 1.1, 0.7)


def paint_shadow(brush: Brush, look: Look, side: int) -> None:
    """Colored eye shadow around the eye and out to the temple."""
    x, _ = eye_center(look.g, side)
    color = ((70, 64, 236), (136, 40, 216), (26, 120, 226))[look.g.choice[1] % 3]
    lid = [(-12.0, 2.0), (-10.5, -7.0), (-2.0, -11.6), (8.0, -10.6), (15.0, -7.5), (13.0, 1.0), (8.0, 4.0), (0.0, 5.5), (-8.0, 4.0)]
    brush.fill(smooth([(x + side * px, py) for px, py in lid], closed=True), color, 0.82)


def paint_open(brush: Brush, look: Look, side: int, state: str) -> None:
    g = look.g
    x, y = eye_center(g, side)
    w, h = eye_half_size(look, side, state)
    outer, inner = x + side * w, x - side * w
    flat = 0.35 if state in ("half", "bored", "narrow") else 1.0
    upper = [
        (outer, y - 0.8),
        (x + side * w * 0.55, y - h * (0.78 if flat == 1 else 0.5)),
        (x, y - h * (1 if flat == 1 else 0.55)),
        (x - side * w * 0.6, y - h * (0.68 if flat == 1 else 0.5)),
        (inner, y + 1.4),
    ]
    lower = [(x - side * w * 0.5, y + h * 0.72), (x, y + h * 0.92), (x + side * w * 0.6, y + h * 0.66)]
    shape = smooth([*upper, *lower], closed=True)
    brush.fill(shape, WHITE)
    brush.canvas.save()
    brush.canvas.clipPath(shape, True)
    paint_iris(brush, look, side, state)
    brush.shade(shape, linear((0, y - h), (0, y + h * 0.2), [argb((40, 30, 60), 0.42), argb((40, 30, 60), 0.0)]))
    brush.canvas.restore()
    heavy = look.feminine or look.is_("makeup", "heavy")
    brush.line([upper[4], upper[3], upper[2], upper[1], upper[0]], INK, 2.6 if heavy else 1.9)
    brush.line([upper[0], lower[2], lower[1], lower[0], upper[4]], dark(look.skin, 0.6), 1.0, 0.8)
    crease = [(px, py - (3.2 if flat == 1 else 2.4)) for px, py in (upper[3], upper[2], upper[1])]
    brush.line(crease, look.line, 1.1, 0.75)
    if look.feminine:
        paint_lashes(brush, side, upper)


def paint_lashes(brush: Brush, side: int, lid: list[tuple[float, float]]) -> None:
    """Three long lashes at the outer half of a lid given from outside in."""
    (ox, oy), (mx, my), (cx, cy) = lid[0], lid[1], lid[2]
    brush.line([(ox - side * 0.5, oy), (ox + side * 2.5, oy - 1.6), (ox + side * 4.6, oy - 4.6)], INK, 1.7)
    brush.line([((ox + mx) / 2, (oy + my) / 2), (ox + side * 1.6, my - 3.6)], INK, 1.5)
    brush.line([(mx, my), (mx + side * 2.0, my - 4.6)], INK, 1.4)
    brush.line([((mx + cx) / 2, (my + cy) / 2 - 0.4), ((mx + cx) / 2 + side * 0.8, cy - 4.2)], INK, 1.2)


def paint_iris(brush: Brush, look: Look, side: int, state: str) -> None:
    x, y = eye_center(look.g, side)
    gx, gy = _GAZE.get(state, (0.0, 0.0))
    if state in {"side", "bored"}:
        gx = gx if look.g.choice[2] % 2 else -gx
    if state == "crossed":
        gx = -side * 4.0
    radius = {"tiny": 2.9, "wide": 4.2}.get(state, look.g.iris + 0.5)
    cx, cy = x + gx + look.g.yaw * 1.2, y + gy - 0.2
    color = IRIS[look.slots["eye_color"]]
    brush.disc(cx, cy, radius, dark(color, 0.6))
    ring = smooth([(cx + (radius - 0.8) * a, cy + (radius - 0.8) * b) for a, b in ((1, 0), (0, 1), (-1, 0), (0, -1))], closed=True)
    brush.shade(ring, radial((cx, cy + radius * 0.5), radius * 1.2, [argb(light(color, 0.42)), argb(color), argb(dark(color, 0.2))]))
    brush.disc(cx, cy, radius * 0.44, (12, 8, 12))
    brush.disc(cx - radius * 0.36, cy - radius * 0.4, radius * 0.33, WHITE)
    brush.disc(cx + radius * 0.4, cy + radius * 0.42, radius * 0.16, WHITE, 0.8)


def paint_closed(brush: Brush, look: Look, side: int, state: str) -> None:
    x, y = eye_center(look.g, side)
    w = look.g.eye_w * (0.88 if side * look.g.yaw > 0.3 else 1.0)
    heavy = 3.0 if look.feminine else 2.4
    if state == "squeezed":
        brush.line([(x + side * w * 0.9, y - 4.2), (x, y - 1), (x - side * w * 0.75, y + 1)], INK, heavy)
        brush.line([(x + side * w * 0.9, y + 5), (x, y + 2), (x - side * w * 0.75, y + 1)], INK, heavy)
        if look.feminine:
            brush.line([(x + side * w * 0.8, y - 4.2), (x + side * (w + 2.5), y - 8)], INK, 1.7)
            brush.line([(x + side * w * 0.5, y - 2.8), (x + side * (w - 1), y - 7.5)], INK, 1.5)
        return
    bend = 4.2 if state == "closed" else -4.6
    base = y + (-0.5 if state == "closed" else 2.5)
    brush.line(
        [(x - w, base), (x - w * 0.5, base + bend * 0.8), (x, base + bend), (x + w * 0.5, base + bend * 0.8), (x + w, base)], INK, heavy
    )
    if state == "closed":
        brush.line([(x - w * 0.8, base - 4), (x, base - 5.4), (x + w * 0.8, base - 4)], look.line, 1.1, 0.7)
    if not look.feminine:
        return
    droop = 1 if state == "closed" else -1
    for t in (1.0, 0.72, 0.4):
        px, py = x + side * w * t, base + bend * (1 - t * t)
        brush.line([(px, py), (px + side * 3.2 * t + side * 0.6, py + droop * 4.2 + (1 - t) * 1.5)], INK, 1.5)


#: brow offsets (inner end, middle, outer end) in pixels, positive downwards
_BROW_POSE = {
    "knit": (4.0, 1.2, -0.5),
    "angry": (5.6, 0.4, -4.4),
    "sad": (-5.0, 0.0, 4.2),
    "high": (-3.0, -5.0, -3.0),
}


def paint_brows(brush: Brush, look: Look) -> None:
    """Brows; drawn over bangs, as illustrators do."""
    g, dice = look.g, look.dice(3)
    bushy = look.is_("eyebrow_thickness", "bushy")
    thick = 3.1 if bushy else 1.05
    for side in (-1, 1):
        pose = look.expression.brows
        a, b, c = _BROW_POSE.get(pose, (0.0, 0.0, 0.0))
        if pose == "one_up":
            a, b, c = (-4.0, -6.5, -5.0) if side > 0 else (3.5, 2.0, 1.5)
        bend = (-4.8, 2.6) if look.is_("eyebrow_shape", "arched") and pose == "rest" else (-0.4, 0.0)
        y = g.brow_y + (1.0 if pose != "rest" else 0.0)
        inner, mid, outer = g.turn(side * 7.5), g.turn(side * 18.0), g.turn(side * 27.5)
        points = [
            (inner, y + a + bend[1] * 0.5),
            ((inner + mid) / 2, y + (a + b) / 2 + bend[0] * 0.45),
            (mid, y + b + bend[0]),
            (outer, y + c + bend[1]),
        ]
        top = [(x, py - thick * k) for (x, py), k in zip(points, (0.7, 1, 0.95, 0.1), strict=True)]
        low = [(x, py + thick * k) for (x, py), k in zip(points, (0.8, 0.9, 0.8, 0.2), strict=True)]
        shape = smooth([*top, *reversed(low)], closed=True)
        brush.fill(shape, look.brow)
        brush.stroke(shape, dark(look.brow, 0.35), 0.9)
        if bushy:
            brush.fill(discs((x + dice.uniform(-2, 2), py - thick * 0.9, 1.1) for x, py in points[:3]), look.brow)
    if look.expression.brows in ("knit", "angry"):
        for side in (-1, 1):
            brush.line([(g.turn(side * 2.4), g.brow_y + 1), (g.turn(side * 2.0), g.brow_y + 7)], look.line, 1.4, 0.9)
