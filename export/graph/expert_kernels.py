"""Forms of the token-level experts: one traced layer, several ways to compute it, chosen by a table and not by copies of the model.

========  ==============================================================================================================
dense     all experts' hidden values, those not chosen times zero: as traced
gathered  per expert: the rows that chose it → ``Gather`` → its two matrices → ``ScatterND`` (add); only chosen experts are computed
fused     shared expert as matrices, routed ones in ONNX Runtime's ``QMoE`` (four-bit weights)
========  ==============================================================================================================

In every form the router is the traced one, in fp32: gates and choice are the same values, and the same nodes for the census to look at.
Which form is best depends on how many rows a graph has and how wide an expert is: :data:`FORMS`, measured by ``python -m bench forms``.

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

#: Graphs in which one row at a time is the usual case; the others have a hundred and more.
ONE_ROW = ("mmu_extend",)


@dataclass(frozen=True)
class Choice:
    """``form`` for layers at least so wide, in graphs of ``precision`` with many rows or with one."""

    precision: str
    one_row: bool
    least_width: int
    form: str


#: First match wins; what matches nothing stays dense.  One core of a Zen 4 that had other work too, best calls in ms, dense / the other:
#: "1.8b" (width 2048): int8 gathered, 1 row 0.51 / 0.35, 257 rows 370 / 286, 516 rows 697 / 466; int4 fused, 1 row 0.34 / 0.12, 516 rows
#: 3232 / 1682.  "nano" (width 256): int8, 1 row 0.020 / 0.037, 130 rows 0.29 / 0.26; int4, 1 row 0.015 / 0.017, 130 rows 0.58 / 0.94: dense
#: is simpler there, and as fast or faster.
FORMS: tuple[Choice, ...] = (
    Choice("int8", one_row=False, least_width=1024, form="gathered"),
    Choice("int8", one_row=True, least_width=1024, form="gathered"),
    Choice("int4", one_row=False, least_width=1024, form="fused"),
    Choice("int4", one_row=True, least_width=1024, form="fused"),
)

#: Where a constant comes from: the dense layer's weight and the rows (inputs) of it that the constant holds.
Origin = tuple[str, slice]
ALL = slice(None)


def origin(value: ir.Value) -> Origin:
    """The dense layer's weight that a constant is, or is cut from."""
    found: Origin = value.meta.get("origin", (str(value.name), ALL))
    return found


@dataclass(frozen=True)
class ExpertLayer:
    """One mixture in a lowered graph: values that come in, constants, and the node whose output is the layer's."""

    name: str
    x: ir.Value
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
        return int(self.array(self.up).shape[0])

    @property
    def routed(self) -> int:
        """I."""
        return (int(self.array(self.up).shape[1]) - self.shared) // self.experts

    def hidden(self, expert: int | None) -> slice:
        """Hidden columns of an expert; None is the shared one."""
        return slice(0, self.shared) if expert is None else slice(*(self.shared + self.routed * (expert + i) for i in (0, 1)))

    @staticmethod
    def array(value: ir.Value) -> Array:
        """A constant's values."""
        held = constant(value)
        if held is None:
            raise LoweringError(f"{value.name!r} is no constant")
        return held


def _sole(value: ir.Value, op: str) -> ir.Node:
    """The only consumer of ``value``, which must be an ``op``."""
    nodes = [usage.node for usage in value.uses()]
    if len(nodes) != 1 or nodes[0].op_type != op:
        raise LoweringError(f"{value.name!r} feeds {[node.op_type for node in nodes]}, expected one {op}; the experts are traced otherwise")
    return nodes[0]


def _other(node: ir.Node, value: ir.Value) -> ir.Value:
    found = [other for other in node.inputs if other is not None and other is not value]
    if len(found) != 1:
        raise LoweringError(f"{node.op_type} {node.name!r} has {len(found)} inputs beside {value.name!r}, expected one")
    return found[0]


def _producer(value: ir.Value, op: str) -> ir.Node:
    node = value.producer()
    if node is None or node.op_type != op:
        raise LoweringError(f"{value.name!r} comes from {node and node.op_type}, expected {op}; the experts are traced otherwise")
    return node


def expert_layers(graph: ir.Graph) -> Iterator[ExpertLayer]:
    """The mixtures of a graph as :func:`export.graph.lower.lower` leaves them.

    Raises:
        LoweringError: a mixture that was traced in another shape than :class:`export.model.experts.TokenExpertLayer`.
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
        probability = _sole(_sole(router, "MatMul").outputs[0], "Softmax").outputs[0]
        choice = next(usage.node for usage in probability.uses() if usage.node.op_type == "TopK")
        sizes, active = constant(split.inputs[1]), constant(choice.inputs[1])
        if gates is None or sizes is None or active is None:
            raise LoweringError(f"{name}: sizes of its experts are not constant")
        yield ExpertLayer(
            name=name,
            x=x,
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
    """The input of ``node`` that an ``op`` made."""
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if value is not None and producer is not None and producer.op_type == op:
            return value
    raise LoweringError(f"{node.op_type} {node.name!r} has no input from a {op}; the experts are traced otherwise")


class _Rewriter:
    """Puts nodes in place of one layer; every constant remembers the weight that it is cut from."""

    def __init__(self, graph: ir.Graph, layer: ExpertLayer) -> None:
        self.graph, self.layer = graph, layer
        self.insert = Inserter(graph, layer.last, f"{layer.name}/form")

    def cut(self, source: ir.Value, part: str, rows: slice, columns: slice) -> ir.Value:
        array = ExpertLayer.array(source)
        value = add_constant(self.graph, f"{source.name}.{part}", np.ascontiguousarray(array[rows, columns]))
        value.meta["origin"] = (str(source.name), rows)
        return value

    def ints(self, name: str, *values: int) -> ir.Value:
        return add_constant(self.graph, f"forms/{name}", np.array(values, dtype=np.int64))

    def scalar(self, value: int) -> ir.Value:
        return add_constant(self.graph, f"forms/number_{value}", np.array(value, dtype=np.int64))

    def expert(self, x: ir.Value, expert: int | None, gate: ir.Value | None = None) -> ir.Value:
        """One expert of rows (T, D) → (T, D), without its output bias, times ``gate`` (T, 1)."""
        layer, hidden, part = self.layer, self.layer.hidden(expert), "shared" if expert is None else f"e{expert}"
        bias = add_constant(self.graph, f"{layer.up_bias.name}.{part}", ExpertLayer.array(layer.up_bias)[hidden].copy())
        up = self.insert("Add", self.insert("MatMul", x, self.cut(layer.up, part, ALL, hidden)), bias)
        active = self.insert("Gelu", up, approximate="tanh")
        if gate is not None:
            active = self.insert("Mul", active, gate)
        return self.insert("MatMul", active, self.cut(layer.down, part, hidden, ALL))

    def flat(self, value: ir.Value, columns: int) -> ir.Value:
        """(B, S, columns) → (T, columns)."""
        return self.insert("Reshape", value, self.ints(f"rows_{columns}", -1, columns))

    def finish(self, rows: ir.Value) -> None:
        """(T, D) → (B, S, D), and out."""
        replace(self.layer.last, self.insert("Reshape", rows, self.insert("Shape", self.layer.x)))


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
        gates,  # picks the experts: those not chosen have gate zero
        *(up[0], up[1], add_constant(graph, f"{layer.up_bias.name}.fused", bias.copy())),
        *(down[0], down[1], None),
        *(None, None, None),
        *(up[2], down[2], None),
        gates,  # and weighs them, so that the router stays the traced one
        domain=CONTRIB,
        k=layer.active,
        activation_type="gelu",
        normalize_routing_weights=0,
        expert_weight_bits=BITS,
        block_size=recipe.block,
        accuracy_level=ACCURACY_LEVEL,
    )
    write.finish(write.insert("Add", shared, routed))


#: Quantises a matrix: name of the dense weight, its rows, values float32 (K, N).
Packer = Callable[[str, slice, Array], Blocks]
_Form = Callable[[ir.Graph, ExpertLayer, Recipe, Packer], Any]

_WRITERS: Mapping[str, _Form] = {"dense": lambda *_: None, "gathered": _gathered, "fused": _fused}


def best_form(layer: ExpertLayer, graph: str, recipe: Recipe) -> str:
    """The form of a layer in a graph: the recipe's, or the table's."""
    if recipe.experts is not None:
        if recipe.experts not in _WRITERS:
            raise InputError(f"unknown form of experts {recipe.experts!r}; choose one of: {', '.join(_WRITERS)}")
        return recipe.experts
    for choice in FORMS:
        if (choice.precision, choice.one_row) == (recipe.precision, graph in ONE_ROW) and layer.width >= choice.least_width:
            if choice.form == "fused" and (layer.width % recipe.block or layer.routed % recipe.block or layer.routed < recipe.smallest):
                continue  # QMoE wants whole blocks
            return choice.form
    return "dense"


def shape_experts(model: ir.Model, recipe: Recipe, pack: Packer) -> dict[str, str]:
    """Rewrite every mixture of a lowered graph, in place, into the form that is best for it; returns the form by name of the mixture.

    Args:
        model: from :func:`export.graph.lower.lower`, in fp32.
        recipe: of this graph.
        pack: quantises a routed expert's matrix, for "fused".
    """
    forms = {}
    for layer in list(expert_layers(model.graph)):
        forms[layer.name] = best_form(layer, str(model.graph.name), recipe)
        _WRITERS[forms[layer.name]](model.graph, layer, recipe, pack)
    return forms
