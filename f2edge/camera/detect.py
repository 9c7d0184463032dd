"""Face detectors: OpenCV 4's Haar cascade, a YuNet network from a file, a fixed region, or boxes supplied with the frame.

    detector = open_detector("haar", smallest=48)
    detector = open_detector("yunet:face_detection_yunet_2023mar.onnx@sha256=8f2383e4…")
    detector = open_detector("region:0.3,0.1,0.4,0.7")

Haar is in every wheel of OpenCV 4 and finds upright frontal faces in photographs; drawn faces it mostly misses.  YuNet is better and gives
landmarks, but no wheel contains its file: download it (opencv_zoo, MIT) and give its checksum.  f2edge downloads nothing.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from f2edge.camera.frames import Box, Frame, inside
from f2edge.errors import BackendError, InputError

_HAAR_FILE = "haarcascade_frontalface_alt2.xml"
_WIDEST = 640  # pixels that a frame is scaled down to for detection
#: YuNet's box reaches from the brows to the chin; the crop's margins are of Haar's box, which is this much larger.
_YUNET_GROWTH = 1.25


@dataclass(frozen=True)
class Detection:
    """Detected face.

    Attributes:
        box: x, y, width, height in pixels of the frame.
        score: confidence in [0, 1]; 1 if the detector has none.
        landmarks: image-left eye, image-right eye, nose tip, image-left and image-right mouth corner, or None.
    """

    box: Box
    score: float = 1.0
    landmarks: tuple[tuple[float, float], ...] | None = None


class Detector(Protocol):
    """Face detector; ``name`` appears in status lines."""

    name: str

    def detect(self, frame: Frame) -> list[Detection]:
        """Return the faces of a frame, in any order."""
        ...


class HaarDetector:
    """OpenCV's frontal-face cascade (Viola and Jones, CVPR 2001).

    Args:
        smallest: smallest side of a face as a share of the frame's shorter side; smaller values cost more time.
    """

    name = "haar"

    def __init__(self, smallest: float = 0.12) -> None:
        if not hasattr(cv2, "CascadeClassifier"):
            raise BackendError(
                f"OpenCV {cv2.__version__} has no Haar cascades (5.x dropped them); install opencv-python-headless<5 or use "
                "--detector yunet:FILE"
            )
        path = Path(cv2.__file__).parent / "data" / _HAAR_FILE
        self._cascade = cv2.CascadeClassifier(str(path))
        if self._cascade.empty():
            raise BackendError(f"this OpenCV comes without {_HAAR_FILE}; install opencv-python-headless<5 or use --detector yunet:FILE")
        self._smallest = smallest

    def detect(self, frame: Frame) -> list[Detection]:
        small, scale = _shrunk(frame.image)
        gray = cv2.equalizeHist(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY))
        side = max(20, round(self._smallest * min(gray.shape)))
        if min(gray.shape) < side:
            return []
        boxes = self._cascade.detectMultiScale(gray, scaleFactor=1.15, minNeighbors=5, minSize=(side, side))
        return [Detection((float(x) * scale, float(y) * scale, float(w) * scale, float(h) * scale)) for x, y, w, h in boxes]


class YuNetDetector:
    """YuNet (Wu et al., 2023) from an ONNX file with a known SHA-256.

    Raises:
        InputError: the file is missing or its checksum differs.
        BackendError: this OpenCV cannot run it.
    """

    name = "yunet"

    def __init__(self, path: Path, sha256: str, least_score: float = 0.7) -> None:
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"detector file {path}: {error.strerror}; give the path of a YuNet .onnx file") from error
        if found != sha256.lower():
            raise InputError(f"detector file {path} has SHA-256 {found}, not {sha256}; fetch it again or correct the sum")
        try:
            self._network = cv2.FaceDetectorYN.create(str(path), "", (320, 320), least_score)
        except (cv2.error, AttributeError) as error:
            raise BackendError(
                f"OpenCV {cv2.__version__} cannot run {path.name}; use the file of opencv_zoo that fits this version"
            ) from error

    def detect(self, frame: Frame) -> list[Detection]:
        small, scale = _shrunk(frame.image)
        self._network.setInputSize((small.shape[1], small.shape[0]))
        _, rows = self._network.detect(small)
        return [] if rows is None else [_yunet_row(row, scale) for row in np.asarray(rows)]


def _yunet_row(row: NDArray[np.float32], scale: float) -> Detection:
    """Return the detection of a row: box, five points (the image-left eye first), score."""
    x, y, width, height = (float(v) * scale for v in row[:4])
    side = max(width, height) * _YUNET_GROWTH
    box = (x + width / 2 - side / 2, y + height / 2 - side / 2, side, side)
    points = tuple((float(a) * scale, float(b) * scale) for a, b in row[4:14].reshape(5, 2))
    return Detection(box, min(1.0, max(0.0, float(row[14]))), points)


class RegionDetector:
    """Fixed region, for example of a kiosk.

    Args:
        region: x, y, width, height as shares of the frame.
    """

    name = "region"

    def __init__(self, region: Box) -> None:
        x, y, width, height = region
        if not (all(map(math.isfinite, region)) and width > 0 and height > 0 and x >= 0 and y >= 0 and x + width <= 1 and y + height <= 1):
            raise InputError(f"detector region {region}: x, y, width, height must lie within 0 … 1 of the frame")
        self._region = region

    def detect(self, frame: Frame) -> list[Detection]:
        width, height = frame.size_wh
        x, y, w, h = self._region
        return [Detection((x * width, y * height, w * width, h * height))]


class GivenDetector:
    """Boxes supplied with the frame, by the demo or a remote detector."""

    name = "given"

    def detect(self, frame: Frame) -> list[Detection]:
        return [Detection(face.box) for face in frame.known or () if inside(face.box, frame.size_wh) > 0.5]


def open_detector(text: str, *, smallest: float = 0.12) -> Detector:
    """Return the detector of a description: ``haar``, ``given``, ``yunet:FILE@sha256=HEX`` or ``region:X,Y,W,H``.

    Raises:
        InputError: unknown or incomplete description.
        BackendError: this OpenCV cannot run it.
    """
    kind, _, rest = text.partition(":")
    if kind == "haar" and not rest:
        return HaarDetector(smallest)
    if kind == "given" and not rest:
        return GivenDetector()
    if kind == "yunet":
        path, mark, sha256 = rest.rpartition("@sha256=")
        if not (mark and path):
            raise InputError(
                "--detector yunet: write yunet:FILE@sha256=HEX; `sha256sum FILE` prints the sum to compare with its publisher's"
            )
        return YuNetDetector(Path(path), sha256)
    if kind == "region":
        try:
            x, y, width, height = (float(part) for part in rest.split(","))
        except ValueError as error:
            raise InputError(
                f"--detector {text}: write region:X,Y,WIDTH,HEIGHT in parts of the frame, as in region:0.3,0.1,0.4,0.7"
            ) from error
        return RegionDetector((x, y, width, height))
    raise InputError(f"--detector {text!r} is unknown; choose haar, given, yunet:FILE@sha256=HEX or region:X,Y,WIDTH,HEIGHT")


def _shrunk(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """Return the frame scaled to at most :data:`_WIDEST` pixels, and the factor back to the original."""
    scale = max(1.0, max(image.shape[:2]) / _WIDEST)
    if scale == 1.0:
        return image, 1.0
    size = (max(1, round(image.shape[1] / scale)), max(1, round(image.shape[0] / scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8), scale
