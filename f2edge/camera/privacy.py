"""Privacy rules: attributes and questions that are refused by default, and blurring of faces.

Nothing is stored unless an output file is requested, and features of a face never leave the process.  Sensitive attributes and questions
need ``--include-sensitive``.
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
_AROUND = 0.3  # margin around a box that is blurred too: hair and chin
_MOSAIC = 8  # cells across a blurred face


def chosen_attributes(schema: AttributeSchema, names: Iterable[str] | None, *, include_sensitive: bool) -> tuple[str, ...]:
    """Return the slots to analyze: the named ones, or all permitted ones.

    Raises:
        UnknownAttributeError: a name is not in the schema.
        InputError: a sensitive slot is named without ``include_sensitive``.
    """
    if names is None:
        return tuple(slot.name for slot in schema.values() if include_sensitive or not slot.sensitive)
    chosen = schema.select(names)
    refused = [slot.name for slot in chosen.values() if slot.sensitive and not include_sensitive]
    if refused:
        raise InputError(f"sensitive: {', '.join(refused)}; leave them out, or give --include-sensitive (--help explains why it is off)")
    return tuple(chosen)


def check_question(question: str, *, include_sensitive: bool) -> None:
    """Refuse a question about a sensitive trait, recognised by key words (with false positives and negatives).

    Raises:
        InputError: the question has such a word, and ``include_sensitive`` is off.
    """
    found = sorted(_WORDS & set(re.findall(r"[a-z]+", question.lower())))
    if found and not include_sensitive:
        raise InputError(f"--ask {question!r} asks about a sensitive trait ({', '.join(found)}); reword it, or give --include-sensitive")


def blur(image: Picture, boxes: Iterable[Box]) -> None:
    """Make the faces in boxes unrecognisable, in place: reduced to 8 cells across, then interpolated."""
    height, width = image.shape[:2]
    for box in boxes:
        left, top, right, bottom = grown(box, _AROUND, (width, height))
        if right - left < 1 or bottom - top < 1:
            continue
        part = image[top:bottom, left:right]
        cells = cv2.resize(part, (_MOSAIC, _MOSAIC), interpolation=cv2.INTER_AREA)
        soft = cv2.resize(cells, (right - left, bottom - top), interpolation=cv2.INTER_CUBIC)
        part[...] = np.asarray(soft, dtype=np.uint8)
