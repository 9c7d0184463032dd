"""What is not asked, and who is not shown.

Nothing is stored unless a recording or a file is asked for, and no features of a face ever leave the process.  Sensitive attributes are off
until somebody says otherwise, in words as well as in attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import cv2
import numpy as np

from f2edge.camera.frames import Box, Picture, grown
from f2edge.errors import InputError
from f2edge.spec.attributes import AttributeSchema

_WORDS = frozenset(
    """
    age aged old older young younger elderly child adult teenager gender sex male female man men woman women boy girl lady masculine
    feminine race racial ethnicity ethnic skin complexion fat slim chubby overweight weight build emotion emotional feeling feel
    feels mood happy sad angry afraid scared surprised disgusted contemptuous religion religious sick ill disabled attractive beautiful ugly
    """.split()  # noqa: SIM905  sixty words are easier to read than sixty strings
)
_AROUND = 0.3  # of a box, blurred with it: hair and chin
_MOSAIC = 8  # cells across a blurred face


def chosen_attributes(schema: AttributeSchema, names: Iterable[str] | None, *, include_sensitive: bool) -> tuple[str, ...]:
    """The slots to ask for: those named, or all that may be asked.

    Raises:
        UnknownAttributeError: a name that the schema does not have.
        InputError: a sensitive one without ``include_sensitive``.
    """
    if names is None:
        return tuple(slot.name for slot in schema.values() if include_sensitive or not slot.sensitive)
    chosen = schema.select(names)
    refused = [slot.name for slot in chosen.values() if slot.sensitive and not include_sensitive]
    if refused:
        raise InputError(f"sensitive: {', '.join(refused)}; leave them out, or say --include-sensitive (and read why it is off: --help)")
    return tuple(chosen)


def check_question(question: str, *, include_sensitive: bool) -> None:
    """Refuse a question about a sensitive trait; it looks for telling words, and can be wrong both ways.

    Raises:
        InputError: it has such a word, and ``include_sensitive`` is off.
    """
    found = sorted(_WORDS & set(re.findall(r"[a-z]+", question.lower())))
    if found and not include_sensitive:
        raise InputError(f"--ask {question!r} asks about something sensitive ({', '.join(found)}); reword it, or say --include-sensitive")


def blur(image: Picture, boxes: Iterable[Box]) -> None:
    """Make the faces in boxes unrecognisable, in place: first 8 coarse cells across, then smoothed, so that there is nothing to sharpen."""
    height, width = image.shape[:2]
    for box in boxes:
        left, top, right, bottom = grown(box, _AROUND, (width, height))
        if right - left < 1 or bottom - top < 1:
            continue
        part = image[top:bottom, left:right]
        cells = cv2.resize(part, (_MOSAIC, _MOSAIC), interpolation=cv2.INTER_AREA)
        soft = cv2.resize(cells, (right - left, bottom - top), interpolation=cv2.INTER_CUBIC)
        part[...] = np.asarray(soft, dtype=np.uint8)
