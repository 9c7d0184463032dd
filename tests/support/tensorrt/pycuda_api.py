"""pycuda's driver interface as its C++ source declares it: pycuda has no wheels, and building it needs CUDA.

python -m tests.support.tensorrt.pycuda_api 2026.1     downloads the source from PyPI and writes tests/support/tensorrt/pycuda_api.json
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "pycuda_api.json"
SOURCE = "src/wrapper/wrap_cudadrv.cpp"
#: How Boost.Python declares things there, and the macros around it.
CLASS = re.compile(r'py::class_<[^"]*?>\s*(?:\w+)?\s*\(\s*"(\w+)"')
FUNCTION = re.compile(r'py::def\("(\w+)",(.*?)\);', re.DOTALL)
SIMPLE = re.compile(r"DEF_SIMPLE_FUNCTION\((\w+)\)")
METHOD = re.compile(r'\.DEF_SIMPLE_METHOD\((\w+)\)|\.def(?:_readwrite)?\("(\w+)"|\.add_property\("(\w+)"|\.attr\("(\w+)"\)')
ENUMERATOR = re.compile(r'\.value\("(\w+)"')
ARGUMENT = re.compile(r'"(\w+)"')


def read_source(text: str) -> dict[str, Any]:
    """Functions with the names of their arguments, classes with their members, and all enumerators."""
    macro = text[text.index("#define WRAP_MEMCPY_2D_PROPERTIES") :]
    text = text.replace("      WRAP_MEMCPY_2D_PROPERTIES\n", macro[: macro.index("\n\n\n") if "\n\n\n" in macro else 2000])
    functions = {name: ARGUMENT.findall(re.sub(r"=\"\w+\"", "", rest.split(",", 1)[-1])) for name, rest in FUNCTION.findall(text)}
    functions.update((name, []) for name in SIMPLE.findall(text))
    pieces = CLASS.split(text)
    classes: dict[str, list[str]] = {}
    for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
        members = {next(filter(None, found)) for found in METHOD.findall(body[: body.find("\n  }\n")])}
        classes.setdefault(name, []).extend(sorted(members))
    return {"functions": functions, "classes": classes, "enumerators": sorted(set(ENUMERATOR.findall(text)))}


def write_table(version: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, f"pycuda=={version}"]
        subprocess.run(words, check=True)
        (archive,) = Path(name).glob("*.tar.gz")
        with tarfile.open(archive) as files:
            member = files.extractfile(f"pycuda-{version}/{SOURCE}")
            assert member is not None
            text = member.read().decode()
        source = f"{archive.name} sha256 {hashlib.sha256(archive.read_bytes()).hexdigest()}, {SOURCE}"
    TABLE.write_text(json.dumps({"source": source, **read_source(text)}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write_table(sys.argv[1])
