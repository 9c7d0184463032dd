"""Recipes of the TensorRT flavour: explicit Q/DQ around the linear layers of a lowered fp32 graph.

| recipe | weights | activations | for |
|---|---|---|---|
| fp16 | fp16 | fp16 | everywhere; the only one for the plug-in's stacked experts |
| int8 | int8 per output channel | int8 per tensor, calibrated | many tokens at once: prefill, decoding steps; SM 75 and later |
| int4 | int4 in blocks of 128 along the input axis | fp16 | one token at a time; SM 80 and later |
| fp8 | E4M3 per tensor | E4M3 per tensor, calibrated | SM 89 and later |

TensorRT needs constant scales, so activations have one scale per tensor instead of one per row as in the "onnxruntime" flavour.  Requests
still do not affect each other, because the scale is constant.  SmoothQuant (arXiv 2211.10438) compensates for channels of different
magnitude: int8 and fp8 divide activations by a vector per layer and multiply the weights by it.

INT4 weights are written as ``TRT_INT4DequantizeLinear`` (domain "trt"), which TensorRT 10.0 and later read in a graph of opset 20.  The
standard ``DequantizeLinear`` has INT4 and blocks from opset 21 on, which 10.3 may not read.

NVFP4 (``TRT_FP4DynamicQuantize``, 10.8 and later, SM 100 and later) is not supported yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from export.graph.lower import Array, Inserter, add_constant
from export.quantize.quantize import Calibration, Recipe, layer_name, linear_layers, quantize_columns, smoothing
from f2edge.errors import InputError
from f2edge.spec.graphs import SIGNATURES

TRT_DOMAIN = "trt"
INT4_OP = "TRT_INT4DequantizeLinear"
#: Largest values of E4M3 and of a symmetric 4-bit integer.
_LARGEST_FP8, _LARGEST_INT4 = 448.0, 7
#: Candidate ranges of a block, as fractions of its largest weight.
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


@dataclass(frozen=True)
class TensorRTRecipe:
    """Storage and arithmetic of linear layers.

    Attributes:
        name: name in the manifest: "fp16", "int8", "int4" or "fp8".
        calibrated: whether activations are quantized, which needs calibration statistics.
        smooth: SmoothQuant's alpha, or None.
        block: weights along the input axis that share one INT4 scale; halved until it divides the axis.
        keep: pattern of weight names that stay fp32.
        smallest: layers with fewer rows or columns stay fp16.
    """

    name: str
    calibrated: bool = False
    smooth: float | None = None
    block: int = 128
    keep: str = "router"
    smallest: int = 32


RECIPES: Mapping[str, TensorRTRecipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            TensorRTRecipe("fp16"),
            TensorRTRecipe("int8", calibrated=True, smooth=0.5),
            TensorRTRecipe("int4"),
            TensorRTRecipe("fp8", calibrated=True, smooth=0.5),
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
    return Recipe(recipe.name, keep=recipe.keep, smallest=recipe.smallest, smooth=recipe.smooth)


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


def _block_of(rows: int, wanted: int) -> int:
    """Return the largest divisor of ``rows`` among ``wanted``, ``wanted`` / 2, ``wanted`` / 4 …"""
    while rows % wanted:
        wanted //= 2
    return wanted


def _int4(insert: Inserter, name: str, weight: Array, recipe: TensorRTRecipe) -> ir.Value | None:
    """Insert the dequantized INT4 weight; return None if its shape does not allow INT4 (two codes share a byte of the last axis)."""
    K, N = weight.shape
    block = _block_of(K, recipe.block)
    if N % 2 or block < 16:
        return None
    codes, scale = quantize_blocks(weight, block)
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
    """Insert QuantizeLinear and DequantizeLinear with one constant scale for ``x``."""
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
        x = insert("Mul", x, add_constant(insert.graph, f"{name}.smooth", 1 / divisor))
        largest, weight = largest / divisor, weight * divisor[:, None]
    node.replace_input_with(0, _activations(insert, x, float(largest.max()), name, recipe))
    node.replace_input_with(1, (_int8 if recipe.name == "int8" else _fp8)(insert, name, weight))


def quantize_tensorrt(model: ir.Model, recipe: TensorRTRecipe, calibration: Calibration | None = None) -> ir.Model:
    """Insert Q/DQ around the linear layers of a lowered fp32 graph in place, without changing its types; return the model.

    Args:
        model: graph from :func:`export.graph.lower.lower`; :func:`export.tensorrt.half_precision.to_half` is applied afterwards.
        recipe: one of :data:`RECIPES`.
        calibration: largest activations by layer, for recipes that are calibrated.

    Raises:
        InputError: calibration statistics of a layer are missing.
    """
    if recipe.name == "fp16":
        return model
    graph = model.graph
    for node, _, source, weight in linear_layers(graph, layers_of(recipe)):
        insert = Inserter(graph, node, node.name or str(source.name))
        if recipe.calibrated:
            _both(insert, node, weight, recipe, (calibration or {}).get(layer_name(graph, source)))
        else:
            dequantized = _int4(insert, str(source.name), weight, recipe)
            if dequantized is not None:
                node.replace_input_with(1, dequantized)
    for node in graph:
        for output in node.outputs:
            if output.dtype is None and node.op_type != "QuantizeLinear":
                output.type = ir.TensorType(ir.DataType.FLOAT)
    graph.opset_imports[TRT_DOMAIN] = 1
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    return model
