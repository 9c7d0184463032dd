"""Forms of quantized graphs with fewer operators, with the same values up to the rounding of sums.

A small model's step is bound by its operators, not by its products.  Unlike :mod:`export.graph.runtime_forms` these are applied behind
:func:`export.quantize.quantize.quantize`, which reads the traced pattern of the experts.

* Gates: of the K best of a router's outputs the softmax, put in their places: five operators instead of ten.
* Attention over cached and new columns as ``MultiHeadAttention``, queries and keys rotated before they are taken apart: four operators
  instead of sixteen.
* A gate's two shares of a sum by one difference.
* The bits of image codes from a table.
* Sums of several terms as one.
* Products of the same input, quantized by a fixed scale, as one; their weights, scales and biases stay apart in the file.

>>> compact(model)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from export.graph.lower import CONTRIB, Array, Inserter, add_constant, constant, made_by, replace
from f2edge.spec.graphs import T2I_STEP

#: Products are joined up to so many bytes of weights, which are in memory once more while a graph is loaded.
_JOINED_BYTES = 1 << 20


def compact(model: ir.Model) -> ir.Model:
    """Apply all forms to a quantized graph in place; return it."""
    forms: list[Callable[[ir.Graph], None]] = [_gates, _blends]
    if model.graph.name == T2I_STEP.name:
        forms += [_attention, _bits, _sums, _products]
    for form in forms:
        form(model.graph)
        passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return model


def _gates(graph: ir.Graph) -> None:
    """Compute the gates of routers from their best outputs alone."""
    zeros: dict[str, ir.Value] = {}
    for node in [node for node in graph if node.op_type == "Div"]:
        product, total = made_by(node.inputs[0], "Mul"), made_by(node.inputs[1], "ReduceSum")
        if product is None or total is None or total.inputs[0] is not product.outputs[0]:
            continue
        softmax, chosen = made_by(product.inputs[0], "Softmax"), made_by(product.inputs[1], "ReduceSum")
        one_hot = None if chosen is None else made_by(chosen.inputs[0], "Cast")
        equal = None if one_hot is None else made_by(one_hot.inputs[0], "Equal")
        index = None if equal is None else made_by(equal.inputs[0], "Unsqueeze")
        best = None if index is None else made_by(index.inputs[0], "TopK")
        if softmax is None or best is None or best.inputs[0] is not softmax.outputs[0]:
            continue
        scores = softmax.inputs[0]
        best.replace_input_with(0, scores)
        insert = Inserter(graph, node, f"{best.name or best.outputs[0].name}/gates")
        shares = insert("Softmax", best.outputs[0], axis=-1)
        assert scores is not None
        images = _router_of_images(scores, node)
        kind = f"{images is not None} {scores.shape or scores.name}"
        if kind not in zeros:  # those of the first router of a kind serve all others
            zeros[kind] = insert("Mul", scores, add_constant(graph, "gates/zero", np.array(0, dtype=np.float32)))
        gates = insert("ScatterElements", zeros[kind], best.outputs[1], shares, axis=-1)
        replace(node, gates)
        if images is not None:
            _keep_axis(scores, gates, *images)


def _router_of_images(scores: ir.Value, gates: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node] | None:
    """Return the mean that a router reads, and the ``Unsqueeze`` and ``Split`` of its gates; None for a router of tokens."""
    product = made_by(scores, "MatMul")
    mean = None if product is None else made_by(product.inputs[0], "ReduceMean")
    column = _reader(gates, "Unsqueeze")
    split = _reader(column, "Split")
    if mean is None or column is None or split is None or len(list(mean.outputs[0].uses())) != 1:
        return None
    return mean, column, split


def _keep_axis(scores: ir.Value, gates: ir.Value, mean: ir.Node, column: ir.Node, split: ir.Node) -> None:
    """Let a router read means (B, 1, D), so that its gates need no axis of their own before they are taken apart."""
    mean.attributes["keepdims"], split.attributes["axis"] = ir.AttrInt64("keepdims", 1), ir.AttrInt64("axis", -1)
    changed = [value for user in (*scores.uses(), *gates.uses()) for value in user.node.outputs]
    for value in (mean.outputs[0], scores, gates, *changed):
        value.shape = None
    replace(column, gates)
    gates.shape = None


def _blends(graph: ir.Graph) -> None:
    """Compute ``g * (1 - w)`` as ``g - g * w`` where ``g * w`` is known: one operator instead of two."""
    for node in [node for node in graph if node.op_type == "Mul"]:
        rest = made_by(node.inputs[1], "Sub")
        one = None if rest is None else constant(rest.inputs[0])
        if rest is None or one is None or one.size != 1 or float(one.reshape(())) != 1:
            continue
        gate, weight = node.inputs[0], rest.inputs[1]
        assert gate is not None
        both = (usage.node for usage in gate.uses() if usage.node.op_type == "Mul" and usage.node.inputs[1] is weight)
        product = next(both, None)
        if product is not None:
            replace(node, Inserter(graph, node, f"{node.outputs[0].name}/rest")("Sub", gate, product.outputs[0]))


@dataclass(frozen=True)
class _Attention:
    """Attention of S new columns to a prefix and to themselves.

    Attributes:
        parts: queries, keys and values of the new columns, each (B, S, D).
        turns: rotations of queries and keys.
        prefix: cached keys and values, each (B, H, P, W).
        mask: added to the scores, (B, 1, 1, P + S).
        scale: factor of the scores.
        columns: S.
        last: node that computes the result (B, S, D).
    """

    parts: tuple[ir.Value, ...]
    turns: tuple[ir.Node, ir.Node]
    prefix: tuple[ir.Value | None, ir.Value | None]
    mask: ir.Value
    scale: float
    columns: int
    last: ir.Node


def _reader(node: ir.Node | None, op: str) -> ir.Node | None:
    """Return the only reader of a node's first output if it is an ``op``."""
    readers = [] if node is None else [usage.node for usage in node.outputs[0].uses()]
    return readers[0] if len(readers) == 1 and readers[0].op_type == op else None


def _part(value: ir.Value | None) -> ir.Value | None:
    """Return the part (B, S, D) of a ``Split`` that ``value`` (B, H, S, W) was turned from."""
    turned = made_by(value, "Transpose")
    shaped = None if turned is None else made_by(turned.inputs[0], "Reshape")
    part = None if shaped is None else shaped.inputs[0]
    return None if made_by(part, "Split") is None else part


def _attention_of(scores: ir.Node) -> _Attention | None:
    """Return the attention whose scores a ``FusedMatMul`` computes; None for one of another form."""
    masked = _reader(scores, "Add")
    mixed = _reader(_reader(masked, "Softmax"), "MatMul")
    last = _reader(_reader(mixed, "Transpose"), "Reshape")
    if masked is None or mixed is None or last is None:
        return None
    keys, values = made_by(scores.inputs[1], "Concat"), made_by(mixed.inputs[1], "Concat")
    if keys is None or values is None or (len(keys.inputs), len(values.inputs)) != (2, 2):
        return None
    turns = made_by(scores.inputs[0], "RotaryEmbedding"), made_by(keys.inputs[1], "RotaryEmbedding")
    if turns[0] is None or turns[1] is None:
        return None
    parts = [part for value in (turns[0].inputs[0], turns[1].inputs[0], values.inputs[1]) if (part := _part(value)) is not None]
    shape, mask = turns[0].outputs[0].shape, masked.inputs[1]
    columns = None if shape is None else shape[2]
    if len(parts) < 3 or mask is None or not isinstance(columns, int):
        return None
    scale = scores.attributes["alpha"].as_float()
    return _Attention(tuple(parts), (turns[0], turns[1]), (keys.inputs[0], values.inputs[0]), mask, scale, columns, last)


def _attention(graph: ir.Graph) -> None:
    """Replace attention over a cached prefix and new columns by ``MultiHeadAttention``."""
    masks: dict[int, ir.Value] = {}
    for scores in [node for node in graph if node.op_type == "FusedMatMul"]:
        found = _attention_of(scores)
        if found is None:
            continue
        if id(found.mask) not in masks:
            masks[id(found.mask)] = _whole(graph, scores, found.mask, found.columns)
        query, key, value = found.parts
        name = f"{found.last.outputs[0].name}/attention"
        insert, turns = Inserter(graph, found.last, name), found.turns
        settings = {name: turns[0].attributes[name].as_int() for name in ("num_heads", "rotary_embedding_dim")}
        turned = [
            insert("RotaryEmbedding", part, *turn.inputs[1:], domain=CONTRIB, **settings)
            for part, turn in ((query, turns[0]), (key, turns[1]))
        ]
        node = ir.node(
            "MultiHeadAttention",
            [*turned, value, None, None, masks[id(found.mask)], *found.prefix],
            {"num_heads": settings["num_heads"], "scale": found.scale},
            domain=CONTRIB,
            num_outputs=3,  # the joined keys and values too, which the operator needs a place for
        )
        for place, output in enumerate(node.outputs):
            output.name = f"{name}/{place}"
        graph.insert_before(found.last, node)
        replace(found.last, node.outputs[0])
        graph.opset_imports[CONTRIB] = 1


def _whole(graph: ir.Graph, before: ir.Node, mask: ir.Value, columns: int) -> ir.Value:
    """Return an additive mask (B, 1, columns, all columns) from one for all new columns alike, (B, 1, 1, all columns)."""
    nothing = add_constant(graph, "mask/rows", np.zeros((1, 1, columns, 1), dtype=np.float32))
    return Inserter(graph, before, f"{mask.name}/rows")("Add", mask, nothing)


def _bits(graph: ir.Graph) -> None:
    """Read the bits of image codes from a table."""
    weight = next((value for name, value in graph.initializers.items() if "embedding.image.weight" in name), None)
    flat = None if weight is None else _bits_of(weight)
    cells = None if flat is None else _cells(flat)
    array = None if weight is None else constant(weight)
    if flat is None or cells is None or array is None or cells.shape is None:
        return
    count = array.shape[0] // int(cells.shape[-1])  # type: ignore[arg-type]
    insert = Inserter(graph, flat, "embedding/bits")
    table = insert("Cast", add_constant(graph, "embedding/bits", bit_table(count)), to=ir.DataType.FLOAT)
    flat.replace_input_with(0, insert("Gather", table, cells, axis=0))


def bit_table(bits: int) -> Array:
    """Return the signs of each code's bits, bit 0 first, and zeros for the mask: int8 (2**bits + 1, bits)."""
    codes = np.arange(1 << bits)[:, None] >> np.arange(bits) & 1
    return np.concatenate((2 * codes - 1, np.zeros((1, bits), dtype=np.int64))).astype(np.int8)


def _bits_of(weight: ir.Value) -> ir.Node | None:
    """Return the ``Reshape`` of the bits that are multiplied by ``weight``, which may be stored as fp16."""
    node: ir.Node | None = next((usage.node for usage in weight.uses()), None)
    if node is not None and node.op_type == "Cast":
        node = next((usage.node for usage in node.outputs[0].uses()), None)
    return None if node is None or node.op_type != "MatMul" else made_by(node.inputs[0], "Reshape")


def _cells(flat: ir.Node) -> ir.Value | None:
    """Return the codes whose bits, zero where masked, are reshaped by ``flat``."""
    product = made_by(flat.inputs[0], "Mul")
    known = None if product is None else made_by(product.inputs[1], "Sub")
    column = None if known is None else made_by(known.inputs[1], "Unsqueeze")
    number = None if column is None else made_by(column.inputs[0], "Cast")
    masked = None if number is None else made_by(number.inputs[0], "Equal")
    return None if masked is None else masked.inputs[0]


def _sums(graph: ir.Graph) -> None:
    """Join chains of sums, in their order."""
    for node in [node for node in graph if node.op_type == "Add"]:
        terms, after = _terms(node), _reader(node, "Add")
        if len(terms) > 2 and (after is None or after.inputs[0] is not node.outputs[0]):
            replace(node, Inserter(graph, node, f"{node.outputs[0].name}/sum")("Sum", *terms))


def _terms(node: ir.Node) -> list[ir.Value | None]:
    """Return the terms of a chain of sums that begins with the first input of each."""
    first, second = node.inputs
    before = made_by(first, "Add")
    return [first, second] if before is None or _reader(before, "Add") is not node else [*_terms(before), second]


def _products(graph: ir.Graph) -> None:
    """Join products that read the same codes by the same scale, where their weights together are small."""
    groups: dict[int, list[ir.Node]] = {}
    for node in graph:
        if node.op_type == "MatMulIntegerToFloat" and constant(node.inputs[2]) is not None and node.inputs[0] is not None:
            groups.setdefault(id(node.inputs[0]), []).append(node)
    for nodes in groups.values():
        if len(nodes) > 1 and sum(_array(node, 1).nbytes for node in nodes) <= _JOINED_BYTES and _fixed(nodes[0]):
            _join(graph, nodes)


def _fixed(product: ir.Node) -> bool:
    """Return whether the input of a product was quantized by a scale of its own, not of each row."""
    quantized = made_by(product.inputs[0], "QuantizeLinear")
    return quantized is not None and made_by(quantized.inputs[0], "Div") is None


def _array(node: ir.Node, place: int) -> Array:
    array = constant(node.inputs[place])
    assert array is not None
    return array


def _bias(product: ir.Node) -> ir.Value | None:
    return product.inputs[6] if len(product.inputs) > 6 else None


def _join(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    first = nodes[0]
    name = f"{first.inputs[1].name if first.inputs[1] is not None else ''}.joined"
    insert = Inserter(graph, first, name)
    sizes = [_array(node, 1).shape[1] for node in nodes]
    biases = [
        _bias(node) or add_constant(graph, f"{name}.none{size}", np.zeros(size, np.float32))
        for node, size in zip(nodes, sizes, strict=True)
    ]
    # Folded when the graph is loaded; the file keeps every layer's own.
    weight, scale = (insert("Concat", *(node.inputs[place] for node in nodes), axis=axis) for place, axis in ((1, 1), (3, 0)))
    product = insert(
        "MatMulIntegerToFloat",
        first.inputs[0],
        weight,
        first.inputs[2],
        scale,
        first.inputs[4],
        None,
        insert("Concat", *biases, axis=0),
        domain=CONTRIB,
    )
    parts = [part for node, size in zip(nodes, sizes, strict=True) for part in _parts(node, size)]
    widths = add_constant(graph, f"{name}.sizes", np.array([width for _, width in parts]))
    split = ir.node("Split", [product, widths], {"axis": -1}, num_outputs=len(parts), name=f"{name}/Split")
    for place, output in enumerate(split.outputs):
        output.name = f"{name}/{place}"
    graph.insert_before(first, split)
    for (value, _), output in zip(parts, split.outputs, strict=True):
        output.type, output.shape = value.type, value.shape
        value.replace_all_uses_with(output)


def _parts(product: ir.Node, width: int) -> list[tuple[ir.Value, int]]:
    """Return what a product's output is taken apart to, with the widths; the output itself if it is not."""
    made = product.outputs[0]
    users = [usage.node for usage in made.uses()]
    sizes = constant(users[0].inputs[1]) if len(users) == 1 and users[0].op_type == "Split" else None
    if sizes is None or sum(sizes.tolist()) != width:
        return [(made, width)]
    return list(zip(users[0].outputs, sizes.tolist(), strict=True))
