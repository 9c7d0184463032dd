"""Four-bit weight-only quantization for memory-bound graphs: one scale and one zero point per block of inputs.

ONNX Runtime's kernels round activations to int8 with one scale per row and block (``accuracy_level`` 4), so a row does not depend on other
rows of the batch.  "rtn" (ONNX Runtime's) rounds to nearest and needs no data.  "gptq" (arXiv 2210.17323) rounds one input after the other
and compensates the error in the later ones, weighted by calibration data.

Axes: K inputs, N outputs, G = ceil(K / block) blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from export.graph.lower import Array
from f2edge.errors import InputError

BITS = 4
#: int8 activations in the kernels; otherwise MatMulNBits dequantizes the weights and multiplies in fp32.
ACCURACY_LEVEL = 4
METHODS = ("rtn", "gptq")
BLOCKS = (16, 32, 64, 128, 256)
#: Fraction of the mean diagonal added to the activations' products before inversion.
_DAMPING = 0.01
#: Inputs whose errors are propagated together.
_LAZY = 128
#: Candidate ranges of a block's grid, as fractions of the block's full range.
_SHRINKS = tuple(1 - i / 20 for i in range(8))


@dataclass(frozen=True)
class Blocks:
    """A quantized weight in the layout of ``MatMulNBits``.

    Attributes:
        codes: uint8 (N, G, block / 2), two codes per byte, lower half first.
        scales: float32 (N, G).
        zeros: uint8 (N, ceil(G / 2)), packed like ``codes``.
    """

    codes: Array
    scales: Array
    zeros: Array


def _halves(packed: Array, count: int) -> Array:
    """Unpack (…, b) bytes to (…, count) codes."""
    both = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    codes: Array = both[..., :count]
    return codes


def _pack(codes: Array) -> Array:
    """Pack (…, n) four-bit codes to (…, ceil(n / 2)) bytes."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), dtype=codes.dtype)], axis=-1)
    packed: Array = (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)
    return packed


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Restore the root logger afterwards: importing ONNX Runtime's quantizers configures logging of the whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _round_to_nearest(weight: Array, block: int) -> Blocks:
    with _root_logger_kept():
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

    quantizer = DefaultWeightOnlyQuantizer(DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=False, bits=BITS))
    codes, scales, zeros = quantizer.qbits_block_quant(np.ascontiguousarray(weight))
    # the quantizer omits the byte axis of zero points for matrices of one block
    return Blocks(codes, scales.astype(np.float32), zeros.reshape(len(codes), -1))


def _grid(weight: Array, importance: Array) -> tuple[Array, Array]:
    """Return steps and zero points (N, G) of blocks (N, G, block): the range with the least error weighted by importance (G, block)."""
    low, high = np.minimum(weight.min(axis=-1), 0), np.maximum(weight.max(axis=-1), 0)
    best = np.full(low.shape, np.inf, dtype=np.float32)
    steps, zeros = np.ones_like(low), np.zeros_like(low)
    for shrink in _SHRINKS:
        step = np.where(high > low, (high - low) * np.float32(shrink / 15), np.float32(1))
        zero = np.clip(np.rint(-low * np.float32(shrink) / step), 0, 15)
        codes = np.clip(np.rint(weight / step[..., None]) + zero[..., None], 0, 15)
        error = (importance * (step[..., None] * (codes - zero[..., None]) - weight) ** 2).sum(axis=-1)
        better = error < best
        best[better], steps[better], zeros[better] = error[better], step[better], zero[better]
    return steps, zeros


def _in_order(weight: Array, block: int, products: Array, steps: Array, zeros: Array) -> Array:
    """Round a weight (K, N) by GPTQ, inputs in descending order of magnitude, to codes uint8 (K, N) of 0 … 15.

    ``steps`` and ``zeros``, each (N, G), are the grid of every block of inputs, fixed beforehand.
    """
    K, N = weight.shape
    size = np.diag(products).astype(np.float32)
    order = np.argsort(-size, kind="stable")
    damped = products.astype(np.float32)[order][:, order]
    damped[np.diag_indices(K)] += np.float32(_DAMPING * float(size.mean()) + 1e-12)
    factor = np.linalg.cholesky(np.linalg.inv(damped.astype(np.float64))).T.astype(np.float32)  # upper; row i: from input i on
    rest, codes = weight[order].astype(np.float32), np.empty((K, N), dtype=np.uint8)
    for begin in range(0, K, _LAZY):
        end = min(begin + _LAZY, K)
        errors = np.empty((end - begin, N), dtype=np.float32)
        for i in range(begin, end):
            group = order[i] // block
            step, zero = steps[:, group], zeros[:, group]
            code = np.clip(np.rint(rest[i] / step) + zero, 0, 15)
            codes[i] = code
            errors[i - begin] = (rest[i] - step * (code - zero)) / factor[i, i]
            rest[i + 1 : end] -= factor[i, i + 1 : end, None] * errors[i - begin]
        rest[end:] -= factor[begin:end, end:].T @ errors
    placed = np.empty_like(codes)
    placed[order] = codes
    return placed


def _balanced(weight: Array, block: int, products: Array) -> Blocks:
    """Quantize by GPTQ.

    ONNX Runtime's own GPTQ takes a block's grid from stale weights and is worse than rounding to nearest: 1.3 to 3 times its error on
    normal and heavy-tailed weights, where this one has half of it.
    """
    K, N = weight.shape
    G = -(-K // block)
    size = np.diag(products).astype(np.float32)
    padded, importance = np.zeros((N, G * block), dtype=np.float32), np.zeros(G * block, dtype=np.float32)
    padded[:, :K], importance[:K] = weight.T, size + np.float32(1e-12)
    steps, zeros = _grid(padded.reshape(N, G, block), importance.reshape(G, block))
    placed = np.repeat(zeros.astype(np.uint8)[..., None], block, axis=-1).reshape(N, -1)  # padding of a block decodes to zero
    placed[:, :K] = _in_order(weight, block, products, steps, zeros).T
    return Blocks(_pack(placed.reshape(N, G, block)), steps, _pack(zeros.astype(np.uint8)))


def symmetric_blocks(weight: Array, block: int, products: Array) -> tuple[Array, Array]:
    """Quantize ``(K, N)`` by GPTQ without zero points: codes int8 in [-8, 7] and scales ``(K / block, N)``, exact in fp16."""
    K, N = weight.shape
    blocks = weight.reshape(K // block, block, N).astype(np.float32)
    importance = (np.diag(products).astype(np.float32) + np.float32(1e-12)).reshape(-1, block, 1)
    largest = np.maximum(np.abs(blocks).max(axis=1), np.float32(1e-6))  # a scale must not be zero in fp16
    best, scales = np.full(largest.shape, np.inf, dtype=np.float32), np.empty_like(largest)
    for shrink in _SHRINKS:
        tried = (largest * np.float32(shrink / 7)).astype(np.float16).astype(np.float32)
        codes = np.clip(np.rint(blocks / tried[:, None]), -8, 7)
        error = (importance * (codes * tried[:, None] - blocks) ** 2).sum(axis=1)
        best, scales = np.where(error < best, error, best), np.where(error < best, tried, scales)
    codes = _in_order(weight, block, products, scales.T, np.full_like(scales.T, 8))
    return codes.astype(np.int8) - np.int8(8), scales


def to_blocks(weight: Array, block: int, method: str, products: Array | None = None) -> Blocks:
    """Quantize a linear layer's weight, float32 (K, N), to four bits.

    Args:
        weight: finite values.
        block: inputs that share a scale; one of :data:`BLOCKS`.
        method: one of :data:`METHODS`.
        products: for "gptq": Σ x xᵀ over the layer's inputs, (K, K).

    Raises:
        InputError: an unknown method or block, or "gptq" without calibration statistics.
    """
    if method not in METHODS or block not in BLOCKS:
        raise InputError(f"int4: unknown method {method!r} or block {block}; choose {' or '.join(METHODS)}, and a block of {BLOCKS}")
    if method == "rtn":
        return _round_to_nearest(weight, block)
    if products is None:
        raise InputError(
            "int4 by gptq needs calibration statistics of every layer; calibrate first or choose a recipe that rounds to nearest"
        )
    return _balanced(weight, block, products)


def from_blocks(blocks: Blocks, inputs: int) -> Array:
    """Dequantize to float32 (K, N), K = ``inputs``."""
    N, G, half = blocks.codes.shape
    codes = _halves(blocks.codes, 2 * half).astype(np.float32)
    zeros = _halves(blocks.zeros, G).astype(np.float32)
    return np.ascontiguousarray(((codes - zeros[..., None]) * blocks.scales[..., None]).reshape(N, -1)[:, :inputs].T)
