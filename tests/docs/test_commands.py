"""Every command of README and documents is run: here, by a test that is named, or not, for a reason that is named."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_documents import DOCUMENTS, FENCE, ROOT, text

#: Pattern of a command → the test that runs it, or what it needs that no test has.
ELSEWHERE = {
    r"(python -m export|torchrun) .*--configuration 1\.8b.* own/": "needs eight GPUs and published weights",
    r"(python -m export|f2edge) .* own/": "tests/export/test_own_run.py",
    r"make (face|test|lint|docs)\b": "needs a network",
    r"make (audit|sbom|lock|lowest-direct)": "needs a network",
    r"RESOLUTION=highest .*lowest_direct": "needs a network",
    r"(\. \.venv|pip |python -m venv|sudo |git clone|wget |scp |mkdir )": "needs a network, or another machine",
    r"f2edge serve( |$)": "tests/f2edge/server/test_server_operation.py",
    r"f2edge studio": "tests/f2edge/http/test_page.py",
    r"curl -": "tests/f2edge/http/test_http_docs.py",
    r".*--server ": "tests/f2edge/client/test_client.py",
    r"grpcurl|grpc_health_probe": "tests/f2edge/server/test_server.py",
    r"f2edge top": "tests/f2edge/server/test_server_operation.py",
    r"f2edge camera.*(rtsp:|csi:|--show)": "needs a camera or a window",
    r"f2edge camera": "tests/f2edge/camera/test_camera_files.py",
    r"f2edge .*(--sign-cert|--trust)": "tests/f2edge/provenance/test_c2pa.py",
    r"f2edge .*--watermark-key": "tests/f2edge/provenance/test_provenance.py",
    r"f2edge bundles add": "tests/f2edge/bundle/test_sources.py",
    r"f2edge .*--backend tensorrt|python -m engines build": "needs an NVIDIA GPU",
    r"python -m engines selftest": "tests/engines/selftest/test_selftest.py",
    r"f2edge .*--bundle (bundles/|runs/)": "needs a model that was exported before",
    r"python -m export (import-showo|onnx --configuration)": "tests/export/test_showo_bundle.py",
    r"python -m export onnx.*--flavour tensorrt": "tests/export/tensorrt/test_tensorrt_flavour.py",
    r"python -m export onnx": "tests/export/test_export.py",
    r"python -m export random": "tests/export/checkpoints/test_random_weights.py",
    r"python -m export train student": "tests/export/training/test_student.py",
    r"python -m export update": "tests/export/graph/test_independent_rows.py",
    r"python -m export (render|text-tokenizer|cache|train|nano)|torchrun": "tests/export/test_nano_run.py",
    r"python -m export sensitivity": "tests/export/quantize/test_recipes.py",
    r"python -m bench load --soak|python -m bench (fuzz|load)": "tests/bench/load",
    r"python -m bench pareto": "tests/bench/pareto",
    r"python -m bench (judge|quality|recipes)": "tests/bench/quality",
    r"python -m bench (compare|latency|step|paper-size|memory|showo)": "tests/bench/latency",
    r"python -m bench expert-kernels": "tests/bench/hardware",
    r"python -m bench camera": "tests/bench/camera",
    r"(docker|kubectl|RAY_)": "needs a container engine, a cluster or Ray",
}


def commands() -> list[tuple[str, str]]:
    """Return every command of a bash block, with its document."""
    found = []
    for document in DOCUMENTS:
        for language, block in FENCE.findall(text(document)) if document.suffix == ".md" else ():
            lines = re.sub(r"\\\n\s*", " ", block).splitlines() if language == "bash" else []
            found += [(document.name, re.sub(r"\s+# .*$", "", line).strip()) for line in lines if line.strip() and not line.startswith("#")]
    return found


def place(command: str) -> str | None:
    """Return where a command is run; None for here."""
    return next((where for pattern, where in ELSEWHERE.items() if re.match(pattern, command)), None)


def test_no_command_has_a_gap_that_a_shell_would_read() -> None:
    assert [(document, command) for document, command in commands() if "…" in command or re.search(r"<\w", command)] == []


def test_every_place_is_there_and_wanted() -> None:
    asked = [command for _, command in commands()]
    for pattern, where in ELSEWHERE.items():
        assert any(re.match(pattern, command) for command in asked), pattern
        assert where.startswith("needs ") or (ROOT / where).exists(), where


@pytest.mark.long
def test_the_rest_runs_as_it_stands(tmp_path: Path) -> None:
    here = list(dict.fromkeys(command for _, command in commands() if place(command) is None))
    assert len(here) > 15
    (tmp_path / "bin").mkdir()
    for name, module in (("f2edge", "-m f2edge"), ("python", "")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "f2edge", "generate", "a man", "-o", "a.jpg"], cwd=tmp_path, env=environment, check=True)
    environment |= {"XDG_DATA_HOME": str(tmp_path / "data"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for command in here:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=250,
        )
        assert done.returncode == 0, (command, done.stderr)
