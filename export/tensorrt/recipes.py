"""Recipes of the TensorRT flavour: explicit Q/DQ around the linear layers of a lowered fp32 graph.

| recipe | weights | activations | for |
|---|---|---|---|
| fp16 | fp16 | fp16 | everywhere; the only one for the plug-in's stacked experts |
| int8 | int8 per output channel | int8 per tensor, calibrated | many tokens at once: prefill, decoding steps; SM 75 and later |
| int4 | int4 in blocks of 128 or 64 along the input axis | fp16 | one token at a time; SM 80 and later |
| int4-gptq | the same, rounded by GPTQ with calibration | fp16 | the same |
| fp8 | E4M3 per tensor | E4M3 per tensor, calibrated | SM 89 and later |
| nvfp4 | E2M1 in blocks of 16, two levels of scales | the same, block scales computed | SM 100 and later, TensorRT 10.8 and later |

TensorRT needs constant scales, so activations have one scale per tensor instead of one per row as in the "onnxruntime" flavour.  Requests
still do not affect each other, because the scale is constant.  SmoothQuant (arXiv 2211.10438) compensates for channels of different
magnitude: int8 and fp8 divide activations by a vector per layer and multiply the weights by it.

INT4 has blocks of 64 or 128 only (NVIDIA's guide, "Quantization Schemes").  A layer whose inputs have no such blocks stays fp16.  A layer
with an odd number of outputs (the head over Phi's vocabulary of 50295) is padded to a multiple of 64 with every recipe: INT4 packs two
codes a byte, and half-precision products need aligned rows to use tensor cores.

INT4 weights are written as ``TRT_INT4DequantizeLinear`` (domain "trt"), which TensorRT 10.0 and later read in a graph of opset 20.  The
standard ``DequantizeLinear`` has INT4 and blocks from opset 21 on, which 10.3 may not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from export.graph.expert_kernels import origin
from export.graph.lower import Array, Inserter, add_constant, replace
from export.quantize.quantize import Calibration, Recipe, layer_name, linear_layers, products_of, quantize_columns, smoothing
from export.quantize.weight_only import symmetric_blocks
from export.tensorrt import nvfp4
from f2edge.errors import InputError
from f2edge.spec.graphs import SIGNATURES

TRT_DOMAIN = "trt"
INT4_OP = "TRT_INT4DequantizeLinear"
#: Sizes of INT4's blocks, the preferred one first, and the multiple that an odd number of outputs is padded to.
INT4_BLOCKS, PADDED = (128, 64), 64
#: Recipes that quantize weights only.
WEIGHT_ONLY = ("int4", "int4-gptq")
#: Largest values of E4M3 and of a symmetric 4-bit integer.
_LARGEST_FP8, _LARGEST_INT4 = 448.0, 7
#: Candidate ranges of a block, as fractions of its largest weight.
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


@dataclass(frozen=True)
class TensorRTRecipe:
    """Storage and arithmetic of linear layers.

    Attributes:
        name: name in the manifest.
        calibrated: whether it needs calibration statistics.
        smooth: SmoothQuant's alpha, or None.
        method: rounding of INT4: "rtn" to nearest, "gptq" by calibration.
        since: oldest TensorRT that reads its graphs.
        keep: pattern of weight names that stay fp32.
        smallest: layers with fewer rows or columns stay fp16.
    """

    name: str
    calibrated: bool = False
    smooth: float | None = None
    method: str = "rtn"
    since: tuple[int, int] = (10, 3)
    keep: str = "router"
    smallest: int = 32


RECIPES: Mapping[str, TensorRTRecipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            TensorRTRecipe("fp16"),
            TensorRTRecipe("int8", calibrated=True, smooth=0.5),
            TensorRTRecipe("int4"),
            TensorRTRecipe("int4-gptq", calibrated=True, method="gptq"),
            TensorRTRecipe("fp8", calibrated=True, smooth=0.5),
            TensorRTRecipe("nvfp4", calibrated=True, smooth=0.5, since=(10, 8)),
        )
    }
)
#: Graphs whose linear layers are quantized; encoders and the image tokenizer are convolutional and stay fp16.
TRANSFORMER_GRAPHS = ("t2i_prefill", "t2i_step", "mmu_prefill", "mmu_extend")


def recipes_of(text: str) -> dict[str, TensorRTRecipe]:
    """Parse "int8" or "int8,mmu_extend=int4": a recipe for the transformer's graphs, and exceptions by graph.

    Returns:
        Graph name → recipe; graphs outside the transformer have fp16.

    Raises:
        InputError: an unknown recipe or graph.
    """
    chosen = dict.fromkeys(SIGNATURES, RECIPES["fp16"])
    for part in text.split(","):
        name, _, recipe = part.strip().rpartition("=")
        if recipe not in RECIPES:
            raise InputError(f"unknown recipe {recipe!r} of the tensorrt flavour; choose one of: {', '.join(RECIPES)}")
        if name and name not in TRANSFORMER_GRAPHS:
            raise InputError(f"recipe for unknown graph {name!r}; choose one of: {', '.join(TRANSFORMER_GRAPHS)}")
        chosen |= dict.fromkeys((name,) if name else TRANSFORMER_GRAPHS, RECIPES[recipe])
    return chosen


def layers_of(recipe: TensorRTRecipe) -> Recipe:
    """Return a recipe that selects the same layers for :func:`export.quantize.quantize.linear_layers` and calibration."""
    precision = "int4" if recipe.method == "gptq" else "int8"
    return Recipe(recipe.name, precision, keep=recipe.keep, smallest=recipe.smallest, smooth=recipe.smooth, method=recipe.method)


def calibrating(recipes: Iterable[TensorRTRecipe]) -> Recipe | None:
    """Return one recipe whose calibration serves all of these; None if none needs any."""
    needed = [recipe for recipe in recipes if recipe.calibrated]
    return layers_of(next((recipe for recipe in needed if recipe.method == "gptq"), needed[0])) if needed else None


def quantize_blocks(weight: Array, block: int) -> tuple[Array, Array]:
    """Quantize ``(K, N)`` to symmetric INT4: codes in [-7, 7] and scales ``(K / block, N)`` of least squared error per block."""
    K, N = weight.shape
    blocks = weight.reshape(K // block, block, N)
    largest = np.maximum(np.abs(blocks).max(axis=1), np.float32(1e-6))  # fp16 scales must not be zero
    best = np.full(largest.shape, np.inf, dtype=np.float32)
    scale = np.empty_like(largest)
    for shrink in _SHRINKS:
        tried = (largest * np.float32(shrink / _LARGEST_INT4)).astype(np.float16).astype(np.float32)
        codes = np.clip(np.rint(blocks / tried[:, None]), -_LARGEST_INT4, _LARGEST_INT4)
        error = ((codes * tried[:, None] - blocks) ** 2).sum(axis=1)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, tried, scale)
    codes = np.clip(np.rint(blocks / scale[:, None]), -_LARGEST_INT4, _LARGEST_INT4)
    return codes.reshape(K, N).astype(np.int8), scale


def _int4(insert: Inserter, name: str, weight: Array, products: Array | None) -> ir.Value | None:
    """Insert the dequantized INT4 weight, rounded by GPTQ where ``products`` are given; return None if its shape does not allow INT4."""
    K, N = weight.shape
    block = next((block for block in INT4_BLOCKS if K % block == 0), None)
    if N % 2 or block is None:
        return None
    codes, scale = quantize_blocks(weight, block) if products is None else symmetric_blocks(weight, block, products)
    packed = add_constant(insert.graph, f"{name}.int4", codes.astype(ml_dtypes.int4))
    return insert(INT4_OP, packed, add_constant(insert.graph, f"{name}.scale", scale), domain=TRT_DOMAIN, axis=0, block_size=block)


def _int8(insert: Inserter, name: str, weight: Array) -> ir.Value:
    codes, scale = quantize_columns(weight, 127)
    scales = add_constant(insert.graph, f"{name}.scale", np.maximum(scale, np.float32(1e-6)))
    return insert("DequantizeLinear", add_constant(insert.graph, f"{name}.int8", codes), scales, axis=1)


def _fp8(insert: Inserter, name: str, weight: Array) -> ir.Value:
    scale = np.float32(max(float(np.abs(weight).max()), 1e-3) / _LARGEST_FP8)
    codes = add_constant(insert.graph, f"{name}.fp8", (weight / scale).astype(ml_dtypes.float8_e4m3fn))
    return insert("DequantizeLinear", codes, add_constant(insert.graph, f"{name}.scale", np.array(scale)))


def _activations(insert: Inserter, x: ir.Value, largest: float, name: str, recipe: TensorRTRecipe) -> ir.Value:
    """Insert the quantization of ``x`` and its inverse, with one constant scale for the tensor."""
    if recipe.name == "nvfp4":
        return nvfp4.quantized_activation(insert, x, largest, name)
    if recipe.name == "int8":
        limit, zero = 127.0, np.array(0, dtype=np.int8)
    else:
        limit, zero = _LARGEST_FP8, np.array(0, dtype=ml_dtypes.float8_e4m3fn)
    scale = add_constant(insert.graph, f"{name}.input_scale", np.array(max(largest, 1e-3) / limit, dtype=np.float32))
    zero_point = add_constant(insert.graph, f"{recipe.name}/zero", zero)
    return insert("DequantizeLinear", insert("QuantizeLinear", x, scale, zero_point), scale, zero_point)


def _both(insert: Inserter, node: ir.Node, weight: Array, recipe: TensorRTRecipe, largest: Array | None) -> None:
    """Insert Q/DQ on weight and activation of one layer."""
    x, source = node.inputs
    assert x is not None
    assert source is not None
    name = str(source.name)
    if largest is None:
        raise InputError(f"recipe {recipe.name!r}: no calibration statistics for {name}; calibrate with inputs that reach every graph")
    if recipe.smooth is not None:
        divisor = smoothing(weight, largest, recipe.smooth)
        given = x.shape
        x = insert("Mul", x, add_constant(insert.graph, f"{name}.smooth", 1 / divisor))
        x.shape = given
        largest, weight = largest / divisor, weight * divisor[:, None]
    node.replace_input_with(0, _activations(insert, x, float(largest.max()), name, recipe))
    made = {"int8": _int8, "fp8": _fp8, "nvfp4": nvfp4.quantized_weight}[recipe.name]
    node.replace_input_with(1, made(insert, name, weight))


def _pad_odd_outputs(graph: ir.Graph, recipe: TensorRTRecipe) -> None:
    """Pad linear layers with an odd number of outputs N by zeros, and cut the result to N again."""
    for node, _, source, weight in linear_layers(graph, layers_of(recipe)):
        N = weight.shape[1]
        if N % 2 == 0:
            continue
        padded = add_constant(graph, f"{source.name}.padded", np.pad(weight, ((0, 0), (0, -N % PADDED))))
        padded.meta["origin"] = origin(source)
        insert = Inserter(graph, node, f"{node.name or source.name}/padded")
        ends = [add_constant(graph, f"padded/{number}", np.array([number], dtype=np.int64)) for number in (0, N, -1)]
        product = insert("MatMul", node.inputs[0], padded)
        made = insert("Slice", product, *ends)
        for value in (product, made):
            value.type = node.outputs[0].type
        made.shape = node.outputs[0].shape
        replace(node, made)


def _products(recipe: TensorRTRecipe, layer: str, source: ir.Value, calibration: Calibration) -> Array | None:
    """Return Σ x xᵀ over the inputs of a layer for GPTQ; None where the recipe rounds to nearest."""
    if recipe.method != "gptq":
        return None
    if products_of(layer) not in calibration:
        raise InputError(f"recipe {recipe.name!r}: no calibration statistics for {layer}; calibrate with inputs that reach every graph")
    rows = origin(source)[1]
    return calibration[products_of(layer)][rows, rows]


def quantize_tensorrt(model: ir.Model, recipe: TensorRTRecipe, calibration: Calibration | None = None) -> ir.Model:
    """Insert Q/DQ around the linear layers of a lowered fp32 graph in place, without changing its types; return the model.

    Args:
        model: graph from :func:`export.graph.lower.lower`; :func:`export.tensorrt.half_precision.to_half` is applied afterwards.
        recipe: one of :data:`RECIPES`.
        calibration: largest activations by layer, for recipes that are calibrated.

    Raises:
        InputError: calibration statistics of a layer are missing.
    """
    graph = model.graph
    _pad_odd_outputs(graph, recipe)
    for node, _, source, weight in linear_layers(graph, layers_of(recipe)) if recipe.name != "fp16" else []:
        insert, layer = Inserter(graph, node, node.name or str(source.name)), layer_name(graph, source)
        if recipe.name in WEIGHT_ONLY:
            dequantized = _int4(insert, str(source.name), weight, _products(recipe, layer, source, calibration or {}))
            if dequantized is not None:
                node.replace_input_with(1, dequantized)
        elif recipe.name != "nvfp4" or nvfp4.fits(weight):
            _both(insert, node, weight, recipe, (calibration or {}).get(layer))
    for node in graph:
        for output in node.outputs:
            if output.dtype is None and node.op_type not in ("QuantizeLinear", nvfp4.OP):
                output.type = ir.TensorType(ir.DataType.FLOAT)
    graph.opset_imports[TRT_DOMAIN] = 1
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    return model
