"""Convolutions computed in int8: what flows in and out by static scales from calibration, weights per output channel.

A convolution becomes ``QuantizeLinear → QLinearConv → DequantizeLinear → Mul``, with one scale for its inputs and one for each output
channel.  Normalisation, activation and the residual sum between two of them stay fp32: they are a tenth of the time and all of the spread
that eight bits have to cover.  Scales hold for a whole picture, unlike those of linear layers (:mod:`export.quantize.quantize`), because a
picture passes the image tokenizer alone; no neighbour can change it.

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
#: An output channel's range reaches at least so many standard deviations beyond its mean.
REACH = 4.5
#: So many values of a tensor are looked at, at most about twice.
_LOOKED_AT = 1 << 20


def range_of(layer: str) -> str:
    """Return the key of a convolution's ranges in a calibration: least and largest input, then each channel's largest output."""
    return f"{layer} (range)"


def ranges(x: Array, y: Array, before: Array | None = None) -> Array:
    """What flowed in (B, C, Y, X) and out (B, K, V, U) of a convolution, float32 (2 + K,), and ``before``.

    Of the inputs a share of :data:`BEYOND` at either end is left out, because rare values would widen the steps of all others.
    """
    picked = x.reshape(-1)[:: max(1, x.size // _LOOKED_AT)]
    low, high = np.quantile(picked, (BEYOND, 1 - BEYOND))
    usual = np.abs(y.mean(axis=(0, 2, 3))) + REACH * y.std(axis=(0, 2, 3))  # of a coarse level few values are seen, none of them rare
    now = np.array([min(low, 0.0), max(high, 0.0), *np.maximum(np.abs(y).max(axis=(0, 2, 3)), usual)], dtype=np.float32)
    return now if before is None else np.concatenate((np.minimum(before[:1], now[:1]), np.maximum(before[1:], now[1:])))


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


def compute_in_int8(graph: ir.Graph, layer: tuple[ir.Node, ir.Value, ir.Value, Array], figures: Array, limit: int) -> None:
    """Let one convolution run on uint8 activations and int8 weights in ``[-limit, limit]``, with a bias in 32 bits.

    Every output channel has a scale of its own, though the operator takes one for all: it is folded into the weights' scale.
    """
    node, _, source, weight = layer
    name = str(source.name)
    insert = Inserter(graph, node, node.name or str(node.outputs[0].name))

    def fixed(part: str, values: Array) -> ir.Value:
        return add_constant(graph, f"{name}.{part}", values)

    low, high, reach = float(figures[0]), float(figures[1]), np.maximum(figures[2:], max(float(figures[2:].max()) * 1e-4, 1e-9))
    step = np.float32(max(high - low, 1e-6) / 255)
    x_scale = fixed("input.scale", np.array(step))
    x_zero = fixed("input.zero", np.array(np.clip(np.rint(-low / step), 0, 255), dtype=np.uint8))
    scale = np.maximum(np.abs(weight).max(axis=(1, 2, 3)), np.float32(1e-12)).astype(np.float32) / np.float32(limit)
    codes = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
    step_out, zero_out = np.array(1 / 127, dtype=np.float32), np.array(128, dtype=np.uint8)
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    product = insert(
        "QLinearConv",
        insert("QuantizeLinear", node.inputs[0], x_scale, x_zero),
        x_scale,
        x_zero,
        fixed("int8", codes),
        fixed("scale", (scale / reach).astype(np.float32)),
        fixed("zero", np.zeros(len(scale), dtype=np.int8)),
        fixed("output.scale", step_out),
        fixed("output.zero", zero_out),
        None if bias is None else fixed("bias", np.rint(bias / (scale.astype(np.float64) * step)).astype(np.int32)),
        **{key: attribute.value for key, attribute in node.attributes.items()},
    )
    shares = insert("DequantizeLinear", product, fixed("output.scale", step_out), fixed("output.zero", zero_out))
    replace(node, insert("Mul", shares, fixed("output.reach", reach.astype(np.float32)[None, :, None, None])))
