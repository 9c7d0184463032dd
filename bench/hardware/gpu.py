"""Everything that needs a GPU, in one command of at most ten minutes, with a report to bring back.

    python -m bench gpu --out runs/gpu

Three parts, each a process with its own share of the time, so that one that fails or hangs leaves the others:

* tests: ``pytest -m gpu``;
* kernels: ``python -m bench kernels``, the fused experts against their reference, cuBLAS, a loop and ``torch.compile``;
* model: ``python -m bench.hardware.whole_model``, the transformer of "1.8b" in PyTorch, eager, as a CUDA graph and compiled.

Not run on a GPU yet; the parts that need none are tested on the CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.options import AsJson
from bench.results import check_folder
from engines.selftest.machine import said
from f2edge.errors import BackendError
from f2edge.provenance.saving import write_atomically

#: Lines of a part's output that the report keeps.
TAIL = 60


@dataclass(frozen=True)
class Part:
    """One part: the words after ``python -m``, its share of the time, and whether its last line is JSON."""

    name: str
    words: tuple[str, ...]
    share: float
    is_json: bool = True


PARTS = (
    Part("tests", ("pytest", "-m", "gpu", "-rA", "--tb=short", "-p", "no:cacheprovider"), 0.4, is_json=False),
    Part("kernels", ("bench", "kernels", "--json"), 0.3),
    Part("model", ("bench.hardware.whole_model", "--config", "1.8b"), 0.3),
)

Document = dict[str, Any]


def device() -> Document:
    """Return the GPU that PyTorch sees and its driver; raises :class:`BackendError` without one."""
    import torch

    if not torch.cuda.is_available():
        raise BackendError("bench gpu needs an NVIDIA GPU and PyTorch with CUDA; `nvidia-smi` and torch.cuda.is_available() must see one")
    major, minor = torch.cuda.get_device_capability()
    return {
        "name": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def run_part(part: Part, seconds: float) -> Document:
    """Run one part: ``{"name", "command", "seconds", "code", "result", "output"}``; code None where its time was over."""
    words, start = [sys.executable, "-m", *part.words], time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # noqa: S603
        try:
            output, _ = process.communicate(timeout=seconds)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            code = None
    lines = output.splitlines()
    result = None
    if part.is_json and code == 0:
        result = next((json.loads(line) for line in reversed(lines) if line.startswith("{")), None)
    return {
        "name": part.name,
        "command": " ".join(["python", "-m", *part.words]),
        "seconds": time.monotonic() - start,
        "code": code,
        "result": result,
        "output": lines[-TAIL:] if result is None else [],
    }


def markdown(document: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in document["device"].items())
    lines = [f"# GPU report, {document['date']}", "", machine, ""]
    for part in document["parts"]:
        state = {0: "done", None: "out of time"}.get(part["code"], f"failed with code {part['code']}")
        lines += [f"## {part['name']}: {state}, {part['seconds']:.0f} s", "", f"`{part['command']}`", ""]
        rows = part["result"]["rows"] if part["result"] else []
        if rows:
            names = list(rows[0])
            lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
            lines += ["| " + " | ".join(_figure(row.get(name)) for name in names) + " |" for row in rows]
            lines += ["", "; ".join(f"{key} {_figure(value)}" for key, value in part["result"].items() if key != "rows")]
        else:
            lines += ["```", *part["output"], "```"]
        lines.append("")
    return "\n".join(lines)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def report(machine: Document, parts: Sequence[Part], minutes: float, out: Path) -> Document:
    """Run the parts, write ``gpu.json`` and ``gpu.md`` after each, and return the document."""
    document: Document = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "device": machine, "parts": []}
    for part in parts:
        document["parts"].append(run_part(part, 60 * minutes * part.share))
        write_atomically(out / "gpu.json", json.dumps(document, indent=1).encode())
        write_atomically(out / "gpu.md", markdown(document).encode())
    return document


def gpu(
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of gpu.md and gpu.json.")] = Path("runs/gpu"),
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Time for all parts together.")] = 9.5,
    as_json: AsJson = False,
) -> None:
    """Run all GPU tests, kernels and whole-model figures on this machine, and write a report."""
    machine = device()
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    document = report(machine, PARTS, minutes, out)
    if as_json:
        print(json.dumps(document))
        return
    for part in document["parts"]:
        print(f"{part['name']:<8} {'code ' + str(part['code']) if part['code'] is not None else 'out of time'}, {part['seconds']:.0f} s")
    print(f"report: {out / 'gpu.md'}")
