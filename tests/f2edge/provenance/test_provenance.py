"""Every picture that leaves f2edge says what it is, by whatever door; ``verify-image`` reads it, from files of anybody."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from f2edge.cli.main import run
from f2edge.client.sync import Client
from f2edge.decoding.parallel import StepEvent
from f2edge.errors import ImageError
from f2edge.imaging.images import from_pixels, load_image
from f2edge.pipeline import FacePipeline
from f2edge.provenance.inspection import Marks, find_marks
from f2edge.provenance.label import EDITED, GENERATED, label, read_label
from f2edge.provenance.saving import encode, save_image
from f2edge.provenance.watermark import PUBLIC, Watermark
from f2edge.results import GenerateOptions
from f2edge.v1 import face_pb2 as pb
from tests.support.paper_model import PaperBackend, paper_bundle
from tests.support.serving import ServerThread, paper_served, photo, serving, stub

pytestmark = pytest.mark.runtime
PROMPT = "an old man"
UPPER_HALF = (0.0, 0.0, 1.0, 0.5)
OPTIONS = GenerateOptions(steps=3)
KINDS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> FacePipeline:
    """The model of paper, as :meth:`FacePipeline.load` would open it."""
    return FacePipeline(paper_bundle(tmp_path_factory.mktemp("paper")), PaperBackend(), PUBLIC)


@pytest.fixture(scope="module")
def unmarked(pipeline: FacePipeline) -> FacePipeline:
    return FacePipeline(pipeline.bundle, PaperBackend())


@pytest.fixture(scope="module")
def server(pipeline: FacePipeline) -> Iterator[ServerThread]:
    with serving(paper_served(pipeline)) as running:
        yield running


def face_photo() -> Image.Image:
    """A real picture: smooth, without marks."""
    down, across = np.mgrid[0:128, 0:128]
    values = 128 + 60 * np.sin(down / 17) + 40 * np.cos(across / 23)
    return Image.fromarray(np.stack([values, values * 0.8, 255 - values], -1).clip(0, 255).astype(np.uint8))


# The library -----------------------------------------------------------------------------------------------------------------------------


def test_a_pipeline_marks_pixels_and_never_changes_tokens(pipeline: FacePipeline, unmarked: FacePipeline) -> None:
    marked, plain = (p.generate(PROMPT, seeds=[4, 5], options=OPTIONS) for p in (pipeline, unmarked))
    for one, other in zip(marked, plain, strict=True):
        assert np.array_equal(one.codes, other.codes)
        assert PUBLIC.detect(one.image).found
        assert not PUBLIC.detect(other.image).found
        assert (one.marks, other.marks) == (("watermark",), ())
        assert one.image.tobytes() == PUBLIC.embed(other.image).tobytes()
    assert pipeline.decode(marked[0].codes[None])[0].tobytes() == plain[0].image.tobytes(), "tokens decode to what the model drew"


def test_previews_are_marked_as_the_picture_is(pipeline: FacePipeline) -> None:
    events: list[StepEvent] = []
    (face,) = pipeline.generate(PROMPT, seeds=4, options=OPTIONS, on_step=events.append, preview_images=True)
    assert events[-1].images[0].tobytes() == face.image.tobytes()
    assert all(PUBLIC.detect(event.images[0]).found for event in events)


@pytest.mark.parametrize("keep_outside", [True, False])
def test_an_edited_photo_is_marked_everywhere(pipeline: FacePipeline, unmarked: FacePipeline, keep_outside: bool) -> None:
    photo = face_photo()
    marked, plain = (p.edit(photo, PROMPT, UPPER_HALF, seed=3, keep_outside=keep_outside) for p in (pipeline, unmarked))
    assert np.array_equal(marked.codes, plain.codes)
    assert PUBLIC.detect(marked.image).found
    assert not PUBLIC.detect(plain.image).found
    if keep_outside:
        outside = np.s_[72:]
        assert np.array_equal(np.asarray(plain.image)[outside], np.asarray(from_pixels(pipeline.pixels(photo)))[outside])
        change = np.asarray(marked.image, dtype=int)[outside] - np.asarray(photo, dtype=int)[outside]
        assert 0 < np.abs(change).max() <= 16


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("edited", [False, True])
def test_every_kind_of_file_says_what_it_is(pipeline: FacePipeline, tmp_path: Path, suffix: str, edited: bool) -> None:
    made = pipeline.edit(face_photo(), PROMPT, UPPER_HALF, seed=3) if edited else pipeline.generate(PROMPT, seeds=3, options=OPTIONS)[0]
    path = save_image(made.image, tmp_path / f"face{suffix}", label(prompt=PROMPT, seed=3, bundle="paper", edited=edited))
    assert path.read_bytes() == encode(made.image, KINDS[suffix], label(prompt=PROMPT, seed=3, bundle="paper", edited=edited))
    found = find_marks(path)
    assert found.label is not None
    assert found.label.source_type == (EDITED if edited else GENERATED)
    assert found.names == ("xmp", "watermark")
    assert found.synthetic


def test_what_is_left_when_the_label_is_lost(pipeline: FacePipeline) -> None:
    face = pipeline.generate(PROMPT, seeds=3, options=OPTIONS)[0].image
    buffer = io.BytesIO()
    face.resize((96, 96), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=70)
    found = find_marks(buffer.getvalue())
    assert (found.label, found.names, found.synthetic) == (None, ("watermark",), True)


# The server ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [pb.IMAGE_FORMAT_PNG, pb.IMAGE_FORMAT_JPEG, pb.IMAGE_FORMAT_WEBP])
def test_replies_carry_label_and_mark(server: ServerThread, pipeline: FacePipeline, form: Any) -> None:
    wanted = pb.PreviewOptions(every_steps=1, picture_side=128)
    output, photo = pb.OutputOptions(format=form, side=160), encode(face_photo(), "PNG", None)
    with stub(server.address) as face:
        drawn = face.Generate(pb.GenerateRequest(prompt=PROMPT, seed=7, previews=wanted, output=output))
        edit = pb.EditRequest(image=photo, prompt=PROMPT, seed=3, box=pb.Box(width=1, height=0.5), previews=wanted, output=output)
        for call, source in ((drawn, GENERATED), (face.Edit(edit), EDITED)):
            *previews, last = call
            picture = last.result.picture
            assert list(picture.provenance.marks) == ["xmp", "watermark"]
            assert (picture.provenance.synthetic, picture.provenance.digital_source_type) == (True, source)
            for data in (picture.image, *(message.preview.picture for message in previews)):
                found = find_marks(data)
                assert found.names == ("xmp", "watermark")
                assert found.label is not None
                assert found.label.source_type == source


def test_a_client_gets_the_pixels_that_the_pipeline_gives(server: ServerThread, pipeline: FacePipeline) -> None:
    with Client(server.address) as client:
        ours, theirs = (model.generate(PROMPT, seeds=3, options=OPTIONS)[0] for model in (client, pipeline))
        assert ours.image.tobytes() == theirs.image.tobytes()
        assert ours.marks == theirs.marks == ("watermark",)
        assert client.edit(face_photo(), PROMPT, UPPER_HALF).marks == ("watermark",)


def test_a_server_without_watermark_says_so(unmarked: FacePipeline) -> None:
    with serving(paper_served(unmarked)) as server, stub(server.address) as face:
        picture = list(face.Generate(pb.GenerateRequest(prompt=PROMPT, seed=3)))[-1].result.picture
        assert list(picture.provenance.marks) == ["xmp"]
        assert find_marks(picture.image).names == ("xmp",)


# The command line ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def at(server: ServerThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """In an empty folder, with a server to ask."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("F2EDGE_WATERMARK_KEY_FILE", raising=False)
    return "--server", server.address


def verified(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run(["verify-image", *arguments, "--json"]) == code
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["files"]
    return rows


def test_files_of_the_command_line(at: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    face_photo().save("photo.png")
    assert run(["generate", PROMPT, "--seed", "7", "-o", "face.webp", "--json", *at]) == 0
    assert json.loads(capsys.readouterr().out)["marks"] == ["xmp", "watermark"]
    assert run(["generate", PROMPT, "--seed", "7", "--grid", "4", "--size", "96", "-o", "sheet.jpg", "--save-steps", "steps", *at]) == 0
    assert run(["edit", "photo.png", PROMPT, "-r", "0,0,1,0.5", "-o", "edited.jpg", *at]) == 0
    files = ["face.webp", "sheet.jpg", "edited.jpg", *map(str, Path("steps").iterdir())]
    rows = verified(capsys, 0, *files)
    assert [row["marks"] for row in rows] == [["xmp", "watermark"]] * len(files)
    assert [row["label"]["source_type"] for row in rows] == [GENERATED, GENERATED, EDITED] + [GENERATED] * (len(files) - 3)
    assert rows[1]["watermark"]["public"]["grid"] == [2, 2]
    assert verified(capsys, 1, "photo.png")[0]["marks"] == []


def test_a_key_of_ones_own(at: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("key").write_bytes(b"a private key for tests\n")
    save_image(Watermark(b"a private key for tests").embed(face_photo()), "own.png")
    assert verified(capsys, 1, "own.png")[0]["watermark"].keys() == {"public"}
    (row,) = verified(capsys, 0, "own.png", "--watermark-key", "key")
    assert {key: look["found"] for key, look in row["watermark"].items()} == {"own": True, "public": False}
    monkeypatch.setenv("F2EDGE_WATERMARK_KEY_FILE", "key")
    assert verified(capsys, 0, "own.png")[0]["marks"] == ["watermark"]


def test_what_cannot_be_read_is_told_beside_the_rest(at: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    save_image(PUBLIC.embed(face_photo()), "face.png")
    Path("noise.png").write_bytes(b"\x89PNG\r\n\x1a\nnoise")
    rows = verified(capsys, 2, "noise.png", "face.png", "missing.png")
    assert ["error" in row for row in rows] == [True, False, True]
    assert "no such file" in rows[2]["error"]
    assert rows[1]["marks"] == ["watermark"]
    assert run(["verify-image"]) == 2
    assert run(["verify-image", "face.png", "--watermark-key", "missing"]) == 2


def test_a_strangers_label_cannot_steer_the_terminal(at: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    said = label(prompt="\x9b2J\u202e" + "long " * 100, seed=1, bundle="[bold]b")
    save_image(face_photo(), "face.png", said)
    assert run(["verify-image", "face.png"]) == 0
    out = capsys.readouterr().out
    assert "[bold]b" in out
    assert not any(c in out for c in "\x9b\u202e\x1b")
    assert out.count("long") < 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", PROMPT, "--no-watermark", "--watermark-key", "key"], "give one of the two"),
        (["generate", PROMPT, "--watermark-key", "missing"], "cannot be read"),
        (["generate", PROMPT, "--server", "127.0.0.1:9", "--no-watermark"], "marks its pictures itself"),
        (["generate", PROMPT, "--sign-cert", "chain.pem"], "needs both --sign-cert and --sign-key"),
        (["serve", "--watermark-key", "missing"], "cannot be read"),
        (["serve", "--sign-key", "key.pem"], "needs both"),
    ],
)
def test_options_that_cannot_be_followed(
    arguments: list[str], message: str, at: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("key").write_bytes(b"a private key for tests\n")
    assert run(arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["key"]


# Files of anybody ------------------------------------------------------------------------------------------------------------------------

VALID = {kind: encode(PUBLIC.embed(face_photo()), kind, label(prompt=PROMPT, seed=3, bundle="b")) for kind in KINDS.values()}


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(sorted(VALID)), data=st.data())
def test_damaged_files_are_refused_or_read(kind: str, data: st.DataObject) -> None:
    valid = bytearray(VALID[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(valid) - 1))
        valid[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    if data.draw(st.booleans()):
        del valid[data.draw(st.integers(0, len(valid))) :]
    try:
        assert isinstance(find_marks(bytes(valid)), Marks)
    except ImageError:
        return


def test_reading_labels_and_marks_agree() -> None:
    for data in (*VALID.values(), photo()):
        assert find_marks(data).label == read_label(data)
        assert load_image(data).mode == "RGB"
