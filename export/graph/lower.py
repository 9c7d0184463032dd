"""Lowering of traced graphs to standard ONNX operators, without changing any value.

Works on ``onnx_ir`` graphs, whose constants stay views of the model's memory, so that a graph of paper size is edited without
serialization. After :func:`lower` every linear layer is a ``MatMul`` with a constant ``(K, N)`` weight, followed by an ``Add`` of its
bias: the pattern that :mod:`export.quantize.quantize` and :mod:`export.verify.census` expect.

>>> model = lower(traced)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from f2edge.errors import F2EdgeError

Array = NDArray[Any]

OPSET = 20
CONTRIB = "com.microsoft"


class LoweringError(F2EdgeError, RuntimeError):
    """A traced graph cannot be lowered to what runtimes read."""


def constant(value: ir.Value | None) -> Array | None:
    """Return the array of a constant of the graph; None for a computed value."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


def made_by(value: ir.Value | None, op: str) -> ir.Node | None:
    """Return the node that computes ``value`` if it is an ``op``, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op else None


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Register ``array`` (not copied) as a constant called ``name``; return the existing one if it has the same values.

    Raises:
        LoweringError: another constant has this name.
    """
    known = graph.initializers.get(name)
    if known is not None:
        held = constant(known)
        if held is None or held.dtype != array.dtype or not np.array_equal(held, array):
            raise LoweringError(f"graph {graph.name!r} already has another constant {name!r}")
        return known
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


class Inserter:
    """Inserts nodes before one node of a graph.

    Args:
        graph: graph to edit.
        before: node to insert before.
        name: prefix of the new nodes' names.
        meta: metadata of every new node.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node, name: str, meta: Mapping[str, Any] | None = None) -> None:
        self.graph, self._before, self._name, self._count, self._meta = graph, before, name, 0, meta or {}

    def __call__(self, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Insert ``op`` and return its first output."""
        self._count += 1
        name = f"{self._name}/{op}_{self._count}"
        node = ir.node(op, inputs, attributes, domain=domain, name=name)
        node.outputs[0].name = name
        node.meta.update(self._meta)
        self.graph.insert_before(self._before, node)
        return node.outputs[0]


def replace(node: ir.Node, value: ir.Value) -> None:
    """Replace ``node``'s only output by ``value`` and remove ``node``."""
    old = node.outputs[0]
    graph = node.graph
    if graph is None:
        raise LoweringError(f"node {node.name!r} belongs to no graph")
    if value.dtype is None:
        value.type = old.type
    if value.shape is None:
        value.shape = old.shape
    if old.is_graph_output():
        value.name, old.name = old.name, None
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _transposed(value: ir.Value, axes: tuple[int, ...]) -> str:
    """Return the name of a constant with permuted axes; ``….T`` for a matrix, as in :func:`export.graph.trace.restore_names`."""
    return f"{value.name}.T" if axes == (1, 0) else f"{value.name}.{'_'.join(map(str, axes))}"


def _fold_transposes(graph: ir.Graph) -> None:
    """Fold ``Transpose`` of constants (the optimizer skips large ones)."""
    for node in list(graph):
        if node.op_type != "Transpose":
            continue
        array = constant(node.inputs[0])
        source = node.inputs[0]
        if array is None or source is None:
            continue
        permutation = node.attributes.get("perm")
        axes = tuple(permutation.as_ints()) if permutation is not None else tuple(reversed(range(array.ndim)))
        replace(node, add_constant(graph, _transposed(source, axes), array.transpose(axes)))


def _split_gemms(graph: ir.Graph) -> None:
    """Replace ``Gemm`` with a constant weight by ``MatMul`` and ``Add``."""
    for node in list(graph):
        if node.op_type != "Gemm":
            continue
        settings = {name: attribute.value for name, attribute in node.attributes.items()}
        weight = constant(node.inputs[1])
        if weight is None or settings.get("transA") or any(settings.get(k, 1.0) != 1.0 for k in ("alpha", "beta")):
            continue
        source = node.inputs[1]
        assert source is not None
        insert = Inserter(graph, node, node.name or node.op_type)
        if settings.get("transB"):
            source = add_constant(graph, _transposed(source, (1, 0)), weight.T)
        product = insert("MatMul", node.inputs[0], source)
        product.type, product.shape = node.outputs[0].type, node.outputs[0].shape
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        replace(node, product if bias is None else insert("Add", product, bias))


def rename_axes(model: ir.Model, axes: dict[str, tuple[int | str, ...]]) -> None:
    """Set the shapes of the graph's inputs and outputs: sizes, or names of dynamic axes."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.name is not None
        value.shape = ir.Shape(axes[value.name])


def lower(model: ir.Model) -> ir.Model:
    """Lower a traced graph in place and return it.

    Raises:
        LoweringError: the graph has control flow or an operator outside the ONNX standard.
    """
    graph = model.graph
    passes.InlinePass()(model)
    _fold_transposes(graph)
    _split_gemms(graph)
    for tidy in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
        passes.TopologicalSortPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        tidy(model)
    for node in graph:
        if node.domain not in ("", "ai.onnx"):
            raise LoweringError(f"graph {graph.name!r}: operator {node.domain}.{node.op_type} is not ONNX; rewrite the traced module")
        if node.op_type in ("Loop", "If", "Scan"):
            raise LoweringError(f"graph {graph.name!r}: has {node.op_type} {node.name!r}; the traced module must not branch on data")
    return model


def merge(first: ir.Model, second: ir.Model, links: dict[str, str], name: str) -> ir.Model:
    """Join two graphs: ``links`` maps inputs of ``second`` to outputs of ``first``.

    Other inputs of equal name become one; the result has the outputs of ``second``.  Both models are consumed.

    Raises:
        LoweringError: ``first`` lacks a linked output.
    """
    made = {value.name: value for value in first.graph.outputs}
    given = {value.name: value for value in first.graph.inputs}
    inputs = list(first.graph.inputs)
    for value in list(second.graph.inputs):
        assert value.name is not None
        source = made.get(links.get(value.name, "")) or given.get(value.name)
        if value.name in links and links[value.name] not in made:
            raise LoweringError(f"graph {first.graph.name!r} gives no {links[value.name]!r} for {value.name!r}")
        if source is None:
            inputs.append(value)
        else:
            value.replace_all_uses_with(source)
    outputs = list(second.graph.outputs)
    initializers = [*first.graph.initializers.values(), *second.graph.initializers.values()]
    nodes = [*first.graph, *second.graph]
    for half in (first.graph, second.graph):
        half.inputs.clear()
        half.outputs.clear()
        half.initializers.clear()
        half.remove(list(half))
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=initializers, opset_imports={"": OPSET}, name=name)
    return ir.Model(graph, ir_version=10, producer_name="f2edge")
