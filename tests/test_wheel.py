"""The wheel: its extras' tools run without a checkout, and its description stands alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the checkout, so that nothing is written into it."""
    work = tmp_path_factory.mktemp("wheel")
    names = ["pyproject.toml", "setup.py", "LICENSE", "docs/package.md", "f2edge", "f2edge_tools", "export", "engines", "bench"]
    archive = subprocess.run(["tar", "cf", "-", *names], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "xf", "-"], cwd=work, input=archive, check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(work / "dist"), str(work)]
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    (made,) = (work / "dist").glob("*.whl")
    return made


@pytest.mark.long
def test_tools_run_from_a_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert sorted(path.name for path in site.iterdir() if not path.name.endswith(".dist-info")) == ["f2edge", "f2edge_tools"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for name, arguments, said in (
        ("export", ["--help"], "Train the face model"),
        ("engines", ["profiles"], "orin-nano"),
        ("bench", ["--help"], "Measure"),
    ):
        program = f"import sys, f2edge_tools; sys.argv[0] = 'f2edge-{name}'; f2edge_tools.{name}()"
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_the_description_needs_no_file_beside_it() -> None:
    text = (ROOT / "docs" / "package.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    assert all(target.startswith("https://") for pair in links for target in pair if target)


def test_tools_run_from_a_checkout() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import f2edge_tools; f2edge_tools.engines()", "profiles"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, "orin-nano" in done.stdout) == (0, True), done.stderr
