"""Which plug-ins a graph needs, found without the ``onnx`` package, which a Jetson need not have.

A node's operator stands in the file as its plain name, and no other string of ours equals it, so its bytes are looked for; a plug-in that
is registered in vain does no harm.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.engine_cache import code_sha256
from f2edge.backends.tensorrt_library import missing_plugins, register_plugins
from f2edge.errors import InputError

#: Operator → plug-in as "namespace::name:version", and the module whose ``register(tensorrt)`` registers it.
OPERATORS: Mapping[str, tuple[str, str]] = {"F2FusedMoE": ("f2edge::F2FusedMoE:1", "engines.plugins.tensorrt_class")}


def plugins_of(onnx: Path) -> dict[str, str]:
    """The plug-ins of a graph, each with the sum of its code."""
    with onnx.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        used = [plugin for operator, (plugin, _) in OPERATORS.items() if data.find(operator.encode()) >= 0]
    return dict.fromkeys(used, code_sha256(Path(__file__).parent / "plugins") if used else "")


def register(trt: Any, log: Any, plugins: Mapping[str, str]) -> None:
    """Register TensorRT's own plug-ins, those that a graph needs and those of ``F2EDGE_TENSORRT_PLUGINS``.

    Raises:
        InputError: one that is still missing then.
    """
    register_plugins(trt, log)
    modules = {module for plugin, module in OPERATORS.values() if plugin in plugins and missing_plugins(trt, [plugin])}
    for module in sorted(modules):
        register_plugins(trt, log, module)
    missing = missing_plugins(trt, plugins)
    if missing:
        raise InputError(f"plug-ins {', '.join(missing)} are not registered; export with plain operators (`--moe plain`) or register them")
