"""NVIDIA's Python bindings of TensorRT without TensorRT, loaded beside empty libraries as :mod:`tests.support.tensorrt.tensorrt_api` does,
for the plug-ins.

Bindings cannot be unloaded, so they are only loaded in a process of their own.  Data classes work there (fields, dimensions,
descriptions of tensors); whatever lives in the libraries (builder, registry) is missing.

    python -m tests.support.tensorrt.plugin_bindings 10.3.0 11.4.0.106     writes tests/support/tensorrt/plugin_bindings.json
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.support.tensorrt import tensorrt_api

TABLE = Path(__file__).parent / "plugin_bindings.json"
CLASSES = (
    "DimsExprs",
    "DynamicPluginTensorDesc",
    "IExprBuilder",
    "IPluginCreatorV3One",
    "IPluginRegistry",
    "IPluginV3",
    "IPluginV3OneBuild",
    "IPluginV3OneCore",
    "IPluginV3OneRuntime",
    "PluginField",
    "PluginFieldCollection",
    "PluginTensorDesc",
)
ENUMERATIONS = ("DataType", "PluginFieldType", "TensorFormat", "TensorRTPhase")


def installed() -> Path | None:
    """Folder that the bindings are installed in, if they are."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    return Path(spec.origin).parent.parent if spec is not None and spec.origin is not None else None


def load(package: Path, libraries: list[Path]) -> Any:
    """The bindings as a module, in this process for good; also as ``tensorrt``, the name that ``tensorrt.plugin`` imports."""
    for library in sorted(libraries):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(package))
    trt = importlib.import_module("tensorrt_bindings")
    sys.modules["tensorrt"] = trt
    return trt


def interface(trt: ModuleType) -> dict[str, Any]:
    """What the plug-ins use, in the spelling of :func:`tests.support.tensorrt.tensorrt_api.interface`."""
    return {
        "classes": {name: tensorrt_api._members(getattr(trt, name)) for name in CLASSES},
        "enumerations": {name: sorted(getattr(trt, name).__members__) for name in ENUMERATIONS},
        "functions": {"get_plugin_registry": tensorrt_api._signatures("get_plugin_registry", trt.get_plugin_registry)},
    }


def write_table(versions: list[str]) -> None:
    table = {}
    for version in versions:
        with tempfile.TemporaryDirectory() as name:
            folder, source = tensorrt_api._wheel(version, Path(name))
            libraries = tensorrt_api.compile_stubs(folder, int(version.split(".")[0]))
            words = [sys.executable, "-m", "tests.support.tensorrt.plugin_bindings", "read", str(folder), *map(str, libraries)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            table[version] = {"source": source, **json.loads(done.stdout)}
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        print(json.dumps(interface(load(Path(sys.argv[2]), [Path(p) for p in sys.argv[3:]]))))
    else:
        write_table(sys.argv[1:])
