"""The command for a GPU machine, as far as it runs without one: its parts, its report, and the whole model on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.hardware.gpu import PARTS, Part, report
from bench.hardware.whole_model import best, measure
from tests.support.tiny_model import TINY

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench", "gpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert done.returncode == 1
    assert "needs an NVIDIA GPU" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_report_of_parts_that_work_fail_and_hang(tmp_path: Path) -> None:
    (tmp_path / "figures.py").write_text('print("noise"); print(\'{"rows": [{"call": "step", "ms": 1.25}], "device": "Paper"}\')')
    (tmp_path / "fails.py").write_text('print("no such kernel"); raise SystemExit(3)')
    (tmp_path / "hangs.py").write_text('import time; print("begun", flush=True); time.sleep(600)')
    parts = [Part(name, (name,), 1.0) for name in ("figures", "fails", "hangs")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        document = report({"name": "Paper"}, parts, 0.05, tmp_path)
    assert [part["code"] for part in document["parts"]] == [0, 3, None]
    assert document["parts"][0]["result"]["rows"] == [{"call": "step", "ms": 1.25}]
    assert json.loads((tmp_path / "gpu.json").read_text()) == document
    text = (tmp_path / "gpu.md").read_text()
    assert "| step | 1.25 |" in text
    assert "failed with code 3" in text
    assert "no such kernel" in text
    assert "out of time" in text
    assert "begun" in text


def test_the_parts_fit_into_their_time() -> None:
    assert sum(part.share for part in PARTS) == pytest.approx(1.0)


def test_the_whole_model_is_measured_on_a_cpu_too() -> None:
    document = measure(TINY, torch.device("cpu"), ("eager",))
    assert set(best(document)) == {"prompt", "guided step", "picture", "answer token"}
    assert all(row["ms"] > 0 for row in document["rows"])
    assert document["weights_gb"] < 3e-9 * document["parameters"], "most weights are in half precision"
