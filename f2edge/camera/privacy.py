"""Blurring of faces.

Nothing is stored unless an output file is requested, and features of a face never leave the process.  Which attributes and questions are
answered: :mod:`f2edge.spec.sensitive`.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from f2edge.camera.frames import Box, Picture, grown

_AROUND = 0.3  # margin around a box that is blurred too: hair and chin
_MOSAIC = 8  # cells across a blurred face


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
