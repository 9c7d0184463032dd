"""Bytes that one run of a graph reads and writes, counted from its own shapes and types.

Every node reads its inputs and writes its outputs once; nothing is fused, except that views move nothing (reshapes, transpositions before a
product, a layer's slice of a stack) and that dequantized weights are read as they are stored.  So keys and values count as often as the
graph copies, casts or joins them, which is what this is for; sums and products of activations, which runtimes fuse, are counted apart.

>>> traffic(model, {"B": 1, "I": 1, "S": 1, "T": 64}).caches  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from export.graph.lower import constant
from export.graph.static_shapes import pin
from f2edge.spec.graphs import CACHES

#: Operators that move nothing.
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Shape", "Size", "Transpose"})
#: Operators whose result is keys and values if an input is.
_MOVES = _VIEWS | {"Cast", "Concat", "Expand", "Slice", "Split", "Gather", "Pad", "Tile"}
_DEQUANTISERS = frozenset({"DequantizeLinear", "TRT_INT4DequantizeLinear"})


@dataclass(frozen=True)
class Traffic:
    """Bytes of one run: constants; keys and values; everything else, if nothing is fused."""

    weights: float
    caches: float
    activations: float


def _bytes(value: ir.Value | None) -> float:
    if value is None or value.dtype is None or value.shape is None:
        return 0.0
    return prod(int(axis) if isinstance(axis, int) else 1 for axis in value.shape) * value.dtype.bitwidth / 8


def _is_stored(node: ir.Node) -> bool:
    """Return whether a node dequantizes a constant."""
    return node.op_type in _DEQUANTISERS and constant(node.inputs[0]) is not None


def _is_view(node: ir.Node) -> bool:
    """Return whether a node moves nothing: a change of the shape, or a slice of the first axis."""
    axes = constant(node.inputs[3]) if node.op_type == "Slice" and len(node.inputs) > 3 else None
    return node.op_type in _VIEWS or (axes is not None and axes.tolist() == [0]) or (node.op_type == "Split" and not _axis(node))


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 0


def _picked(node: ir.Node) -> bool:
    """Return whether a node reads some rows of a constant only."""
    return node.op_type == "Gather" and constant(node.inputs[0]) is not None


def traffic(model: ir.Model, sizes: Mapping[str, int]) -> Traffic:
    """Count a typed graph's bytes; ``sizes`` fixes its named axes.  The model is not modified."""
    graph = pin(model.clone(), {**sizes, "T + S": sizes.get("T", 0) + sizes.get("S", 0)}).graph
    caches = {value for value in graph.inputs if value.name in CACHES}
    weights = {value: _bytes(value) for node in graph for value in node.inputs if constant(value) is not None and not _picked(node)}
    moved = {True: 0.0, False: 0.0}  # of keys and values; of others
    for node in graph:
        if _is_stored(node):
            continue
        if node.op_type in _MOVES and any(value in caches for value in node.inputs):
            caches.update(node.outputs)
        if _is_view(node):
            continue
        read = [value for value in node.inputs if value is not None and constant(value) is None]
        read = [value for value in read if not ((maker := value.producer()) is not None and _is_stored(maker))]
        for value in (*read, *node.outputs):
            moved[value in caches] += _bytes(value)
        moved[False] += sum(_bytes(node.outputs[0]) for _ in [node] if _picked(node))
    return Traffic(sum(weights.values()), moved[True], moved[False])
