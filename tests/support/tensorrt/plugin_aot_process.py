"""NVIDIA's ``tensorrt.plugin`` with symbolic sizes that are numbers, in the process of :mod:`tests.support.tensorrt.plugin_interpreter`.

The real package checks definitions and does its own arithmetic on sizes; behind it, where TensorRT's library would be, sizes are integers.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.plugins.fused_moe import MoEShape
from engines.plugins.tensorrt_aot import OPERATORS, register
from tests.support.tensorrt.plugin_bindings import load
from tests.support.tensorrt.plugin_cases import random_weights

_STATE: dict[str, Any] = {}


class FakeDimension:
    """Stands for ``IDimensionExpr``: a number, constant or not."""

    def __init__(self, value: int, *, constant: bool = True) -> None:
        self.value, self.constant = value, constant

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        assert self.constant, "the value of a dynamic size was asked for"
        return self.value


class FakeExprBuilder:
    """Stands for ``IExprBuilder``."""

    def constant(self, value: int) -> FakeDimension:
        return FakeDimension(value)

    def operation(self, op: Any, first: FakeDimension, second: FakeDimension) -> FakeDimension:
        a, b = first.value, second.value
        result = {
            "SUM": lambda: a + b,
            "PROD": lambda: a * b,
            "FLOOR_DIV": lambda: a // b,
            "CEIL_DIV": lambda: -(-a // b),
        }[op.name]()
        return FakeDimension(result, constant=first.constant and second.constant)


class Registry:
    """Stands for ``IPluginRegistry``."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str], Any] = {}

    def register_creator(self, creator: Any, plugin_namespace: str = "") -> bool:
        self.creators[plugin_namespace, creator.name] = creator
        return True

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any:  # noqa: A002
        return self.creators.get((plugin_namespace, type))


def prepare(package: Path, libraries: list[Path], root: Path) -> None:
    """Load bindings and ``tensorrt.plugin``, and register our plug-ins with it, twice."""
    trt = load(package, libraries)
    registry = Registry()
    trt.get_plugin_registry = lambda: registry
    trt.IDimensionExpr = FakeDimension
    sys.modules["tensorrt.plugin"] = importlib.import_module("tensorrt_bindings.plugin")
    _STATE.update(trt=trt, trtp=sys.modules["tensorrt.plugin"], registry=registry)
    register(trt, root, 87)
    register(trt, root, 87)


def _library() -> Any:
    return importlib.import_module("tensorrt_bindings.plugin._lib")


def definitions() -> dict[str, Any]:
    """What ``tensorrt.plugin`` has understood of each plug-in."""
    return {
        name: (
            list(known.input_tensor_names),
            {attribute: kind.__name__ for attribute, kind in known.input_attrs.items()},
            known.num_outputs,
            known.aot_impl_func is not None and known.impl_func is None,
        )
        for name, known in _library().QDP_REGISTRY.items()
    }


def creators() -> list[tuple[str, str]]:
    return list(_STATE["registry"].creators)


def chain(shape: MoEShape, x_type: str, rows: int, leading: tuple[int, ...]) -> dict[str, Any]:
    """Follow the five plug-ins: shapes between them, and launches, for x of the leading sizes, which are dynamic."""
    tensor = importlib.import_module("tensorrt_bindings.plugin._tensor")
    tensor.SymIntExpr._exprBuilder = FakeExprBuilder()
    try:
        return _follow(shape, x_type, rows, leading)
    finally:
        tensor.SymIntExpr._exprBuilder = None


def _follow(shape: MoEShape, x_type: str, rows: int, leading: tuple[int, ...]) -> dict[str, Any]:
    trt, trtp = _STATE["trt"], _STATE["trtp"]
    half, exact = trt.DataType.HALF, trt.DataType.FLOAT

    def describe(sizes: list[FakeDimension], kind: Any) -> Any:
        return trtp.from_shape_expr(tuple(trtp.ShapeExpr(size) for size in sizes), kind)

    sizes = [*(FakeDimension(n, constant=False) for n in leading), FakeDimension(shape.width)]
    tensors = {"x": describe(sizes, exact if x_type == "fp32" else half)}
    for name, array in random_weights(shape).items():
        tensors[name] = describe([FakeDimension(n) for n in array.shape], exact if array.dtype == "float32" else half)
    attributes = {"active": shape.active, "gated": int(shape.gated), "count": shape.experts, "rows": rows}
    results = {"route": ("experts", "gates"), "sort": ("order", "blocks"), "up": ("hidden",), "down": ("parts",), "combine": ("rows",)}
    launches = []
    for operator in OPERATORS:
        known = _library().QDP_REGISTRY[f"f2edge::{operator.name}"]
        inputs = [tensors[name] for name in operator.inputs]
        values = {name: attributes[name] for name in operator.attributes}
        _check_types(trt, operator, inputs, values)
        outputs = known.register_func(*inputs, **values)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        tensors.update(zip(results[operator.kernel], outputs, strict=True))
        name, ptx, launch, extra = known.aot_impl_func(*inputs, *values.values(), outputs, 0)
        launches.append(_plain(trtp, name, ptx, launch, extra))
    made = [name for names in results.values() for name in names]
    shapes = {n: (tensors[n].dtype.name, tuple(e._expr.value for e in tensors[n].shape_expr)) for n in made}
    return {"shapes": shapes, "launches": launches}


def _check_types(trt: Any, operator: Any, inputs: list[Any], values: Mapping[str, int]) -> None:
    """TensorRT's own plug-in asks for types before any size is known."""
    import numpy as np

    tensor = importlib.import_module("tensorrt_bindings.plugin._tensor")
    builder, tensor.SymIntExpr._exprBuilder = tensor.SymIntExpr._exprBuilder, None
    try:
        fields = trt.PluginFieldCollection(
            [trt.PluginField(n, np.array([v], np.int32), trt.PluginFieldType.INT32) for n, v in values.items()]
        )
        creator = _STATE["registry"].get_creator(operator.name, "1", "f2edge")
        plugin = creator.create_plugin(operator.name, "f2edge", fields, trt.TensorRTPhase.BUILD, trt.QuickPluginCreationRequest.STRICT_AOT)
        kinds = plugin.get_output_data_types([desc.dtype for desc in inputs], [len(desc.shape_expr) for desc in inputs])
    finally:
        tensor.SymIntExpr._exprBuilder = builder
    wanted = {"route": ["INT32", "FLOAT"], "sort": ["INT32", "INT32"]}.get(operator.kernel, ["HALF"])
    assert [kind.name for kind in kinds] == wanted


def _plain(trtp: Any, name: str, ptx: bytes, launch: Any, extra: Any) -> dict[str, Any]:
    def value(expression: Any) -> int:
        return int(expression._expr.value)

    assert isinstance(launch, trtp.KernelLaunchParams)
    assert all(isinstance(argument, trtp.SymInt32) for argument in extra)
    return {
        "name": name,
        "ptx": ptx.decode(),
        "grid": (value(launch.grid_x), value(launch.grid_y), value(launch.grid_z)),
        "block": (value(launch.block_x), value(launch.block_y), value(launch.block_z)),
        "shared": value(launch.shared_mem),
        "extra": [value(argument) for argument in extra],
    }
