"""A real photograph: found by the cascade, cut and turned as the model's faces are.  What nano says of it is not tested: it knows none."""

from __future__ import annotations

import io
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from f2edge.bundle.bundle import Bundle
from f2edge.bundle.manifest import Alignment
from f2edge.camera.crops import Cutter
from f2edge.camera.detect import Detection, HaarDetector
from f2edge.camera.frames import Frame, Picture
from f2edge.camera.quality import Gate, judge
from f2edge.camera.run import ModelInput, Request, run
from f2edge.camera.source.url import parse_source
from f2edge.spec.attributes import F2EDGE_SCHEMA
from tests.support.camera_fake import NAMES, ScriptedModel

#: In pixels of the photograph, read off it: eyes, nose, corners of the mouth, image-left first.
LANDMARKS = ((202.5, 100.4), (246.9, 102.4), (222.5, 121.5), (204.5, 139.5), (239.0, 142.0))


@pytest.fixture(scope="module")
def path() -> Path:
    """Eileen Collins (NASA, public domain), which scikit-image's wheel carries."""
    found = find_spec("skimage")
    if found is None or found.origin is None:
        pytest.skip("scikit-image is not installed; its photograph comes with the dev extra")
    return Path(found.origin).parent / "data" / "astronaut.png"


@pytest.fixture(scope="module")
def photograph(path: Path) -> Picture:
    return np.asarray(cv2.imread(str(path)), dtype=np.uint8)


@pytest.fixture(scope="module")
def alignment() -> Alignment:
    stated = Bundle.load("nano").manifest.alignment
    assert stated is not None
    return stated


def darkest_near(gray: Picture, point: tuple[float, float], reach: int = 6) -> tuple[float, float]:
    """Where the darkest spot near a point is."""
    x, y = (round(v) for v in point)
    soft = cv2.GaussianBlur(gray, (0, 0), 2.0)
    part = soft[y - reach : y + reach + 1, x - reach : x + reach + 1]
    row, column = np.unravel_index(int(part.argmin()), part.shape)
    return x - reach + float(column), y - reach + float(row)


def test_the_face_is_found_and_passes_the_gate(photograph: Picture) -> None:
    frame = Frame(photograph, 0, 0.0)
    (found,) = HaarDetector().detect(frame)
    x, y, width, height = found.box
    assert all(x < px < x + width and y < py < y + height for px, py in LANDMARKS)
    assert width < 3 * (LANDMARKS[1][0] - LANDMARKS[0][0])
    assert judge(frame, found.box, found, Gate()).good


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_crop_by_the_box_puts_the_eyes_where_training_pictures_have_them(
    photograph: Picture, alignment: Alignment, scale: float
) -> None:
    image = np.asarray(cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    frame = Frame(image, 0, 0.0)
    found = max(HaarDetector().detect(frame), key=lambda detection: detection.box[2])
    crop = np.asarray(Cutter(alignment, 128).cut(frame, found.box, found).convert("L"))
    for eye in alignment.landmarks[:2]:
        x, y = darkest_near(crop, eye, 9)
        assert abs(x - eye[0]) <= 7
        assert abs(y - eye[1]) <= 7


@pytest.mark.parametrize("turned", [-25.0, 0.0, 25.0])
def test_with_landmarks_a_tilted_face_is_turned_upright(photograph: Picture, alignment: Alignment, turned: float) -> None:
    matrix = np.asarray(cv2.getRotationMatrix2D((224.0, 120.0), turned, 1.0), dtype=np.float64)
    image = np.asarray(cv2.warpAffine(photograph, matrix, (512, 512)), dtype=np.uint8)
    points = np.array(LANDMARKS) @ matrix[:, :2].T + matrix[:, 2]
    landmarks = tuple((float(x), float(y)) for x, y in points)
    box = (float(points[0][0] - 30), float(points[0][1] - 40), 100.0, 100.0)
    portrait = Cutter(alignment, 128).cut(Frame(image, 0, 0.0), box, Detection(box, landmarks=landmarks))
    crop = np.asarray(portrait.convert("L"))
    found = [darkest_near(crop, eye) for eye in alignment.landmarks[:2]]
    assert abs(found[0][1] - found[1][1]) <= 3  # level
    for (x, y), eye in zip(found, alignment.landmarks[:2], strict=True):
        assert abs(x - eye[0]) <= 5
        assert abs(y - eye[1]) <= 5


def test_a_folder_with_the_photograph_is_described_and_blurred_where_nothing_is_said(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        shutil.copy(path, folder / f"{number}.png")
    lines = io.StringIO()
    request = Request(
        url=parse_source(str(folder)), detector="haar", attributes=NAMES, still=tmp_path / "last.jpg", blur_others=True, max_fps=10
    )
    stats = run(request, ScriptedModel(), ModelInput(F2EDGE_SCHEMA, None, 128), lines, lambda *_: None)
    assert stats["frames"] == 5
    frames = [json.loads(line) for line in lines.getvalue().splitlines() if '"frame"' in line]
    assert [face["track"] for face in frames[-2]["faces"]] == [1]
    assert set(frames[-2]["faces"][0]["attributes"]) == set(NAMES)
    assert np.asarray(cv2.imread(str(tmp_path / "last.jpg"))).shape == (512, 512, 3)
