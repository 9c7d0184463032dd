"""The device side stands alone: f2edge needs neither torch nor the houses that are built with it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.runtime

SPEC = find_spec("f2edge")
assert SPEC is not None
assert SPEC.origin is not None
PACKAGE = Path(SPEC.origin).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN = {"torch", "torchvision", "export", "engines", "bench", "onnx", "onnxscript", "skia", "safetensors", "scipy", "matplotlib"}


def imported(source: str) -> Iterator[str]:
    """Top-level names of everything that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def test_the_scan_sees_imports_inside_functions() -> None:
    assert set(imported("import a.b\ndef f():\n    from torch.nn import Linear\n    from . import c")) == {"a", "torch"}


@pytest.mark.parametrize("source", SOURCES, ids=[str(path.relative_to(PACKAGE)) for path in SOURCES])
def test_no_module_imports_a_forbidden_one(source: Path) -> None:
    assert not set(imported(source.read_text(encoding="utf-8"))) & FORBIDDEN


def test_every_module_imports_where_torch_does_not_exist() -> None:
    modules = [".".join(("f2edge", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in SOURCES]
    modules = sorted(name.removesuffix(".__init__") for name in modules)
    assert "f2edge.cli.main" in modules
    program = (
        "import importlib, sys\n"
        f"for name in {sorted(FORBIDDEN)!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print('whole')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "whole\n", done.stderr


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from f2edge.cli.main import run\n"
        "assert run(['--help']) == 0\n"
        "assert run(['generate', '--help']) == 0\n"
        "print(sorted({'numpy', 'onnxruntime', 'cv2', 'PIL', 'tokenizers'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr == "[]\n"
    assert "generate" in done.stdout
