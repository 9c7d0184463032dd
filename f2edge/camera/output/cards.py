"""Semi-transparent panels of text and bars, drawn with Pillow's built-in font and composed over frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from f2edge.camera.frames import Picture

Color = tuple[int, int, int]
#: Premultiplied BGR and alpha: (Y, X, 4) uint8.
Panel = NDArray[np.uint8]

_GROUND = (16, 19, 27, 205)
_LABEL, _VALUE, _FAINT = (154, 164, 184), (244, 247, 252), (146, 156, 176)
_TROUGH = (58, 66, 84)


@dataclass(frozen=True)
class CardRow:
    """One attribute of a card: name, value and probability in fiftieths."""

    label: str
    value: str
    fiftieths: int


@dataclass(frozen=True)
class Card:
    """Content of a panel about a face; equal cards are drawn once."""

    title: str
    aside: str
    rows: tuple[CardRow, ...]
    words: tuple[tuple[str, str], ...]
    color: Color
    scale: float


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(7.0, size))


@lru_cache(maxsize=16)
def _sheet(width: int, height: int, radius: int, accent: Color | None) -> Image.Image:
    """Return an empty panel with rounded corners and an accent-colored stripe on its left."""
    big = Image.new("RGBA", (3 * width, 3 * height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(big)
    draw.rounded_rectangle((0, 0, 3 * width - 1, 3 * height - 1), 3 * radius, fill=_GROUND)
    if accent:
        inset = 3 * radius
        draw.rounded_rectangle((6, inset, 6 + max(6, radius), 3 * height - inset), radius // 2 + 1, fill=(*accent, 255))
    return big.resize((width, height), Image.Resampling.BOX)


@lru_cache(maxsize=96)
def draw_card(card: Card) -> Panel:
    """Return the panel of a card."""
    s = card.scale
    width, pad, row_height = round(184 * s), round(13 * s), round(25 * s)
    lines = [(question, line) for question, text in card.words for line in _wrapped(text, 22)]
    height = round(32 * s) + row_height * len(card.rows) + round(17 * s) * (len(lines) + len(card.words)) + round(5 * s)
    image = _sheet(width, height, round(9 * s), card.color).copy()
    draw = ImageDraw.Draw(image)
    title, label, value = _font(14.5 * s), _font(11.5 * s), _font(13 * s)
    draw.text((pad, round(7 * s)), card.title, font=title, fill=card.color)
    draw.text((width - pad, round(9 * s)), _spaced(card.aside), font=_font(11.5 * s), fill=_FAINT, anchor="ra")
    y = round(31 * s)
    for row in card.rows:
        text = _spaced(row.value)
        room = width - 2.6 * pad - value.getlength(text)
        draw.text((pad, y + round(2 * s)), _fitted(_spaced(row.label), label, room), font=label, fill=_LABEL)
        draw.text((width - pad, y), text, font=value, fill=_VALUE, anchor="ra")
        top = y + round(17 * s)
        thick = max(2, round(2.5 * s))
        draw.rectangle((pad, top, width - pad - 1, top + thick - 1), fill=(*_TROUGH, 235))
        filled = pad + round((width - 2 * pad) * row.fiftieths / 50)
        if filled > pad:
            draw.rectangle((pad, top, filled - 1, top + thick - 1), fill=(*card.color, 255))
        y += row_height
    asked = ""
    for question, line in lines:
        if question != asked:
            draw.text((pad, y + round(2 * s)), _spaced(_shortened(question, 28)), font=label, fill=_LABEL)
            y += round(17 * s)
            asked = question
        draw.text((pad, y), _spaced(line), font=value, fill=_VALUE)
        y += round(17 * s)
    return _ready(image)


@lru_cache(maxsize=64)
def draw_strip(parts: tuple[tuple[str, bool], ...], scale: float) -> Panel:
    """Return a one-line panel; parts marked True are bright, the others faint."""
    font, pad, gap = _font(11.5 * scale), round(10 * scale), round(5 * scale)
    parts = tuple((_spaced(text), bright) for text, bright in parts)
    widths = [round(font.getlength(text)) for text, _ in parts]
    height = round(24 * scale)
    image = _sheet(2 * pad + sum(widths) + gap * (len(parts) - 1), height, height // 2, None).copy()
    draw = ImageDraw.Draw(image)
    x = pad
    for (text, bright), width in zip(parts, widths, strict=True):
        draw.text((x, height / 2), text, font=font, fill=_VALUE if bright else _LABEL, anchor="lm")
        x += width + gap
    return _ready(image)


def lay(image: Picture, panel: Panel, x: int, y: int) -> None:
    """Compose a panel over a frame in place, its upper left corner at a point, clipped to the frame."""
    height, width = image.shape[:2]
    left, top = max(0, x), max(0, y)
    right, bottom = min(width, x + panel.shape[1]), min(height, y + panel.shape[0])
    if right <= left or bottom <= top:
        return
    part = np.ascontiguousarray(panel[top - y : bottom - y, left - x : right - x])
    under = image[top:bottom, left:right]
    rest = cv2.cvtColor(255 - part[..., 3], cv2.COLOR_GRAY2BGR)
    under[...] = cv2.add(cv2.multiply(under, rest, scale=1 / 255), np.ascontiguousarray(part[..., :3]))


def _ready(image: Image.Image) -> Panel:
    values = np.asarray(image).astype(np.uint16)
    color = (values[..., 2::-1] * values[..., 3:] + 127) // 255
    return np.dstack([color, values[..., 3:]]).astype(np.uint8)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Return the text, shortened with an ellipsis if it is wider than ``width``."""
    if font.getlength(text) <= width:
        return text
    return next((cut for end in range(len(text), 0, -1) if font.getlength(cut := text[:end].rstrip() + "...") <= width), "")


def _wrapped(text: str, columns: int) -> Sequence[str]:
    """Return the text wrapped to at most three lines."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > columns:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    shortened = [_shortened(line, columns + 6) for line in lines[:3]]
    if len(lines) > 3:
        shortened[-1] = _shortened(shortened[-1] + " ....", columns)
    return shortened


def _spaced(text: str) -> str:
    """Return the text with doubled blanks: the font's are too narrow at such sizes."""
    return text.replace(" ", "  ")


def _shortened(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: columns - 3].rstrip() + "..."
