"""Lowering: from what the tracer wrote to what runtimes like, without changing a single value.

Works on ``onnx_ir`` graphs, whose constants stay views of the model's own memory, so that a graph of paper size is never serialised to
be edited.  After :func:`lower` every linear layer is ``MatMul`` with a constant ``(K, N)`` weight, followed by ``Add`` of its bias: the one
form that :mod:`export.quantize.quantize` and :mod:`export.verify.census` look for.

>>> model = lower(traced)  # doctest: +SKIP
"""

from __future__ import annotations

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
    """A traced graph that cannot be brought into the form that runtimes read."""


def constant(value: ir.Value | None) -> Array | None:
    """The array behind a constant of the graph, or None for anything that is computed."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Register ``array`` (not copied) as a constant called ``name``, or return the one of that name that holds the same values."""
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
    """Adds nodes in front of one node of a graph, naming them after it."""

    def __init__(self, graph: ir.Graph, before: ir.Node, name: str) -> None:
        self.graph, self._before, self._name, self._count = graph, before, name, 0

    def __call__(self, op: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Append ``op`` and return its first output."""
        self._count += 1
        name = f"{self._name}/{op}_{self._count}"
        node = ir.node(op, inputs, attributes, domain=domain, name=name)
        node.outputs[0].name = name
        self.graph.insert_before(self._before, node)
        return node.outputs[0]


def replace(node: ir.Node, value: ir.Value) -> None:
    """Let ``value`` take the place of ``node``'s only output, and drop ``node``."""
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
    """Name of a constant with its axes permuted; ``….T`` for a matrix, as :func:`export.graph.trace.restore_names` has it."""
    return f"{value.name}.T" if axes == (1, 0) else f"{value.name}.{'_'.join(map(str, axes))}"


def _fold_transposes(graph: ir.Graph) -> None:
    """``Transpose`` of a constant becomes a constant (the optimiser leaves large ones alone)."""
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
    """``Gemm`` with a constant weight becomes ``MatMul`` and ``Add``."""
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
    """Write the given axes (sizes, or names of dynamic axes) as the shapes of the graph's inputs and outputs."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.name is not None
        value.shape = ir.Shape(axes[value.name])


def lower(model: ir.Model) -> ir.Model:
    """Bring a traced graph into its final fp32 form; the same object, edited in place.

    Raises:
        LoweringError: an operator outside the ONNX standard, or control flow, survived tracing.
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
            raise LoweringError(f"graph {graph.name!r}: {node.op_type} {node.name!r} survived; the traced module branches on data")
    return model


def merge(first: ir.Model, second: ir.Model, links: dict[str, str], name: str) -> ir.Model:
    """Feed outputs of ``first`` into inputs of ``second``: ``links`` maps each linked input of ``second`` to an output of ``first``.

    Other inputs of equal name become one; the result has the outputs of ``second``.  Both models are used up.
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
