"""Quantization of fp32 graphs to int8 or int4 by a recipe (:mod:`export.quantize.recipes`).

**Linear layers** in int8 run W8A8 with one activation scale per row (a row is a token), so that a request's numbers do not depend on other
requests in the batch, and large activations of one token do not affect other tokens::

    m = max(ReduceMax(x), -ReduceMin(x), tiny)         # (…, 1)
    q = QuantizeLinear(x / m, 1/127, 128)              # uint8
    y = MatMulIntegerToFloat(q, W, 1/127, s, 128) * m  # W int8 (K, N), s per output channel

ONNX Runtime has no standard pattern with one scale per row that it fuses to this, so the com.microsoft operator is written directly.
Where ``Recipe.activations`` is "fixed", a layer's input has one scale and zero point from calibration, and the product adds its bias
itself: ``q = QuantizeLinear(x, a, z)``, ``y = MatMulIntegerToFloat(q, W, a, s, z, b)``.

**Saturation.**  On x86 without VNNI (AVX2, AVX-512 of before 2019, AMD before Zen 4) the uint8 x int8 kernel adds two products in 16 bits,
which overflow beyond 32767.  With weights in [-64, 64] they cannot: 2 · 255 · 64 = 32640.  So "int8" uses 7 bits for weights and gives the
same numbers on every machine; "int8-vnni" uses all 8 bits, for machines with VNNI, AVX10 or ARM dot products.

**Four bits** are for weights only (:mod:`export.quantize.weight_only`), by ``MatMulNBits``: decoding one token is bound by memory.

**Routers stay fp32** and read unquantized activations: choosing another expert costs more than coarse weights.  **Tables** (embeddings) are
int8 per row.  **Convolutions** are stored as int8 per output channel or as fp16 and computed in fp32; the runtime folds the conversion when
it loads.  :mod:`export.quantize.convolutions` computes them in int8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from export.graph.expert_kernels import ExpertLayer, apply_expert_kernels, is_expert_row, origin
from export.graph.lower import CONTRIB, Array, Inserter, LoweringError, add_constant, constant, replace
from export.quantize.convolutions import compute_in_int8, convolution_layers, range_of
from export.quantize.recipes import RECIPES, Recipe, recipe_named
from export.quantize.weight_only import ACCURACY_LEVEL, BITS, Blocks, to_blocks
from f2edge.errors import InputError

__all__ = ["RECIPES", "Calibration", "Recipe", "layer_name", "linear_layers", "products_of", "quantize", "recipe_named"]

#: fp32 constants from this size on are stored as fp16 in quantized graphs.
_LARGE_BYTES = 1 << 14
#: Lower bound of a row's maximum, which avoids division by zero.
TINY = 1e-9


def quantize_columns(weight: Array, limit: int) -> tuple[Array, Array]:
    """Quantize ``(K, N)`` to int8 codes in ``[-limit, limit]`` with one float32 scale per column ``(N,)``."""
    scale = np.maximum(np.abs(weight).max(axis=0), np.float32(1e-12)).astype(np.float32) / np.float32(limit)
    return np.rint(weight / scale).astype(np.int8), scale


def quantize_rows(table: Array) -> tuple[Array, Array]:
    """Quantize ``(R, D)`` to int8 codes with one float32 scale per row ``(R, 1)``."""
    codes, scale = quantize_columns(table.T, 127)
    return np.ascontiguousarray(codes.T), scale[:, None]


#: Activation statistics of linear layers by :func:`layer_name`: largest absolute activation of each input channel, float32 (K,); and under
#: :func:`products_of` that name Σ x xᵀ, float32 (K, K), if the recipe needs it.  Made by :class:`export.quantize.calibration.Calibrator`.
Calibration = Mapping[str, Array]


def products_of(layer: str) -> str:
    """Return the key of a layer's Σ x xᵀ in a :data:`Calibration`."""
    return f"{layer} (products)"


def layer_name(graph: ir.Graph, weight: ir.Value) -> str:
    """Return a layer's key in a :data:`Calibration`; layers that graphs of one transformer share have one key."""
    own = origin(weight)[0]
    shared = re.sub(r"^(model|stem)\.", "", own)
    return shared if shared != own else f"{graph.name}/{own}"


def linear_layers(graph: ir.Graph, recipe: Recipe) -> list[tuple[ir.Node, ir.Value, ir.Value, Array]]:
    """Return the ``MatMul`` nodes that ``recipe`` quantizes: node, input, weight and the weight's values."""
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
    """Return SmoothQuant's divisor of each input channel ``(K,)``, with geometric mean 1; inactive channels keep 1."""
    reach = np.abs(weight).max(axis=1)
    live = (largest > 0) & (reach > 0)
    ratio = np.ones_like(reach, dtype=np.float32)
    ratio[live] = largest[live] ** alpha / reach[live] ** (1 - alpha)
    if live.any():
        ratio[live] /= np.exp(np.log(ratio[live]).mean())
    return ratio.astype(np.float32)


class _Rows:
    """Quantized activation rows, computed once for all layers that read them."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[int, str], tuple[ir.Value, ir.Value]] = {}

    def of(self, x: ir.Value, node: ir.Node, divisor: Array | None = None, weight: str = "") -> tuple[ir.Value, ir.Value]:
        """Return uint8 codes of ``x`` and its row maxima, inserted before ``node`` (the first one that needs them).

        A smoothed layer divides by its own divisor, stored inverted as ``<weight>.smooth``, and does not share its rows.
        """
        key = (id(x), "" if divisor is None else weight)
        picked = _picked_rows(x) if divisor is None else None
        if key not in self._made and picked is not None:
            parts, insert = self.of(picked[0], node), Inserter(self._graph, node, f"{x.name}/picked")
            self._made[key] = (insert("Gather", parts[0], picked[1], axis=0), insert("Gather", parts[1], picked[1], axis=0))
        if key not in self._made:
            graph, insert = self._graph, Inserter(self._graph, node, f"{x.name}/rows{len(self._made)}")
            # (n, K), and n may be 0: ONNX Runtime's ReduceMax then gives (0, K) for axis -1, but (0, 1) for axis 1
            name, axis = ("rows/second_axis", 1) if is_expert_row(x) else ("rows/last_axis", -1)
            if divisor is not None:
                x = insert("Mul", x, add_constant(graph, f"{weight}.smooth", 1 / divisor))
            axes = add_constant(graph, name, np.array([axis], dtype=np.int64))
            highest, lowest = (insert(op, x, axes, keepdims=1) for op in ("ReduceMax", "ReduceMin"))
            largest = insert("Max", highest, insert("Neg", lowest), add_constant(graph, "rows/tiny", np.array(TINY, dtype=np.float32)))
            codes = insert("QuantizeLinear", insert("Div", x, largest), *_row_scale(graph))
            self._made[key] = (codes, largest)
        return self._made[key]


def _picked_rows(x: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Return (rows, indices) if ``x`` gathers rows of another value, which is then quantized once for all gathers."""
    node = x.producer()
    if node is None or node.op_type != "Gather" or not is_expert_row(x) or node.inputs[0] is None or node.inputs[1] is None:
        return None
    return node.inputs[0], node.inputs[1]


def _row_scale(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """Return scale and zero point of a row that was divided by its maximum."""
    return (
        add_constant(graph, "rows/scale", np.array(1 / 127, dtype=np.float32)),
        add_constant(graph, "rows/zero_point", np.array(128, dtype=np.uint8)),
    )


class _Fixed:
    """Inputs of linear layers quantized by fixed scales, once for all layers that read them."""

    def __init__(self, graph: ir.Graph, recipe: Recipe, calibration: Calibration) -> None:
        self._graph, self._recipe, self._calibration = graph, recipe, calibration
        self._made: dict[int, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def of(self, x: ir.Value, node: ir.Node, layer: str) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return uint8 codes of ``x``, their scale and zero point, inserted before ``node`` (the first one that needs them)."""
        if id(x) not in self._made:
            key = range_of(own_name(self._graph, layer))
            if key not in self._calibration:
                raise _uncalibrated(self._recipe, self._graph, layer)
            low, high = (float(end) for end in self._calibration[key])
            step = np.float32(max(high - low, TINY) / 255)
            scale = add_constant(self._graph, f"{layer}.input.scale", np.array(step))
            zero = add_constant(self._graph, f"{layer}.input.zero", np.array(np.clip(np.rint(-low / step), 0, 255), dtype=np.uint8))
            self._made[id(x)] = Inserter(self._graph, node, f"{x.name}/fixed")("QuantizeLinear", x, scale, zero), scale, zero
        return self._made[id(x)]


def own_name(graph: ir.Graph, layer: str) -> str:
    """Return a layer's key in a :data:`Calibration` for what each graph sees of its own."""
    return layer if layer.startswith(f"{graph.name}/") else f"{graph.name}/{layer}"


def _fixed_product(graph: ir.Graph, layer: tuple[ir.Node, ir.Value, ir.Value, Array], recipe: Recipe, fixed: _Fixed) -> None:
    """Replace a product, and the sum with its bias where there is one, by one with a fixed scale of its input."""
    node, x, source, weight = layer
    codes, scale = quantize_columns(weight, recipe.weight_limit)
    quantized, step, zero = fixed.of(x, node, layer_name(graph, source))
    total, bias = _biased(node)
    name = total.outputs[0].name  # parity is measured on "logits"
    product = Inserter(graph, node, node.name or str(node.outputs[0].name))(
        "MatMulIntegerToFloat",
        quantized,
        add_constant(graph, f"{source.name}.int8", codes),
        step,
        add_constant(graph, f"{source.name}.scale", scale),
        zero,
        *(() if bias is None else (None, bias)),
        domain=CONTRIB,
    )
    replace(total, product)
    product.name = name


def _linear_layers(graph: ir.Graph, recipe: Recipe, calibration: Calibration) -> None:
    rows, fixed = _Rows(graph), _Fixed(graph, recipe, calibration)
    for layer in linear_layers(graph, recipe):
        node, x, source, values = layer
        if recipe.activations == "fixed":
            _fixed_product(graph, layer, recipe, fixed)
            continue
        if recipe.precision == "int4" and not (recipe.higher and re.search(recipe.higher, layer_name(graph, source))):
            _four_bits(graph, node, source, _blocks(graph, recipe, calibration, source, values), recipe)
            continue
        divisor, weight, name = None, values, layer_name(graph, source)
        if recipe.smooth is not None:
            if name not in calibration:
                raise _uncalibrated(recipe, graph, name)
            divisor = smoothing(weight, calibration[name][origin(source)[1]], recipe.smooth)
            weight = weight * divisor[:, None]
        codes, scale = quantize_columns(weight, recipe.weight_limit)
        quantized, largest = rows.of(x, node, divisor, str(source.name))
        row_scale, zero_point = _row_scale(graph)
        insert = Inserter(graph, node, node.name or str(node.outputs[0].name))
        product = insert(
            "MatMulIntegerToFloat",
            quantized,
            add_constant(graph, f"{source.name}.int8", codes),
            row_scale,
            add_constant(graph, f"{source.name}.scale", scale),
            zero_point,
            domain=CONTRIB,
        )
        replace(node, insert("Mul", product, largest))


def _uncalibrated(recipe: Recipe, graph: ir.Graph, layer: str) -> InputError:
    return InputError(
        f"recipe {recipe.name!r}: no calibration statistics for {layer} of graph {graph.name!r}; calibrate with prompts, questions and "
        "pictures, or choose a recipe without calibration ('int8', 'int4')"
    )


def _blocks(graph: ir.Graph, recipe: Recipe, calibration: Calibration, source: ir.Value, values: Array) -> Blocks:
    """Quantize a weight to four bits."""
    products, rows = calibration.get(products_of(layer_name(graph, source))), origin(source)[1]
    if recipe.method != "rtn" and products is None:
        raise _uncalibrated(recipe, graph, layer_name(graph, source))
    return to_blocks(values, recipe.block, recipe.method, None if products is None else products[rows, rows])


def _four_bits(graph: ir.Graph, node: ir.Node, source: ir.Value, blocks: Blocks, recipe: Recipe) -> None:
    """Replace a product, and the sum with its bias where there is one, by ``MatMulNBits``."""
    K, N = ExpertLayer.array(source).shape
    total, bias = _biased(node)
    product = Inserter(graph, node, node.name or str(node.outputs[0].name))(
        "MatMulNBits",
        node.inputs[0],
        *(add_constant(graph, f"{source.name}.int4.{part}", getattr(blocks, part)) for part in ("codes", "scales", "zeros")),
        *(() if bias is None else (None, bias)),
        domain=CONTRIB,
        K=K,
        N=N,
        bits=BITS,
        block_size=recipe.block,
        accuracy_level=ACCURACY_LEVEL,
    )
    name = total.outputs[0].name  # parity is measured on "logits"
    replace(total, product)
    product.name = name


def _biased(product: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """Return the node that adds a constant to each output of a product, and that constant; the product itself where there is none."""
    made, users = product.outputs[0], [usage.node for usage in product.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type == "Add" and not made.is_graph_output():
        (bias,) = (value for value in users[0].inputs if value is not made)
        values, weight = constant(bias), constant(product.inputs[1])
        if values is not None and weight is not None and values.shape == weight.shape[1:]:
            return users[0], bias
    return product, None


def _tables(graph: ir.Graph, recipe: Recipe) -> None:
    for node in list(graph):
        axis = node.attributes.get("axis")
        if node.op_type != "Gather" or (axis is not None and axis.as_int() != 0):
            continue
        table, source = constant(node.inputs[0]), node.inputs[0]
        if table is None or source is None or table.ndim != 2 or table.dtype != np.float32 or min(table.shape) < recipe.smallest:
            continue
        codes, scale = quantize_rows(table)
        insert = Inserter(graph, node, node.name or str(node.outputs[0].name))
        picked = insert("Gather", add_constant(graph, f"{source.name}.int8", codes), node.inputs[1], axis=0)
        scales = insert("Gather", add_constant(graph, f"{source.name}.scale", scale), node.inputs[1], axis=0)
        replace(node, insert("Mul", insert("Cast", picked, to=ir.DataType.FLOAT), scales))


def _convolution_codes(weight: Array, transposed: bool) -> tuple[Array, Array]:
    """Return int8 codes of a convolution weight and one scale per output channel, shaped to broadcast."""
    axes = (0, *range(2, weight.ndim)) if transposed else tuple(range(1, weight.ndim))
    scale = np.maximum(np.abs(weight).max(axis=axes, keepdims=True), np.float32(1e-12)).astype(np.float32) / np.float32(127)
    return np.rint(weight / scale).astype(np.int8), scale


def _convolutions(graph: ir.Graph, recipe: Recipe) -> None:
    for node in list(graph):
        if node.op_type not in ("Conv", "ConvTranspose"):  # one that is computed in int8 is a QLinearConv by now
            continue
        weight, source = constant(node.inputs[1]), node.inputs[1]
        if weight is None or source is None or weight.dtype != np.float32:
            continue
        insert = Inserter(graph, node, node.name or str(node.outputs[0].name))
        if recipe.convolutions == "float16":
            unfolded = insert("Cast", add_constant(graph, f"{source.name}.float16", weight.astype(np.float16)), to=ir.DataType.FLOAT)
        else:
            codes, scale = _convolution_codes(weight, node.op_type == "ConvTranspose")
            whole = insert("Cast", add_constant(graph, f"{source.name}.int8", codes), to=ir.DataType.FLOAT)
            unfolded = insert("Mul", whole, add_constant(graph, f"{source.name}.scale", scale))
        node.replace_input_with(1, unfolded)


def _computed_convolutions(graph: ir.Graph, recipe: Recipe, calibration: Calibration) -> None:
    for layer in convolution_layers(graph, recipe):
        name = layer_name(graph, layer[2])
        if range_of(name) not in calibration:
            raise _uncalibrated(recipe, graph, name)
        compute_in_int8(graph, layer, calibration[range_of(name)], recipe.weight_limit)


def _large_constants(graph: ir.Graph, recipe: Recipe) -> None:
    """Store the remaining large fp32 constants (positions, queries, narrow linear maps) as fp16, cast to fp32 when read."""
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


def quantize(model: ir.Model, recipe: Recipe, calibration: Calibration | None = None) -> ir.Model:
    """Apply ``recipe`` to a lowered graph in place and return it.

    Args:
        model: graph from :func:`export.graph.lower.lower`.
        recipe: one of :data:`export.quantize.recipes.RECIPES`; if it names another recipe for this graph, that one is applied.
        calibration: activation statistics, for recipes that are ``calibrated``.

    Raises:
        InputError: the recipe needs calibration statistics that are missing.
        LoweringError: two different constants have one name, or a mixture of experts has an unknown structure.
    """
    graph = model.graph
    recipe, statistics = recipe.of(str(graph.name)), calibration or {}
    if recipe.smooth is not None and not statistics:
        raise InputError(f"recipe {recipe.name!r} smooths activations and needs calibration statistics; calibrate first or choose 'int8'")

    def pack(name: str, rows: slice, values: Array) -> Blocks:
        value = ir.val(name)
        value.meta["origin"] = (name, rows)
        return _blocks(graph, recipe, statistics, value, values)

    apply_expert_kernels(model, recipe, pack)
    steps: list[Callable[[], None]] = []
    if recipe.tables:
        steps.append(lambda: _tables(graph, recipe))
    if recipe.precision != "float32":
        steps.append(lambda: _linear_layers(graph, recipe, statistics))
    if recipe.convolutions == "computed":
        steps.append(lambda: _computed_convolutions(graph, recipe, statistics))
    if recipe.convolutions != "float32":
        steps.append(lambda: _convolutions(graph, recipe))
    if recipe.tables:
        steps.append(lambda: _large_constants(graph, recipe))
    for step in steps:
        step()
    graph.opset_imports[CONTRIB] = 1
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    if recipe.precision != "float32" and any(node.op_type == "Gemm" for node in graph):
        raise LoweringError(f"graph {graph.name!r}: a Gemm survived lowering and would stay fp32; run export.graph.lower.lower first")
    return model
