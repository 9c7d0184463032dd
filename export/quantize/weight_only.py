"""Four-bit weights for what is bound by memory: one scale and one zero point for every block of inputs, activations rounded to int8 inside
ONNX Runtime's kernels (``accuracy_level`` 4: each row and block has its own scale, so a row never sees its batch mates).

"rtn" spans each block's range and rounds to nearest (ONNX Runtime's): no data, no time.  "gptq" (arXiv 2210.17323) rounds one input after
the other and lets the later ones make up for the error, weighed by what really flows into the layer.

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
#: Activations as int8 in the kernels; without it MatMulNBits unfolds the weights and multiplies in fp32.
ACCURACY_LEVEL = 4
METHODS = ("rtn", "gptq")
BLOCKS = (16, 32, 64, 128, 256)
#: Share of the mean that is added to the diagonal of the activations' products before they are inverted.
_DAMPING = 0.01
#: Inputs whose errors are passed on together.
_LAZY = 128
#: Parts of a block's range that its grid may span.
_SHRINKS = tuple(1 - i / 20 for i in range(8))


@dataclass(frozen=True)
class Blocks:
    """A quantised weight as ``MatMulNBits`` reads it.

    Attributes:
        codes: uint8 (N, G, block / 2), two codes a byte, the lower half first.
        scales: float32 (N, G).
        zeros: uint8 (N, ceil(G / 2)), packed likewise.
    """

    codes: Array
    scales: Array
    zeros: Array


def _halves(packed: Array, count: int) -> Array:
    """(…, b) bytes → (…, count) codes."""
    both = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    codes: Array = both[..., :count]
    return codes


def _pack(codes: Array) -> Array:
    """(…, n) codes of four bits → (…, ceil(n / 2)) bytes."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), dtype=codes.dtype)], axis=-1)
    packed: Array = (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)
    return packed


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """ONNX Runtime's quantisers set up logging for the whole process when they are imported."""
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
    # zero points of a matrix of one block come without the byte's axis
    return Blocks(codes, scales.astype(np.float32), zeros.reshape(len(codes), -1))


def _grid(weight: Array, importance: Array) -> tuple[Array, Array]:
    """Steps and zero points (N, G) of blocks (N, G, block): of ever narrower ranges the one with the least error weighed by (G, block)."""
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


def _balanced(weight: Array, block: int, products: Array) -> Blocks:
    """GPTQ: inputs in falling order of their size, each block's grid fixed beforehand, the error of each passed on to those behind it.

    Written out here because ONNX Runtime's own takes a block's grid from stale weights and is worse than rounding: 1.3 to 3 times the error
    on normal and heavy-tailed weights, where this one has a half.
    """
    K, N = weight.shape
    G = -(-K // block)
    size = np.diag(products).astype(np.float32)
    padded, importance = np.zeros((N, G * block), dtype=np.float32), np.zeros(G * block, dtype=np.float32)
    padded[:, :K], importance[:K] = weight.T, size + np.float32(1e-12)
    steps, zeros = _grid(padded.reshape(N, G, block), importance.reshape(G, block))
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
    placed = np.repeat(zeros.astype(np.uint8)[..., None], block, axis=-1).reshape(N, -1)  # what pads a block stands for zero
    placed[:, order] = codes.T
    return Blocks(_pack(placed.reshape(N, G, block)), steps, _pack(zeros.astype(np.uint8)))


def to_blocks(weight: Array, block: int, method: str, products: Array | None = None) -> Blocks:
    """Quantise a linear layer's weight, float32 (K, N), four bits a value.

    Args:
        weight: finite values.
        block: inputs that share a scale; one of :data:`BLOCKS`.
        method: one of :data:`METHODS`.
        products: for "gptq": Σ x xᵀ over the layer's inputs, (K, K).

    Raises:
        InputError: an unknown method or block, or "gptq" without calibration figures.
    """
    if method not in METHODS or block not in BLOCKS:
        raise InputError(f"int4: unknown method {method!r} or block {block}; choose {' or '.join(METHODS)}, and a block of {BLOCKS}")
    if method == "rtn":
        return _round_to_nearest(weight, block)
    if products is None:
        raise InputError("int4 by gptq needs calibration figures for every layer; give some or choose a recipe that rounds to nearest")
    return _balanced(weight, block, products)


def from_blocks(blocks: Blocks, inputs: int) -> Array:
    """The weight that the blocks stand for, float32 (K, N), K = ``inputs``."""
    N, G, half = blocks.codes.shape
    codes = _halves(blocks.codes, 2 * half).astype(np.float32)
    zeros = _halves(blocks.zeros, G).astype(np.float32)
    return np.ascontiguousarray(((codes - zeros[..., None]) * blocks.scales[..., None]).reshape(N, -1)[:, :inputs].T)
