"""Sources: what --source means, what is never shown of it, and what comes out of files, folders, pipes and the demo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from f2edge.bundle.manifest import Alignment
from f2edge.camera.crops import Cutter, drift, signature
from f2edge.camera.detect import Detection, GivenDetector, HaarDetector, RegionDetector, open_detector
from f2edge.camera.frames import Box, Frame, Picture, inside, overlap
from f2edge.camera.output.record import Recorder
from f2edge.camera.quality import Gate, judge
from f2edge.camera.source.demo import Scene
from f2edge.camera.source.errors import FrameError, SourceLostError
from f2edge.camera.source.mjpeg import MjpegPipe
from f2edge.camera.source.sources import SourceOptions, checked, open_source
from f2edge.camera.source.url import parse_source, redact
from f2edge.errors import BackendError, InputError, OutputError
from f2edge.spec.attributes import F2EDGE_SCHEMA
from tests.support.camera_fake import picture

pytestmark = pytest.mark.runtime

secrets = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4, max_size=12)


@pytest.mark.parametrize(
    ("text", "kind", "shown", "live"),
    [
        ("demo", "demo", "demo", True),
        ("0", "webcam", "webcam 0", True),
        ("-", "stdin", "stdin", True),
        ("csi://1", "csi", "csi 1", True),
        ("rtsp://cam.local/a?x=1", "stream", "rtsp://cam.local/a?x=1", True),
        ("rtsp://u:p@cam/a?token=t", "stream", "rtsp://***@cam/a?token=***", True),
    ],
)
def test_sources_are_recognised(text: str, kind: str, shown: str, live: bool) -> None:
    url = parse_source(text)
    assert (url.kind, url.shown, url.live) == (kind, shown, live)


@pytest.mark.parametrize("text", ["", "nothing.mp4", "csi://x", "gopher://a", "rtsp://", "1234"])
def test_what_is_no_source_is_refused_with_the_list(text: str) -> None:
    with pytest.raises(InputError, match="--source"):
        parse_source(text)


@given(secrets, secrets)
@settings(deadline=None)
def test_no_password_survives(user: str, password: str) -> None:
    marked = f"S3{password}S3"
    address = f"rtsp://{user}:{marked}@10.0.0.5:554/stream"
    for text in (redact(address), redact(f"cannot open {address} now"), parse_source(address).shown, repr(parse_source(address))):
        assert marked not in text
        assert "10.0.0.5:554/stream" in text
    assert (
        marked not in redact(f"http://cam/view?user=x&pwd={marked.replace('&', '').replace(';', '').replace('#', '')}&w=3") or "&" in marked
    )


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("rtsp://me:a/b?c#d@cam:554/live", "rtsp://me:a%2Fb%3Fc%23d@cam:554/live"),
        ("rtsp://me:a@b/c@cam/live", "rtsp://me:a@b/c@cam/live"),
        ("rtsp://me:a%2Fb/c@cam/live", "rtsp://me:a%2Fb%2Fc@cam/live"),
        ("rtsp://me:a%2Fb@cam/live", "rtsp://me:a%2Fb@cam/live"),
        ("rtsp://cam:554/live@2x", "rtsp://cam:554/live@2x"),
        ("rtsp://cam/live@2x", "rtsp://cam/live@2x"),
        ("rtsp://[fe80::1]/live@2x", "rtsp://[fe80::1]/live@2x"),
    ],
)
def test_a_password_with_slashes_is_opened_as_one(text: str, opened: str) -> None:
    assert parse_source(text).value == opened


def test_opencv_itself_prints_no_password(tmp_path: Path) -> None:
    program = (
        "from f2edge.camera.source.url import parse_source\n"
        "from f2edge.camera.source.sources import SourceOptions, open_source\n"
        "from f2edge.camera.source.errors import SourceLostError\n"
        "try: open_source(parse_source('rtsp://admin:hunter2@127.0.0.1:9/live'), SourceOptions(timeout_s=1))\n"
        "except SourceLostError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "rtsp://***@127.0.0.1:9/live: cannot be opened" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=8), st.binary(max_size=50).filter(lambda b: b"\xff" not in b))
@settings(deadline=None, max_examples=20)
def test_pictures_come_out_of_a_pipe_however_it_is_cut(cuts: list[int], rubbish: bytes) -> None:
    jpegs = [cv2.imencode(".jpg", picture(48, 32, seed))[1].tobytes() for seed in range(3)]
    data = rubbish + b"".join(jpegs)
    reading, writing = os.pipe()
    pipe = MjpegPipe(reading, 2.0)
    got: list[bytes] = []
    at = 0
    try:
        for index in range(len(data)):
            cut = cuts[index % len(cuts)]
            os.write(writing, data[at : at + cut])
            at += cut
            if at >= len(data):
                break
        os.close(writing)
        while (one := pipe.next_jpeg()) is not None:
            got.append(one)
    finally:
        pipe.close()
    assert got == jpegs


def test_a_silent_pipe_is_lost_and_an_endless_picture_passed_over() -> None:
    reading, writing = os.pipe()
    pipe = MjpegPipe(reading, 0.05)
    with pytest.raises(SourceLostError, match="nothing came"):
        pipe.next_jpeg()
    os.close(writing)
    pipe.close()
    pipe._buffer += b"\xff\xd8\xff" + bytes(17 << 20)
    with pytest.raises(FrameError, match="larger than 16 MiB"):
        pipe.next_jpeg()


def test_a_folder_gives_its_pictures_in_order_and_names_the_damaged_one(tmp_path: Path) -> None:
    for name, seed in (("b.png", 2), ("a.png", 1)):
        cv2.imwrite(str(tmp_path / name), picture(seed=seed))
    (tmp_path / "ab.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    source = open_source(parse_source(str(tmp_path)), SourceOptions(fps=10))
    first = source.read()
    assert first is not None
    assert (first.image == picture(seed=1)).all()
    with pytest.raises(FrameError):
        source.read()
    last = source.read()
    assert last is not None
    assert last.media_s == pytest.approx(0.2)
    assert source.read() is None
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no"):
        open_source(parse_source(str(empty)))


def test_a_recording_goes_on_behind_a_damaged_frame(tmp_path: Path) -> None:
    video = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (160, 120))
    for seed in range(8):
        video.write(picture(seed=seed))
    video.release()
    data = bytearray((tmp_path / "a.avi").read_bytes())
    fourth = [found.start() for found in re.finditer(rb"\xff\xd8\xff", data)][3]
    data[fourth : fourth + 700] = bytes(700)
    (tmp_path / "a.avi").write_bytes(data)
    source = open_source(parse_source(str(tmp_path / "a.avi")))
    times = [capture.media_s for _ in range(3) if (capture := source.read()) is not None]
    with pytest.raises(FrameError, match="1 damaged frame passed over"):
        source.read()
    while (capture := source.read()) is not None:
        times.append(capture.media_s)
    assert times == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7])


def test_a_recording_can_be_played_and_lasts_as_long_as_what_it_shows(tmp_path: Path) -> None:
    path = tmp_path / "out.avi"
    recorder = Recorder(path, 10)
    for time_s in (5.0, 5.01, 5.02, 5.1, 5.55, 5.6):
        recorder.write(np.full((64, 80, 3), 100, np.uint8), time_s)
    recorder.close()
    assert recorder.written == 7
    source = open_source(parse_source(str(path)))
    captures = []
    while (capture := source.read()) is not None:
        captures.append(capture)
    source.close()
    assert len(captures) == 7
    assert captures[-1].media_s == pytest.approx(0.6)
    assert abs(int(captures[0].image.mean()) - 100) < 4


def test_a_full_disk_ends_the_recording_and_what_there_is_can_be_played(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    space = iter([1 << 30, 1 << 20])
    recorder = Recorder(path, 30, free_bytes=lambda: next(space))
    for index in range(30):
        recorder.write(picture(), index / 30)
    with pytest.raises(OutputError, match="left on the disk"):
        recorder.write(picture(), 1.0)
    recorder.write(picture(), 99.0)
    capture = cv2.VideoCapture(str(path))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 30
    assert capture.read()[0]


@pytest.mark.parametrize("name", ["out.gif", "nowhere/out.mp4"])
def test_recordings_of_other_kinds_or_places_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="--record"):
        Recorder(tmp_path / name, 10)


def test_files_that_are_no_video_and_cameras_without_gstreamer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="OpenCV cannot read it as a video"):
        open_source(parse_source(str(tmp_path / "x.mp4")))
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        with pytest.raises(BackendError, match="python3-opencv"):
            open_source(parse_source("csi://0"))


def test_frames_of_every_kind_become_pictures_or_are_damaged() -> None:
    assert checked(np.zeros((4320, 7680, 3), np.uint8)).shape == (1080, 1920, 3)
    assert checked(np.zeros((20, 30), np.uint8)).shape == (20, 30, 3)
    assert checked(np.zeros((20, 30, 4), np.uint8)).shape == (20, 30, 3)
    for bad in (np.zeros((1, 1, 3), np.uint8), np.zeros((0, 0, 3), np.uint8), np.zeros((20, 20, 3)), np.zeros((20, 20, 2), np.uint8)):
        with pytest.raises(FrameError):
            checked(bad)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene((480, 270), people=3)


def test_the_demo_shows_known_faces_that_come_turn_and_go(scene: Scene) -> None:
    seen: set[tuple[tuple[str, str], ...]] = set()
    poses: set[str | None] = set()
    counts: set[int] = set()
    for step in range(60):
        image, known = scene.at(step * 0.7)
        assert image.shape == (270, 480, 3)
        counts.add(len(known))
        for face in known:
            assert inside(face.box, (480, 270)) > 0.75
            for name, value in face.slots.items():
                F2EDGE_SCHEMA[name].index(value)
            seen.add(tuple(sorted((n, v) for n, v in face.slots.items() if n != "head_pose")))
            poses.add(face.slots.get("head_pose"))
    assert len(seen) == 8
    assert {"left", "right", "front"} <= poses
    assert counts >= {2, 3}
    assert (scene.at(3.3)[0] == scene.at(3.3)[0]).all()
    assert drift(
        *(signature(Cutter(None, 128).cut(Frame(scene.at(t)[0], 0, t), scene.at(t)[1][0].box, Detection((0, 0, 1, 1)))) for t in (1, 9))
    )


def test_the_crop_of_a_demo_face_is_the_portrait_the_model_knows(scene: Scene) -> None:
    """The eyes of the drawn face land where they are in a training picture: in the upper middle, left and right alike."""
    image, known = scene.at(2.0)
    box = known[0].box
    portrait = Cutter(None, 128).cut(Frame(image, 0, 2.0), box, Detection(box))
    assert portrait.size == (128, 128)
    stated = Cutter(Alignment(((0, 0),) * 5, (0.5, 0.0, 0.0, 0.0)), 64).cut(Frame(image, 0, 2.0), box, Detection(box))
    assert stated.size == (64, 64)
    assert np.asarray(stated.resize((128, 128))).tolist() != np.asarray(portrait).tolist()


def test_the_haar_cascade_of_opencv_finds_some_of_the_drawn_faces_where_they_are() -> None:
    """It was trained on photographs; of what it finds here, most must be faces."""
    scene, detector = Scene((960, 540), people=3), HaarDetector()
    hits = misses = 0
    for step in range(14):
        image, known = scene.at(step * 2.9)
        for found in detector.detect(Frame(image, 0, 0.0)):
            good = max((overlap(found.box, face.box) for face in known), default=0.0) > 0.4
            hits, misses = hits + good, misses + (not good)
    assert hits >= 1
    assert hits > misses


def test_detectors_are_opened_by_name(tmp_path: Path) -> None:
    frame = Frame(picture(200, 100), 0, 0.0)
    assert isinstance(open_detector("haar"), HaarDetector)
    assert isinstance(open_detector("given"), GivenDetector)
    (found,) = open_detector("region:0.1,0.2,0.5,0.5").detect(frame)
    assert found.box == pytest.approx((20, 20, 100, 50))
    assert open_detector("given").detect(frame) == []
    (tmp_path / "net.onnx").write_bytes(b"not it")
    for text in ("magic", "region:1,2", "yunet:x.onnx", f"yunet:{tmp_path}/net.onnx@sha256=00", f"yunet:{tmp_path}/no.onnx@sha256=00"):
        with pytest.raises(InputError):
            open_detector(text)
    with pytest.raises(InputError, match="0 … 1"):
        RegionDetector((0.5, 0.5, 0.6, 0.1))


def test_the_gate_names_what_is_wrong_with_a_face() -> None:
    image = picture(300, 300)
    image[:100, :100] = 3
    soft = np.asarray(cv2.GaussianBlur(picture(300, 300), (0, 0), 12), dtype=np.uint8)
    sharp = ((30.0, 30.0), (70.0, 30.0), (50.0, 50.0), (35.0, 70.0), (65.0, 70.0))
    aside = ((30.0, 30.0), (70.0, 30.0), (69.0, 50.0), (35.0, 70.0), (65.0, 70.0))
    box = (150.0, 150.0, 100.0, 100.0)

    def reason(image: Picture, box: Box, landmarks: tuple[tuple[float, float], ...] | None = None) -> str:
        return judge(Frame(image, 0, 0.0), box, Detection(box, landmarks=landmarks), Gate()).reason

    assert reason(image, box, sharp) == ""
    assert reason(image, box, aside) == "turned"
    assert reason(image, (150, 150, 20, 20)) == "small"
    assert reason(image, (250, 150, 100, 100)) == "cut"
    assert reason(image, (0, 0, 100, 100)) == "light"
    assert reason(soft, box) == "blurred"
