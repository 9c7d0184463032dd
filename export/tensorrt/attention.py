"""Attention in the forms that TensorRT fuses into one kernel.

* :func:`join_keys` turns attention over separate parts (the image's columns, the text's columns) into one product, softmax and product
  over all columns.  The image's keys and values are copied for that in every call, which costs more than it saves where one token asks:
  102 MB of copies against 2 MB of scores at 1.8b.  So ``mmu_extend`` keeps its parts unless this is asked for.
* :func:`use_operator` replaces product, mask, softmax and product by ONNX's ``Attention``, which 10.15 reads (opset 23) and its guide
  recommends.  ``TRT_decomposable`` is set, without which a build fails where no fused kernel exists; the scale stays on the query, as the
  guide asks.

TensorRT fuses the elementary form, too, if everything between the products is half precision (:mod:`export.tensorrt.half_precision`).
``IKVCacheUpdateLayer`` (``TensorScatter``, 10.15) is not used: it writes into its input's memory, and keys and values are immutable in this
runtime, where several answers may go on from one question.

Axes: B rows, H heads, S queries, T and C columns of two parts, W head width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from export.graph.lower import Inserter, add_constant, constant, replace
from export.graph.static_shapes import infer

#: First opset with Attention, and first TensorRT version that reads that opset.
OPSET, VERSION = 23, (10, 15)


class _Part(NamedTuple):
    """Keys (B or 1, H, T, W) and values of some columns."""

    key: ir.Value
    value: ir.Value


class _Parts(NamedTuple):
    """Attention over parts: the node that adds the mask, the softmax, the query, the parts in order, and the last node."""

    masked: ir.Node
    softmax: ir.Node
    query: ir.Value
    parts: list[_Part]
    last: ir.Node


def _made_by(value: ir.Value | None, op: str) -> ir.Node | None:
    """Return the node that computes ``value`` if it is an ``op``."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op and not node.domain else None


def _key(product: ir.Node) -> ir.Value | None:
    """Return the keys of a product of queries with transposed keys."""
    turned = _made_by(product.inputs[1], "Transpose")
    return turned.inputs[0] if turned is not None and list(turned.attributes["perm"].as_ints()) == [0, 1, 3, 2] else None


def _only_user(value: ir.Value, op: str) -> ir.Node | None:
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op else None


def _of_two_parts(softmax: ir.Node) -> _Parts | None:
    """Return the attention around a softmax if it is over two parts."""
    masked = _made_by(softmax.inputs[0], "Add")
    scores = _made_by(masked.inputs[0], "Concat") if masked is not None else None
    products = [_made_by(value, "MatMul") for value in scores.inputs] if scores is not None else []
    cuts = [use.node for use in softmax.outputs[0].uses()]
    if masked is None or len(products) != 2 or len(cuts) != 2 or any(cut.op_type != "Slice" for cut in cuts):
        return None
    cuts.sort(key=lambda cut: (start := constant(cut.inputs[1])) is None or bool(start.any()))  # the first part begins at 0
    weighted = [_only_user(cut.outputs[0], "MatMul") for cut in cuts]
    keys = [_key(product) for product in products if product is not None]
    last = _only_user(weighted[0].outputs[0], "Add") if weighted[0] is not None else None
    query = products[0].inputs[0] if products[0] is not None else None
    if last is None or query is None or None in (*keys, *weighted) or len(keys) != 2:
        return None
    values = [node.inputs[1] for node in weighted if node is not None]
    parts = [_Part(key, value) for key, value in zip(keys, values, strict=True) if key is not None and value is not None]
    return _Parts(masked, softmax, query, parts, last) if len(parts) == 2 else None


def join_keys(model: ir.Model) -> ir.Model:
    """Join the two parts of every attention of a lowered graph, in place; return the model."""
    graph = model.graph
    zero, one, rest = (
        add_constant(graph, f"joined/{name}", np.array(v, np.int64)) for name, v in (("0", [0]), ("1", [1]), ("rest", [1, 1, 1]))
    )
    for node in list(graph):
        found = _of_two_parts(node) if node.op_type == "Softmax" else None
        if found is None:
            continue
        insert = Inserter(graph, found.masked, f"{node.name or node.outputs[0].name}/joined")
        rows = insert("Slice", insert("Shape", found.query), zero, one, zero)
        repeats = insert("Concat", rows, rest, axis=0)  # a part of one row is shared by all rows
        (key, value), (late_key, late_value) = found.parts
        keys = insert("Concat", insert("Expand", key, repeats), late_key, axis=2)
        values = insert("Concat", insert("Expand", value, repeats), late_value, axis=2)
        scores = insert("MatMul", found.query, insert("Transpose", keys, perm=[0, 1, 3, 2]))
        found.masked.replace_input_with(0, scores)
        replace(found.last, Inserter(graph, found.last, f"{found.last.outputs[0].name}/joined")("MatMul", node.outputs[0], values))
    passes.RemoveUnusedNodesPass()(model)
    infer(model)
    return model


def _whole_mask(graph: ir.Graph, masked: ir.Node, query: ir.Value | None) -> ir.Value | None:
    """Return the mask with a row for every query, as ``IAttention`` needs it; made once where one row serves all."""
    mask = masked.inputs[1]
    if mask is None or mask.shape is None or query is None or query.shape is None or mask.shape[-2] != 1 or query.shape[-2] == 1:
        return mask
    known = next((use.node for use in mask.uses() if use.node.op_type == "Expand"), None)
    if known is not None:
        return known.outputs[0]
    insert, rows = Inserter(graph, masked, f"{mask.name}/whole"), query.shape[-2]
    if isinstance(rows, int):
        shape = add_constant(graph, f"whole/{rows}", np.array([1, 1, rows, 1], dtype=np.int64))
    else:
        ends = (add_constant(graph, f"whole/{name}", np.array([name], dtype=np.int64)) for name in (2, 3, 0))
        one = add_constant(graph, "whole/1", np.array([1], dtype=np.int64))
        shape = insert("Concat", one, one, insert("Slice", insert("Shape", query), *ends), one, axis=0)
    made = insert("Expand", mask, shape)
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT16), ir.Shape([*mask.shape[:2], rows, mask.shape[-1]])
    return made


def use_operator(model: ir.Model) -> ir.Model:
    """Replace product, mask, softmax and product by ``Attention`` in a typed graph, in place; return the model."""
    graph, half = model.graph, ir.DataType.FLOAT16
    for node in list(graph):
        if node.op_type != "Softmax" or node.outputs[0].dtype != half:
            continue
        masked, weighted = _made_by(node.inputs[0], "Add"), _only_user(node.outputs[0], "MatMul")
        product = _made_by(masked.inputs[0], "MatMul") if masked is not None else None
        key = _key(product) if product is not None else None
        if masked is None or weighted is None or product is None or key is None:
            continue
        mask = _whole_mask(graph, masked, product.inputs[0])
        made = Inserter(graph, weighted, f"{weighted.name or weighted.outputs[0].name}/attention")(
            "Attention", product.inputs[0], key, weighted.inputs[1], mask, scale=1.0, TRT_decomposable=1
        )
        made.type, made.shape = ir.TensorType(half), weighted.outputs[0].shape
        replace(weighted, made)
        graph.opset_imports[""] = max(graph.opset_imports[""], OPSET)
    passes.RemoveUnusedNodesPass()(model)
    return model
