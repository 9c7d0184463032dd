"""TensorRT's Python interface, read from NVIDIA's own bindings without its libraries, and kept as a table for versions not installed.

The bindings (``tensorrt-cu12-bindings``, ``tensorrt-cu13-bindings``, 1 MB from PyPI) need nine C functions of three shared libraries to
load; empty ones are compiled here with the system's C compiler.  Nothing can be run then, but every class carries its signatures.

    python -m tests.support.tensorrt.tensorrt_api 10.3.0 10.13.3.9 10.16.1.11 11.4.0.106     downloads the wheels and writes
    tests/support/tensorrt/tensorrt_api.json
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

TABLE = Path(__file__).parent / "tensorrt_api.json"
STUBS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
}
#: What the builder, the runner and the plug-ins use, with everything in it.
CLASSES = (
    "Builder",
    "EngineInspector",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IPluginRegistry",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "OnnxParser",
    "ParserError",
    "Runtime",
)
ENUMERATIONS = (
    "BuilderFlag",
    "DataType",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "ILogger.Severity",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "ProfilingVerbosity",
    "TensorIOMode",
    "TensorLocation",
)
FUNCTIONS = ("get_plugin_registry", "init_libnvinfer_plugins", "nptype")


def compile_stubs(folder: Path, major: int, compiler: str = "cc") -> list[Path]:
    """The three libraries, without a single instruction of TensorRT."""
    paths = []
    for name, functions in STUBS.items():
        source = folder / f"{name}.c"
        source.write_text("".join(f"void *{function}(void) {{ return 0; }}\n" for function in functions))
        path = folder / f"lib{name}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", str(path), str(source)], check=True)
        paths.append(path)
    return paths


def read_bindings(libraries: list[Path], package: Path | None = None) -> dict[str, Any]:
    """The interface of the bindings installed here, or unpacked in ``package``; in a process of its own, for they cannot be unloaded."""
    words = [sys.executable, "-m", "tests.support.tensorrt.tensorrt_api", "read", str(package or ""), *map(str, libraries)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3], timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def interface(trt: ModuleType) -> dict[str, Any]:
    """Classes with their methods and properties, enumerations and functions, each signature in one spelling for all versions."""

    def attribute(path: str) -> Any:
        found: Any = trt
        for part in path.split("."):
            found = getattr(found, part)
        return found

    return {
        "version": trt.__version__,
        "classes": {name: _members(attribute(name)) for name in CLASSES},
        "enumerations": {name: {m: int(v) for m, v in attribute(name).__members__.items()} for name in ENUMERATIONS},
        "functions": {name: _signatures(name, attribute(name)) for name in FUNCTIONS},
    }


def _members(kind: type) -> dict[str, Any]:
    methods, properties = {}, {}
    for name in dir(kind):
        value = getattr(kind, name)
        if (name.startswith("_") and name != "__init__") or (kind.__name__ == "INetworkDefinition" and name.startswith("add_")):
            continue
        if isinstance(value, property):
            properties[name] = "rw" if value.fset else "r"
        elif callable(value) and not isinstance(value, type):
            methods[name] = _signatures(name, value)
    return {"methods": methods, "properties": properties}


def _signatures(name: str, function: Any) -> list[str]:
    """Parameters of each overload, without ``self``; of a class that Python cannot make, none."""
    found = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", function.__doc__ or "", re.MULTILINE)
    if not found and hasattr(function, "__code__"):
        found = [", ".join(function.__code__.co_varnames[: function.__code__.co_argcount])]
    return [_plain(parameters) for parameters in found]


def _plain(parameters: str) -> str:
    """Annotations as pybind11 writes them now, whatever version wrote them."""
    parameters = re.sub(r"^self: [\w.:]+(, )?", "", parameters)
    for old, new in (
        (r"tensorrt_bindings\.tensorrt\.", ""),
        (r"collections\.abc\.|typing_extensions\.|typing\.|nvinfer1::|nvonnxparser::", ""),
        (r"SupportsInt( \| SupportsIndex)?", "int"),
        (r"SupportsFloat( \| SupportsIndex)?", "float"),
        (r"Buffer", "buffer"),
        (r"List\[|Sequence\[", "list["),
        (r"<[^>]*>", "..."),
    ):
        parameters = re.sub(old, new, parameters)
    return parameters


def _wheel(version: str, folder: Path) -> tuple[Path, str]:
    """The bindings' wheel of a version from PyPI, unpacked, and its sum."""
    package = f"tensorrt-cu{13 if version.startswith('11') else 12}-bindings"
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), f"{package}=={version}"]
    subprocess.run(words, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder, f"{wheel.name} sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def write_table(versions: list[str]) -> None:
    table = {}
    for version in versions:
        with tempfile.TemporaryDirectory() as name:
            folder, source = _wheel(version, Path(name))
            libraries = compile_stubs(folder, int(version.split(".")[0]))
            table[version] = {"source": source, **read_bindings(libraries, folder)}
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


def _read(package: str, *libraries: str) -> None:
    for library in sorted(libraries):
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    if package:
        sys.path.insert(0, package)
    import tensorrt_bindings

    print(json.dumps(interface(tensorrt_bindings)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        _read(*sys.argv[2:])
    else:
        write_table(sys.argv[1:])
