"""Today's lexicon for a bundle that was exported before: what changes, and what is refused before anything does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from export.bundle_writer import update_bundle
from export.data.text.mentions import LEXICON
from f2edge.bundle.bundle import Bundle, write_manifest
from f2edge.errors import BundleError
from f2edge.pipeline import FacePipeline


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """nano as it was before lexicons had words of the model's own."""
    folder = tmp_path / "nano"
    shutil.copytree(Bundle.load("nano").folder, folder)
    lexicon = json.loads((folder / "lexicon.json").read_text())
    del lexicon["spoken"]
    (folder / "lexicon.json").write_text(json.dumps(lexicon))
    write_manifest(folder, Bundle.load("nano").manifest.document)
    return folder


def test_the_words_of_an_older_bundle_are_renewed_with_its_smoke_vector(older: Path) -> None:
    before = {path.name: path.read_bytes() for path in older.iterdir()}
    assert FacePipeline.load(older).prompt_text("no hair").ids == tuple(FacePipeline.load(older).tokenizer.encode("no hair"))
    assert update_bundle(older, LEXICON) == ["lexicon.json"]
    after = {path.name: path.read_bytes() for path in older.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"lexicon.json", "manifest.json"}
    pipeline = FacePipeline.load(older)
    assert pipeline.tokenizer.decode(pipeline.prompt_text("no hair").ids) == "bald head, no hair"
    smoke = pipeline.bundle.manifest.smoke
    assert smoke is not None
    assert np.array_equal(pipeline.generate(smoke.prompt, seeds=smoke.seed)[0].codes, smoke.codes)
    assert update_bundle(older, LEXICON) == []


def test_a_bundle_without_a_lexicon_is_left_as_it_is(older: Path) -> None:
    (older / "lexicon.json").unlink()
    write_manifest(older, Bundle.load("nano").manifest.document)
    before = {path.name: path.read_bytes() for path in older.iterdir()}
    with pytest.raises(BundleError, match="not trained on this project's words"):
        update_bundle(older, LEXICON)
    assert {path.name: path.read_bytes() for path in older.iterdir()} == before


def test_a_bundle_for_another_runtime_is_refused(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.bundle_writer.FLAVOURS", ("tensorrt",))
    assert update_bundle(older) == []
    with pytest.raises(BundleError, match="is for onnxruntime; renew the words of"):
        update_bundle(older, LEXICON)
