"""Implementations of the routed experts in a TensorRT graph.

* "plain": as traced, with static standard operators: one up- and one down-projection over all experts, hidden values multiplied by the
  gates, which are zero for experts that were not chosen.  Runs everywhere and is quantized as any linear layer; computes E / K times the
  routed arithmetic.
* "plugin": the routed part becomes one node ``F2FusedMoE`` (contract: ``engines/plugins/__init__.py``), and the shared expert two ordinary
  layers beside it.

Axes: D width, E routed experts, I width of one expert, H width of the shared expert.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from export.graph.expert_kernels import ExpertLayer, expert_layers
from export.graph.lower import Array, Inserter, add_constant, replace
from export.quantize.quantize import Calibration, products_of
from export.tensorrt.half_precision import as_half, retype
from f2edge.errors import InputError
from f2edge.spec.configuration import TokenExperts

IMPLEMENTATIONS = ("plain", "plugin")
OP, DOMAIN = "F2FusedMoE", "f2edge"
_PRODUCT = re.compile(r"^(?P<layer>.*experts\.\w+)\.(?P<part>up|down)\.weight\.T$")


def check_implementation(name: str) -> None:
    """Raise :class:`InputError` for an unknown implementation of the experts."""
    if name not in IMPLEMENTATIONS:
        raise InputError(f"unknown implementation of the experts {name!r}; choose one of: {', '.join(IMPLEMENTATIONS)}")


def _half(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    return _typed(add_constant(graph, name, as_half(np.ascontiguousarray(array), name)), ir.DataType.FLOAT16)


def _typed(value: ir.Value, dtype: ir.DataType) -> ir.Value:
    retype(value, dtype)
    return value


def _fuse(graph: ir.Graph, layer: ExpertLayer) -> None:
    up, up_bias, down, down_bias = (layer.array(value) for value in (layer.up, layer.up_bias, layer.down, layer.down_bias))
    D, H, E, I = layer.width, layer.shared, layer.experts, layer.routed
    insert, name, single = Inserter(graph, layer.last, f"{layer.name}/fused"), layer.name, ir.DataType.FLOAT
    routed = insert(
        OP,
        layer.exact,
        layer.router,
        _typed(add_constant(graph, f"{name}.router.bias", np.zeros(E, dtype=np.float32)), single),
        _half(graph, f"{name}.routed.up.weight", up[:, H:].reshape(D, E, I).transpose(1, 0, 2)),
        _half(graph, f"{name}.routed.up.bias", up_bias[H:].reshape(E, I)),
        _half(graph, f"{name}.routed.down.weight", down[H:].reshape(E, I, D)),
        _half(graph, f"{name}.routed.down.bias", np.zeros((E, D), dtype=np.float32)),
        domain=DOMAIN,
        active=layer.active,
        gated=0,
        plugin_namespace=DOMAIN,
        plugin_version="1",
    )
    routed.shape = layer.exact.shape
    retype(routed, ir.DataType.FLOAT16)

    def constants(part: str, array: Array) -> ir.Value:
        return _typed(add_constant(graph, f"{name}.shared.{part}", np.ascontiguousarray(array)), single)

    hidden = insert("MatMul", layer.x, constants("up.weight.T", up[:, :H]))
    hidden = insert("Add", hidden, constants("up.bias", up_bias[:H]))
    hidden = insert("Gelu", hidden, approximate="tanh")
    shared = insert("Add", insert("MatMul", hidden, constants("down.weight.T", down[:H])), constants("down.bias", down_bias))
    replace(layer.last, insert("Add", shared, insert("Cast", routed, to=single)))


def shared_calibration(calibration: Calibration, shape: TokenExperts) -> Calibration:
    """Return the calibration with entries for the shared experts that :func:`fuse_experts` separates."""
    found = dict(calibration)
    for name in calibration:
        match = _PRODUCT.match(name)
        if match is None:
            continue
        own, inputs = f"{match['layer']}.shared.{match['part']}.weight.T", slice(None if match["part"] == "up" else shape.shared_width)
        found[own] = calibration[name][inputs]
        if products_of(name) in calibration:
            found[products_of(own)] = calibration[products_of(name)][inputs, inputs]
    return found


def fuse_experts(model: ir.Model) -> ir.Model:
    """Replace the routed experts of a lowered fp32 graph by ``F2FusedMoE`` nodes, in place; return the model.

    Raises:
        LoweringError: a mixture does not have the structure of :class:`export.model.experts.TokenExpertLayer`.
    """
    graph = model.graph
    layers = list(expert_layers(graph))
    for layer in layers:
        _fuse(graph, layer)
    if layers:
        graph.opset_imports[DOMAIN] = 1
        passes.RemoveUnusedNodesPass()(model)
    return model
