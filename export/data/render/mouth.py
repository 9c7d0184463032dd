"""Nose, mouth and beard."""

from __future__ import annotations

import skia

from export.data.render.brush import RGB, WHITE, Brush, arc, argb, dark, discs, light, linear, mix, oval, polygon, smooth
from export.data.render.head import lean
from export.data.render.look import Look

_INSIDE = (92, 14, 26)
_TONGUE = (240, 104, 116)

#: closed mouths: (half-width factor, curve of the corners, skew); positive curve: corners up
_CLOSED = {
    "rest": (1.0, 0.6, 0.0),
    "smile": (1.4, 10.0, 0.0),
    "frown": (1.1, -6.0, 0.0),
    "sad": (0.85, -4.2, 0.0),
    "flat": (0.85, -0.8, 0.0),
    "smirk": (1.05, 1.5, 4.6),
    "chew": (0.7, 1.0, 2.4),
}
#: open mouths: half-width, height above and below the mouth line, teeth, tongue
_OPEN = {
    "grin": (15.5, 1.5, 8.0, True, False),
    "laugh": (16.5, 3.5, 13.5, True, True),
    "talk": (9.5, 3.2, 5.5, True, False),
    "shout": (12.5, 6.5, 13.0, True, True),
    "round": (6.6, 5.0, 8.0, False, False),
    "small_open": (4.0, 2.0, 3.6, False, False),
    "tall": (9.0, 8.0, 15.0, False, True),
    "gasp": (5.8, 4.0, 10.0, False, False),
    "tongue": (10.0, 2.0, 5.0, False, False),
}


def paint_nose(brush: Brush, look: Look) -> None:
    """Bridge, and a tip that is a ball or a wedge, small or big."""
    g = look.g
    big = look.is_("nose_size", "big")
    w, tip = g.nose_w, g.nose_y + (2.0 if big else 0.0)
    x, top = g.turn(0, 11), g.turn(0, 8.5)
    side = 1 if g.yaw >= 0 else -1
    shade = dark(look.skin, 0.52 if not look.is_("skin_tone", "dark") else 0.7)
    if look.is_("nose_shape", "pointy"):
        _paint_wedge(brush, look, (x, tip), side, shade)
        return
    brush.line([(top + side * 3.0, -6), (top + side * 2.6, 1), (x + side * w * 0.6, tip - w * 0.8)], shade, 1.4 + 0.5 * big, 0.45)
    if big:
        for s in (-1, 1):
            wing = oval(x + s * w * 0.74, tip + w * 0.1, w * 0.4, w * 0.36)
            brush.fill(wing, mix(look.skin, dark(look.skin, 0.5), 0.2))
            brush.stroke(wing, shade, 1.4)
    ball = oval(x, tip - w * 0.12, w * 0.84, w * 0.78)
    brush.fill(ball, mix(light(look.skin, 0.12), (224, 84, 72), 0.22 if not look.is_("skin_tone", "dark") else 0.12))
    brush.stroke(arc((x, tip - w * 0.12), (w * 0.84, w * 0.78), -15, 195), shade, 1.8)
    brush.fill(oval(x - w * 0.26, tip - w * 0.42, w * 0.3, w * 0.22), WHITE, 0.8)


def _paint_wedge(brush: Brush, look: Look, tip: tuple[float, float], side: int, shade: RGB) -> None:
    """A straight nose with a lit and a dark face and a sharp tip."""
    (x, y), w, top = tip, look.g.nose_w, look.g.turn(0, 8.5)
    point = (x, y + 3.4 + w * 0.3)
    brush.fill(polygon([(top, -5), (x + side * w, y), point]), dark(look.skin, 0.32), 0.85)
    brush.fill(polygon([(top, -5), (x - side * w, y), point]), light(look.skin, 0.38), 0.85)
    brush.stroke(polygon([(x - w, y), point, (x + w, y)], closed=False), shade, 2.0)
    brush.stroke(polygon([(x + side * w, y), (top + side * 1.2, -6)], closed=False), shade, 1.3, 0.8)


def paint_mouth(brush: Brush, look: Look) -> None:
    """The mouth that the expression asks for."""
    kind = look.expression.mouth
    if kind in _CLOSED:
        paint_closed_mouth(brush, look, kind)
    elif kind in _OPEN:
        paint_open_mouth(brush, look, kind)
    else:
        _SPECIAL[kind](brush, look)


def corner_points(look: Look) -> tuple[tuple[float, float], tuple[float, float]]:
    """Left and right mouth corner (the viewer's), head coordinates."""
    g, kind = look.g, look.expression.mouth
    if kind in _OPEN:
        half, rise = _OPEN[kind][0], 0.0
    else:
        factor, rise, _ = _CLOSED.get(kind, (0.9, 0.0, 0.0))
        half = g.mouth_w * factor
    return (g.turn(-half, 9), g.mouth_y - rise * 0.6), (g.turn(half, 9), g.mouth_y - rise * 0.6)


def paint_closed_mouth(brush: Brush, look: Look, kind: str) -> None:
    g = look.g
    factor, rise, skew = _CLOSED[kind]
    half, y = g.mouth_w * factor, g.mouth_y
    full = look.is_("lips", "full")
    up, low = (4.2, 6.4) if full else (1.5, 2.0)
    up += 0.9 * look.feminine
    left, right = (g.turn(-half, 9), y - rise * 0.6 + skew * 0.3), (g.turn(half, 9), y - rise * 0.6 - skew)
    mid = g.turn(0, 9)
    seam = [
        left,
        ((left[0] + mid) / 2, y + rise * 0.25),
        (mid, y + rise * 0.42 - skew * 0.3),
        ((mid + right[0]) / 2, y + rise * 0.25 - skew * 0.5),
        right,
    ]
    bow = [
        ((left[0] + mid) / 2, seam[1][1] - up * 0.75),
        (mid - 2.6, seam[2][1] - up * 1.1),
        (mid, seam[2][1] - up * 0.72),
        (mid + 2.6, seam[2][1] - up * 1.1),
        ((mid + right[0]) / 2, seam[3][1] - up * 0.75),
    ]
    bottom = [
        ((right[0] + mid) / 2 + 1, seam[3][1] + low * 0.8),
        (mid, seam[2][1] + low),
        ((left[0] + mid) / 2 - 1, seam[1][1] + low * 0.8),
    ]
    brush.fill(smooth([left, *bow, right, *reversed(seam[1:4])], closed=True), dark(look.lip, 0.2))
    brush.fill(smooth([*seam, *bottom], closed=True), look.lip)
    if full:
        brush.line(
            [(mid - 4, seam[2][1] + low * 0.5), (mid, seam[2][1] + low * 0.58), (mid + 4, seam[2][1] + low * 0.5)],
            light(look.lip, 0.6),
            1.5,
            0.8,
        )
    brush.line(seam, dark(look.lip, 0.72), 1.6)
    if kind == "smile":
        for x, y2, s in ((*left, -1), (*right, 1)):
            brush.line([(x + s * 0.6, y2 - 4), (x + s * 3.4, y2), (x + s * 1.8, y2 + 4)], look.line, 1.8, 0.9)
            brush.line([(g.turn(s * 12, 10), 13), (x - s * 0.5, 17), (x + s * 4.5, 22)], look.line, 1.3, 0.6)
    if kind == "smirk":
        brush.line([(right[0] + 1.5, right[1] - 4), (right[0] + 3.6, right[1]), (right[0] + 1.5, right[1] + 3.4)], look.line, 1.8, 0.9)
    if kind == "chew":
        bulge = oval(g.turn(25, 8), 22, 12.5, 11.0)
        brush.fill(bulge, look.skin)
        brush.stroke(arc((g.turn(25, 8), 22), (12.5, 11.0), -70, 160), look.line, 2.0)
        brush.fill(oval(g.turn(22, 8), 18, 4.0, 3.0), light(look.skin, 0.6), 0.8)


def paint_open_mouth(brush: Brush, look: Look, kind: str) -> None:
    g = look.g
    half, above, below, teeth, tongue = _OPEN[kind]
    y, mid = g.mouth_y, g.turn(0, 9)
    left, right = g.turn(-half, 9), g.turn(half, 9)
    if kind in ("grin", "laugh"):
        shape = smooth(
            [
                (left, y - above),
                (mid, y - above + 1.8),
                (right, y - above),
                (right - half * 0.25, y + below * 0.6),
                (mid, y + below),
                (left + half * 0.25, y + below * 0.6),
            ],
            closed=True,
        )
    else:
        shape = smooth([(left, y + (below - above) / 2), (mid, y - above), (right, y + (below - above) / 2), (mid, y + below)], closed=True)
    brush.stroke(shape, look.lip, 5.0)
    brush.stroke(shape, dark(look.lip, 0.5), 1.4)
    brush.fill(shape, _INSIDE)
    brush.canvas.save()
    brush.canvas.clipPath(shape, True)
    if tongue:
        brush.fill(oval(mid, y + below, half * 0.72, below * 0.5), _TONGUE)
    if teeth:
        depth = {"grin": 5.6, "laugh": 5.0}.get(kind, 3.2)
        brush.fill(
            smooth(
                [
                    (left - 2, y - above - 2),
                    (right + 2, y - above - 2),
                    (right, y - above + depth),
                    (mid, y - above + depth + 1.4),
                    (left, y - above + depth),
                ],
                closed=True,
            ),
            WHITE,
        )
    brush.canvas.restore()
    if kind == "tongue":
        out = smooth([(mid - 6, y + 2), (mid + 6, y + 2), (mid + 6.4, y + 11), (mid, y + 15), (mid - 6.4, y + 11)], closed=True)
        brush.fill(out, _TONGUE)
        brush.stroke(out, (150, 30, 52), 1.4)
        brush.line([(mid, y + 3), (mid, y + 10)], (180, 50, 70), 1.3)
    if kind in ("grin", "laugh"):
        for x, s in ((left, -1), (right, 1)):
            brush.line([(x + s * 1.4, y - above - 4), (x + s * 3.6, y - above), (x + s * 2, y - above + 4)], look.line, 1.4, 0.75)


def _pucker(brush: Brush, look: Look) -> None:
    x, y = look.g.turn(0, 10), look.g.mouth_y
    kissing = look.is_("action", "kiss")
    rx, ry = (6.6, 6.4) if kissing else (5.2, 4.6)
    brush.fill(oval(x, y - ry * 0.3, rx, ry * 0.8), dark(look.lip, 0.16))
    brush.fill(oval(x, y + ry * 0.45, rx * 0.92, ry * 0.75), look.lip)
    brush.fill(oval(x, y, 2.0 if kissing else 2.6, 1.2 if kissing else 2.4), _INSIDE)
    for s in (-1, 1):
        brush.line([(x + s * (rx + 2.6), y - 3.5), (x + s * (rx + 1.4), y), (x + s * (rx + 2.6), y + 3.5)], look.line, 1.4, 0.8)
        brush.line([(x + s * 2.0, y - ry * 0.9), (x + s * 1.0, y - 2)], dark(look.lip, 0.5), 1.0, 0.8)


def _toothy(brush: Brush, look: Look, shape: skia.Path, lines: list[float], span: tuple[float, float]) -> None:
    """A mouth that shows two rows of teeth."""
    top, bottom = span
    brush.stroke(shape, look.lip, 4.4)
    brush.fill(shape, WHITE)
    brush.canvas.save()
    brush.canvas.clipPath(shape, True)
    for x in lines:
        brush.line([(x, top), (x, bottom)], (120, 116, 126), 1.0)
    brush.line([(lines[0] - 8, (top + bottom) / 2), (lines[-1] + 8, (top + bottom) / 2)], (90, 80, 92), 1.3)
    brush.canvas.restore()
    brush.stroke(shape, dark(look.lip, 0.65), 1.6)


def _gritted(brush: Brush, look: Look) -> None:
    x, y = look.g.turn(0, 9), look.g.mouth_y
    shape = smooth(
        [(x - 13, y + 4), (x - 10, y - 3), (x, y - 4.4), (x + 10, y - 3), (x + 13, y + 4), (x + 8, y + 5), (x, y + 3.6), (x - 8, y + 5)],
        closed=True,
    )
    _toothy(brush, look, shape, [x - 8, x - 4, x, x + 4, x + 8], (y - 5, y + 6))


def _wobbly(brush: Brush, look: Look) -> None:
    x, y = look.g.turn(0, 9), look.g.mouth_y
    top = [(x - 12 + 4 * i, y - 3.6 + (1.5 if i % 2 else -1.2)) for i in range(7)]
    low = [(x + 12 - 4 * i, y + 4.4 + (1.5 if i % 2 else -1.2)) for i in range(7)]
    _toothy(brush, look, smooth([*top, *low], closed=True), [x - 8, x - 4, x, x + 4, x + 8], (y - 5, y + 6))


def _wail(brush: Brush, look: Look) -> None:
    x, y = look.g.turn(0, 9), look.g.mouth_y
    shape = smooth(
        [(x - 12, y + 7), (x - 8, y - 1), (x, y - 3), (x + 8, y - 1), (x + 12, y + 7), (x + 5, y + 8), (x, y + 7), (x - 5, y + 8)],
        closed=True,
    )
    brush.stroke(shape, look.lip, 4.4)
    brush.fill(shape, _INSIDE)
    brush.fill(oval(x, y + 6.4, 5, 2.4), _TONGUE)


def _sneer(brush: Brush, look: Look) -> None:
    g = look.g
    x, y = g.turn(0, 9), g.mouth_y
    shape = smooth([(x - 12, y + 2.5), (x - 2, y + 1), (x + 7, y - 7), (x + 14, y - 5), (x + 12.5, y + 2), (x + 4, y + 4.5)], closed=True)
    _toothy(brush, look, shape, [x - 2, x + 3, x + 7, x + 11], (y - 8, y + 5))
    brush.line([(x + 9, y - 17), (x + 14, y - 13), (x + 17.5, y - 7)], look.line, 2.2, 0.95)
    for k in (0, 4):
        brush.line([(g.turn(-4, 10), 3.0 + k), (g.turn(0, 10), 5.0 + k), (g.turn(4, 10), 3.0 + k)], look.line, 1.5, 0.9)


def _disgust(brush: Brush, look: Look) -> None:
    g = look.g
    x, y = g.turn(0, 9), g.mouth_y
    seam = [(x - 13, y + 4), (x - 8, y - 2.5), (x - 3, y + 1.5), (x + 3, y - 3), (x + 8, y + 1), (x + 13, y + 4.5)]
    brush.line(seam, look.lip, 6.0)
    brush.line(seam, dark(look.lip, 0.72), 1.8)
    tongue = smooth([(x + 1, y + 0.5), (x + 9, y + 1.5), (x + 8.5, y + 9), (x + 4.5, y + 11), (x + 1.5, y + 8)], closed=True)
    brush.fill(tongue, (150, 186, 84))
    brush.stroke(tongue, (60, 90, 30), 1.3)
    for k in (0, 4):
        brush.line([(g.turn(-4.5, 10), 2.0 + k), (g.turn(0, 10), 4.4 + k), (g.turn(4.5, 10), 2.0 + k)], look.line, 1.5, 0.9)


_SPECIAL = {"pucker": _pucker, "gritted": _gritted, "wobbly": _wobbly, "wail": _wail, "sneer": _sneer, "disgust": _disgust}


def beard_path(look: Look) -> skia.Path:
    """The whole beard area: jaw and chin up to the ears."""
    g = look.g
    y = g.chin_y
    outline = [
        (g.half_width + 0.8, 3.0),
        (g.half_width + 0.8, 12.0),
        (g.jaw + 2.0, 27.0),
        (g.chin_half + (g.jaw - g.chin_half) * 0.4 + 1.5, y - 3),
        (g.chin_half * 0.6, y + 4.5),
    ]
    inner = [(g.half_width - 6.0, 4.0), (g.half_width - 8.0, 14.0), (18.0, 20.5), (7.0, 19.5)]
    right = [(x + lean(look, py), py) for x, py in outline]
    left = [(-x + lean(look, py), py) for x, py in reversed(outline)]
    in_left = [(g.turn(-x, 7), py) for x, py in inner]
    in_right = [(g.turn(x, 7), py) for x, py in reversed(inner)]
    return smooth([*right, *left, *in_left, (g.turn(0, 9), 20.0), *in_right], closed=True)


def goatee_path(look: Look) -> skia.Path:
    """Chin beard below the lower lip."""
    g = look.g
    x, y, bottom = g.turn(0, 7), g.mouth_y, g.chin_y + 5.0
    return smooth(
        [
            (x - 13.5, y + 5),
            (x - 8, y + 8),
            (x, y + 7.5),
            (x + 8, y + 8),
            (x + 13.5, y + 5),
            (x + 12, bottom - 4),
            (x, bottom),
            (x - 12, bottom - 4),
        ],
        closed=True,
    )


def paint_beard(brush: Brush, look: Look) -> None:
    """Stubble, goatee or full beard, below the mouth in painting order."""
    kind, g, dice = look.slots["beard"], look.g, look.dice(4)
    if kind == "none":
        return
    if kind == "stubble":
        area = beard_path(look)
        brush.fill(area, mix(dark(look.skin, 0.55), (70, 74, 84), 0.6), 0.5)
        brush.canvas.save()
        brush.canvas.clipPath(area, True)
        spots = [
            (x + dice.uniform(-1, 1), y + dice.uniform(-1, 1), 0.75) for y in range(8, 48, 4) for x in range(-40 + (y % 8) // 2, 42, 5)
        ]
        brush.fill(discs(spots), (26, 22, 30), 0.85)
        brush.canvas.restore()
        return
    area = beard_path(look) if kind == "full" else goatee_path(look)
    brush.shade(area, linear((0, 8), (0, g.chin_y + 4), [argb(light(look.brow, 0.1)), argb(look.brow), argb(dark(look.brow, 0.3))]))
    brush.stroke(area, dark(look.brow, 0.45), 1.3)
    spread = 26 if kind == "full" else 9
    for i in range(9 if kind == "full" else 5):
        x = g.turn(-spread + 2 * spread * i / (8 if kind == "full" else 4), 6)
        low = g.chin_y + 1 - abs(x) * 0.32
        brush.line(
            [(x, low - 9), (x * 0.96 + dice.uniform(-1, 1), low)], light(look.brow, 0.32) if i % 2 else dark(look.brow, 0.4), 1.1, 0.75
        )


def paint_mustache(brush: Brush, look: Look) -> None:
    """Two lobes between nose and mouth."""
    if look.is_("mustache", "none"):
        return
    g = look.g
    x, y = g.turn(0, 10), (g.nose_y + g.mouth_y) / 2 + 0.6
    for s in (-1, 1):
        lobe = smooth(
            [(x, y - 2.0), (x + s * 7, y - 2.6), (x + s * 13, y + 1.4), (x + s * 17, y + 5.2), (x + s * 10, y + 4.4), (x, y + 2.4)],
            closed=True,
        )
        brush.fill(lobe, look.brow)
        brush.stroke(lobe, dark(look.brow, 0.5), 1.1)
        brush.line([(x + s * 3, y - 0.4), (x + s * 9, y + 0.8), (x + s * 14, y + 4)], light(look.brow, 0.3), 1.0, 0.8)
