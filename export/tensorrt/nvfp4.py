"""NVFP4: E2M1 values in blocks of 16 inputs, an E4M3 scale for each block, and one fp32 scale for the tensor.

Weights are constants: ``DequantizeLinear(codes, DequantizeLinear(block scales, tensor scale))``.  Activations are quantized by
``TRT_FP4DynamicQuantize``, which takes each block's scale from its largest value in the run and the tensor's scale from calibration; two
``DequantizeLinear`` follow.  TensorRT turns both sides and the product into one FP4 product (SM 100 and later, TensorRT 10.8 and later).

Sources: TRT_FP4DynamicQuantize and QuantDequantLinearHelper in onnxOpImporters.cpp (onnx/onnx-tensorrt, 2026): block 16, scale of type FP8,
tensor scale a constant scalar; blocks of a DequantizeLinear follow from the shapes of data and scale.  Operator page DynamicQuantize: two
or three axes, blocks along one of the last two, a constant size divisible by 16.

Axes: K inputs, N outputs, G = K / 16 blocks.
"""

from __future__ import annotations

from itertools import pairwise

import ml_dtypes
import numpy as np
import onnx_ir as ir

from export.graph.lower import Array, Inserter, LoweringError, add_constant, constant, replace

OP, DOMAIN, BLOCK = "TRT_FP4DynamicQuantize", "trt", 16
E2M1, E4M3 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn
#: Largest values of E2M1 and E4M3.
LARGEST, LARGEST_SCALE = 6.0, 448.0
_SMALLEST_SCALE = 2.0**-9  # of E4M3; a block's scale must not be zero
#: Values of E2M1, and the limits above which the next one is nearer; a tie goes to the even code.
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def tensor_scale(largest: float) -> Array:
    """Return the fp32 scale of a tensor with this largest absolute value, under which its block scales use all of E4M3."""
    return np.array(max(largest, 1e-3) / (LARGEST * LARGEST_SCALE), dtype=np.float32)


def quantize_blocks(weight: Array) -> tuple[Array, Array, Array]:
    """Quantize ``(K, N)`` to E2M1 codes ``(K, N)``, E4M3 block scales ``(G, N)`` and an fp32 scalar."""
    K, N = weight.shape
    blocks = weight.reshape(K // BLOCK, BLOCK, N)
    whole = tensor_scale(float(np.abs(weight).max()))
    scales = np.clip(np.abs(blocks).max(axis=1) / LARGEST / whole, _SMALLEST_SCALE, LARGEST_SCALE).astype(E4M3)
    codes = np.clip(blocks / (scales.astype(np.float32) * whole)[:, None], -LARGEST, LARGEST).astype(E2M1)
    return codes.reshape(K, N), scales, whole


def fits(weight: Array) -> bool:
    """Return whether a weight (K, N) can be NVFP4: whole blocks of inputs, and an even number of codes in a row."""
    K, N = weight.shape
    return bool(K % BLOCK == 0 and N % 2 == 0)


def quantized_weight(insert: Inserter, name: str, weight: Array) -> ir.Value:
    """Insert a weight's two DequantizeLinear and return the result."""
    codes, scales, whole = quantize_blocks(weight)
    arrays = ((f"{name}.fp4", codes), (f"{name}.block_scale", scales), (f"{name}.scale", whole))
    data, blocks, tensor = (add_constant(insert.graph, own, array) for own, array in arrays)
    result = insert("DequantizeLinear", data, insert("DequantizeLinear", blocks, tensor), axis=0)
    result.shape = ir.Shape(codes.shape)
    return result


def quantized_activation(insert: Inserter, x: ir.Value, largest: float, name: str) -> ir.Value:
    """Insert the dynamic quantization of ``x`` (…, K) and its two DequantizeLinear, and return the result."""
    scale = add_constant(insert.graph, f"{name}.input_scale", tensor_scale(largest))
    codes = insert(OP, x, scale, domain=DOMAIN, axis=-1, block_size=BLOCK, scale_type=int(ir.DataType.FLOAT8E4M3FN))
    node = codes.producer()
    assert node is not None
    node.resize_outputs(2)
    blocks = node.outputs[1]
    blocks.name = f"{codes.name}/blocks"
    for value, dtype in ((codes, ir.DataType.FLOAT4E2M1), (blocks, ir.DataType.FLOAT8E4M3FN)):
        value.type = ir.TensorType(dtype)
    result = insert("DequantizeLinear", codes, insert("DequantizeLinear", blocks, scale), axis=-1)
    codes.shape = result.shape = x.shape  # inference stops at an operator of another domain
    return result


# Fallbacks ------------------------------------------------------------------------------------------------------------------------------


def replace_by_standard(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a dynamic quantization and its DequantizeLinear by standard operators with the same values, for ONNX Runtime."""
    (final,) = (use.node for use in node.outputs[0].uses())
    x, scale = node.inputs[0], constant(node.inputs[1])
    if x is None or scale is None or x.shape is None or not isinstance(x.shape[-1], int):
        raise LoweringError(f"{node.name}: the fallback needs a constant scale and size of the last axis")
    insert, kind, K = Inserter(graph, final, f"{node.name}/standard"), final.outputs[0].dtype, x.shape[-1]
    whole, last = _single(graph, "scale", scale, str(node.name)), _integers(graph, -1)
    kept = [0] * (len(x.shape) - 1)
    blocks = insert("Reshape", insert("Cast", x, to=ir.DataType.FLOAT), _integers(graph, *kept, K // BLOCK, BLOCK))
    largest = insert("ReduceMax", insert("Abs", blocks), last, keepdims=1)
    own = insert("Div", insert("Div", largest, _single(graph, "largest", np.float32(LARGEST))), whole)
    own = insert("Min", own, _single(graph, "largest_scale", np.float32(LARGEST_SCALE)))
    own = insert("Cast", insert("Cast", own, to=ir.DataType.FLOAT8E4M3FN), to=ir.DataType.FLOAT)
    step = insert("Mul", own, whole)
    rounded = _rounded(insert, insert("Div", blocks, insert("Max", step, _single(graph, "tiny", np.float32(1e-30)))))
    back = insert("Reshape", insert("Mul", rounded, step), _integers(graph, *kept, K))
    result = insert("Cast", back, to=kind if kind is not None else ir.DataType.FLOAT)
    result.type, result.shape = final.outputs[0].type, final.outputs[0].shape
    replace(final, result)


def _rounded(insert: Inserter, y: ir.Value) -> ir.Value:
    """Round to the nearest value of E2M1, ties to the even code."""
    size, total = insert("Abs", y), None
    for code, (low, high) in enumerate(pairwise(_VALUES)):
        middle = _single(insert.graph, f"middle{code}", np.float32((low + high) / 2))
        above = insert("Cast", insert("GreaterOrEqual" if code % 2 else "Greater", size, middle), to=ir.DataType.FLOAT)
        part = insert("Mul", above, _single(insert.graph, f"step{code}", np.float32(high - low)))
        total = part if total is None else insert("Add", total, part)
    assert total is not None
    return insert("Mul", total, insert("Sign", y))


def _single(graph: ir.Graph, name: str, value: Array | np.float32, owner: str = "nvfp4") -> ir.Value:
    return add_constant(graph, f"{owner}/{name}", np.array(value, dtype=np.float32))


def _integers(graph: ir.Graph, *values: int) -> ir.Value:
    return add_constant(graph, f"nvfp4/{values}", np.array(values, dtype=np.int64))
