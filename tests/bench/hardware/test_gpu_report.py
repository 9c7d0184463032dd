"""The command for a GPU machine, as far as it runs without one: its parts, its report, and the whole model on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.hardware.gpu import Part, gpu_tests, parts, report
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


def test_without_the_command_lines_package_one_line_says_so() -> None:
    code = "import sys, runpy; sys.modules['typer'] = None; sys.argv = ['bench', 'gpu']; runpy.run_module('bench', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: bench gpu cannot start")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_report_of_parts_that_work_fail_and_hang(tmp_path: Path) -> None:
    """One hangs behind a process of its own that keeps the output open, after its first figures."""
    row = '{"rows": [{"call": "step", "ms": 1.25}], "device": "Paper"}'
    (tmp_path / "figures.py").write_text(f"print('noise'); print({row!r})")
    (tmp_path / "fails.py").write_text('print("no such kernel"); raise SystemExit(3)')
    (tmp_path / "hangs.py").write_text(
        f"import subprocess, sys, time\nprint({row!r}, flush=True)\nprint('{{\"rows\": [', flush=True)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\ntime.sleep(600)"
    )
    names = ("figures", "fails", "lacks", "hangs")
    parts = [Part(name, (name,), 1.0, ("no_such_module", "numpy") if name == "lacks" else ()) for name in names]
    start = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        document = report({"name": "Paper"}, parts, 8.0, tmp_path)
    assert time.monotonic() - start < 30, "ended with its process"
    assert [part["code"] for part in document["parts"]] == [0, 3, None, None]
    assert [part["result"] is not None for part in document["parts"]] == [True, False, False, True]
    assert json.loads((tmp_path / "gpu.json").read_text()) == document
    text = (tmp_path / "gpu.md").read_text()
    assert text.count("| step | 1.25 |") == 2
    for line in ("failed with code 3", "no such kernel", "out of time", "not run: no_such_module missing; pip install no_such_module"):
        assert line in text
    assert '{"rows": [' in (tmp_path / "hangs.log").read_text()


def test_the_files_with_gpu_tests_are_found() -> None:
    files = gpu_tests()
    assert "tests/engines/test_plugin_gpu.py" in files
    assert all((ROOT / file).is_file() for file in files)
    assert len(files) < 10, "what a bare machine collects"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.long
def test_the_parts_run_and_say_what_is_missing(tmp_path: Path) -> None:
    """Without a GPU: the tests are collected and skipped, the benches end with one line."""
    document = report({"name": "none"}, parts(), 600.0, tmp_path)
    tests, kernels, model = document["parts"]
    assert tests["code"] == 0, tests["output"]
    assert any("skipped" in line for line in tests["output"] or (tmp_path / "tests.log").read_text().splitlines())
    assert kernels["code"] == 1
    assert "needs an NVIDIA GPU" in "\n".join(kernels["output"])
    assert model["code"] == 1


def test_the_whole_model_is_measured_on_a_cpu_too() -> None:
    rows: list[int] = []
    document = measure(TINY, torch.device("cpu"), ("eager",), lambda made: rows.append(len(made["rows"])))
    assert rows == [1, 2, 3, 4]
    assert set(best(document)) == {"prompt", "guided step", "picture", "answer token"}
    assert all(row["ms"] > 0 for row in document["rows"])
    assert document["weights_gb"] < 3e-9 * document["parameters"], "most weights are in half precision"
