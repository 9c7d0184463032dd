"""Weights as they stand in a graph, read back in fp32, whatever a recipe and a form of experts made of them.

The names are those that :mod:`export.quantize.quantize` and :mod:`export.graph.expert_kernels` give: ``w.T`` (fp32), ``w.T.float16``,
``w.T.int8`` with ``.scale`` and perhaps ``.smooth``, ``w.T.int4.codes`` with ``.scales`` and ``.zeros``; ``w.T.e3…`` of one gathered
expert, ``w.T.fused…`` of all experts of a ``QMoE``.

Axes: K inputs, N outputs, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.graph.lower import Array, constant
from export.quantize.weight_only import Blocks, from_blocks

#: What a transformer is called in its graphs: alone, or without its image head (:class:`export.graph.trace.ImageStep`).
_PREFIXES = ("model.", "stem.")


@dataclass(frozen=True)
class Stored:
    """A weight (K, N), what smoothing multiplied its rows by, (K, 1) or 1, and whether it has four bits."""

    values: Array
    smooth: Array | float = 1.0
    coarse: bool = False

    def part(self, rows: slice, columns: slice) -> Stored:
        """Some inputs and outputs of it."""
        return Stored(self.values[rows, columns], self.smooth[rows] if isinstance(self.smooth, np.ndarray) else self.smooth, self.coarse)


def _array(graph: ir.Graph, name: str) -> Array | None:
    """A constant that a node still reads, perhaps stored as fp16."""
    for form in ("", ".float16"):
        value = graph.initializers.get(name + form)
        if value is not None and (value.uses() or value.is_graph_output()):
            return constant(value)
    return None


def _read(graph: ir.Graph, name: str, inputs: int) -> Stored | None:
    """A constant of a linear layer with that many inputs, in whatever storage."""
    plain = _array(graph, name)
    if plain is not None:
        return Stored(plain.astype(np.float32))
    codes, scale, smooth = (_array(graph, f"{name}.{part}") for part in ("int8", "scale", "smooth"))
    if codes is not None and scale is not None:
        return Stored(codes.astype(np.float32) * scale, 1.0 if smooth is None else 1 / smooth[:, None])
    blocks = [_array(graph, f"{name}.int4.{part}") for part in ("codes", "scales", "zeros")]
    return _unfold(blocks, inputs)


def _unfold(blocks: list[Array | None], inputs: int) -> Stored | None:
    codes, scales, zeros = blocks
    if codes is None or scales is None or zeros is None:
        return None
    N, G = scales.shape
    return Stored(from_blocks(Blocks(codes.reshape(N, G, -1), scales.astype(np.float32), zeros), inputs), coarse=True)


def stored_weight(graph: ir.Graph, name: str, inputs: int) -> Stored | None:
    """A whole linear layer's weight; ``name`` without prefix and ``.T``, such as ``blocks.0.attention.input.weight``."""
    for prefix in _PREFIXES:
        found = _read(graph, f"{prefix}{name}.T", inputs)
        if found is not None:
            return found
    return None


def stored_expert(graph: ir.Graph, name: str, expert: int, hidden: slice, axis: int) -> Stored | None:
    """One routed expert's part of a mixture's weight.

    Args:
        graph: as written.
        name: of the mixture's weight, such as ``blocks.0.experts.t2i.up.weight``.
        expert: its index.
        hidden: its hidden values among those of the whole mixture.
        axis: where they lie: 1 for the up-projection (D, J), 0 for the down-projection (J, D).
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
    """K of a four-bit weight, as its ``MatMulNBits`` says; 0 for any other."""
    codes = graph.initializers.get(f"{name}.int4.codes")
    usage = None if codes is None else next(iter(codes.uses()), None)
    return 0 if usage is None else usage.node.attributes["K"].as_int()
