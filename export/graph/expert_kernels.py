"""Kernels of the token-level experts: rewrites of one traced layer, chosen by a table.

========  ==============================================================================================================
dense     as traced: the hidden values of all experts, multiplied by zero where an expert was not chosen
gathered  per expert: the rows that chose it → ``Gather`` → its two matrices → ``ScatterND`` (add); only chosen experts are computed
fused     shared expert as matrices, routed experts by ONNX Runtime's ``QMoE`` (four-bit weights)
========  ==============================================================================================================

Every kernel keeps the traced fp32 router, so gates and choices are unchanged and the census finds the same nodes.  The fastest kernel
depends on the number of rows and the width: :data:`KERNEL_CHOICES`, measured by ``python -m bench expert-kernels``.

Axes: T rows (all tokens of all sequences), D width, E experts, K active, I width of one expert, J = shared width + E·I.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from export.graph.lower import CONTRIB, Array, Inserter, LoweringError, add_constant, constant, replace
from export.quantize.recipes import Recipe
from export.quantize.weight_only import ACCURACY_LEVEL, BITS, Blocks
from f2edge.errors import InputError

#: Graphs that usually run on one row at a time; the others have a hundred and more.
ONE_ROW = ("mmu_extend",)


@dataclass(frozen=True)
class KernelChoice:
    """Use ``kernel`` for layers of at least ``min_width``, in graphs of ``precision`` with many rows or with one row."""

    precision: str
    one_row: bool
    min_width: int
    kernel: str


#: First match wins; the default is dense.  Best calls in ms on one core of a Zen 4 under other load, dense / the other kernel:
#: "1.8b" (width 2048): int8 gathered, 1 row 0.51 / 0.35, 257 rows 370 / 286, 516 rows 697 / 466; int4 fused, 1 row 0.34 / 0.12, 516 rows
#: 3232 / 1682.  "nano" (width 256): int8, 1 row 0.020 / 0.037, 130 rows 0.29 / 0.26; int4, 1 row 0.015 / 0.017, 130 rows 0.58 / 0.94: dense
#: is simpler there, and as fast or faster.
KERNEL_CHOICES: tuple[KernelChoice, ...] = (
    KernelChoice("int8", one_row=False, min_width=1024, kernel="gathered"),
    KernelChoice("int8", one_row=True, min_width=1024, kernel="gathered"),
    KernelChoice("int4", one_row=False, min_width=1024, kernel="fused"),
    KernelChoice("int4", one_row=True, min_width=1024, kernel="fused"),
)

#: Source of a constant: name of the dense layer's weight, and the slice of its rows (inputs) that the constant holds.
Origin = tuple[str, slice]
ALL = slice(None)
#: Key in the metadata of nodes that work on rows (T, K), of which there may be none.
ROWS = "rows"


def origin(value: ir.Value) -> Origin:
    """Return the dense layer's weight that a constant is cut from; the constant itself if it is not cut."""
    found: Origin = value.meta.get("origin", (str(value.name), ALL))
    return found


def is_expert_row(value: ir.Value) -> bool:
    """Return whether a value was made by this module and has rows (T, K)."""
    node = value.producer()
    return node is not None and bool(node.meta.get(ROWS))


@dataclass(frozen=True)
class ExpertLayer:
    """One mixture in a lowered graph.

    Attributes:
        name: name of the mixture with the prefix of its constants.
        x, exact: input of the experts, and of the router in fp32.
        router, up, up_bias, down, down_bias: constants.
        gates: gates (B, S, E), zero for experts that were not chosen.
        last: node that computes the layer's output.
        experts, active, shared: E, K, and the shared expert's width.
    """

    name: str
    x: ir.Value
    exact: ir.Value
    router: ir.Value
    gates: ir.Value
    up: ir.Value
    up_bias: ir.Value
    down: ir.Value
    down_bias: ir.Value
    last: ir.Node
    experts: int
    active: int
    shared: int

    @property
    def width(self) -> int:
        """D."""
        return int(self.array(self.up).shape[0])

    @property
    def routed(self) -> int:
        """I."""
        return (int(self.array(self.up).shape[1]) - self.shared) // self.experts

    def hidden(self, expert: int | None) -> slice:
        """Return the hidden columns of an expert; None is the shared expert."""
        return slice(0, self.shared) if expert is None else slice(*(self.shared + self.routed * (expert + i) for i in (0, 1)))

    @staticmethod
    def array(value: ir.Value) -> Array:
        """Return a constant's values."""
        held = constant(value)
        if held is None:
            raise LoweringError(f"{value.name!r} must be a constant")
        return held


_UNKNOWN = "the experts were traced in an unknown pattern"


def _sole(value: ir.Value, op: str) -> ir.Node:
    """Return the only consumer of ``value``, which must be an ``op``."""
    nodes = [usage.node for usage in value.uses()]
    if len(nodes) != 1 or nodes[0].op_type != op:
        raise LoweringError(f"{value.name!r} feeds {[node.op_type for node in nodes]}, expected one {op}; {_UNKNOWN}")
    return nodes[0]


def _other(node: ir.Node, value: ir.Value) -> ir.Value:
    found = [other for other in node.inputs if other is not None and other is not value]
    if len(found) != 1:
        raise LoweringError(f"{node.op_type} {node.name!r} has {len(found)} inputs beside {value.name!r}, expected one")
    return found[0]


def _producer(value: ir.Value, op: str) -> ir.Node:
    node = value.producer()
    if node is None or node.op_type != op:
        raise LoweringError(f"{value.name!r} comes from {node and node.op_type}, expected {op}; {_UNKNOWN}")
    return node


def expert_layers(graph: ir.Graph) -> Iterator[ExpertLayer]:
    """Yield the mixtures of a graph from :func:`export.graph.lower.lower`.

    Raises:
        LoweringError: a mixture does not have the structure of :class:`export.model.experts.TokenExpertLayer`.
    """
    for up in list(graph.initializers.values()):
        match = re.fullmatch(r"(.+\.experts\.\w+)\.up\.weight\.T", up.name or "")
        if match is None or not up.uses():
            continue
        name, constants = match[1], graph.initializers
        down, router = constants[f"{name}.down.weight.T"], constants[f"{name}.router.weight.T"]
        first = _sole(up, "MatMul")
        x, biased = _other(first, up), _sole(first.outputs[0], "Add")
        split = _sole(_sole(biased.outputs[0], "Gelu").outputs[0], "Split")
        scaled = _sole(_sole(split.outputs[1], "Reshape").outputs[0], "Mul")
        gates = _producer(_other(scaled, _producer_value(scaled, "Reshape")), "Unsqueeze").inputs[0]
        last = _sole(_sole(down, "MatMul").outputs[0], "Add")
        decision = _sole(router, "MatMul")
        probability = _sole(decision.outputs[0], "Softmax").outputs[0]
        choice = next(usage.node for usage in probability.uses() if usage.node.op_type == "TopK")
        sizes, active = constant(split.inputs[1]), constant(choice.inputs[1])
        if gates is None or sizes is None or active is None:
            raise LoweringError(f"{name}: sizes of its experts are not constant")
        yield ExpertLayer(
            name=name,
            x=x,
            exact=_other(decision, router),
            router=router,
            gates=gates,
            up=up,
            up_bias=_other(biased, first.outputs[0]),
            down=down,
            down_bias=_other(last, _sole(down, "MatMul").outputs[0]),
            last=last,
            experts=int(ExpertLayer.array(router).shape[1]),
            active=int(active.reshape(-1)[0]),
            shared=int(sizes.reshape(-1)[0]),
        )


def _producer_value(node: ir.Node, op: str) -> ir.Value:
    """Return the input of ``node`` that an ``op`` produces."""
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if value is not None and producer is not None and producer.op_type == op:
            return value
    raise LoweringError(f"{node.op_type} {node.name!r} has no input from a {op}; {_UNKNOWN}")


class _Rewriter:
    """Inserts the nodes that replace one layer; each constant's metadata names the weight that it is cut from."""

    def __init__(self, graph: ir.Graph, layer: ExpertLayer) -> None:
        self.graph, self.layer = graph, layer
        self.insert = Inserter(graph, layer.last, f"{layer.name}/kernel", {ROWS: True})

    def cut(self, source: ir.Value, part: str, rows: slice, columns: slice) -> ir.Value:
        array = ExpertLayer.array(source)
        value = add_constant(self.graph, f"{source.name}.{part}", np.ascontiguousarray(array[rows, columns]))
        value.meta["origin"] = (str(source.name), rows)
        return value

    def ints(self, name: str, *values: int) -> ir.Value:
        return add_constant(self.graph, f"kernel/{name}", np.array(values, dtype=np.int64))

    def scalar(self, value: int) -> ir.Value:
        return add_constant(self.graph, f"kernel/number_{value}", np.array(value, dtype=np.int64))

    def expert(self, x: ir.Value, expert: int | None, gate: ir.Value | None = None) -> ir.Value:
        """Insert one expert, rows (T, D) → (T, D), without its output bias, times ``gate`` (T, 1)."""
        layer, hidden, part = self.layer, self.layer.hidden(expert), "shared" if expert is None else f"e{expert}"
        bias = add_constant(self.graph, f"{layer.up_bias.name}.{part}", ExpertLayer.array(layer.up_bias)[hidden].copy())
        up = self.insert("Add", self.insert("MatMul", x, self.cut(layer.up, part, ALL, hidden)), bias)
        active = self.insert("Gelu", up, approximate="tanh")
        if gate is not None:
            active = self.insert("Mul", active, gate)
        return self.insert("MatMul", active, self.cut(layer.down, part, hidden, ALL))

    def flat(self, value: ir.Value, columns: int) -> ir.Value:
        """Reshape (B, S, columns) to (T, columns)."""
        return self.insert("Reshape", value, self.ints(f"rows_{columns}", -1, columns))

    def finish(self, rows: ir.Value) -> None:
        """Reshape (T, D) to (B, S, D) and replace the layer's output."""
        replace(self.layer.last, self.insert("Reshape", rows, self.insert("Shape", self.layer.x)))


def _dense(graph: ir.Graph, layer: ExpertLayer, recipe: Recipe, _pack: Packer) -> None:
    """Multiply all hidden values by their expert's gate at once, those of the shared expert by the gates' sum, which is 1."""
    if recipe.precision == "float32":
        return  # other recipes begin with this graph
    down = _sole(layer.down, "MatMul")
    joined = _producer(_other(down, layer.down), "Concat")
    hidden = _producer(_producer_value(joined, "Split"), "Split").inputs[0]
    spread = np.zeros((layer.experts, ExpertLayer.array(layer.down).shape[0]), dtype=np.float32)
    spread[:, layer.hidden(None)] = 1
    for expert in range(layer.experts):
        spread[expert, layer.hidden(expert)] = 1
    insert = Inserter(graph, joined, f"{layer.name}/dense")
    factors = insert("MatMul", layer.gates, add_constant(graph, "dense/spread", spread))
    replace(joined, insert("Mul", hidden, factors))


def _gathered(graph: ir.Graph, layer: ExpertLayer, _recipe: Recipe, _pack: Packer) -> None:
    write = _Rewriter(graph, layer)
    x, gates = write.flat(layer.x, layer.width), write.flat(layer.gates, layer.experts)
    total = write.insert("Add", write.expert(x, None), layer.down_bias)
    for expert in range(layer.experts):
        gate = write.insert("Gather", gates, write.scalar(expert), axis=1)  # (T,), zero where not chosen
        places = write.insert("Transpose", write.insert("NonZero", gate), perm=[1, 0])  # (n, 1)
        rows = write.insert("Squeeze", places, write.ints("one", 1))  # (n,)
        chosen = write.insert("Unsqueeze", write.insert("Gather", gate, rows, axis=0), write.ints("one", 1))
        part = write.expert(write.insert("Gather", x, rows, axis=0), expert, chosen)
        total = write.insert("ScatterND", total, places, part, reduction="add")
    write.finish(total)


def _fused(graph: ir.Graph, layer: ExpertLayer, recipe: Recipe, pack: Packer) -> None:
    write = _Rewriter(graph, layer)
    x, gates = write.flat(layer.x, layer.width), write.flat(layer.gates, layer.experts)
    shared = write.insert("Add", write.expert(x, None), layer.down_bias)
    E, D, I = layer.experts, layer.width, layer.routed
    parts: dict[str, list[Blocks]] = {"up": [], "down": []}
    for expert in range(E):
        hidden = layer.hidden(expert)
        parts["up"].append(pack(str(layer.up.name), ALL, ExpertLayer.array(layer.up)[:, hidden]))
        parts["down"].append(pack(str(layer.down.name), hidden, ExpertLayer.array(layer.down)[hidden]))

    def stacked(which: str, field: str, shape: tuple[int, ...]) -> ir.Value:
        source = layer.up if which == "up" else layer.down
        array = np.stack([getattr(blocks, field) for blocks in parts[which]]).reshape(shape)
        return add_constant(graph, f"{source.name}.fused.{field}", array)

    def operands(which: str, outputs: int) -> tuple[ir.Value, ir.Value, ir.Value]:
        return (
            stacked(which, "codes", (E, outputs, -1)),
            stacked(which, "scales", (E, outputs, -1)),
            stacked(which, "zeros", (E, outputs, -1)),
        )

    up, down = operands("up", I), operands("down", D)
    bias = ExpertLayer.array(layer.up_bias)[layer.shared :].reshape(E, I)
    routed = write.insert(
        "QMoE",
        x,
        gates,  # selects the experts: those not chosen have gate zero
        *(up[0], up[1], add_constant(graph, f"{layer.up_bias.name}.fused", bias.copy())),
        *(down[0], down[1], None),
        *(None, None, None),
        *(up[2], down[2], None),
        gates,  # and weights them, so that the traced router is used
        domain=CONTRIB,
        k=layer.active,
        activation_type="gelu",
        normalize_routing_weights=0,
        expert_weight_bits=BITS,
        block_size=recipe.block,
        accuracy_level=ACCURACY_LEVEL,
    )
    write.finish(write.insert("Add", shared, routed))


#: Quantizes a matrix: name of the dense weight, its rows, values float32 (K, N).
Packer = Callable[[str, slice, Array], Blocks]
_Writer = Callable[[ir.Graph, ExpertLayer, Recipe, Packer], Any]

_WRITERS: Mapping[str, _Writer] = {"dense": _dense, "gathered": _gathered, "fused": _fused}


def best_kernel(layer: ExpertLayer, graph: str, recipe: Recipe) -> str:
    """Return the kernel of a layer in a graph: the recipe's choice, or the table's."""
    if recipe.experts is not None:
        if recipe.experts not in _WRITERS:
            raise InputError(f"unknown expert kernel {recipe.experts!r}; choose one of: {', '.join(_WRITERS)}")
        return recipe.experts
    for choice in KERNEL_CHOICES:
        if (choice.precision, choice.one_row) == (recipe.precision, graph in ONE_ROW) and layer.width >= choice.min_width:
            if choice.kernel == "fused" and (layer.width % recipe.block or layer.routed % recipe.block or layer.routed < recipe.smallest):
                continue  # QMoE needs whole blocks
            return choice.kernel
    return "dense"


def apply_expert_kernels(model: ir.Model, recipe: Recipe, pack: Packer) -> dict[str, str]:
    """Rewrite every mixture of a lowered graph in place to its best kernel; return mixture → kernel.

    Args:
        model: fp32 graph from :func:`export.graph.lower.lower`.
        recipe: recipe of this graph.
        pack: quantizes a routed expert's matrix, for "fused".
    """
    kernels = {}
    for layer in list(expert_layers(model.graph)):
        kernels[layer.name] = best_kernel(layer, str(model.graph.name), recipe)
        _WRITERS[kernels[layer.name]](model.graph, layer, recipe, pack)
    return kernels
