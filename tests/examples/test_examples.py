"""Every example script runs as its docstring says, and every notebook from top to bottom."""

from __future__ import annotations

import ast
import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from f2edge.provenance.inspection import find_marks
from f2edge.spec.attributes import F2EDGE_SCHEMA

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LONGEST_SCRIPT = 40


def python(folder: Path, *arguments: str) -> str:
    """Run a program in ``folder`` and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def documented(name: str) -> list[str]:
    """Return the command of a script's docstring, without ``python`` and with the script's full path."""
    docstring = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))) or ""
    (command,) = [line[2:] for line in docstring.splitlines() if line.startswith("$ ")]
    words = shlex.split(command)
    assert words[:2] == ["python", f"examples/{name}.py"]
    return [str(EXAMPLES / f"{name}.py"), *words[2:]]


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first example has written ``faces/``."""
    folder = tmp_path_factory.mktemp("examples")
    printed = python(folder, *documented("generate"))
    assert printed.split() == [f"faces/{seed}.png" for seed in range(4)]
    return folder


def test_there_are_scripts_and_notebooks() -> None:
    assert (len(SCRIPTS), len(NOTEBOOKS)) == (5, 2)
    assert all(len(script.read_text(encoding="utf-8").splitlines()) <= LONGEST_SCRIPT for script in SCRIPTS)


def test_edit(tmp_path: Path) -> None:
    changed = int(python(tmp_path, *documented("edit")).split()[0])
    assert changed > 0
    with Image.open(tmp_path / "edit.png") as sheet:
        assert sheet.width == 2 * sheet.height


def test_describe_and_ask(faces: Path) -> None:
    (face, *questions) = documented("describe_and_ask")[1:]
    assert face == "face.png"
    lines = python(faces, documented("describe_and_ask")[0], "faces/0.png", *questions).splitlines()
    assert [line.startswith(question) for line, question in zip(lines[1:], questions, strict=True)] == [True, True]


def test_analyze_folder(faces: Path) -> None:
    python(faces, *documented("analyze_folder"))
    with (faces / "faces.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["0.png", "1.png", "2.png", "3.png"]
    assert {row["hair_color"] for row in rows} <= set(F2EDGE_SCHEMA["hair_color"].values)
    assert rows[0]["age"] in ("young", "middle_aged", "old")


def test_analyze_folder_reports_a_damaged_file_and_goes_on(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    (folder / "b.png").write_bytes((faces / "faces/0.png").read_bytes())
    python(tmp_path, *documented("analyze_folder"))
    assert len((tmp_path / "faces.csv").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.slow
def test_client_and_server(tmp_path: Path) -> None:
    lines = python(tmp_path, *documented("client_and_server")).splitlines()
    assert lines[0].startswith("step 1/")
    assert lines[-1] in F2EDGE_SCHEMA["hair_color"].values
    with Image.open(tmp_path / "face.png") as face:
        assert face.width == face.height
    assert find_marks(tmp_path / "face.png").names == ("xmp", "watermark")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[notebook.stem for notebook in NOTEBOOKS])
def test_a_notebook_runs_and_is_stored_without_outputs(notebook: Path, tmp_path: Path) -> None:
    code = cells(notebook)
    assert len(code) >= 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    script = tmp_path / "notebook.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in code), encoding="utf-8")
    python(tmp_path, str(script))
