"""Results in files and notebooks, and pictures in every form that Python has for them."""

from __future__ import annotations

import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from f2edge.client.aio import AsyncClient
from f2edge.client.sync import Client
from f2edge.errors import ImageError
from f2edge.imaging.images import load_image, open_image
from f2edge.pipeline import FacePipeline
from f2edge.provenance.inspection import find_marks
from f2edge.provenance.label import EDITED, GENERATED
from f2edge.results import FaceReport, GenerateOptions
from tests.support.serving import paper_pipeline, paper_served, photo, serving

pytestmark = pytest.mark.runtime
FAST = GenerateOptions(steps=2)


@pytest.fixture(scope="module")
def nano() -> FacePipeline:
    return FacePipeline.load("nano", threads=1)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_saved_face_has_label_and_watermark(nano: FacePipeline, tmp_path: Path, suffix: str) -> None:
    (face,) = nano.generate("an old man", seeds=7, options=FAST)
    marks = find_marks(face.save(tmp_path / f"face{suffix}"))
    assert marks.names == ("xmp", "watermark")
    assert marks.label is not None
    assert (marks.label.source_type, marks.label.prompt, marks.label.seed, marks.label.bundle) == (GENERATED, "an old man", 7, "nano")
    edited = nano.edit(face.image, "a young man", "hair", seed=9, options=FAST)
    marks = find_marks(edited.save(tmp_path / f"edited{suffix}"))
    assert marks.names == ("xmp", "watermark")
    assert marks.label is not None
    assert (marks.label.source_type, marks.label.prompt, marks.label.seed) == (EDITED, "a young man", 9)
    assert find_marks(face._repr_png_()).names == ("xmp", "watermark")


def test_a_client_saves_as_the_pipeline_does(tmp_path: Path) -> None:
    pipeline = paper_pipeline(tmp_path / "paper")
    with serving(paper_served(pipeline)) as server, Client(server.address) as client:
        for model in (pipeline, client):
            (face,) = model.generate("a man", seeds=3)
            edited = model.edit(photo(), "a man", (0, 0, 20, 20), seed=4)
            files = face.save(tmp_path / "face.png"), edited.save(tmp_path / "edited.png")
            labels = [find_marks(file).label for file in files]
            assert [label and (label.source_type, label.seed, label.bundle) for label in labels] == [
                (GENERATED, 3, pipeline.bundle.name),
                (EDITED, 4, pipeline.bundle.name),
            ]


def test_every_form_of_a_picture_gives_the_same_answer(nano: FacePipeline, tmp_path: Path) -> None:
    data = photo((300, 200))
    path = tmp_path / "face.png"
    path.write_bytes(data)
    picture = load_image(data)
    forms: list[Any] = [path, str(path), data, np.asarray(picture), picture]
    (expected,) = {tuple(sorted(report.best.items())) for report in nano.analyze(forms)}
    assert expected == tuple(sorted(nano.analyze(path)[0].best.items()))
    assert len({nano.ask(form, "what hat is worn?").text for form in forms}) == 1
    assert len({nano.describe(form).text for form in forms}) == 1
    assert len({nano.edit(form, "a man", "hair", options=FAST).codes.tobytes() for form in forms}) == 1
    assert np.array_equal(nano.encode(forms), np.repeat(nano.encode(path), len(forms), axis=0))


def test_arrays_that_are_no_pictures_are_named() -> None:
    rgba = np.zeros((20, 30, 4), dtype=np.uint8)
    assert open_image(rgba).size == (30, 20)
    assert open_image(rgba[..., 0]).mode == "RGB"
    for wrong in (np.zeros((3, 20, 30), dtype=np.uint8), np.zeros((20, 30, 3)), np.zeros((0, 5), dtype=np.uint8)):
        with pytest.raises(ImageError, match="give uint8 of shape"):
            open_image(wrong)


def test_local_pictures_may_be_larger_than_a_servers(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2600, 4200, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=60)
    assert len(buffer.getvalue()) > 4 << 20
    with pytest.raises(ImageError):
        load_image(buffer.getvalue())
    assert open_image(buffer.getvalue()).size == (4200, 2600)


def test_a_notebook_shows_bars_and_no_markup_of_a_bundle() -> None:
    shown = FaceReport({"hair_color": {"red": 0.75, "<b>": 0.25}, "<script>": {"yes": 1.0}})._repr_html_()
    assert '<meter min="0" max="1" value="0.750">' in shown
    assert "75 %" in shown
    assert "<script>" not in shown


def test_the_asyncio_client_has_the_methods_of_the_other() -> None:
    def members(kind: type) -> dict[str, Any]:
        return {name: value for name, value in vars(kind).items() if not name.startswith("_")}

    def parameters(value: Any) -> list[tuple[str, Any, Any]]:
        found = inspect.signature(value).parameters.values()
        return [(p.name, p.kind, p.default) for p in found]

    sync, other = members(Client), members(AsyncClient)
    assert list(sync) == list(other)
    for name, value in sync.items():
        assert isinstance(value, property) == isinstance(other[name], property), name
        if not isinstance(value, property):
            assert parameters(value) == parameters(other[name]), name
    assert parameters(Client) == parameters(AsyncClient)
