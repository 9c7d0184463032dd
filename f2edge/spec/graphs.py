"""Signatures of a bundle's graphs: inputs and outputs by name, dtype and axes.  Export writes them, every backend reads them.

Axes: B branches or sequences, R requests (image rows), P prompt columns, S new text columns, T earlier text columns, C image columns of
the MMU prefix (cells + 3), N image tokens, L layers, H heads, W head width, V text vocabulary, M / F an encoder's vectors and their width,
Y / X pixels, G token grid, K regions, D scored columns.

Alignment: prompts and questions are **right-aligned** (padding on the left), in ids and in K/V columns alike, so that the newest token is
always the last column and a cache grows by appending.  ``*_lengths`` counts the valid columns from the right.

A graph may take or give a cache layer by layer: ``image_key.0`` … (B, H, C, W) instead of ``image_key`` (L, B, H, C, W).  Backends hide it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """Name, dtype ("int64", "float32") and axes of one input or output; one letter per axis, dynamic or fixed by the model."""

    name: str
    dtype: str
    axes: str


@dataclass(frozen=True)
class GraphSignature:
    """Inputs and outputs of one graph."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def kept(self) -> frozenset[str]:
        """Outputs that later runs read, and the host seldom: keys, values and the grids of a step.

        A backend may return them in its device's memory.
        """
        return frozenset(t.name for t in self.outputs if "H" in t.axes or t.axes == "RN")


_PREFIX = (Tensor("prefix_key", "float32", "LBHPW"), Tensor("prefix_value", "float32", "LBHPW"))
_IMAGE = (Tensor("image_key", "float32", "LBHCW"), Tensor("image_value", "float32", "LBHCW"))

#: ``prompt_ids``: vocabulary ids ``<|t2i|> <sot> prompt <eot>``, left-padded.
T2I_PREFILL = GraphSignature("t2i_prefill", (Tensor("prompt_ids", "int64", "BP"), Tensor("prompt_lengths", "int64", "B")), _PREFIX)

#: One step of parallel decoding for R images in B branches (a guided image has two: its prompt and the empty prompt).
#:
#: * ``codes``: image codes, V where masked.  ``branch_row[b]``: the row of ``codes`` that branch b sees.
#: * Branch r is the conditional one of row r; ``unconditional_branch[r]`` is the other (``r`` itself where there is no guidance).
#: * ``mask_ratio[r]``: fraction of the N positions masked now, for the noise expert.
#: * ``guidance[r]`` g: logits are ``c + g (c - u)``.  ``token_temperature[r]``: logits are divided by it before sampling.
#: * ``noise_key[r, n]``: 32-bit key of (seed, step, position), ``f2edge.decoding.noise``; the graph mixes in the code.
#: * ``temperature[r]``: of the Gumbel noise on the confidence.  ``priority[r, n]``: added to the confidence (an order that is known
#:   beforehand, such as Halton's, uses values so large that they decide alone).
#: * ``masked_after[r]``: how many positions are masked again (the least confident of those masked now).
#: * ``next_codes``: the new token grid.  ``proposal``: every masked position filled, as a preview shows it.
T2I_STEP = GraphSignature(
    "t2i_step",
    (
        Tensor("codes", "int64", "RN"),
        Tensor("branch_row", "int64", "B"),
        Tensor("unconditional_branch", "int64", "R"),
        *_PREFIX,
        Tensor("prefix_lengths", "int64", "B"),
        Tensor("mask_ratio", "float32", "R"),
        Tensor("guidance", "float32", "R"),
        Tensor("token_temperature", "float32", "R"),
        Tensor("temperature", "float32", "R"),
        Tensor("noise_key", "int64", "RN"),
        Tensor("priority", "float32", "RN"),
        Tensor("masked_after", "int64", "R"),
    ),
    (Tensor("next_codes", "int64", "RN"), Tensor("proposal", "int64", "RN")),
)

#: The image segment ``<|mmu|> <|soi|> image <|eoi|>``, once per face.
MMU_PREFILL = GraphSignature(
    "mmu_prefill",
    (Tensor("codes", "int64", "BN"), Tensor("semantic", "float32", "BMF"), Tensor("identity", "float32", "BMF")),
    _IMAGE,
)

#: New text columns after an image segment: the question (S columns), then one token at a time (S = 1).
#: ``text_lengths``: valid text columns, earlier and new together.  Image K/V may have B = 1 and is then shared by all rows.
MMU_EXTEND = GraphSignature(
    "mmu_extend",
    (
        Tensor("text_ids", "int64", "BS"),
        Tensor("text_lengths", "int64", "B"),
        *_IMAGE,
        Tensor("text_key", "float32", "LBHTW"),
        Tensor("text_value", "float32", "LBHTW"),
    ),
    (Tensor("logits", "float32", "BV"), Tensor("next_text_key", "float32", "LBHTW"), Tensor("next_text_value", "float32", "LBHTW")),
)

#: The same with ``scored``: the new columns whose logits are wanted, counted from the end (-1 is the last).  With logits of several columns
#: tokens that were guessed are verified in one pass.
MMU_EXTEND_SCORED = GraphSignature(
    "mmu_extend",
    (*MMU_EXTEND.inputs, Tensor("scored", "int64", "D")),
    (Tensor("logits", "float32", "BDV"), *MMU_EXTEND.outputs[1:]),
)

#: ``pixels``: RGB in [-1, 1].
IMAGE_ENCODE = GraphSignature("image_encode", (Tensor("pixels", "float32", "B3YX"),), (Tensor("codes", "int64", "BN"),))
IMAGE_DECODE = GraphSignature("image_decode", (Tensor("codes", "int64", "BN"),), (Tensor("pixels", "float32", "B3YX"),))
SEMANTIC = GraphSignature("semantic", (Tensor("pixels", "float32", "B3YX"),), (Tensor("features", "float32", "BMF"),))
IDENTITY = GraphSignature("identity", (Tensor("pixels", "float32", "B3YX"),), (Tensor("features", "float32", "BMF"),))
#: ``coverage``: the share of each token's patch that a region covers, in [0, 1].
REGIONS = GraphSignature("regions", (Tensor("pixels", "float32", "B3YX"),), (Tensor("coverage", "float32", "BKGG"),))

SIGNATURES: Mapping[str, GraphSignature] = {
    s.name: s for s in (T2I_PREFILL, T2I_STEP, MMU_PREFILL, MMU_EXTEND, IMAGE_ENCODE, IMAGE_DECODE, SEMANTIC, IDENTITY, REGIONS)
}
#: Begins the names of further outputs of self-test forms: ``state_K``, the state behind K layers.
STATE = "state_"
#: Keys and values.  A bundle may store them as "float16", all of them alike.
CACHES = frozenset(t.name for s in SIGNATURES.values() for t in (*s.inputs, *s.outputs) if "H" in t.axes)
#: Signatures of graphs with the optional input ``scored``.
SCORED_SIGNATURES: Mapping[str, GraphSignature] = {MMU_EXTEND.name: MMU_EXTEND_SCORED}
