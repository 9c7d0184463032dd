"""Reader of a graph's stored weights, dequantized to fp32, for every recipe and expert kernel.

Names as written by :mod:`export.quantize.quantize` and :mod:`export.graph.expert_kernels`: ``w.T`` (fp32), ``w.T.float16``, ``w.T.int8``
with ``.scale`` and optionally ``.smooth``, ``w.T.int4.codes`` with ``.scales`` and ``.zeros``; ``w.T.e3…`` for one gathered expert,
``w.T.fused…`` for all experts of a ``QMoE``.

Axes: K inputs, N outputs, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.graph.lower import Array, constant
from export.quantize.weight_only import Blocks, from_blocks

#: Prefixes of the transformer's constants: whole, without its image head (:class:`export.graph.trace.ImageStep`), and that head's.
_PREFIXES = ("model.", "stem.", "")


@dataclass(frozen=True)
class StoredWeight:
    """A dequantized weight (K, N).

    Attributes:
        values: the weight, still multiplied by ``smooth``.
        smooth: factor of each row from SmoothQuant, (K, 1) or 1.
        coarse: whether it has four bits.
    """

    values: Array
    smooth: Array | float = 1.0
    coarse: bool = False

    def part(self, rows: slice, columns: slice) -> StoredWeight:
        """Return the submatrix of some inputs and outputs."""
        return StoredWeight(
            self.values[rows, columns], self.smooth[rows] if isinstance(self.smooth, np.ndarray) else self.smooth, self.coarse
        )


def _array(graph: ir.Graph, name: str) -> Array | None:
    """Return a constant that a node reads, stored as fp32 or fp16; None if there is none."""
    for suffix in ("", ".float16"):
        value = graph.initializers.get(name + suffix)
        if value is not None and (value.uses() or value.is_graph_output()):
            return constant(value)
    return None


def _read(graph: ir.Graph, name: str, inputs: int) -> StoredWeight | None:
    """Return the weight of a linear layer with that many inputs, in any storage format."""
    plain = _array(graph, name)
    if plain is not None:
        return StoredWeight(plain.astype(np.float32))
    codes, scale, smooth = (_array(graph, f"{name}.{part}") for part in ("int8", "scale", "smooth"))
    if codes is not None and scale is not None:
        return StoredWeight(codes.astype(np.float32) * scale, 1.0 if smooth is None else 1 / smooth[:, None])
    blocks = [_array(graph, f"{name}.int4.{part}") for part in ("codes", "scales", "zeros")]
    return _unfold(blocks, inputs)


def _unfold(blocks: list[Array | None], inputs: int) -> StoredWeight | None:
    codes, scales, zeros = blocks
    if codes is None or scales is None or zeros is None:
        return None
    N, G = scales.shape
    return StoredWeight(from_blocks(Blocks(codes.reshape(N, G, -1), scales.astype(np.float32), zeros), inputs), coarse=True)


def stored_constant(graph: ir.Graph, name: str) -> Array | None:
    """Return a bias, norm or table that is stored as it is; ``name`` without prefix, such as ``norm.bias``."""
    return next((found for prefix in _PREFIXES if (found := _array(graph, f"{prefix}{name}")) is not None), None)


def stored_weight(graph: ir.Graph, name: str, inputs: int, *, table: bool = False) -> StoredWeight | None:
    """Return a linear layer's weight or a table's rows; ``name`` without prefix and ``.T``, such as ``blocks.0.attention.input.weight``."""
    for prefix in _PREFIXES:
        found = _read(graph, f"{prefix}{name}{'' if table else '.T'}", inputs)
        if found is not None:
            return found
    return None


def stored_expert(graph: ir.Graph, name: str, expert: int, hidden: slice, axis: int) -> StoredWeight | None:
    """Return one routed expert's part of a mixture's weight.

    Args:
        graph: exported graph.
        name: name of the mixture's weight, such as ``blocks.0.experts.t2i.up.weight``.
        expert: expert index.
        hidden: the expert's hidden units among those of the whole mixture.
        axis: axis of the hidden units: 1 for the up-projection (D, J), 0 for the down-projection (J, D).
    """
    for prefix in _PREFIXES:
        whole = f"{prefix}{name}.T"
        fused = [_array(graph, f"{whole}.fused.{part}") for part in ("codes", "scales", "zeros")]
        if fused[0] is not None:
            return _unfold([None if stack is None else stack[expert] for stack in fused], 2 * fused[0].shape[-1])
        inputs = hidden.stop - hidden.start if axis == 0 else _inputs(graph, f"{whole}.e{expert}")
        cut = _read(graph, f"{whole}.e{expert}", inputs)
        if cut is not None:
            return cut
        dense = _read(graph, whole, _inputs(graph, whole))
        if dense is not None:
            return dense.part(*((hidden, slice(None)) if axis == 0 else (slice(None), hidden)))
    return None


def _inputs(graph: ir.Graph, name: str) -> int:
    """Return K of a four-bit weight from its ``MatMulNBits``; 0 for any other weight."""
    codes = graph.initializers.get(f"{name}.int4.codes")
    usage = None if codes is None else next(iter(codes.uses()), None)
    return 0 if usage is None else usage.node.attributes["K"].as_int()
