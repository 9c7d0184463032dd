"""Convolutions computed in int8: what flows in and out by static scales from calibration, weights per output channel.

A convolution becomes ``QuantizeLinear → QLinearConv → DequantizeLinear``.  Normalisation, activation and the residual sum between two of
them stay fp32: they are a tenth of the time and all of the spread that eight bits have to cover.  Scales hold for a whole tensor, unlike
those of linear layers (:mod:`export.quantize.quantize`), because a picture passes the image tokenizer alone; no neighbour can change it.

The first and the last convolutions, of few channels, and those whose name matches ``Recipe.keep_convolutions`` stay as they are stored.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from export.graph.lower import Array, Inserter, add_constant, constant, replace
from export.quantize.recipes import Recipe

#: Share of a tensor's values beyond either end of its range: rare ones would widen the steps of all others.
BEYOND = 1e-5
#: Every so many values of a tensor are looked at.
_EVERY = 5


def range_of(layer: str) -> str:
    """Where a convolution's ranges stand among calibration figures: least and largest input, least and largest output, float32 (4,)."""
    return f"{layer} (range)"


def span(values: Array) -> tuple[float, float]:
    """The range that holds all but :data:`BEYOND` of ``values`` at either end; 0 is in it."""
    picked = values.reshape(-1)[::_EVERY]
    low, high = np.quantile(picked, (BEYOND, 1 - BEYOND))
    return min(float(low), 0.0), max(float(high), 0.0)


def widened(before: Array | None, spans: tuple[tuple[float, float], tuple[float, float]]) -> Array:
    """A layer's ranges after one more picture."""
    now = np.array([*spans[0], *spans[1]], dtype=np.float32)
    return now if before is None else np.where([True, False, True, False], np.minimum(before, now), np.maximum(before, now))


def convolution_layers(graph: ir.Graph, recipe: Recipe) -> list[tuple[ir.Node, ir.Value, ir.Value, Array]]:
    """The ``Conv`` nodes that ``recipe`` computes in int8: node, input, weight and the weight's values."""
    if recipe.convolutions != "computed":
        return []
    found = []
    for node in graph:
        weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
        if weight is None or weight.ndim != 4 or weight.dtype != np.float32 or min(weight.shape[:2]) < recipe.smallest:
            continue
        x, source = node.inputs[0], node.inputs[1]
        assert x is not None
        assert source is not None
        if not (recipe.keep_convolutions and re.search(recipe.keep_convolutions, str(source.name))):
            found.append((node, x, source, weight))
    return found


def _static(graph: ir.Graph, name: str, low: float, high: float) -> tuple[ir.Value, ir.Value, float]:
    """Scale and zero point of uint8 codes for a range, as constants, and the scale."""
    scale = np.float32(max(high - low, 1e-6) / 255)
    zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
    return add_constant(graph, f"{name}.scale", np.array(scale)), add_constant(graph, f"{name}.zero", np.array(zero)), float(scale)


def compute_in_int8(graph: ir.Graph, layer: tuple[ir.Node, ir.Value, ir.Value, Array], ranges: Array, limit: int) -> None:
    """Let one convolution run on uint8 activations and int8 weights in ``[-limit, limit]``, with a bias in 32 bits."""
    node, _, source, weight = layer
    name, attributes = str(source.name), {key: attribute.value for key, attribute in node.attributes.items()}
    scale = np.maximum(np.abs(weight).max(axis=(1, 2, 3)), np.float32(1e-12)).astype(np.float32) / np.float32(limit)
    codes = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
    x_scale, x_zero, x_step = _static(graph, f"{name}.input", float(ranges[0]), float(ranges[1]))
    y_scale, y_zero, _ = _static(graph, f"{name}.output", float(ranges[2]), float(ranges[3]))
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    steps = scale.astype(np.float64) * x_step
    inputs = [
        add_constant(graph, f"{name}.int8", codes),
        add_constant(graph, f"{name}.scale", scale),
        add_constant(graph, f"{name}.zero", np.zeros(len(scale), dtype=np.int8)),
    ]
    insert = Inserter(graph, node, node.name or str(node.outputs[0].name))
    quantised = insert("QuantizeLinear", node.inputs[0], x_scale, x_zero)  # which may be another convolution's new output by now
    whole = None if bias is None else add_constant(graph, f"{name}.bias", np.rint(bias / steps).astype(np.int32))
    product = insert("QLinearConv", quantised, x_scale, x_zero, *inputs, y_scale, y_zero, whole, **attributes)
    replace(node, insert("DequantizeLinear", product, y_scale, y_zero))
