"""Plug-ins that a graph needs, found without the ``onnx`` package, which a Jetson need not have.

An ONNX file holds operator names as plain bytes, so the file is searched for them.  Registering a plug-in that is not needed is harmless.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from engines.engine_cache import code_sha256
from engines.plugins.fused_moe import TILES, X_TYPES, KernelPlan, MoEShape
from engines.plugins.kernel_folder import KernelFolder
from f2edge.backends.tensorrt.installation import missing_plugins, register_plugins
from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration


class Plugin(NamedTuple):
    """One plug-in.

    Attributes:
        name: "namespace::name:version".
        module: module whose ``register(tensorrt)`` registers it.
        to_load: whether plans need it to load; ahead-of-time plug-ins are stored in the plan and needed for building only.
    """

    name: str
    module: str
    to_load: bool


_AHEAD_OF_TIME = ("F2MoeRoute", "F2MoeSort", "F2MoeUp", "F2MoeDown", "F2MoeCombine")
#: Operator name → plug-in.
OPERATORS: Mapping[str, Plugin] = MappingProxyType(
    {
        "F2FusedMoE": Plugin("f2edge::F2FusedMoE:1", "engines.plugins.tensorrt_class", to_load=True),
        **{name: Plugin(f"f2edge::{name}:1", "engines.plugins.tensorrt_aot", to_load=False) for name in _AHEAD_OF_TIME},
    }
)


def plugins_of(onnx: Path) -> dict[str, str]:
    """Return the plug-ins of a graph as "namespace::name:version" → SHA-256 of the plug-in code."""
    with onnx.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        used = [plugin.name for operator, plugin in OPERATORS.items() if data.find(operator.encode()) >= 0]
    return dict.fromkeys(used, code_sha256(Path(__file__).parent / "plugins") if used else "")


def check_kernels(graph: str, plugins: Iterable[str], model: ModelConfiguration, capability: str) -> None:
    """Check that the kernels of a graph's plug-ins are compiled for a compute capability such as "8.7".

    Raises:
        InputError: they are not, or a file is damaged.
    """
    if not {plugin.name for plugin in OPERATORS.values()} & set(plugins):
        return
    experts = model.token_experts
    shape = MoEShape(model.width, experts.routed, experts.routed_width, experts.active)
    target = int(capability.replace(".", ""))
    try:
        folder = KernelFolder(shape)
        for file in {kernel.file for x_type in X_TYPES for tile in TILES.values() for kernel in KernelPlan(shape, x_type, tile).kernels}:
            next(folder.images(target, file))
    except InputError as error:
        raise InputError(f"graph {graph!r} needs the kernels of its plug-in: {error}") from error


def to_load(plugins: Iterable[str]) -> list[str]:
    """Return the plug-ins among ``plugins`` that must be registered before a plan is loaded, sorted."""
    needed = {plugin.name for plugin in OPERATORS.values() if plugin.to_load}
    return sorted(needed & set(plugins))


def register(trt: Any, log: Any, plugins: Mapping[str, str]) -> None:
    """Register TensorRT's built-in plug-ins, those in ``plugins`` and those of ``F2EDGE_TENSORRT_PLUGINS``.

    Raises:
        InputError: one of ``plugins`` is still missing.
    """
    register_plugins(trt, log)
    modules = {plugin.module for plugin in OPERATORS.values() if plugin.name in plugins and missing_plugins(trt, [plugin.name])}
    for module in sorted(modules):
        register_plugins(trt, log, module)
    missing = missing_plugins(trt, plugins)
    if missing:
        raise InputError(f"plug-ins {', '.join(missing)} are not registered; export with plain operators (`--moe plain`) or register them")
