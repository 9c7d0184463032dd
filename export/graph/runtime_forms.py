"""Forms of lowered graphs that ONNX Runtime runs faster, with the same values.

* Caches as one input and output per layer.  A traced graph cuts every layer out of stacked keys and values, by copying: 100 MB per answer
  token and per step of Show-o.  As values of their own (:mod:`f2edge.backends.ports`) layers are read where they are.
* Logits of several columns, so that one pass verifies several guessed tokens.
* Rotary positions as one operator instead of ten, scores of attention as one instead of three.
* Steps that draw masked positions alone (:mod:`export.graph.masked_rows`).

>>> runtime_forms(model)  # doctest: +SKIP
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from export.graph.lower import CONTRIB, Inserter, LoweringError, add_constant, constant, made_by, replace
from export.graph.masked_rows import draw_masked
from f2edge.backends.ports import SCORED
from f2edge.spec.graphs import SIGNATURES, T2I_STEP

#: Graphs that run once per step or token, and those of their outputs that are stacked.
_REPEATED = {"t2i_step": (), "mmu_extend": ("next_text_key", "next_text_value")}


def runtime_forms(model: ir.Model, *, masked: bool = True) -> ir.Model:
    """Apply all forms to a lowered graph, which is modified; return the result.  ``masked``: whether steps draw masked positions alone."""
    if masked and model.graph.name == T2I_STEP.name:
        model = draw_masked(model)
    split_caches(model)
    score_columns(model)
    fuse_rotary(model)
    fuse_scores(model)
    return model


def split_caches(model: ir.Model) -> ir.Model:
    """Give each layer of the caches an input and an output of its own, in place, in graphs that run once per step or token.

    Raises:
        LoweringError: a cache is used in an unknown way.
    """
    graph = model.graph
    name = str(graph.name)
    if name not in _REPEATED:
        return model
    stacked = {tensor.name for tensor in SIGNATURES[name].inputs if tensor.axes.startswith("L")}
    for value in [value for value in graph.inputs if value.name in stacked]:
        _split_input(graph, value)
    for value in [value for value in graph.outputs if value.name in _REPEATED[name]]:
        _split_output(graph, value)
    passes.RemoveUnusedNodesPass()(model)
    return model


def _split_input(graph: ir.Graph, value: ir.Value) -> None:
    assert value.shape is not None
    layers = value.shape[0]
    assert isinstance(layers, int)
    own = [ir.val(f"{value.name}.{layer}", dtype=value.dtype, shape=ir.Shape(value.shape[1:])) for layer in range(layers)]
    for usage in list(value.uses()):
        node = usage.node
        if node.op_type == "Shape":
            _shift_shape(node, own[0])
        elif node.op_type == "Slice":
            _replace_layer(node, own)
        elif node.op_type == "Squeeze" and layers == 1:
            replace(node, own[0])
        else:
            raise LoweringError(f"graph {graph.name!r}: cache {value.name!r} feeds a {node.op_type}; expected slices of single layers")
    place = list(graph.inputs).index(value)
    graph.inputs[place : place + 1] = own


def _shift_shape(node: ir.Node, first: ir.Value) -> None:
    """Let a ``Shape`` of stacked layers read the first layer's shape."""
    start, end = (node.attributes.get_int(name, 0) for name in ("start", "end"))
    if start < 1 or end < 1:
        raise LoweringError(f"node {node.name!r} reads axes {start} to {end} of a cache; expected some behind the layers'")
    node.attributes["start"], node.attributes["end"] = ir.AttrInt64("start", start - 1), ir.AttrInt64("end", end - 1)
    node.replace_input_with(0, first)


def _replace_layer(node: ir.Node, own: list[ir.Value]) -> None:
    """Replace ``Slice`` of one layer and its ``Squeeze`` by the layer's value."""
    start, end, axes = (None if (found := constant(part)) is None else found.reshape(-1).tolist() for part in node.inputs[1:4])
    users = [usage.node for usage in node.outputs[0].uses()]
    if axes != [0] or not start or not end or end[0] != start[0] + 1 or [user.op_type for user in users] != ["Squeeze"]:
        raise LoweringError(f"node {node.name!r} cuts {start} to {end} of axes {axes} out of a cache; expected one layer")
    replace(users[0], own[start[0]])


def _split_output(graph: ir.Graph, value: ir.Value) -> None:
    """Replace the ``Concat`` of all layers by one output per layer."""
    joined = value.producer()
    parts = [] if joined is None else [part.producer() for part in joined.inputs if part is not None]
    if joined is None or joined.op_type not in ("Concat", "Unsqueeze") or value.shape is None:
        raise LoweringError(f"graph {graph.name!r}: output {value.name!r} is not the stack of its layers")
    layers = [joined.inputs[0]] if joined.op_type == "Unsqueeze" else [part.inputs[0] for part in parts if part is not None]
    own = []
    for layer, source in enumerate(layers):
        assert source is not None
        insert = Inserter(graph, joined, f"{value.name}/{layer}")
        made = insert("Identity", source) if source.is_graph_output() else source  # an output has one name
        made.name = f"{value.name}.{layer}"
        made.shape, made.type = ir.Shape(value.shape[1:]), value.type
        own.append(made)
    place = list(graph.outputs).index(value)
    graph.outputs[place : place + 1] = own


def score_columns(model: ir.Model) -> ir.Model:
    """Add the input :data:`~f2edge.backends.ports.SCORED` to ``mmu_extend``, in place: the new columns whose logits are wanted.

    Raises:
        LoweringError: the graph does not pick the last column once, before the head.
    """
    graph = model.graph
    if graph.name != "mmu_extend" or any(value.name == SCORED for value in graph.inputs):
        return model
    logits = next(value for value in graph.outputs if value.name == "logits")
    picks = [node for node in graph if node.op_type == "Gather" and _picks_last(node)]
    if len(picks) != 1 or logits.shape is None:
        raise LoweringError(f"graph 'mmu_extend': the last column is picked {len(picks)} times, expected once")
    (pick,) = picks
    scored = ir.val(SCORED, dtype=ir.DataType.INT64, shape=ir.Shape(["D"]))
    graph.inputs.append(scored)
    insert = Inserter(graph, pick, "scored")
    # a column counted from the end; Gather of one column alone would drop the axis
    chosen = insert("Gather", pick.inputs[0], insert("Reshape", scored, add_constant(graph, "scored/all", np.array([-1]))), axis=1)
    replaced = pick.outputs[0]
    for node in _between(replaced, logits):
        for output in node.outputs:
            if output.shape is not None:
                output.shape = ir.Shape([output.shape[0], "D", *output.shape[1:]])
    replaced.shape = None
    replace(pick, chosen)
    chosen.shape = None
    return model


def _picks_last(node: ir.Node) -> bool:
    axis, index = node.attributes.get("axis"), constant(node.inputs[1])
    return axis is not None and axis.as_int() == 1 and index is not None and index.ndim == 0 and int(index) == -1


def _between(value: ir.Value, end: ir.Value) -> list[ir.Node]:
    """Return the nodes on the way from a value to another."""
    found: list[ir.Node] = []
    waiting = [value]
    while waiting:
        for usage in waiting.pop().uses():
            if usage.node not in found:
                found.append(usage.node)
                waiting += [output for output in usage.node.outputs if output is not end]
    return found


def fuse_rotary(model: ir.Model) -> ir.Model:
    """Replace the rotation of queries or keys (B, H, S, W) by ``RotaryEmbedding``, in place, where queries and keys are rotated apart."""
    graph = model.graph
    tables: dict[int, tuple[ir.Value, ir.Value, ir.Value]] = {}
    for node in [node for node in graph if node.op_type == "Add"]:
        found = _rotation(node)
        if found is None:
            continue
        last, x, cosine, sine = found
        if id(cosine) not in tables:
            tables[id(cosine)] = _rotary_table(graph, node, cosine, sine)
        assert x.shape is not None
        assert cosine.shape is not None
        attributes = {"num_heads": int(x.shape[1]), "rotary_embedding_dim": int(cosine.shape[3])}  # type: ignore[arg-type]
        turned = Inserter(graph, last, f"{last.name}/rotary")("RotaryEmbedding", x, *tables[id(cosine)], domain=CONTRIB, **attributes)
        turned.type = x.type
        replace(last, turned)
    if tables:
        graph.opset_imports[CONTRIB] = 1
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return model


def _rotation(node: ir.Node) -> tuple[ir.Node, ir.Value, ir.Value, ir.Value] | None:
    """Return the last node of a rotation whose sum is ``node``, what it rotates, cosine and sine; None for any other sum."""
    kept, turned = (made_by(value, "Mul") for value in node.inputs)
    swapped = None if turned is None else made_by(turned.inputs[0], "Concat")
    negated = None if swapped is None else made_by(swapped.inputs[0], "Neg")
    if kept is None or turned is None or swapped is None or negated is None:
        return None
    x, cosine, sine = kept.inputs[0], kept.inputs[1], turned.inputs[1]
    if x is None or cosine is None or sine is None or any(v.shape is None or len(v.shape) != 4 for v in (x, cosine, sine)):
        return None
    cut = made_by(x, "Slice")
    users = [usage.node for usage in node.outputs[0].uses()]
    if cut is not None and cut.inputs[0] is not None and len(users) == 1 and users[0].op_type == "Concat":
        return users[0], cut.inputs[0], cosine, sine  # the rest of the head is not rotated
    return node, x, cosine, sine


def _rotary_table(graph: ir.Graph, before: ir.Node, cosine: ir.Value, sine: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return each column's row, and the rows of cosine and sine (B·S, R / 2), from tables (B or 1, 1, S, R)."""
    insert = Inserter(graph, before, f"{cosine.name}/rows")
    assert cosine.shape is not None
    half = int(cosine.shape[3]) // 2  # type: ignore[arg-type]

    def number(name: str, *values: int) -> ir.Value:
        return add_constant(graph, f"rotary/{name}", np.array(values, dtype=np.int64))

    def rows(table: ir.Value) -> ir.Value:
        known = constant(table)
        if known is not None:
            return add_constant(graph, f"{table.name}/rows", np.ascontiguousarray(known[..., :half]).reshape(-1, half))
        first = insert("Slice", table, number("zero", 0), number(f"half_{half}", half), number("axis", 3))
        return insert("Reshape", first, number(f"rows_{half}", -1, half))

    if cosine.shape[0] == 1:
        return number("first", 0), rows(cosine), rows(sine)
    shape = insert("Shape", cosine, start=0, end=3)
    count = insert("ReduceProd", shape, keepdims=0)
    scalar = [add_constant(graph, f"rotary/scalar_{value}", np.array(value, dtype=np.int64)) for value in (0, 1)]
    places = insert("Range", scalar[0], count, scalar[1])
    sizes = insert("Gather", shape, number("batch_and_columns", 0, 2), axis=0)
    return insert("Reshape", places, sizes), rows(cosine), rows(sine)


def fuse_scores(model: ir.Model) -> ir.Model:
    """Replace products of scaled queries with transposed keys by ``FusedMatMul``, in place."""
    graph = model.graph
    for node in [node for node in graph if node.op_type == "MatMul" and not node.domain]:
        scaled, turned = made_by(node.inputs[0], "Mul"), made_by(node.inputs[1], "Transpose")
        scale = None if scaled is None else constant(scaled.inputs[1])
        if scaled is None or turned is None or scale is None or scale.size != 1 or turned.attributes["perm"].as_ints() != (0, 1, 3, 2):
            continue
        made = Inserter(graph, node, node.name or str(node.outputs[0].name))(
            "FusedMatMul", scaled.inputs[0], turned.inputs[0], domain=CONTRIB, alpha=float(scale.reshape(())), transB=1
        )
        replace(node, made)
        graph.opset_imports[CONTRIB] = 1
    passes.RemoveUnusedNodesPass()(model)
    return model
