"""Everything that needs a GPU, in one command of at most ten minutes, with a report to bring back.

    python -m bench gpu --out runs/gpu

Three parts, each a process with its own share of the time, so that one that fails or hangs leaves the others:

* tests: ``pytest -m gpu`` in the files that have such tests;
* kernels: ``python -m bench kernels``, the fused experts against their reference, cuBLAS, a loop and ``torch.compile``;
* model: ``python -m bench.hardware.whole_model``, the transformer of "1.8b" in PyTorch, eager, as a CUDA graph and compiled.

For a machine that was set up for something else: Python 3.10 and PyTorch with CUDA are enough to start; TensorRT is not needed.  What a
part lacks is named with the command that installs it.  The report is written anew after each part, with whatever the part had measured
when its time was over.

Not run on a GPU yet; the parts that need none are tested on the CPU.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.options import AsJson
from bench.results import check_folder
from f2edge.errors import BackendError

ROOT = Path(__file__).parents[2]
#: Module → package, where the names differ.
PACKAGES = {"PIL": "pillow"}
#: Lines of a part's output that the report keeps; all of it is in a file beside the report.
TAIL = 60
#: Seconds kept for the report and for ending a part.
RESERVE_S = 10.0


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: heading in the report.
        words: after ``python -m``.
        share: of the time that is left when it begins, of all parts still to run.
        needs: modules that must be there.
        is_json: whether it prints documents, of which the last counts.
    """

    name: str
    words: tuple[str, ...]
    share: float
    needs: tuple[str, ...] = ()
    is_json: bool = True


def gpu_tests(root: Path = ROOT) -> tuple[str, ...]:
    """Return the test files that have GPU tests; others may need packages that a GPU machine lacks."""
    found = (path for path in (root / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text(encoding="utf-8"))
    return tuple(sorted(path.relative_to(root).as_posix() for path in found))


def parts() -> tuple[Part, ...]:
    """Return the parts in their order."""
    options = ("-m", "gpu", "-vv", "-rs", "--tb=short", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    common = ("numpy", "torch", "typer")
    return (
        Part("tests", ("pytest", *options, *gpu_tests()), 0.4, (*common, "pytest", "hypothesis"), is_json=False),
        Part("kernels", ("bench.hardware.kernels", "--partial"), 0.3, (*common, "triton", "PIL")),
        Part("model", ("bench.hardware.whole_model", "--config", "1.8b"), 0.3, common),
    )


Document = dict[str, Any]


def device() -> Document:
    """Return the GPU that PyTorch sees and its driver; raises :class:`BackendError` without one."""
    try:
        import torch
    except ImportError as error:
        raise BackendError(f"bench gpu needs PyTorch with CUDA ({error}); pip install torch") from error
    if not torch.cuda.is_available():
        raise BackendError("bench gpu needs an NVIDIA GPU and PyTorch with CUDA; `nvidia-smi` and torch.cuda.is_available() must see one")
    major, minor = torch.cuda.get_device_capability()
    return {
        "name": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "driver": _driver(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    words = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=20).stdout.strip()  # noqa: S603
    return ""


def run_part(part: Part, seconds: float, log: Path) -> Document:
    """Run one part and keep its output in a file.

    Returns:
        ``{"name", "command", "seconds", "code", "missing", "result", "output"}``; code None where its time was over or it did not run.
    """
    start = time.monotonic()
    missing = [name for name in part.needs if find_spec(name) is None]
    code = None if missing else _run(part, seconds, log)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() and not missing else []
    result = next((made for line in reversed(lines) if (made := _document(line))), None) if part.is_json else None
    return {
        "name": part.name,
        "command": " ".join(["python", "-m", *part.words]),
        "seconds": time.monotonic() - start,
        "code": code,
        "missing": missing,
        "result": result,
        "output": lines[-TAIL:] if result is None or code != 0 else [],
    }


def _run(part: Part, seconds: float, log: Path) -> int | None:
    """Return the exit status; at the end of its time the part is ended with every process that it started, so that none holds the GPU."""
    words = [sys.executable, "-u", "-m", *part.words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}
    with (
        log.open("wb") as file,  # a pipe would stay open in processes that the part leaves behind
        subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True) as process,  # noqa: S603
    ):
        try:
            return process.wait(timeout=max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)


def _document(line: str) -> Document | None:
    """Return the JSON object of a line; None for any other line, such as one that was cut off."""
    with suppress(ValueError):
        found = json.loads(line) if line.startswith("{") else None
        return found if isinstance(found, dict) else None
    return None


def state(part: Mapping[str, Any]) -> str:
    """Return what became of a part."""
    if part["missing"]:
        return f"not run: {', '.join(part['missing'])} missing; pip install {' '.join(PACKAGES.get(n, n) for n in part['missing'])}"
    return {0: "done", None: "out of time"}.get(part["code"], f"failed with code {part['code']}")


def markdown(document: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in document["device"].items())
    lines = [f"# GPU report, {document['date']}", "", machine, ""]
    for part in document["parts"]:
        lines += [f"## {part['name']}: {state(part)}, {part['seconds']:.0f} s", "", f"`{part['command']}`", ""]
        rows = part["result"].get("rows", []) if part["result"] else []
        if rows:
            names = list(dict.fromkeys(name for row in rows for name in row))
            lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
            lines += ["| " + " | ".join(_figure(row.get(name)) for name in names) + " |" for row in rows]
            lines += ["", "; ".join(f"{key} {_figure(value)}" for key, value in part["result"].items() if key != "rows"), ""]
        if part["output"]:
            lines += ["```", *part["output"], "```", ""]
    return "\n".join(lines)


def _figure(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
    return text.replace("|", "/")


def report(machine: Document, chosen: Sequence[Part], seconds: float, out: Path) -> Document:
    """Run the parts within so many seconds, write ``gpu.json`` and ``gpu.md`` after each, and return the document."""
    document: Document = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "device": machine, "parts": []}
    end = time.monotonic() + seconds
    for number, part in enumerate(chosen):
        left = sum(other.share for other in chosen[number:])
        time_left = (end - time.monotonic()) * part.share / left
        document["parts"].append(run_part(part, time_left, out / f"{part.name}.log"))
        _write(out / "gpu.json", json.dumps(document, indent=1))
        _write(out / "gpu.md", markdown(document))
    return document


def _write(path: Path, text: str) -> None:
    """Write a file at once, so that a reader of a run that was cut off finds a whole report."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def gpu(
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of gpu.md, gpu.json and the parts' output.")] = Path("runs/gpu"),
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Time for everything together.")] = 9.0,
    as_json: AsJson = False,
) -> None:
    """Run all GPU tests, kernels and whole-model figures on this machine, and write a report."""
    start = time.monotonic()
    machine = device()
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    document = report(machine, parts(), 60 * minutes - RESERVE_S - (time.monotonic() - start), out.absolute())
    if as_json:
        print(json.dumps(document))
        return
    for part in document["parts"]:
        print(f"{part['name']:<8} {state(part)}, {part['seconds']:.0f} s")
    print(f"report: {out / 'gpu.md'}")


def main() -> None:
    """Run the command alone, without the imports of the other benches; bad input and missing hardware are one line."""
    from f2edge.errors import F2EdgeError, InputError

    try:
        typer.run(gpu)
    except F2EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
