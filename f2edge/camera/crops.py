"""Crops of faces, made as the model's training pictures were."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.bundle.manifest import Alignment
from f2edge.camera.detect import Detection
from f2edge.camera.frames import Box, Frame, grown
from f2edge.imaging.images import align, crop_face

#: A detector's box within a portrait's square: left, top, side, as shares of the square's side.
FACE_IN_PORTRAIT = (0.19, 0.21, 0.62)
_LEFT, _TOP, _SIDE = FACE_IN_PORTRAIT
#: Default margins around a detector's box if the manifest has none: left, top, right, bottom as shares of the box.
PORTRAIT_MARGINS = (_LEFT / _SIDE, _TOP / _SIDE, (1 - _LEFT - _SIDE) / _SIDE, (1 - _TOP - _SIDE) / _SIDE)
_AROUND = 0.7  # margin around a box, enough for any crop of it, rotated ones too
#: Pictures sent to a server: margin around the box, and size relative to the model's.
_BEYOND, _SPARE = 0.5, 1.25


@dataclass(frozen=True)
class Cutter:
    """Cropper of faces.

    Attributes:
        alignment: crop geometry of the bundle's manifest; None uses a portrait's margins.
        size: side of the crops in pixels.
    """

    alignment: Alignment | None
    size: int

    def cut(self, frame: Frame, box: Box, detection: Detection) -> Image.Image:
        """Return the face as an RGB square, aligned by its landmarks if the detector found them, else by its box.

        Only the surroundings of the face are read, so large frames cost no more than small ones.
        """
        left, top, right, bottom = grown(box, _AROUND, frame.size_wh)
        if right - left < 1 or bottom - top < 1:
            left, top, right, bottom = 0, 0, *frame.size_wh
        near = Image.fromarray(cv2.cvtColor(frame.image[top:bottom, left:right], cv2.COLOR_BGR2RGB))
        if self.alignment is not None and detection.landmarks is not None:
            points = np.array(detection.landmarks, dtype=np.float64) - (left, top)
            return align(near, points, np.array(self.alignment.landmarks), self.size)
        margins = self.alignment.margins if self.alignment is not None and any(self.alignment.margins) else PORTRAIT_MARGINS
        return crop_face(near, (box[0] - left, box[1] - top, box[2], box[3]), margins, self.size)

    def surroundings(self, frame: Frame, box: Box) -> tuple[Image.Image, Box]:
        """Return the face with its surroundings, scaled to what the model needs, and its box in that picture, for cropping on a server."""
        left, top, right, bottom = grown(box, _BEYOND, frame.size_wh)
        if right - left < 1 or bottom - top < 1:  # outside the frame: the nearest pixel, never the whole frame
            width, height = frame.size_wh
            left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
            edge = Image.fromarray(cv2.cvtColor(frame.image[top : top + 1, left : left + 1], cv2.COLOR_BGR2RGB))
            return edge, (0.0, 0.0, 1.0, 1.0)
        scale = min(1.0, self.size * _SIDE * _SPARE / max(box[2], box[3]))
        near = Image.fromarray(cv2.cvtColor(frame.image[top:bottom, left:right], cv2.COLOR_BGR2RGB))
        small = near.resize((max(1, round(near.width * scale)), max(1, round(near.height * scale))), Image.Resampling.BOX)
        across, down = small.width / near.width, small.height / near.height
        x = min(max(0.0, (box[0] - left) * across), small.width - 1)
        y = min(max(0.0, (box[1] - top) * down), small.height - 1)
        return small, (x, y, max(1.0, min(box[2] * across, small.width - x)), max(1.0, min(box[3] * down, small.height - y)))


def signature(crop: Image.Image) -> NDArray[np.float32]:
    """Return a face as 16 by 16 gray values of mean 0 and standard deviation 1, for :func:`drift`.  It never leaves the process."""
    gray = np.asarray(crop.convert("L").resize((16, 16), Image.Resampling.BOX), dtype=np.float32)
    return np.asarray((gray - gray.mean()) / max(float(gray.std()), 1.0), dtype=np.float32)


def drift(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the root mean square difference of two signatures, 0 (equal) … 2 (opposite)."""
    return float(np.sqrt(np.mean((a - b) ** 2)))
