"""Decoding steps that compute the head and the noise of masked positions alone, with the same tokens.

What is known needs no logits.  Over a cosine schedule a third of all positions are known, so a third of the head's product and of the
passes over all codes is saved.  Shapes depend on the data, so this is for runtimes that need no fixed ones: ONNX Runtime on a CPU.

>>> model = draw_masked(model)  # doctest: +SKIP
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from export.graph.expert_kernels import ROWS
from export.graph.lower import Inserter, LoweringError, add_constant, constant, made_by, replace
from export.graph.sampling import replace_sampler, sampling_model
from f2edge.spec.configuration import DRAWS

_SUMS = ("Add", "Mul")
_PRODUCTS = ("MatMul", "MatMulIntegerToFloat")


def draws_masked(model: ir.Model) -> bool:
    """Whether a ``t2i_step`` draws masked positions alone."""
    return any(node.op_type == "NonZero" for node in model.graph)


def draw_masked(model: ir.Model) -> ir.Model:
    """Let a ``t2i_step``, lowered or quantized with scales of rows, draw masked positions alone; return the new model, with its metadata.

    Raises:
        LoweringError: the graph's logits do not come from a linear layer.
    """
    if draws_masked(model):
        return model
    codes, weight = model.graph.inputs[0].shape, constant(_head(model.graph)[0].inputs[1])
    assert codes is not None
    assert weight is not None
    draw = DRAWS["stream_sizes" in model.graph.initializers]
    model = replace_sampler(model, sampling_model(int(codes[1]), weight.shape[1], draw, masked=True))  # type: ignore[arg-type]
    _pick_first(model.graph, next(node for node in model.graph if node.outputs[0].name == "masked_logits"))
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return model


def _head(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes of the head, from its product to the logits."""
    logits = next((value for node in graph for value in node.outputs if value.name == "logits"), None)
    node, found = None if logits is None else logits.producer(), list[ir.Node]()
    while node is not None and node.op_type in (*_SUMS, *_PRODUCTS):
        found.insert(0, node)
        if node.op_type in _PRODUCTS:
            return found
        first = node.inputs[0]
        node = None if first is None else first.producer()
    raise LoweringError("graph 't2i_step': its logits do not come from a linear layer")


def _read(product: ir.Node) -> ir.Value:
    """Return what the head reads, before it is quantized."""
    codes = made_by(product.inputs[0], "QuantizeLinear")
    shares = None if codes is None else made_by(codes.inputs[0], "Div")
    found = product.inputs[0] if shares is None else shares.inputs[0]
    assert found is not None
    return found


def _pick_first(graph: ir.Graph, pick: ir.Node) -> None:
    """Let the head read what ``pick`` picks of its input, instead of picking of its output."""
    product, *sums = _head(graph)
    states, logits = _read(product), (sums or [product])[-1].outputs[0]
    users = [usage.node for usage in states.uses()]
    insert = Inserter(graph, users[0], "head/masked", {ROWS: True})
    picked = insert("GatherND", states, pick.inputs[1])
    picked.type, picked.shape = states.type, None if states.shape is None else ir.Shape(["T", states.shape[-1]])
    axis = add_constant(graph, "rows/second_axis", np.array([1], dtype=np.int64))  # right for no rows too, as the last one is not
    for node in users:
        node.replace_input_with(list(node.inputs).index(states), picked)
        if node.op_type in ("ReduceMax", "ReduceMin"):
            node.replace_input_with(1, axis)
    for node in (product, *sums):
        width = None if node.outputs[0].shape is None else node.outputs[0].shape[-1]
        node.outputs[0].shape = None if width is None else ir.Shape(["T", width])
    replace(pick, logits)
