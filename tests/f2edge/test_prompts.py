"""What becomes of a prompt's words: slips are read as meant, unknown words are named, in the library and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from f2edge import FacePipeline, GenerateOptions

pytestmark = pytest.mark.runtime

ONE_STEP = GenerateOptions(steps=1)


@pytest.fixture(scope="module")
def nano() -> FacePipeline:
    return FacePipeline.load("nano")


def test_words_that_the_model_does_not_know_are_named(nano: FacePipeline) -> None:
    faces = nano.generate(["a pirate with an eye patch", "a woman with long red hair"], options=ONE_STEP)
    assert [face.unmatched for face in faces] == [("pirate", "eye patch"), ()]


def test_a_slip_gives_the_face_that_was_meant(nano: FacePipeline) -> None:
    meant, slipped = nano.generate(["a woman with glasses", "a womn with galsses"], seeds=4, options=ONE_STEP)
    assert np.array_equal(meant.codes, slipped.codes)
    assert slipped.wording.corrected == {"womn": "woman", "galsses": "glasses"}
    assert slipped.prompt == "a womn with galsses"


def test_an_edit_says_the_same(nano: FacePipeline) -> None:
    face = nano.generate("a man", options=ONE_STEP)[0]
    assert nano.edit(face.image, "a man with a halo", "hair", options=ONE_STEP).unmatched == ("halo",)


def test_a_prompt_of_unknown_words_costs_little(nano: FacePipeline) -> None:
    prompt = " ".join(f"zorb{chr(97 + i % 26)}{chr(97 + i // 26)}x" for i in range(200))
    text, corrected = nano.bundle.lexicon().correct(prompt)  # type: ignore[union-attr]
    assert text == prompt
    assert not corrected


def test_the_command_line_says_it(tmp_path: Path) -> None:
    arguments = ["generate", "a pirate with galsses", "-o", str(tmp_path / "face.png"), "--steps", "1", "--seed", "1"]
    plain, as_json = (
        subprocess.run([sys.executable, "-m", "f2edge", *arguments, *more], capture_output=True, text=True, check=True, timeout=120)
        for more in ([], ["--json"])
    )
    assert 'read "galsses" as "glasses"' in plain.stdout
    assert "not understood, so not drawn: pirate" in plain.stdout
    document = json.loads(as_json.stdout)
    assert document["unmatched"] == ["pirate"]
    assert document["corrected"] == {"galsses": "glasses"}
