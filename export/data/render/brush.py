"""The few drawing primitives of the renderer: cached paints, smooth paths, gradients and color arithmetic, on top of skia."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import skia

RGB = tuple[int, int, int]
Point = tuple[float, float]

WHITE: RGB = (255, 255, 255)
INK: RGB = (38, 26, 30)


def mix(a: RGB, b: RGB, t: float) -> RGB:
    """``a`` at t = 0, ``b`` at t = 1."""
    return (round(a[0] + (b[0] - a[0]) * t), round(a[1] + (b[1] - a[1]) * t), round(a[2] + (b[2] - a[2]) * t))


def dark(color: RGB, t: float) -> RGB:
    """``color`` with a share ``t`` of a warm black."""
    return mix(color, (22, 8, 14), t)


def light(color: RGB, t: float) -> RGB:
    """``color`` with a share ``t`` of white."""
    return mix(color, WHITE, t)


def shift(color: RGB, tint: RGB) -> RGB:
    """``color`` plus a small offset, kept in 0 … 255."""
    r, g, b = (min(255, max(0, c + d)) for c, d in zip(color, tint, strict=True))
    return (r, g, b)


def argb(color: RGB, alpha: float = 1.0) -> int:
    """Skia's packed color."""
    return (round(alpha * 255) << 24) | (color[0] << 16) | (color[1] << 8) | color[2]


@lru_cache(maxsize=8192)
def _paint(color: int, width: float) -> skia.Paint:
    paint = skia.Paint(AntiAlias=True, Color=color)
    if width > 0:
        paint.setStyle(skia.Paint.kStroke_Style)
        paint.setStrokeWidth(width)
        paint.setStrokeCap(skia.Paint.kRound_Cap)
        paint.setStrokeJoin(skia.Paint.kRound_Join)
    return paint


def smooth(points: Sequence[Point], *, closed: bool = False) -> skia.Path:
    """A Catmull-Rom curve through ``points`` as cubic segments."""
    path = skia.Path()
    n = len(points)
    path.moveTo(*points[0])
    for i in range(n if closed else n - 1):
        p1, p2 = points[i], points[(i + 1) % n]
        p0 = points[(i - 1) % n] if closed or i > 0 else p1
        p3 = points[(i + 2) % n] if closed or i + 2 < n else p2
        path.cubicTo(
            p1[0] + (p2[0] - p0[0]) / 6, p1[1] + (p2[1] - p0[1]) / 6, p2[0] - (p3[0] - p1[0]) / 6, p2[1] - (p3[1] - p1[1]) / 6, *p2
        )
    if closed:
        path.close()
    return path


def polygon(points: Sequence[Point], *, closed: bool = True) -> skia.Path:
    """Straight lines through ``points``."""
    path = skia.Path()
    path.moveTo(*points[0])
    for point in points[1:]:
        path.lineTo(*point)
    if closed:
        path.close()
    return path


def discs(spots: Iterable[tuple[float, float, float]]) -> skia.Path:
    """Circles (x, y, radius) in one path."""
    path = skia.Path()
    for x, y, radius in spots:
        path.addCircle(x, y, radius)
    return path


def oval(x: float, y: float, rx: float, ry: float) -> skia.Path:
    """An axis-aligned ellipse."""
    path = skia.Path()
    path.addOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry))
    return path


def rounded(left: float, top: float, right: float, bottom: float, radius: float) -> skia.Path:
    """A rectangle with round corners."""
    path = skia.Path()
    path.addRoundRect(skia.Rect.MakeLTRB(left, top, right, bottom), radius, radius)
    return path


def arc(center: Point, radii: Point, start: float, stop: float) -> skia.Path:
    """Part of an ellipse; degrees clockwise from the viewer's right."""
    return arcs([center], radii, [start], stop - start)


def arcs(centers: Iterable[Point], radii: Point, starts: Iterable[float], sweep: float) -> skia.Path:
    """Equal parts of equal ellipses in one path."""
    path = skia.Path()
    rx, ry = radii
    for (x, y), start in zip(centers, starts, strict=True):
        path.addArc(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry), start, sweep)
    return path


def radial(center: Point, radius: float, colors: Sequence[int], stops: Sequence[float] | None = None) -> skia.Shader:
    """A radial gradient of packed colors."""
    return skia.GradientShader.MakeRadial(center, radius, list(colors), None if stops is None else list(stops))


def linear(start: Point, stop: Point, colors: Sequence[int], stops: Sequence[float] | None = None) -> skia.Shader:
    """A linear gradient of packed colors."""
    return skia.GradientShader.MakeLinear([start, stop], list(colors), None if stops is None else list(stops))


class Brush:
    """A canvas with short verbs; all colors are RGB with alpha 0 … 1."""

    def __init__(self, canvas: skia.Canvas) -> None:
        self.canvas = canvas

    def fill(self, path: skia.Path, color: RGB, alpha: float = 1.0) -> None:
        self.canvas.drawPath(path, _paint(argb(color, alpha), 0.0))

    def stroke(self, path: skia.Path, color: RGB, width: float, alpha: float = 1.0) -> None:
        self.canvas.drawPath(path, _paint(argb(color, alpha), width))

    def shade(self, path: skia.Path, shader: skia.Shader) -> None:
        self.canvas.drawPath(path, skia.Paint(AntiAlias=True, Shader=shader))

    def disc(self, x: float, y: float, radius: float, color: RGB, alpha: float = 1.0) -> None:
        self.canvas.drawCircle(x, y, radius, _paint(argb(color, alpha), 0.0))

    def ring(self, x: float, y: float, radius: float, color: RGB, width: float) -> None:
        self.canvas.drawCircle(x, y, radius, _paint(argb(color), width))

    def line(self, points: Sequence[Point], color: RGB, width: float, alpha: float = 1.0) -> None:
        """A smooth curve through ``points``."""
        self.stroke(smooth(points), color, width, alpha)

    def glow(self, x: float, y: float, radius: float, color: RGB, alpha: float) -> None:
        """A soft disc that fades to nothing at ``radius``."""
        shader = radial((x, y), radius, [argb(color, alpha), argb(color, alpha * 0.75), argb(color, 0.0)], [0.0, 0.45, 1.0])
        self.canvas.drawCircle(x, y, radius, skia.Paint(AntiAlias=True, Shader=shader))
