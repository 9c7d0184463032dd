"""Which plug-ins a graph needs, found without the ``onnx`` package, which a Jetson need not have.

A node's operator stands in the file as its plain name, and no other string of ours equals it, so its bytes are looked for; a plug-in that
is registered in vain does no harm.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from engines.engine_cache import code_sha256
from f2edge.backends.tensorrt.library import missing_plugins, register_plugins
from f2edge.errors import InputError


class Plugin(NamedTuple):
    """A plug-in as "namespace::name:version", the module whose ``register(tensorrt)`` registers it, and whether plans need it to load.

    Ahead-of-time plug-ins are in the plan itself and are needed for building only.
    """

    name: str
    module: str
    to_load: bool


_AHEAD_OF_TIME = ("F2MoeRoute", "F2MoeSort", "F2MoeUp", "F2MoeDown", "F2MoeCombine")
#: By operator.
OPERATORS: Mapping[str, Plugin] = MappingProxyType(
    {
        "F2FusedMoE": Plugin("f2edge::F2FusedMoE:1", "engines.plugins.tensorrt_class", to_load=True),
        **{name: Plugin(f"f2edge::{name}:1", "engines.plugins.tensorrt_aot", to_load=False) for name in _AHEAD_OF_TIME},
    }
)


def plugins_of(onnx: Path) -> dict[str, str]:
    """The plug-ins of a graph, each with the sum of its code."""
    with onnx.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        used = [plugin.name for operator, plugin in OPERATORS.items() if data.find(operator.encode()) >= 0]
    return dict.fromkeys(used, code_sha256(Path(__file__).parent / "plugins") if used else "")


def to_load(plugins: Iterable[str]) -> list[str]:
    """Those that must be registered where the plan is loaded."""
    needed = {plugin.name for plugin in OPERATORS.values() if plugin.to_load}
    return sorted(needed & set(plugins))


def register(trt: Any, log: Any, plugins: Mapping[str, str]) -> None:
    """Register TensorRT's own plug-ins, those that a graph needs and those of ``F2EDGE_TENSORRT_PLUGINS``.

    Raises:
        InputError: one that is still missing then.
    """
    register_plugins(trt, log)
    modules = {plugin.module for plugin in OPERATORS.values() if plugin.name in plugins and missing_plugins(trt, [plugin.name])}
    for module in sorted(modules):
        register_plugins(trt, log, module)
    missing = missing_plugins(trt, plugins)
    if missing:
        raise InputError(f"plug-ins {', '.join(missing)} are not registered; export with plain operators (`--moe plain`) or register them")
