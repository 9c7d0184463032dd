"""Everything behind and below the head: backdrop, neck, clothes, and the light that falls on the figure."""

from __future__ import annotations

import skia

from export.data.render.brush import WHITE, Brush, argb, dark, light, linear, oval, radial, smooth
from export.data.render.look import Look

SHOULDER_Y = 108.0


def paint_backdrop(brush: Brush, look: Look) -> None:
    """A soft gradient with two faint discs."""
    dice = look.dice(1)
    x, y = dice.uniform(20, 108), dice.uniform(15, 60)
    shader = radial((x, y), 125.0, [argb(light(look.backdrop, 0.16)), argb(look.backdrop), argb(dark(look.backdrop, 0.18))], [0, 0.45, 1])
    page = skia.Path()
    page.addRect(skia.Rect.MakeLTRB(-2, -2, 130, 130))
    brush.shade(page, shader)
    for _ in range(2):
        brush.disc(dice.uniform(0, 128), dice.uniform(0, 90), dice.uniform(10, 26), WHITE, 0.07)


def body_path(look: Look) -> skia.Path:
    """Outline of shoulders and chest, picture coordinates."""
    g = look.g
    top, center = SHOULDER_Y + g.shoulder, 64 + g.dx * 0.5
    chubby, masculine = look.is_("build", "chubby"), not look.feminine
    reach = 44 + 9 * chubby + 7 * masculine
    neck = g.neck + 2
    left = [
        (center - reach - 4, 136.0),
        (center - reach, top + 14 - 3 * masculine),
        (center - reach * 0.72, top + 5),
        (center - neck, top - 3),
    ]
    right = [(2 * center - x, y) for x, y in reversed(left)]
    return smooth([*left, (center, top + 2), *right], closed=True)


def neck_path(look: Look) -> skia.Path:
    """Neck down to the collar bones, picture coordinates."""
    g = look.g
    center = 64 + g.dx * 0.7
    neck, bottom = g.neck, SHOULDER_Y + g.shoulder
    return smooth(
        [
            (center - neck, 80), (center - neck, bottom - 6), (center - neck - 3, bottom - 2),
            (center, bottom + (8 if look.feminine else 3)),
            (center + neck + 3, bottom - 2), (center + neck, bottom - 6), (center + neck, 80),
        ],
        closed=True,
    )  # fmt: skip


def neckline_path(look: Look) -> skia.Path:
    """The opening of the clothes."""
    g = look.g
    center, top = 64 + g.dx * 0.6, SHOULDER_Y + g.shoulder - 3
    wide, deep = g.neck + 4.5, 14.0 if look.feminine else 9.0
    return smooth(
        [
            (center - wide, top),
            (center - wide * 0.72, top + deep * 0.7),
            (center, top + deep),
            (center + wide * 0.72, top + deep * 0.7),
            (center + wide, top),
        ]
    )


def paint_body(brush: Brush, look: Look) -> None:
    """Neck and clothes with folds and a collar."""
    g, center = look.g, 64 + look.g.dx * 0.6
    body, neck = body_path(look), neck_path(look)
    top = SHOULDER_Y + g.shoulder
    brush.shade(body, linear((0, top), (0, 130), [argb(light(look.cloth, 0.08)), argb(dark(look.cloth, 0.16))]))
    edge = dark(look.cloth, 0.4) if not look.is_("clothing_color", "black") else (96, 98, 108)
    brush.stroke(body, edge, 1.2)
    for side in (-1, 1):
        brush.line([(center + side * 34, top + 14), (center + side * 31, top + 20), (center + side * 32, 131)], edge, 1.1, 0.65)
    opening = neckline_path(look)
    brush.fill(opening, look.skin)
    brush.fill(neck, look.skin)
    brush.shade(neck, linear((0, 92), (0, top + 8), [argb(dark(look.skin, 0.42)), argb(dark(look.skin, 0.02), 0.0)]))
    brush.stroke(opening, edge, 4.6)
    brush.stroke(opening, light(look.cloth, 0.22) if not look.is_("clothing_color", "white") else (214, 218, 226), 2.6)
    if not look.feminine:
        brush.line([(center - 2.5, top - 3), (center, top), (center + 2.5, top - 3)], look.line, 1.2, 0.7)
    else:
        for side in (-1, 1):
            brush.line([(center + side * 3, top + 3.5), (center + side * (g.neck - 1), top + 1.5)], look.line, 1.0, 0.45)


def paint_neckwear(brush: Brush, look: Look) -> None:
    """Necklace or tie over the clothes."""
    g, center = look.g, 64 + look.g.dx * 0.6
    top = SHOULDER_Y + g.shoulder
    wide = g.neck + 3.5
    along = [(t, center + wide * t, top + 13.0 - 13.5 * t * t + 2.0) for t in (-0.92, -0.68, -0.44, -0.22, 0.0, 0.22, 0.44, 0.68, 0.92)]
    if look.is_("necklace", "pearls"):
        for _, x, y in along:
            brush.disc(x, y, 3.9, (112, 100, 118))
            brush.disc(x, y, 3.2, (246, 240, 240))
            brush.disc(x - 0.9, y - 0.9, 1.2, WHITE)
    elif look.is_("necklace", "chain"):
        chain = [(x, y) for _, x, y in along]
        brush.line(chain, (92, 58, 4), 4.4)
        brush.line(chain, (255, 196, 22), 2.8)
        brush.disc(center, top + 19, 4.6, (92, 58, 4))
        brush.disc(center, top + 19, 3.6, (255, 196, 22))
        brush.disc(center - 1, top + 18, 1.3, (255, 240, 170))
    if not look.is_("necktie", "none"):
        paint_tie(brush, look, center, top)


def paint_tie(brush: Brush, look: Look, center: float, top: float) -> None:
    """Shirt collar, and a tie or bow in a color that stands off the clothes."""
    palette = [(150, 16, 60), (24, 40, 110), (230, 120, 20), (98, 30, 130), (10, 120, 130)]
    near = {"red": {0, 2}, "blue": {1, 3}, "yellow": {2}, "green": {4}, "black": {1, 3, 0}, "white": set()}[look.slots["clothing_color"]]
    free = [c for i, c in enumerate(palette) if i not in near]
    color = free[look.g.choice[0] % len(free)]
    neck = look.g.neck
    for side in (-1, 1):
        flap = smooth(
            [
                (center + side * (neck + 3), top - 7),
                (center + side * (neck + 5), top + 5),
                (center + side * 9, top + 15),
                (center, top + 4),
            ],
            closed=True,
        )
        brush.fill(flap, (250, 250, 252))
        brush.stroke(flap, (120, 124, 140), 1.1)
    if look.is_("necktie", "tie"):
        knot = smooth([(center - 5.5, top + 3), (center + 5.5, top + 3), (center + 3.6, top + 10), (center - 3.6, top + 10)], closed=True)
        blade = smooth([(center - 3.4, top + 10), (center + 3.4, top + 10), (center + 9, 136), (center - 9, 136)], closed=True)
        for path in (blade, knot):
            brush.fill(path, color)
            brush.stroke(path, dark(color, 0.5), 1.2)
        for i in range(2):
            y = top + 15 + 6.0 * i
            brush.line([(center - 5, y + 2), (center + 5, y - 2)], light(color, 0.6), 1.7)
        return
    for side in (-1, 1):
        wing = smooth(
            [(center, top + 6), (center + side * 14, top - 1), (center + side * 16, top + 6), (center + side * 14, top + 14)], closed=True
        )
        brush.fill(wing, color)
        brush.stroke(wing, dark(color, 0.5), 1.3)
        brush.line([(center + side * 5, top + 6.5), (center + side * 11, top + 4)], light(color, 0.45), 1.3)
    brush.fill(oval(center, top + 6.5, 4.0, 4.6), light(color, 0.15))
    brush.stroke(oval(center, top + 6.5, 4.0, 4.6), dark(color, 0.5), 1.2)


def paint_light(canvas: skia.Canvas, look: Look) -> None:
    """Side light on the figure in the current layer: bright on one side, deep shade on the other."""
    if look.is_("lighting", "even"):
        return
    lit, shaded = (18.0, 112.0) if look.is_("lighting", "left") else (110.0, 16.0)
    glare, shade = (255, 236, 190), (24, 18, 40)
    shader = linear(
        (lit, 50), (shaded, 58),
        [argb(glare, 0.34), argb(glare, 0.0), argb(shade, 0.0), argb(shade, 0.48), argb(shade, 0.66)],
        [0.0, 0.36, 0.44, 0.68, 1.0],
    )  # fmt: skip
    paint = skia.Paint(Shader=shader, BlendMode=skia.BlendMode.kSrcATop)
    canvas.drawPaint(paint)
