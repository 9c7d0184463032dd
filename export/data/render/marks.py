"""Marks of actions: props at the face and comic marks beside the head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from export.data.render.brush import INK, RGB, WHITE, Brush, Point, arc, dark, discs, light, mix, oval, polygon, rounded, smooth
from export.data.render.eyes import eye_center
from export.data.render.look import Look

_TEAR: RGB = (72, 176, 255)


def _outlined(brush: Brush, points: list[Point], color: RGB, width: float) -> None:
    """A white-edged line that stands off every backdrop."""
    brush.line(points, WHITE, width + 2.4)
    brush.line(points, color, width)


def _arrow(brush: Brush, points: Sequence[Point], color: RGB, width: float = 2.8) -> None:
    """A curved arrow that ends at the last point."""
    (ax, ay), (bx, by) = points[-2], points[-1]
    angle = math.atan2(by - ay, bx - ax)
    wings = [(bx - 6.5 * math.cos(angle + s), by - 6.5 * math.sin(angle + s)) for s in (0.6, -0.6)]
    for ink, extra in ((WHITE, 2.4), (color, 0.0)):
        brush.line(points, ink, width + extra)
        brush.line([wings[0], (bx, by)], ink, width + extra)
        brush.line([wings[1], (bx, by)], ink, width + extra)


def _note(brush: Brush, x: float, y: float, color: RGB, size: float = 1.0) -> None:
    for ink, extra in ((WHITE, 1.3), (color, 0.0)):
        brush.fill(oval(x, y, 3.8 * size + extra, 3.0 * size + extra), ink)
        brush.line([(x + 3 * size, y), (x + 3 * size, y - 11 * size)], ink, 1.9 + 2 * extra)
        brush.line([(x + 3 * size, y - 11 * size), (x + 8 * size, y - 8 * size)], ink, 2.6 + 2 * extra)


def _hand(brush: Brush, look: Look, x: float, y: float, angle: float, *, fist: bool = False) -> None:
    """A hand; fingers point along ``angle`` (degrees, 0: up)."""
    canvas = brush.canvas
    canvas.save()
    canvas.translate(x, y)
    canvas.rotate(angle)
    sleeve = rounded(-8.5, 9, 8.5, 60, 4)
    brush.fill(sleeve, look.cloth)
    brush.stroke(sleeve, dark(look.cloth, 0.45), 1.4)
    fingers = 4 if fist else 12
    shape = rounded(-9.5, -fingers, 9.5, 11, 7)
    brush.fill(shape, light(look.skin, 0.08))
    brush.stroke(shape, look.line, 1.7)
    for k in (-4.7, 0.0, 4.7):
        brush.line([(k, -fingers + 1.5), (k, 0 if fist else -2)], look.line, 1.3)
    brush.line([(-9, 4), (-2, 3), (0, 6)], look.line, 1.4)
    canvas.restore()


# Picture marks: coordinates of the 128-pixel picture.


def _haha(brush: Brush, _look: Look) -> None:
    for side in (-1, 1):
        for k in (0, 1, 2):
            x, y = 64 + side * (49 + 2 * (k % 2)), 50 + 11 * k
            _outlined(brush, [(x, y), (x + side * 4, y + 3), (x + side * 9, y + (k - 1) * 3)], (255, 214, 10), 3.0)


def _scribble(brush: Brush, _look: Look) -> None:
    cloud = discs(((103, 16, 9), (115, 14, 8), (110, 21, 8)))
    brush.stroke(cloud, WHITE, 3.0)
    brush.fill(cloud, (70, 72, 88))
    for k in (0, 1, 2):
        _outlined(brush, [(102 + 7 * k, 33), (98 + 7 * k, 42)], (70, 72, 88), 2.4)


def _bubble(brush: Brush, _look: Look) -> None:
    body = rounded(92, 4, 126, 27, 10)
    tail = polygon([(99, 24), (108, 26), (95, 37)])
    for path in (body, tail):
        brush.stroke(path, INK, 3.4)
    for path in (body, tail):
        brush.fill(path, WHITE)
    brush.fill(discs(((101, 15.5, 2.7), (109, 15.5, 2.7), (117, 15.5, 2.7))), INK)


def _burst(brush: Brush, _look: Look) -> None:
    for side in (-1, 1):
        for angle in (-38, -8, 22):
            a = math.radians(angle)
            x, y = 64 + side * (47 + 3 * abs(math.sin(a))), 76 + 40 * math.sin(a)
            spike = polygon([(x, y - 3.6), (x + side * 15, y + 15 * math.sin(a)), (x, y + 3.6)])
            brush.stroke(spike, WHITE, 2.2)
            brush.fill(spike, (255, 92, 0))


def _notes(brush: Brush, _look: Look) -> None:
    for x, y in ((106, 24), (115, 46), (12, 30)):
        _note(brush, x, y, (148, 0, 168), 1.15)


def _puff_at(brush: Brush, x: float, y: float, r: float, color: RGB = (240, 246, 252)) -> None:
    cloud = discs(((x, y, r), (x + r * 0.9, y - r * 0.4, r * 0.8), (x + r * 0.8, y + r * 0.5, r * 0.8), (x + r * 1.6, y, r * 0.7)))
    brush.stroke(cloud, (88, 108, 136), 2.4)
    brush.fill(cloud, color)


def _puff(brush: Brush, _look: Look) -> None:
    _puff_at(brush, 97, 92, 6.5)
    _puff_at(brush, 113, 78, 4.2)


def _heart_shape(brush: Brush, x: float, y: float, r: float) -> None:
    heart = smooth([(x, y - r * 0.35), (x + r * 0.55, y - r * 0.95), (x + r * 1.05, y - r * 0.25), (x + r * 0.6, y + r * 0.5)])
    heart.lineTo(x, y + r * 1.1)
    heart.lineTo(x - r * 0.6, y + r * 0.5)
    heart.addPath(smooth([(x - r * 0.6, y + r * 0.5), (x - r * 1.05, y - r * 0.25), (x - r * 0.55, y - r * 0.95), (x, y - r * 0.35)]), 0, 0)
    body = smooth(
        [
            (x, y - r * 0.4),
            (x + r * 0.55, y - r * 0.95),
            (x + r * 1.05, y - r * 0.25),
            (x, y + r * 1.1),
            (x - r * 1.05, y - r * 0.25),
            (x - r * 0.55, y - r * 0.95),
        ],
        closed=True,
    )
    brush.stroke(body, WHITE, 2.6)
    brush.fill(body, (238, 18, 74))
    brush.disc(x - r * 0.45, y - r * 0.4, r * 0.24, WHITE, 0.8)


def _heart(brush: Brush, _look: Look) -> None:
    _heart_shape(brush, 106, 78, 9.5)
    _heart_shape(brush, 117, 57, 6)


def _gloom(brush: Brush, _look: Look) -> None:
    for k in range(4):
        x = 96 + 8.0 * k
        _outlined(brush, [(x, 3), (x, 22 - 3 * (k % 2) + 3)], (34, 52, 128), 2.8)


def _vein(brush: Brush, _look: Look) -> None:
    x, y = 109.0, 19.0
    for ink, width in ((WHITE, 5.6), ((226, 6, 6), 3.4)):
        for sx in (-1, 1):
            for sy in (-1, 1):
                brush.line([(x + sx * 10, y + sy * 3), (x + sx * 3.6, y + sy * 3.6), (x + sx * 3, y + sy * 10)], ink, width)


def _exclaim(brush: Brush, _look: Look) -> None:
    for x in (104.0, 116.0):
        bar = polygon([(x - 3.6, 5), (x + 3.6, 5), (x + 1.8, 22), (x - 1.8, 22)])
        for path in (bar, discs(((x, 28, 3.0),))):
            brush.stroke(path, WHITE, 2.4)
            brush.fill(path, (232, 16, 16))


def _drop_at(brush: Brush, x: float, y: float, r: float, color: RGB = _TEAR) -> None:
    drop = smooth([(x, y - r * 1.9), (x + r * 0.85, y - r * 0.1), (x, y + r), (x - r * 0.85, y - r * 0.1)], closed=True)
    brush.stroke(drop, (14, 70, 150), 2.0)
    brush.fill(drop, color)
    brush.disc(x - r * 0.3, y + r * 0.1, r * 0.26, WHITE)


def _sweat(brush: Brush, _look: Look) -> None:
    for x, y, r in ((108, 24, 5.6), (118, 42, 4.4), (20, 24, 5.6), (9, 42, 4.4)):
        _drop_at(brush, x, y, r)


def _nausea(brush: Brush, _look: Look) -> None:
    for k in range(3):
        x = 98 + 10.0 * k
        _outlined(brush, [(x, 28), (x + 4, 22), (x - 2, 16), (x + 3, 10), (x, 5)], (70, 128, 10), 2.8)


def _joy(brush: Brush, _look: Look) -> None:
    for x, y, r in ((108, 22, 9.0), (118, 42, 5.5), (14, 30, 6.5)):
        _star(brush, x, y, r, (255, 220, 20))


def _star(brush: Brush, x: float, y: float, r: float, color: RGB) -> None:
    points = []
    for k in range(8):
        radius = r if k % 2 == 0 else r * 0.34
        points.append((x + radius * math.sin(math.pi * k / 4), y - radius * math.cos(math.pi * k / 4)))
    star = polygon(points)
    brush.stroke(star, dark(color, 0.55), 2.4)
    brush.fill(star, color)


def _sparkle(brush: Brush, _look: Look) -> None:
    for x, y, r in ((112, 12, 9.5), (17, 12, 9.5)):
        _star(brush, x, y, r, (190, 250, 255))


def _twinkle(brush: Brush, _look: Look) -> None:
    _star(brush, 115, 46, 8.5, (255, 96, 190))


def _tilde(brush: Brush, _look: Look) -> None:
    for y in (12.0, 22.0):
        _outlined(brush, [(95, y + 3), (101, y - 2), (108, y + 2), (115, y + 3), (122, y - 2)], (0, 116, 124), 3.0)


def _zzz(brush: Brush, _look: Look) -> None:
    for x, y, r in ((98, 34, 4.5), (107, 22, 6.0), (116, 8, 7.5)):
        for ink, width in ((WHITE, 5.0), ((38, 44, 170), 2.8)):
            brush.stroke(
                polygon([(x - r, y - r * 0.8), (x + r, y - r * 0.8), (x - r, y + r * 0.8), (x + r, y + r * 0.8)], closed=False), ink, width
            )


def _arrows(brush: Brush, _look: Look) -> None:
    _arrow(brush, [(18, 62), (12, 62), (4, 62)], (8, 110, 190), 3.2)
    _arrow(brush, [(110, 62), (116, 62), (124, 62)], (8, 110, 190), 3.2)


def _book(brush: Brush, _look: Look) -> None:
    for side in (-1, 1):
        cover = polygon([(64, 108), (64 + side * 35, 101), (64 + side * 37, 132), (64, 132)])
        brush.fill(cover, (120, 34, 28))
        brush.stroke(cover, (52, 10, 10), 2.0)
        page = polygon([(64, 111), (64 + side * 31, 105), (64 + side * 33, 132), (64, 132)])
        brush.fill(page, (252, 248, 232))
        for k in range(3):
            brush.line([(64 + side * 5, 116.5 + 5 * k), (64 + side * 28, 112 + 5 * k)], (110, 106, 110), 1.6)
    brush.line([(64, 110), (64, 128)], (120, 100, 90), 2.0)


def _nod(brush: Brush, _look: Look) -> None:
    _arrow(brush, [(112, 40), (119, 52), (119, 66), (112, 78)], (0, 120, 60))
    _arrow(brush, [(16, 78), (9, 66), (9, 52), (16, 40)], (0, 120, 60))


def _shake(brush: Brush, _look: Look) -> None:
    for side in (-1, 1):
        for k, reach in ((0, 50.0), (1, 57.0)):
            _outlined(
                brush,
                [(64 + side * reach, 40 + 3 * k), (64 + side * (reach + 3.5), 58), (64 + side * reach, 76 - 3 * k)],
                (196, 0, 44),
                3.0,
            )


def _wag(brush: Brush, _look: Look) -> None:
    brush.stroke(arc((64, 62), (60, 58), -140, -112), WHITE, 5.4)
    brush.stroke(arc((64, 62), (60, 58), -68, -40), WHITE, 5.4)
    brush.stroke(arc((64, 62), (60, 58), -140, -112), (224, 110, 0), 3.2)
    brush.stroke(arc((64, 62), (60, 58), -68, -40), (224, 110, 0), 3.2)
    for x, y in ((19, 30), (109, 30)):
        brush.line([(x - 3, y + 5), (x + 3, y - 4)], WHITE, 5.0)
        brush.line([(x - 3, y + 5), (x + 3, y - 4)], (224, 110, 0), 3.0)


def _turn(brush: Brush, look: Look) -> None:
    sign = 1 if look.g.choice[2] % 2 else -1
    points = [(64 - sign * 46, 100.0), (64 - sign * 20, 112.0), (64 + sign * 18, 113.0), (64 + sign * 45, 100.0)]
    _arrow(brush, points, (104, 20, 190), 4.2)


# Face marks: head coordinates.


def _hand_side(brush: Brush, look: Look) -> None:
    _hand(brush, look, look.g.turn(23, 9), 25, 12)
    for k in (0, 1):
        _outlined(
            brush,
            [(look.g.turn(-18, 9) - 6 * k, 20 - 2 * k), (look.g.turn(-22, 9) - 6 * k, 27), (look.g.turn(-18, 9) - 6 * k, 34 + 2 * k)],
            (60, 60, 74),
            1.9,
        )


def _hand_yawn(brush: Brush, look: Look) -> None:
    _hand(brush, look, look.g.turn(12, 9), 42, -28)
    _drop_at(brush, look.g.turn(28, 9), 6, 2.8)


def _wind(brush: Brush, look: Look) -> None:
    x = look.g.turn(10, 10)
    for dy, far in ((-5, 16.0), (0, 22.0), (5, 16.0)):
        _outlined(
            brush,
            [(x, 27 + dy * 0.7), (x + far * 0.6, 27 + dy * 1.3), (x + far, 27 + dy * 1.9), (x + far + 5, 27 + dy * 1.9 - 4)],
            (44, 132, 222),
            2.4,
        )


def _chew(brush: Brush, look: Look) -> None:
    for k in (0, 1):
        r = 17.5 + 5.5 * k
        _outlined(brush, [(look.g.turn(24, 8) + r * math.cos(a), 25 + r * math.sin(a)) for a in (-0.4, 0.1, 0.6)], (190, 84, 0), 2.4)


def _cookie(brush: Brush, look: Look) -> None:
    x, y = look.g.turn(8, 10), 34.0
    brush.disc(x, y, 10.5, (104, 58, 16))
    brush.disc(x, y, 9.3, (222, 154, 70))
    brush.fill(discs(((x - 4, y - 2, 1.9), (x + 3, y - 4, 1.9), (x + 4, y + 3.5, 1.9), (x - 2, y + 5, 1.9))), (66, 32, 10))
    _hand(brush, look, x + 9, y + 14, -25, fist=True)


def _cup(brush: Brush, look: Look) -> None:
    x, y = look.g.turn(0, 10), 24.0
    handle = oval(x + 15, y + 11, 6.5, 7)
    brush.stroke(handle, (140, 20, 20), 5.0)
    brush.stroke(handle, (250, 250, 250), 2.6)
    cup = polygon([(x - 14, y), (x + 14, y), (x + 11, y + 23), (x - 11, y + 23)])
    brush.fill(cup, (252, 250, 246))
    band = polygon([(x - 13, y + 7), (x + 13, y + 7), (x + 12, y + 15), (x - 12, y + 15)])
    brush.fill(band, (214, 36, 36))
    brush.stroke(cup, (110, 20, 20), 1.8)
    _hand(brush, look, x + 15, y + 24, -12, fist=True)


def _cigarette(brush: Brush, look: Look) -> None:
    x, y = look.g.turn(4, 10), look.g.mouth_y
    for ink, width in ((INK, 5.6), (WHITE, 3.8)):
        brush.line([(x, y), (x + 22, y + 6)], ink, width)
    brush.line([(x, y), (x + 6, y + 1.7)], (226, 140, 40), 3.8)
    brush.disc(x + 23, y + 6.2, 2.6, (255, 70, 10))
    smoke = [(x + 27, y + 2), (x + 34, y - 8), (x + 30, y - 18), (x + 39, y - 30), (x + 35, y - 42)]
    brush.line(smoke, (70, 70, 80), 6.4, 0.85)
    brush.line(smoke, (232, 232, 236), 4.4)


def _fist(brush: Brush, look: Look) -> None:
    _hand(brush, look, look.g.turn(2, 10), 31, 0, fist=True)
    for side in (-1, 1):
        _puff_at(brush, look.g.turn(side * 22, 9) - 5, 28, 4.0, (224, 230, 236))


def _tissue(brush: Brush, look: Look) -> None:
    x, y = look.g.turn(0, 11), 24.0
    cloth = polygon(
        [
            (x - 16, y - 7),
            (x - 7, y - 10),
            (x, y - 7),
            (x + 8, y - 10),
            (x + 16, y - 6),
            (x + 19, y + 8),
            (x + 9, y + 17),
            (x, y + 13),
            (x - 10, y + 17),
            (x - 19, y + 7),
        ]
    )
    brush.stroke(cloth, (96, 110, 140), 2.6)
    brush.fill(cloth, WHITE)
    for k in (-8, 0, 8):
        brush.line([(x + k * 0.6, y - 6), (x + k, y + 12)], (170, 182, 204), 1.6)
    for side in (-1, 1):
        for dx, dy in ((24, -4), (29, 6), (25, 15)):
            _drop_at(brush, x + side * dx, y + dy, 2.7)


def _flower(brush: Brush, look: Look) -> None:
    x, y = look.g.turn(0, 11), 27.0
    brush.line([(x, y), (x + 2, y + 16), (x + 8, y + 36)], (24, 110, 30), 3.4)
    petals = discs((x + 6.4 * math.cos(a), y + 6.4 * math.sin(a), 4.6) for a in (0.3, 1.56, 2.8, 4.07, 5.33))
    brush.stroke(petals, (120, 0, 84), 2.0)
    brush.fill(petals, (255, 70, 180))
    brush.disc(x, y, 4.0, (255, 214, 20))


def _tear(brush: Brush, look: Look) -> None:
    for side in (-1, 1):
        x, _ = eye_center(look.g, side)
        _drop_at(brush, x + side * 3, 16, 4.2)


def _streams(brush: Brush, look: Look) -> None:
    for side in (-1, 1):
        x, _ = eye_center(look.g, side)
        band = smooth(
            [(x - 5, 4), (x + 5, 4), (x + 5.5 + side, 24), (x + 4 + side * 2, 40), (x - 4 + side * 2, 40), (x - 5.5 + side, 24)],
            closed=True,
        )
        brush.fill(band, _TEAR, 0.95)
        brush.stroke(band, (14, 70, 150), 1.5)
        brush.line([(x - 1, 8), (x - 1 + side, 34)], WHITE, 1.8, 0.85)


def _rays(brush: Brush, _look: Look) -> None:
    for side in (-1, 1):
        for k in (-1, 0, 1):
            _outlined(brush, [(side * 45.0, -2 + 7.0 * k), (side * 57.0, -2 + 12.0 * k)], (214, 0, 0), 2.8)


def _headphones(brush: Brush, look: Look) -> None:
    w = look.g.half_width + 5
    band = arc((0, -8), (w, 46), 188, 352)
    brush.stroke(band, (24, 24, 30), 6.4)
    brush.stroke(band, (70, 74, 90), 2.4)
    for side in (-1, 1):
        shell = rounded(side * (w + 1) - 7.5, -11, side * (w + 1) + 7.5, 17, 6.5)
        brush.fill(shell, (34, 34, 42))
        brush.stroke(shell, (250, 60, 90), 2.6)
    _note(brush, 52, -34, (20, 20, 24), 1.05)


def _trumpet(brush: Brush, look: Look) -> None:
    x, y = look.g.turn(0, 10), look.g.mouth_y
    gold, edge = (255, 198, 40), (118, 70, 0)
    bell = smooth(
        [(x + 14, y + 4), (x + 26, y - 3), (x + 33, y - 8), (x + 36, y + 7), (x + 32, y + 22), (x + 24, y + 14), (x + 13, y + 9)],
        closed=True,
    )
    for ink, extra in ((edge, 2.4), (gold, 0.0)):
        brush.line([(x, y + 1), (x + 18, y + 6)], ink, 5.0 + extra)
        brush.stroke(oval(x + 14, y + 12, 8, 5), ink, 2.6 + extra)
    brush.fill(bell, gold)
    brush.stroke(bell, edge, 1.8)
    brush.fill(oval(x + 34.5, y + 7, 3.4, 13.5), (204, 140, 10))
    for k in (7, 11.5, 16):
        brush.line([(x + k, y + 1), (x + k, y - 5)], mix(gold, WHITE, 0.4), 2.8)


Mark = Callable[[Brush, Look], None]
PICTURE_MARKS: dict[str, Mark] = {
    "haha": _haha, "scribble": _scribble, "bubble": _bubble, "burst": _burst, "notes": _notes, "puff": _puff, "heart": _heart,
    "gloom": _gloom, "vein": _vein, "exclaim": _exclaim, "sweat": _sweat, "nausea": _nausea, "joy": _joy, "sparkle": _sparkle,
    "zzz": _zzz, "twinkle": _twinkle, "tilde": _tilde,
    "arrows": _arrows, "book": _book, "nod": _nod, "shake": _shake, "wag": _wag, "turn": _turn,
}  # fmt: skip
FACE_MARKS: dict[str, Mark] = {
    "hand_side": _hand_side, "hand_yawn": _hand_yawn, "wind": _wind, "chew": _chew, "cookie": _cookie, "cup": _cup,
    "cigarette": _cigarette, "fist": _fist, "tissue": _tissue, "flower": _flower, "tear": _tear, "streams": _streams, "rays": _rays,
    "headphones": _headphones, "trumpet": _trumpet,
}  # fmt: skip

#: Marks of expressions that the face itself shows: half of the pictures go without, so that the face is what is read.
OPTIONAL_MARKS = frozenset(
    {"haha", "scribble", "burst", "heart", "gloom", "vein", "exclaim", "sweat", "nausea", "joy", "sparkle", "twinkle", "tilde"}
)
