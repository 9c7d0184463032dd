"""Nothing leaves the process: no library that f2edge loads writes to the user's home or looks for a server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.runtime

#: A second is enough for a reporter's thread to begin.
PROGRAM = """
import time
from f2edge import FacePipeline, GenerateOptions
FacePipeline.load("nano", threads=1).generate("a man", seeds=1, options=GenerateOptions(steps=1))
time.sleep(1)
"""


def test_onnxruntime_neither_keeps_an_identifier_nor_reports(tmp_path: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY" and not name.startswith("XDG_")}
    environment = {**inherited, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
