"""Quantisation: fp32 graphs to int8, one rule for every linear layer, table and convolution.

**Linear layers** run W8A8 with one activation scale per row (a row is a token), so that a request's numbers never depend on its batch mates
and a token with large activations spoils no other::

    m = max(ReduceMax(|x|), tiny)                      # (…, 1)
    q = QuantizeLinear(x / m, 1/127, 128)              # uint8
    y = MatMulIntegerToFloat(q, W, 1/127, s, 128) * m  # W int8 (K, N), s per output channel

ONNX Runtime fuses the middle line from no standard pattern that keeps rows apart, so the com.microsoft operator is written directly.

**Saturation.**  On x86 without VNNI (AVX2, AVX-512 of before 2019, AMD before Zen 4) the uint8 x int8 kernel adds two products in 16 bits,
which overflow beyond 32767.  With weights in [-64, 64] they cannot: 2 · 255 · 64 = 32640.  So "int8" keeps weights in 7 bits and gives the
same numbers on every machine; "int8-vnni" uses all of 8 bits for machines known to have VNNI, AVX10 or ARM dot products.

**Routers stay fp32** and see unquantised activations: a flipped expert costs more than a coarse one.  **Tables** (embeddings) are int8 per
row.  **Convolutions** are stored as int8 per output channel, or as fp16, and computed in fp32: constants that the runtime unfolds when it
loads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from export.lower import CONTRIB, Array, Inserter, LoweringError, add_constant, constant, replace
from f2edge.errors import InputError

#: fp32 constants from this size on are stored as fp16 in quantised graphs.
_LARGE_BYTES = 1 << 14
#: Rows smaller than this are taken as zero.
TINY = 1e-9


@dataclass(frozen=True)
class Recipe:
    """How the constants of a graph are stored and computed.

    Attributes:
        name: as it stands in the manifest.
        precision: "float32" or "int8": of the linear layers.
        weight_limit: largest weight code; 127 is all of int8, 64 is safe without VNNI.
        tables: whether embedding tables are int8 per row.
        convolutions: how convolution weights are stored: "float32", "float16" or "int8".
        smooth: SmoothQuant's alpha (arXiv 2211.10438) for linear layers with calibration figures, or None.
        keep: constants whose name matches stay fp32.
        smallest: linear layers and tables with fewer rows or columns than this stay fp32: nothing to win.
    """

    name: str
    precision: str = "int8"
    weight_limit: int = 64
    tables: bool = True
    convolutions: str = "int8"
    smooth: float | None = None
    keep: str = r"router"
    smallest: int = 32


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp32", precision="float32", tables=False, convolutions="float32"),
        Recipe("int8"),
        Recipe("int8-vnni", weight_limit=127),
        Recipe("int8-smooth", smooth=0.5),
        Recipe("int8-fp16conv", convolutions="float16"),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe called ``name``; an unknown name raises :class:`InputError` with the known ones."""
    if name not in RECIPES:
        raise InputError(f"unknown quantisation recipe {name!r}; choose one of: {', '.join(RECIPES)}")
    return RECIPES[name]


def quantise_columns(weight: Array, limit: int) -> tuple[Array, Array]:
    """``(K, N)`` → int8 codes in ``[-limit, limit]`` of the same shape and one float32 scale per column ``(N,)``."""
    scale = np.maximum(np.abs(weight).max(axis=0), np.float32(1e-12)).astype(np.float32) / np.float32(limit)
    return np.rint(weight / scale).astype(np.int8), scale


def quantise_rows(table: Array) -> tuple[Array, Array]:
    """``(R, D)`` → int8 codes and one float32 scale per row ``(R, 1)``."""
    codes, scale = quantise_columns(table.T, 127)
    return np.ascontiguousarray(codes.T), scale[:, None]


#: Largest absolute activation of each input channel of a linear layer, by :func:`layer_name` of its weight: float32 ``(K,)``.
Calibration = Mapping[str, Array]


def layer_name(graph: ir.Graph, weight: ir.Value) -> str:
    """Name of a layer in a :data:`Calibration`.  Graphs of one transformer share weights, so its layers have one name in all of them."""
    own, shared = str(weight.name), re.sub(r"^(model|stem)\.", "", str(weight.name))
    return shared if shared != own else f"{graph.name}/{own}"


def linear_layers(graph: ir.Graph, recipe: Recipe) -> list[tuple[ir.Node, ir.Value, ir.Value, Array]]:
    """The ``MatMul`` nodes that ``recipe`` quantises: node, input, weight and the weight's values."""
    found = []
    for node in graph:
        if node.op_type != "MatMul" or node.domain:
            continue
        x, source = node.inputs
        weight = constant(source)
        if weight is None or source is None or x is None or weight.ndim != 2 or weight.dtype != np.float32:
            continue
        if min(weight.shape) >= recipe.smallest and not re.search(recipe.keep, str(source.name)):
            found.append((node, x, source, weight))
    return found


def smoothing(weight: Array, largest: Array, alpha: float) -> Array:
    """SmoothQuant's divisor of each input channel ``(K,)``, mean 1 in the logarithm; channels that never fire keep 1."""
    reach = np.abs(weight).max(axis=1)
    live = (largest > 0) & (reach > 0)
    ratio = np.ones_like(reach, dtype=np.float32)
    ratio[live] = largest[live] ** alpha / reach[live] ** (1 - alpha)
    if live.any():
        ratio[live] /= np.exp(np.log(ratio[live]).mean())
    return ratio.astype(np.float32)


class _Rows:
    """Quantised rows of activations, each made once however many layers read it."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[int, str], tuple[ir.Value, ir.Value]] = {}

    def of(self, x: ir.Value, node: ir.Node, divisor: Array | None = None, weight: str = "") -> tuple[ir.Value, ir.Value]:
        """uint8 codes of ``x`` and its row maxima, added in front of ``node`` (the first one that needs them).

        A layer that is smoothed divides by its own numbers, kept as ``<weight>.smooth`` (inverted), and shares its rows with no other.
        """
        key = (id(x), "" if divisor is None else weight)
        if key not in self._made:
            graph, insert = self._graph, Inserter(self._graph, node, f"{x.name}/rows{len(self._made)}")
            if divisor is not None:
                x = insert("Mul", x, add_constant(graph, f"{weight}.smooth", 1 / divisor))
            last = add_constant(graph, "rows/last_axis", np.array([-1], dtype=np.int64))
            largest = insert("ReduceMax", insert("Abs", x), last, keepdims=1)
            largest = insert("Max", largest, add_constant(graph, "rows/tiny", np.array(TINY, dtype=np.float32)))
            codes = insert("QuantizeLinear", insert("Div", x, largest), *_row_scale(graph))
            self._made[key] = (codes, largest)
        return self._made[key]


def _row_scale(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point of a row divided by its largest value."""
    return (
        add_constant(graph, "rows/scale", np.array(1 / 127, dtype=np.float32)),
        add_constant(graph, "rows/zero_point", np.array(128, dtype=np.uint8)),
    )


def _linear_layers(graph: ir.Graph, recipe: Recipe, calibration: Calibration) -> None:
    rows = _Rows(graph)
    for node, x, source, values in linear_layers(graph, recipe):
        divisor, weight, name = None, values, layer_name(graph, source)
        if recipe.smooth is not None and name in calibration:
            divisor = smoothing(weight, calibration[name], recipe.smooth)
            weight = weight * divisor[:, None]
        codes, scale = quantise_columns(weight, recipe.weight_limit)
        quantised, largest = rows.of(x, node, divisor, str(source.name))
        row_scale, zero_point = _row_scale(graph)
        insert = Inserter(graph, node, node.name or name)
        product = insert(
            "MatMulIntegerToFloat",
            quantised,
            add_constant(graph, f"{source.name}.int8", codes),
            row_scale,
            add_constant(graph, f"{source.name}.scale", scale),
            zero_point,
            domain=CONTRIB,
        )
        replace(node, insert("Mul", product, largest))


def _tables(graph: ir.Graph, recipe: Recipe) -> None:
    for node in list(graph):
        axis = node.attributes.get("axis")
        if node.op_type != "Gather" or (axis is not None and axis.as_int() != 0):
            continue
        table, source = constant(node.inputs[0]), node.inputs[0]
        if table is None or source is None or table.ndim != 2 or table.dtype != np.float32 or min(table.shape) < recipe.smallest:
            continue
        codes, scale = quantise_rows(table)
        insert = Inserter(graph, node, node.name or "table")
        picked = insert("Gather", add_constant(graph, f"{source.name}.int8", codes), node.inputs[1], axis=0)
        scales = insert("Gather", add_constant(graph, f"{source.name}.scale", scale), node.inputs[1], axis=0)
        replace(node, insert("Mul", insert("Cast", picked, to=ir.DataType.FLOAT), scales))


def _convolution_codes(weight: Array, transposed: bool) -> tuple[Array, Array]:
    """int8 codes of a convolution weight and one scale per output channel, shaped to multiply with it."""
    axes = (0, *range(2, weight.ndim)) if transposed else tuple(range(1, weight.ndim))
    scale = np.maximum(np.abs(weight).max(axis=axes, keepdims=True), np.float32(1e-12)).astype(np.float32) / np.float32(127)
    return np.rint(weight / scale).astype(np.int8), scale


def _convolutions(graph: ir.Graph, recipe: Recipe) -> None:
    for node in list(graph):
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        weight, source = constant(node.inputs[1]), node.inputs[1]
        if weight is None or source is None or weight.dtype != np.float32:
            continue
        insert = Inserter(graph, node, node.name or node.op_type)
        if recipe.convolutions == "float16":
            unfolded = insert("Cast", add_constant(graph, f"{source.name}.float16", weight.astype(np.float16)), to=ir.DataType.FLOAT)
        else:
            codes, scale = _convolution_codes(weight, node.op_type == "ConvTranspose")
            whole = insert("Cast", add_constant(graph, f"{source.name}.int8", codes), to=ir.DataType.FLOAT)
            unfolded = insert("Mul", whole, add_constant(graph, f"{source.name}.scale", scale))
        node.replace_input_with(1, unfolded)


def _large_constants(graph: ir.Graph, recipe: Recipe) -> None:
    """Store what is left of the large fp32 constants (positions, queries, maps of few rows) as fp16; they are read as fp32."""
    widened: dict[int, ir.Value] = {}
    for node in list(graph):
        for place, source in enumerate(node.inputs):
            values = constant(source)
            if values is None or source is None or values.dtype != np.float32 or values.nbytes < _LARGE_BYTES:
                continue
            name = str(source.name)
            if name.endswith(".scale") or re.search(recipe.keep, name):
                continue
            if id(source) not in widened:
                insert = Inserter(graph, node, name)
                half = add_constant(graph, f"{name}.float16", values.astype(np.float16))
                widened[id(source)] = insert("Cast", half, to=ir.DataType.FLOAT)
            node.replace_input_with(place, widened[id(source)])


def quantise(model: ir.Model, recipe: Recipe, calibration: Calibration | None = None) -> ir.Model:
    """Apply ``recipe`` to a lowered graph; the same object, edited in place.

    Args:
        model: from :func:`export.lower.lower`.
        recipe: one of :data:`RECIPES`.
        calibration: needed by recipes with ``smooth``.

    Raises:
        InputError: a smoothing recipe without calibration figures.
        LoweringError: a constant appears under one name with two values.
    """
    if recipe.smooth is not None and not calibration:
        raise InputError(f"recipe {recipe.name!r} smooths activations and needs calibration figures; give some or choose 'int8'")
    graph = model.graph
    steps: list[Callable[[], None]] = []
    if recipe.tables:
        steps.append(lambda: _tables(graph, recipe))
    if recipe.precision == "int8":
        steps.append(lambda: _linear_layers(graph, recipe, calibration or {}))
    if recipe.convolutions != "float32":
        steps.append(lambda: _convolutions(graph, recipe))
    if recipe.tables:
        steps.append(lambda: _large_constants(graph, recipe))
    for step in steps:
        step()
    graph.opset_imports[CONTRIB] = 1
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    if recipe.precision == "int8" and any(node.op_type == "Gemm" for node in graph):
        raise LoweringError(f"graph {graph.name!r}: a Gemm survived lowering and would stay fp32; run export.lower.lower first")
    return model
