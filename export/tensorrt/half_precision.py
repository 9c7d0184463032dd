"""fp16 with fp32 islands: the types of a strongly typed TensorRT network, written into the graph as Casts.

TensorRT 11 has no other way, and on 10.x the weakly typed one is deprecated: what the graph says is what runs.  Half are the products
(linear layers, convolutions, attention scores and their use) and what moves their results about.  Single stay

* LayerNormalization, InstanceNormalization, every reduction, division, logarithm, sine and cosine;
* routers: their weights, probabilities and gates; a flipped expert costs more than a coarse one;
* the residual stream, which grows with depth: the sums that feed a LayerNormalization;
* rotary tables and the rotation itself;
* softmax.  With ``fused_attention`` the one between two attention products is half too: TensorRT fuses product, mask, softmax and product
  into one kernel (which sums in single) only when all of them are (notes of its 10.x guide; NVIDIA/TensorRT issue 4167).

Graph inputs and outputs keep their types.
"""

from __future__ import annotations

import re
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from export.graph.lower import Array, Inserter, LoweringError, add_constant, constant

SINGLE, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST_HALF = 65504.0

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "QuantizeLinear", "DequantizeLinear", "TRT_INT4DequantizeLinear"})
#: Follow the type of what they are given: one single input makes the result single.
_FOLLOWING = frozenset(
    {"Add", "Sub", "Mul", "Neg", "Relu", "Gelu", "Tanh", "Abs", "Max", "Min", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze",
     "Split", "Pad", "Expand", "Gather", "GatherND", "GatherElements", "DepthToSpace", "SpaceToDepth", "Identity", "Tile", "Where", "Clip"}
)  # fmt: skip
#: What the residual stream passes through on its way to a normalisation.
_STREAM = frozenset({"Add", "Slice", "Reshape", "Pad", "Concat", "Gather"})
#: Rotary tables that the tracer folded; computed ones come from Sin and Cos, which are single anyway.
_ROTARY = re.compile(r"^(cos|sin)(_\d+)?$")


def _is_float(value: ir.Value | None) -> TypeGuard[ir.Value]:
    return value is not None and value.dtype in (SINGLE, HALF)


def retype(value: ir.Value, dtype: ir.DataType) -> None:
    """Give ``value`` a type of its own; a clone shares those of its original."""
    value.type = ir.TensorType(dtype)


def _stream(graph: ir.Graph) -> set[ir.Node]:
    """Sums of two computed values that reach a LayerNormalization without another operation."""
    found: set[ir.Node] = set()
    waiting = [node.inputs[0] for node in graph if node.op_type == "LayerNormalization"]
    while waiting:
        value = waiting.pop()
        node = value.producer() if value is not None else None
        if node is None or node.op_type not in _STREAM or node in found:
            continue
        found.add(node)
        waiting += [source for source in node.inputs if source is not None and _is_float(source)]
    return {node for node in found if node.op_type == "Add" and all(constant(source) is None for source in node.inputs)}


def _between_products(node: ir.Node) -> bool:
    """Whether a Softmax, or the Add in front of it, stands between the two products of attention."""
    if node.op_type == "Add":
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        scores = source is not None and source.op_type == "MatMul" and constant(source.inputs[1]) is None
        return scores and any(use.node.op_type == "Softmax" for use in node.outputs[0].uses())
    return node.op_type == "Softmax" and any(use.node.op_type == "MatMul" and use.idx == 0 for use in node.outputs[0].uses())


class _Types:
    """Gives every node of a graph its type and casts what it reads."""

    def __init__(self, graph: ir.Graph, keep: str, *, fused_attention: bool) -> None:
        self._graph, self._keep, self._fused = graph, re.compile(keep), fused_attention
        self._casts: dict[tuple[int, ir.DataType], ir.Value] = {}
        self._stream = _stream(graph)

    def of(self, node: ir.Node) -> ir.DataType:
        """HALF or SINGLE."""
        computed = [value for value in node.inputs if _is_float(value) and constant(value) is None]
        names = [str(value.name) for value in node.inputs if value is not None]
        if node.op_type in _PRODUCTS:
            return SINGLE if any(self._keep.search(name) for name in names) else HALF
        if self._fused and _between_products(node):
            return HALF
        if node in self._stream or any(_ROTARY.match(name) for name in names):
            return SINGLE
        if node.op_type == "Concat":
            return HALF if any(value.dtype == HALF for value in computed) else SINGLE
        if node.op_type in _FOLLOWING:
            return SINGLE if any(value.dtype == SINGLE for value in computed) else HALF
        return SINGLE

    def cast(self, value: ir.Value, wanted: ir.DataType, node: ir.Node) -> ir.Value:
        """``value`` as ``wanted``, converted in front of ``node`` unless that was done before; constants are converted here."""
        key = (id(value), wanted)
        if key not in self._casts:
            array, label = constant(value), "half" if wanted == HALF else "single"
            if array is not None:
                made = add_constant(self._graph, f"{value.name}.{label}", as_half(array, str(value.name)) if wanted == HALF else array)
            else:
                made = Inserter(self._graph, node, f"{value.name}/{label}")("Cast", value, to=wanted)
                made.shape = value.shape
            retype(made, wanted)
            self._casts[key] = made
        return self._casts[key]


def as_half(array: Array, name: str) -> Array:
    """Rounded to fp16; a value beyond its range raises :class:`LoweringError`."""
    if array.size and not float(np.abs(array).max()) <= LARGEST_HALF:
        raise LoweringError(f"constant {name!r} has values beyond fp16 ({np.abs(array).max():.3g}); keep it in fp32 or make it finite")
    return array.astype(np.float16)


def to_half(model: ir.Model, *, keep: str = "router", fused_attention: bool = False) -> ir.Model:
    """Type a lowered fp32 graph; the same object, edited in place.

    Args:
        model: every value's dtype known (shape inference); nodes of other domains than ONNX's are typed by whoever put them in.
        keep: products with a constant whose name matches stay fp32.
        fused_attention: see the module.

    Raises:
        LoweringError: a constant beyond fp16's range.
    """
    graph = model.graph
    types = _Types(graph, keep, fused_attention=fused_attention)
    for node in list(graph):
        if node.op_type == "Cast" or (node.domain and node.op_type not in _PRODUCTS):
            continue
        places = [index for index, value in enumerate(node.inputs) if _is_float(value)]
        if not places:
            continue
        wanted = types.of(node)
        for index in places:
            value = node.inputs[index]
            assert value is not None
            if value.dtype != wanted:
                node.replace_input_with(index, types.cast(value, wanted, node))
        for output in node.outputs:
            if _is_float(output):
                retype(output, wanted)
    _restore_outputs(graph)
    return model


def _restore_outputs(graph: ir.Graph) -> None:
    """Float outputs of the graph are fp32, whatever computed them."""
    for index, output in enumerate(list(graph.outputs)):
        if output.dtype != HALF:
            continue
        node = ir.node("Cast", [output], {"to": SINGLE}, name=f"{output.name}/output")
        graph.append(node)
        widened = node.outputs[0]
        widened.name, output.name = output.name, f"{output.name}.half"
        widened.shape = output.shape
        retype(widened, SINGLE)
        graph.outputs[index] = widened
