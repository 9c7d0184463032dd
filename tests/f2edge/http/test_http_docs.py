"""Every curl line and the program of docs/http.md, against nano in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from f2edge.provenance.inspection import find_marks
from f2edge.provenance.label import EDITED, GENERATED
from f2edge.spec.configuration import SHIPPED

DOCUMENT = (Path(__file__).parents[3] / "docs" / "http.md").read_text(encoding="utf-8")
WRITTEN = "http://127.0.0.1:8080"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "f2edge", "serve", "--port", "0", "--http", "127.0.0.1:0", "--quiet", "--lame-duck", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            yield server.stdout.readline().split()[-1]
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_lines_of_curl(address: str, tmp_path: Path) -> None:
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", "").splitlines() if line.startswith("curl")]
    assert len(lines) == 8
    assert all(WRITTEN in line for line in lines)
    for line in lines:
        said = run(["bash", "-euc", line.replace("curl", "curl --fail-with-body --retry 5", 1).replace(WRITTEN, address)], tmp_path)
        assert said or " -o " in line, line
    for name, source in (("face.png", GENERATED), ("edited.jpg", EDITED)):
        marks = find_marks(tmp_path / name)
        assert marks.names == ("xmp", "watermark")
        assert marks.label is not None
        assert marks.label.source_type == source
        assert Image.open(tmp_path / name).size == (SHIPPED.tokenizer.image_size,) * 2
    events = (tmp_path / "events.txt").read_text(encoding="utf-8")
    assert events.count("event: preview\n") >= 4
    assert events.count("event: result\n") == 1


def test_the_program(address: str, tmp_path: Path) -> None:
    (program,) = blocks("python")
    assert WRITTEN in program
    said = run([sys.executable, "-c", program.replace(WRITTEN, address)], tmp_path)
    assert said.endswith("['nano']\n")
    assert len(said) > len("['nano']\n")
    assert find_marks(tmp_path / "face.png").names == ("xmp", "watermark")
