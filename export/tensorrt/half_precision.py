"""Mixed fp16 and fp32 types of a strongly typed TensorRT network, written into the graph as Casts.

TensorRT 11 requires strong typing, and 10.x deprecates weak typing.  Products (linear layers, convolutions, attention) and operators that
move their results are fp16.  These stay fp32:

* LayerNormalization, InstanceNormalization, every reduction, division, logarithm, sine and cosine;
* routers: weights, probabilities and gates, since choosing another expert costs more than coarse weights;
* the residual stream, which grows with depth: the sums that feed a LayerNormalization;
* rotary tables and the rotation;
* softmax, but not with ``fused_attention`` the one between two attention products: TensorRT fuses product, mask, softmax and product into
  one kernel (which sums in fp32) only if all of them are fp16 (its 10.x guide; NVIDIA/TensorRT issue 4167).

Keys and values are fp16 where they enter and leave a graph, so that no answer token reads or copies them twice as wide as attention needs
them; other graph inputs and outputs keep their types.
"""

from __future__ import annotations

import re
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from export.graph.lower import Array, Inserter, LoweringError, add_constant, constant
from export.tensorrt import nvfp4
from f2edge.spec.graphs import CACHES

SINGLE, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST_HALF = 65504.0

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "QuantizeLinear", "DequantizeLinear", "TRT_INT4DequantizeLinear"})
#: Operators with the type of their inputs: one fp32 input makes the result fp32.
_FOLLOWING = frozenset(
    {"Add", "Sub", "Mul", "Neg", "Relu", "Gelu", "Tanh", "Abs", "Max", "Min", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze",
     "Split", "Pad", "Expand", "Gather", "GatherND", "GatherElements", "DepthToSpace", "SpaceToDepth", "Identity", "Tile", "Where", "Clip"}
)  # fmt: skip
#: Operators of the residual stream before a normalization.
_STREAM = frozenset({"Add", "Slice", "Reshape", "Pad", "Concat", "Gather"})
#: Operators that join the columns of one layer and the layers of a cache.
_JOINING = frozenset({"Concat", "Unsqueeze"})
#: Rotary tables that the tracer folded; computed ones come from Sin and Cos, which are fp32.
_ROTARY = re.compile(r"^(cos|sin)(_\d+)?$")


def _is_float(value: ir.Value | None) -> TypeGuard[ir.Value]:
    return value is not None and value.dtype in (SINGLE, HALF)


def retype(value: ir.Value, dtype: ir.DataType) -> None:
    """Set the type of ``value`` to a new object, since a clone shares type objects with its original."""
    value.type = ir.TensorType(dtype)


def _stream(graph: ir.Graph) -> set[ir.Node]:
    """Return the sums of two computed values that reach a LayerNormalization without another operation."""
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


def _of_fp4(node: ir.Node) -> bool:
    """Return whether a node quantizes to NVFP4 or back: its scales are fp32, as Model Optimizer exports them; the product casts."""
    data = node.inputs[0]
    scales = node.op_type == "DequantizeLinear" and any(u.idx == 1 and u.node.op_type == node.op_type for u in node.outputs[0].uses())
    return node.op_type == nvfp4.OP or scales or (data is not None and data.dtype == ir.DataType.FLOAT4E2M1)


def _cached(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that assemble keys and values for a graph's outputs."""
    found: set[ir.Node] = set()
    waiting = [value.producer() for value in graph.outputs if value.name in CACHES]
    while waiting:
        node = waiting.pop()
        if node is not None and node.op_type in _JOINING and node not in found and not _rotates(node):
            found.add(node)
            waiting += [source.producer() for source in node.inputs if _is_float(source)]
    return found


def _rotates(node: ir.Node) -> bool:
    """Return whether a Concat joins the halves of a head's width, as the rotation does."""
    return node.op_type == "Concat" and node.attributes["axis"].as_int() == -1


def _between_products(node: ir.Node) -> bool:
    """Return whether a Softmax, or the Add before it, is between the two products of attention."""
    if node.op_type == "Add":
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        scores = source is not None and source.op_type == "MatMul" and constant(source.inputs[1]) is None
        return scores and any(use.node.op_type == "Softmax" for use in node.outputs[0].uses())
    return node.op_type == "Softmax" and any(use.node.op_type == "MatMul" and use.idx == 0 for use in node.outputs[0].uses())


class _Types:
    """Chooses the type of every node of a graph and casts its inputs."""

    def __init__(self, graph: ir.Graph, keep: str, *, fused_attention: bool) -> None:
        self._graph, self._keep, self._fused = graph, re.compile(keep), fused_attention
        self._casts: dict[tuple[int, ir.DataType], ir.Value] = {}
        self._stream, self._cached = _stream(graph), _cached(graph)

    def of(self, node: ir.Node) -> ir.DataType:
        """Return the type of a node: HALF or SINGLE."""
        computed = [value for value in node.inputs if _is_float(value) and constant(value) is None]
        names = [str(value.name) for value in node.inputs if value is not None]
        if node.op_type in _PRODUCTS or node.op_type == nvfp4.OP:
            return SINGLE if _of_fp4(node) or any(self._keep.search(name) for name in names) else HALF
        if node in self._cached or (self._fused and _between_products(node)):
            return HALF
        if node in self._stream or any(_ROTARY.match(name) for name in names):
            return SINGLE
        if node.op_type == "Concat":
            return HALF if any(value.dtype == HALF for value in computed) else SINGLE
        if node.op_type in _FOLLOWING:
            return SINGLE if any(value.dtype == SINGLE for value in computed) else HALF
        return SINGLE

    def cast(self, value: ir.Value, wanted: ir.DataType, node: ir.Node) -> ir.Value:
        """Return ``value`` as ``wanted``: a Cast inserted before ``node``, one made before, or a converted constant."""
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
    """Round to fp16; raises :class:`LoweringError` for a value beyond its range."""
    if array.size and not float(np.abs(array).max()) <= LARGEST_HALF:
        raise LoweringError(f"constant {name!r} has values beyond fp16 ({np.abs(array).max():.3g}); keep it in fp32 or make it finite")
    return array.astype(np.float16)


def to_half(model: ir.Model, *, keep: str = "router", fused_attention: bool = False) -> ir.Model:
    """Assign types to a lowered fp32 graph, in place; return the model.

    Args:
        model: graph with known dtypes (shape inference); nodes of other domains than ONNX's must have their types already.
        keep: pattern of names of constants whose products stay fp32.
        fused_attention: see the module.

    Raises:
        LoweringError: a constant is beyond fp16's range.
    """
    graph = model.graph
    for given in graph.inputs:
        if given.name in CACHES:
            retype(given, HALF)
    types = _Types(graph, keep, fused_attention=fused_attention)
    for node in list(graph):
        if node.op_type in ("Cast", "Shape") or (node.domain and node.op_type not in (*_PRODUCTS, nvfp4.OP)):
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
    """Cast the graph's outputs to their types: fp16 for keys and values, fp32 for the others."""
    for index, output in enumerate(list(graph.outputs)):
        wanted = HALF if output.name in CACHES else SINGLE
        if not _is_float(output) or output.dtype == wanted:
            continue
        node = ir.node("Cast", [output], {"to": wanted}, name=f"{output.name}/output")
        graph.append(node)
        made = node.outputs[0]
        made.name, output.name = output.name, f"{output.name}.{'half' if wanted == SINGLE else 'single'}"
        made.shape = output.shape
        retype(made, wanted)
        graph.outputs[index] = made
