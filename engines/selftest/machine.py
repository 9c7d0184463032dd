"""What the self-test ran on: device, driver, power mode, and versions of everything that takes part."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from f2edge.backends.base import Backend
from f2edge.backends.onnxruntime import usable_cores
from f2edge.backends.tensorrt.backend import TensorRTBackend
from f2edge.backends.tensorrt.plans import l4t_release

PACKAGES = ("f2edge", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "pycuda", "cuda-bindings", "triton")
_DRIVER = Path("/proc/driver/nvidia/version")


def describe(backend: Backend) -> dict[str, Any]:
    """Return names and versions, JSON-ready; what is not there is left out."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "cpu": _cpu(),
        "cores": usable_cores(),
        "l4t": l4t_release(),
        "power mode": said("nvpmodel", "-q"),
        "nvidia driver": _first(_DRIVER) or said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "packages": {name: text for name in PACKAGES if (text := _version(name))},
    }
    if isinstance(backend, TensorRTBackend):
        machine = backend.machine
        found |= {
            "device": machine.gpu,
            "compute capability": machine.capability,
            "multiprocessors": machine.multiprocessors,
            "tensorrt": machine.tensorrt,
            "cuda of the driver": machine.cuda,
            "cuda library": backend.cuda_library,
            "plans": str(backend.plans.folder),
            "profile": backend.plans.profile,
        }
    return {name: value for name, value in found.items() if value}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _first(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))), platform.machine())


def said(*words: str) -> str:
    """Return what a program of the system prints, in one line; empty where there is none."""
    program = shutil.which(words[0])
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " ".join(done.stdout.split()) if done.returncode == 0 else ""
