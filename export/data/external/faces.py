"""Faces out of photographs: found by a detector and cut as the camera cuts them, or taken as they are where they are aligned already.

    cut = face_cutter("haar", alignment, 128)
    cut(load_image("photo.jpg"))          # an RGB square of 128 pixels

The geometry is that of the bundle's manifest, so that training pictures and those of the camera have the same frame.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from f2edge.bundle.manifest import Alignment
from f2edge.camera.crops import Cutter
from f2edge.camera.detect import Detection, open_detector
from f2edge.camera.frames import Frame
from f2edge.errors import ImageError
from f2edge.imaging.images import fit_square

#: Pictures that show a face as the model's do already.
ALIGNED = "aligned"
#: Smallest face as a share of the shorter side of a photograph.
_SMALLEST = 0.12

FaceCutter = Callable[[Image.Image], Image.Image]


def face_cutter(detector: str, alignment: Alignment | None, size: int) -> FaceCutter:
    """Return a function from an RGB picture to the square of its largest face, ``size`` pixels.

    Args:
        detector: a description of :func:`f2edge.camera.detect.open_detector`, or :data:`ALIGNED`: the centred square of the picture.
        alignment: where the landmarks of a face come to lie; used if the detector finds landmarks, else its margins are.
        size: pixels along one side.

    The function raises :class:`ImageError` where there is no face.
    """
    if detector == ALIGNED:
        return lambda image: fit_square(image).resize((size, size), Image.Resampling.LANCZOS)
    found, cutter = open_detector(detector, smallest=_SMALLEST), Cutter(alignment, size)

    def cut(image: Image.Image) -> Image.Image:
        frame = Frame(cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR), 0, 0.0)  # type: ignore[arg-type]
        faces = found.detect(frame)
        if not faces:
            raise ImageError(f"no face found by {found.name}; if the pictures are cut to faces already, say --aligned")
        largest = max(faces, key=_area)
        return cutter.cut(frame, largest.box, largest)

    return cut


def _area(face: Detection) -> float:
    return face.box[2] * face.box[3]
