"""The camera with a model elsewhere: one message for several faces, a stream that is opened again, and only faces are sent."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from f2edge.camera.crops import Cutter
from f2edge.camera.frames import Box, Frame, Picture
from f2edge.camera.remote import RemoteModel, mosaic
from f2edge.camera.run import ModelInput, Request, run
from f2edge.camera.source.url import parse_source
from f2edge.client.sync import Client
from f2edge.errors import F2EdgeError
from f2edge.pipeline import FacePipeline
from f2edge.spec.attributes import F2EDGE_SCHEMA
from tests.support.camera_fake import NAMES, picture
from tests.support.serving import ScriptedEngine, paper_pipeline, paper_served, scripted, serving

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> FacePipeline:
    return paper_pipeline(tmp_path_factory.mktemp("paper"))


@pytest.fixture
def client(pipeline: FacePipeline) -> Iterator[Client]:
    with serving(paper_served(pipeline)) as server, Client(server.address) as made:
        yield made


def faces_of(image: Picture, boxes: list[Box]) -> list[tuple[Image.Image, Box]]:
    return [Cutter(None, 128).surroundings(Frame(image, 0, 0.0), box) for box in boxes]


def test_several_faces_go_in_one_message_and_come_back_in_order(client: Client) -> None:
    model = RemoteModel(client)
    faces = faces_of(picture(400, 200), [(20, 30, 60, 60), (150, 40, 90, 90), (300, 20, 70, 70)])
    together = model.analyze_around(faces, attributes=NAMES)
    assert [list(report.probabilities) for report in together] == [list(NAMES)] * 3
    assert len({str(report.probabilities) for report in together}) == 3
    again = model.analyze_around(faces[::-1], attributes=NAMES)
    assert len(again) == 3
    assert [list(report.probabilities) for report in model.analyze_around(faces[:1], attributes=("hat",))] == [["hat"]]


def test_a_stream_that_broke_is_opened_again() -> None:
    engine = ScriptedEngine()
    faces = faces_of(picture(400, 200), [(20, 30, 60, 60)])
    with serving(scripted(engine)) as server, Client(server.address) as client:
        model = RemoteModel(client, timeout_s=2.0)
        assert len(model.analyze_around(faces, attributes=NAMES)) == 1
        engine.refusal = F2EdgeError("a bad moment")
        with pytest.raises(F2EdgeError, match="the server refused a frame"):
            model.analyze_around(faces, attributes=NAMES)
        engine.refusal = None
        assert len(model.analyze_around(faces, attributes=NAMES)) == 1
        assert model._stream is not None
        model._stream.close()  # as a server that restarts does
        with pytest.raises(F2EdgeError):
            model.analyze_around(faces, attributes=NAMES)
        assert len(model.analyze_around(faces, attributes=NAMES)) == 1


def test_a_server_that_is_silent_is_given_up_in_time() -> None:
    engine = ScriptedEngine()
    engine.gate.clear()
    with serving(scripted(engine)) as server, Client(server.address) as client:
        with pytest.raises(F2EdgeError, match=r"no report for 0\.2 s"):
            RemoteModel(client, timeout_s=0.2).analyze_around(faces_of(picture(), [(20, 30, 60, 60)]), attributes=NAMES)
        engine.gate.set()


@example([(0.0, -12.0, 8.0, 8.0)])  # outside of the frame
@given(st.lists(st.tuples(st.floats(-80, 400), st.floats(-80, 250), st.floats(8, 300), st.floats(8, 300)), min_size=1, max_size=8))
@settings(deadline=None, max_examples=40)
def test_what_is_sent_holds_the_faces_and_little_else(boxes: list[Box]) -> None:
    """Every box lies in the picture, and around it there is no more than half a face, at the size that the model sees."""
    sheet, placed = mosaic(faces_of(picture(400, 250), boxes))
    assert len(placed) == len(boxes)
    for x, y, width, height in placed:
        assert 0 <= x <= sheet.width
        assert 0 <= y <= sheet.height
        assert x + width <= sheet.width + 1
        assert y + height <= sheet.height + 1
        assert width > 0
        assert height > 0
    assert sheet.height <= 2 * 128 * 0.62 * 1.25 + 2


def test_a_face_is_cut_from_its_surroundings_as_from_the_frame() -> None:
    """What the server sees of a face is what the camera itself would have shown the model."""
    image = np.ascontiguousarray(np.kron(picture(24, 14), np.ones((20, 20, 1), np.uint8)))  # large, soft enough to scale
    frame, box = Frame(image, 0, 0.0), (180.0, 70.0, 120.0, 120.0)
    near, inside = Cutter(None, 64).surroundings(frame, box)
    scale = near.width / (box[2] * 2)
    assert inside[2] == pytest.approx(box[2] * scale, rel=0.03)
    center = near.getpixel((round(inside[0] + inside[2] / 2), round(inside[1] + inside[3] / 2)))
    assert isinstance(center, tuple)
    assert np.abs(np.array(center[::-1], int) - image[130, 240].astype(int)).max() < 60


def test_a_run_with_a_server_describes_the_demo(client: Client) -> None:
    lines = io.StringIO()
    request = Request(url=parse_source("demo"), detector="given", attributes=NAMES, size_wh=(320, 180), max_fps=8, duration_s=3.0)
    heard: list[tuple[str, str]] = []
    stats = run(
        request, RemoteModel(client), ModelInput(F2EDGE_SCHEMA, None, 128), lines, lambda kind, reason: heard.append((kind, reason))
    )
    assert [entry for entry in heard if entry[0] == "model"] == []
    assert stats["faces_asked"]
    faces = [face for line in lines.getvalue().splitlines() for face in json.loads(line).get("faces", [])]
    assert any(set(face["attributes"]) == set(NAMES) for face in faces)
