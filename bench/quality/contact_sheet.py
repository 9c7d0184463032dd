"""Contact sheet: a page of pictures with captions.

contact_sheet(images, captions).save("sheet.png")
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from f2edge.errors import InputError

_INK, _PAPER, _FRAME = (32, 34, 38), (252, 252, 250), (214, 214, 210)
_ELLIPSIS = "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def wrapped(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, lines: int) -> list[str]:
    """Wrap ``text`` into at most ``lines`` lines of ``width`` pixels; cut text ends in an ellipsis."""
    words, result, line = text.split(), list[str](), ""
    for word in words:
        longer = f"{line} {word}".strip()
        if draw.textlength(longer, font=font) <= width or not line:
            line = longer
            continue
        if len(result) + 1 == lines:
            while line and draw.textlength(line + _ELLIPSIS, font=font) > width:
                line = line[:-1]
            return [*result, line.rstrip(" ,;") + _ELLIPSIS]
        result.append(line)
        line = word
    return [*result, line] if line else result


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], *, columns: int = 8, size: int = 192, lines: int = 6, font_size: int = 13
) -> Image.Image:
    """Arrange pictures in rows, each scaled to ``size`` pixels, with captions of up to ``lines`` lines below.

    Raises:
        InputError: no pictures, or a different number of captions.
    """
    if not images or len(images) != len(captions):
        raise InputError(f"contact sheet: needs as many captions as pictures and at least one, got {len(images)} and {len(captions)}")
    columns = min(columns, len(images))
    font, gap = _font(font_size), size // 12
    line_height = round(font_size * 1.3)
    row_height = size + lines * line_height + 2 * gap
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (gap + columns * (size + gap), gap + rows * row_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = gap + index % columns * (size + gap), gap + index // columns * row_height
        sheet.paste(image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS), (left, top))
        draw.rectangle((left - 1, top - 1, left + size, top + size), outline=_FRAME)
        for number, text in enumerate(wrapped(caption, draw, font, size, lines)):
            draw.text((left, top + size + gap // 2 + number * line_height), text, font=font, fill=_INK)
    return sheet
