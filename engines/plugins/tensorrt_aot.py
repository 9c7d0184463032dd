"""Ahead-of-time plug-ins of the fused experts (``tensorrt.plugin``, TensorRT 10.9 and later): plans load without Python.

TensorRT copies each kernel's PTX and its launch parameters into the plan.  Such a plug-in is one kernel without workspace, so
``F2FusedMoE`` becomes five nodes with ordinary tensors between them (:mod:`engines.plugins.aot_graph` rewrites the graph):

| node | inputs | attributes | outputs |
|---|---|---|---|
| F2MoeRoute | x (…, D), router_weight (D, E), router_bias (E,) | active, rows | experts (T, K) int32, gates (T, K) fp32 |
| F2MoeSort | experts | count (E), rows | order (A,) int32, blocks (·, 4) int32 |
| F2MoeUp | x, order, blocks, up_weight, up_bias | active, gated, rows | hidden (A, I) fp16 |
| F2MoeDown | hidden, order, blocks, down_weight, down_bias | rows | parts (A, D) fp16 |
| F2MoeCombine | parts, gates | rows | y (T, D) fp16 |

``rows`` selects the tile (:data:`engines.plugins.fused_moe.TILES`) when the graph is rewritten.

Not run on a GPU yet.  Checked without one: NVIDIA's ``tensorrt.plugin`` 11.4 accepts every definition, and shapes, grids and arguments
equal those of the kernel plan (tests/engines/test_plugin_aot.py).

>>> register(tensorrt)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

from engines.plugins.fused_moe import TILES
from engines.plugins.fused_moe_launch import Driver
from engines.plugins.kernel_folder import CompiledKernel, KernelFolder
from f2edge.errors import BackendError, InputError

NAMESPACE = "f2edge"


@dataclass(frozen=True)
class Operator:
    """One plug-in: kernel, inputs, integer attributes and number of outputs."""

    name: str
    kernel: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    outputs: int = 1


OPERATORS = (
    Operator("F2MoeRoute", "route", ("x", "router_weight", "router_bias"), ("active", "rows"), 2),
    Operator("F2MoeSort", "sort", ("experts",), ("count", "rows"), 2),
    Operator("F2MoeUp", "up", ("x", "order", "blocks", "up_weight", "up_bias"), ("active", "gated", "rows")),
    Operator("F2MoeDown", "down", ("hidden", "order", "blocks", "down_weight", "down_bias"), ("rows",)),
    Operator("F2MoeCombine", "combine", ("parts", "gates"), ("rows",)),
)


def _tokens(x: Any) -> Any:
    """Return T of x (…, D) as a symbolic expression."""
    total = x.shape_expr[0]
    for size in list(x.shape_expr)[1:-1]:
        total = total * size
    return total


def _outputs(trt: Any, trtp: Any, name: str, t: Mapping[str, Any], a: Mapping[str, int]) -> tuple[Any, ...]:
    """Describe a plug-in's outputs from its inputs ``t`` and its attributes ``a``."""
    describe = trtp.from_shape_expr
    if name == "route":
        shape = (_tokens(t["x"]), a["active"])
        return describe(shape, trt.DataType.INT32), describe(shape, trt.DataType.FLOAT)
    if name == "sort":
        A = t["experts"].shape_expr[0] * t["experts"].shape_expr[1]
        blocks = trtp.cdiv(A, a["rows"]) + a["count"]
        return describe((A,), trt.DataType.INT32), describe((blocks, 4), trt.DataType.INT32)
    if name == "up":
        width = t["up_weight"].shape_expr[2]
        return (describe((t["order"].shape_expr[0], width // 2 if a["gated"] else width), trt.DataType.HALF),)
    if name == "down":
        return (describe((t["hidden"].shape_expr[0], t["down_weight"].shape_expr[2]), trt.DataType.HALF),)
    return (describe((t["gates"].shape_expr[0], t["parts"].shape_expr[1]), trt.DataType.HALF),)


def _constants(name: str, t: Mapping[str, Any], a: Mapping[str, int]) -> dict[str, int]:
    """Return the compile-time sizes that select a plug-in's kernel."""

    def size(tensor: str, axis: int) -> int:
        return int(t[tensor].shape_expr[axis].constant_value())

    if name == "route":
        return {"D": size("router_weight", 0), "E": size("router_weight", 1), "K": a["active"]}
    if name == "sort":
        return {"E": a["count"], "K": size("experts", 1)}
    if name == "up":
        J = size("up_weight", 2)
        return {"D": size("up_weight", 1), "I": J // 2 if a["gated"] else J, "K": a["active"], "GATED": a["gated"]}
    if name == "down":
        return {"I": size("down_weight", 1), "D": size("down_weight", 2)}
    return {"D": size("parts", 1), "K": size("gates", 1)}


class KernelBank:
    """All compiled kernels of a folder for one compute capability; None for that of the current device."""

    def __init__(self, root: Path | None, capability: int | None) -> None:
        self._root, self._capability = root, capability

    def find(self, name: str, x_type: str, rows: int, constants: Mapping[str, int]) -> tuple[CompiledKernel, bytes]:
        """Return the kernel with these sizes and its PTX; raises :class:`InputError` if it was not compiled."""
        capability = Driver().capability() if self._capability is None else self._capability
        tile = next((tile.name for tile in TILES.values() if tile.rows == rows), None)
        if tile is None:
            raise InputError(f"attribute rows is {rows}; the kernels have {', '.join(str(t.rows) for t in TILES.values())}")
        file = f"{name}-{x_type}-{tile}" if name in ("route", "up") else f"{name}-{tile}"
        for folder in KernelFolder.every(self._root):
            compiled, ptx = folder.portable_image(capability, file)
            if {**compiled.constants, **constants} == dict(compiled.constants):
                return compiled, ptx
        raise InputError(f"no kernel {file} was compiled for {dict(constants)}; compile it with `python -m engines kernels`")


def _launch(trtp: Any, operator: Operator, compiled: CompiledKernel, t: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return launch parameters and extra arguments: T, if the kernel takes it."""
    launch = trtp.KernelLaunchParams()
    launch.grid_y, launch.block_x, launch.shared_mem = compiled.grid["y"], compiled.threads, compiled.shared
    if operator.kernel in ("up", "down"):
        launch.grid_x = t["blocks"].shape_expr[0]
        return launch, trtp.SymIntExprs(0)
    tokens = {"route": lambda: _tokens(t["x"]), "sort": lambda: t["experts"].shape_expr[0], "combine": lambda: t["gates"].shape_expr[0]}
    T = tokens[operator.kernel]()
    grid = compiled.grid
    if grid["factor"]:
        launch.grid_x = trtp.cdiv(T * grid["factor"], grid["divisor"]) + grid["extra"]
    else:
        launch.grid_x = grid["extra"]
    extra = trtp.SymIntExprs(1)
    extra[0] = trtp.SymInt32(T)
    return launch, extra


def _define(trt: Any, trtp: Any, operator: Operator, bank: KernelBank) -> None:
    """Register one plug-in with its shape function and its kernel."""
    inputs = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=trtp.TensorDesc) for name in operator.inputs]
    attributes = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=int) for name in operator.attributes]
    described = tuple[(trtp.TensorDesc,) * operator.outputs] if operator.outputs > 1 else trtp.TensorDesc  # type: ignore[misc]

    def describe(*tensors: Any, **values: int) -> Any:
        found = _outputs(trt, trtp, operator.kernel, dict(zip(operator.inputs, tensors, strict=True)), values)
        return found if operator.outputs > 1 else found[0]

    def implement(*arguments: Any) -> tuple[str, bytes, Any, Any]:
        """Return the kernel, its PTX and its launch; TensorRT passes inputs, attributes, outputs and the tactic by position."""
        count = len(operator.inputs)
        tensors = dict(zip(operator.inputs, arguments[:count], strict=True))
        values = dict(zip(operator.attributes, arguments[count : count + len(operator.attributes)], strict=True))
        x_type = "fp32" if "x" in tensors and tensors["x"].dtype == trt.DataType.FLOAT else "fp16"
        compiled, ptx = bank.find(operator.kernel, x_type, values["rows"], _constants(operator.kernel, tensors, values))
        return compiled.kernel, ptx, *_launch(trtp, operator, compiled, tensors)

    rest = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("outputs", "tactic")]
    _sign(describe, Signature([*inputs, *attributes], return_annotation=described))
    _sign(
        implement, Signature([*inputs, *attributes, *rest], return_annotation=tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs])
    )
    plugin = f"{NAMESPACE}::{operator.name}"
    trtp.register(plugin)(describe)
    trtp.aot_impl(plugin)(implement)


def _sign(function: Callable[..., Any], signature: Signature) -> None:
    """Set the signature from which ``tensorrt.plugin`` reads names and types."""
    function.__signature__ = signature  # type: ignore[attr-defined]


def register(trt: Any, root: Path | None = None, capability: int | None = None) -> None:
    """Register the five plug-ins unless they are registered already.

    Args:
        trt: ``tensorrt`` module.
        root: folder of compiled kernels; None for the default.
        capability: compute capability such as 87; None for the current device's.

    Raises:
        BackendError: TensorRT is older than 10.9.
    """
    try:
        trtp = import_module("tensorrt.plugin")
    except ImportError as error:
        raise BackendError(f"TensorRT {trt.__version__} has no tensorrt.plugin ({error}); 10.9 is needed, else use F2FusedMoE") from error
    if not hasattr(trtp, "aot_impl"):
        raise BackendError(f"TensorRT {trt.__version__} has no ahead-of-time plug-ins; 10.9 is needed, else use F2FusedMoE")
    registry, bank = trt.get_plugin_registry(), KernelBank(root, capability)
    for operator in OPERATORS:
        if registry.get_creator(operator.name, "1", NAMESPACE) is None:
            _define(trt, trtp, operator, bank)
