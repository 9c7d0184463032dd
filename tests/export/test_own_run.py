"""The three commands of docs/train-your-own.md, pasted from the page, from a folder with captions to a bundle that runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from f2edge import FacePipeline
from f2edge.bundle.bundle import Bundle
from tests.support.own_faces import write_faces

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/train-your-own.md").read_text(encoding="utf-8")
#: What a test adds to each command, so that it takes seconds: the pictures are rendered, which Haar does not find.
SHORT = {"cache": "--aligned --validation 4", "train": "--smoke", "onnx": "--prompts 2 --faces 1"}


def pasted() -> list[list[str]]:
    """The commands of the page's first block."""
    block = re.search(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines() if line]


def write_folder(folder: Path, count: int) -> None:
    """Pictures with a text file beside each: no table, no slots."""
    for row in write_faces(folder, count):
        (folder / row["photo"]).with_suffix(".txt").write_text(row["title"], encoding="utf-8")


def test_the_page_has_three_commands_and_make_runs_the_same() -> None:
    commands = pasted()
    assert len(commands) == 3
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nown: ")[2].partition("\n\n")[0]
    for command in commands:
        verbs = [word for word in command if not word.startswith("-") and "/" not in word][1:3]
        assert f"-m export {' '.join(verbs[1:])}" in recipe
        assert all(word in recipe for word in command if word.startswith("--"))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_folder_with_captions_becomes_a_bundle_that_draws_asks_and_describes(tmp_path: Path) -> None:
    write_folder(tmp_path / "faces", 40)
    for command in pasted():
        assert command[:3] == ["python", "-m", "export"]
        words = [sys.executable, *command[1:], *SHORT[command[3]].split()]
        subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    bundle = Bundle.load(tmp_path / "own" / "bundle")
    assert list(bundle.schema) == []
    assert bundle.lexicon() is None
    pipeline = FacePipeline.load(tmp_path / "own" / "bundle")
    face = pipeline.generate("an old man with a beard", seeds=1)[0].image

    assert isinstance(pipeline.ask(face, "what color is the hair?").text, str)
    assert isinstance(pipeline.describe(face, include_sensitive=True).text, str)
    assert pipeline.analyze(face)[0].probabilities == {}
