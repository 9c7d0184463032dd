"""Transformer weights out of an exported bundle, so that a training can begin with a model of which only the bundle is there.

    state = transformer_of(Bundle.load("nano"))
    python -m export train unified --start-from nano …

A quantized weight comes back as what its codes stand for: within half a step of what was exported, and quantized again it has the same
codes.  What no graph of the bundle reads (the last layer's image states in MMU) begins anew.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from export.checkpoints.stored_graphs import stored_graph
from export.graph.lower import Array
from export.graph.stored_weights import StoredWeight, stored_constant, stored_weight
from export.model.embedding import code_bits
from export.model.transformer import UnifiedTransformer
from f2edge.bundle.bundle import Bundle
from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration

#: Graphs that hold parts of the transformer, those with most of it first.
_GRAPHS = ("t2i_step", "mmu_prefill", "t2i_prefill", "mmu_extend")
#: Parameters that only the image states behind the last layer of MMU would need.
_UNREAD = "blocks.{last}.sequence.mmu."


def transformer_of(bundle: Bundle) -> UnifiedTransformer:
    """Return the transformer of a bundle in fp32.

    Raises:
        InputError: the bundle is for another runtime, or lacks a weight.
    """
    configuration = bundle.configuration
    graphs = [ir.load(stored_graph(bundle, name).file).graph for name in _GRAPHS]
    model = UnifiedTransformer(configuration)
    state = model.state_dict()
    unread = _UNREAD.format(last=configuration.layers - 1)
    found = _image_head(graphs, configuration)
    for name, value in state.items():
        if name in found:
            continue
        weight = _weight(graphs, name, tuple(value.shape))
        if weight is None and not name.startswith(unread):
            raise InputError(f"bundle {bundle.name!r}: its graphs do not hold {name}; it was exported by another version or expert kernel")
        found[name] = value if weight is None else torch.from_numpy(weight)
    model.load_state_dict(found)
    return model


def _weight(graphs: list[ir.Graph], name: str, shape: tuple[int, ...]) -> Array | None:
    """Return a parameter of the transformer, fp32, turned as PyTorch has it."""
    for graph in graphs:
        plain = stored_constant(graph, name)
        rows = stored_weight(graph, name, shape[-1], table=True) if plain is None else None
        columns = stored_weight(graph, name, shape[-1]) if plain is None and rows is None else None
        values = plain if plain is not None else _restored(rows) if rows is not None else _restored(columns)
        if values is not None:
            return np.array(values if columns is None else values.T, np.float32, order="C").reshape(shape)
    return None


def _restored(weight: StoredWeight | None) -> Array | None:
    """Return a weight without the factors of its inputs."""
    return None if weight is None else weight.values / weight.smooth


def _image_head(graphs: list[ir.Graph], configuration: ModelConfiguration) -> dict[str, Tensor]:
    """Return the image head's parameters from its one matrix: what the bits of a code explain, and the rest."""
    step = graphs[0]
    stored, bias = stored_weight(step, "head.weight", configuration.width), stored_constant(step, "head.bias")
    if stored is None or bias is None:
        return {}
    matrix = torch.from_numpy(np.ascontiguousarray((stored.values / stored.smooth).T, np.float32))  # (V, D)
    found = {"image_head.bias": torch.from_numpy(bias.astype(np.float32)).reshape(-1)}
    if configuration.image_input != "bits":
        return {**found, "image_head.table": matrix}
    signs = code_bits(torch.arange(configuration.codes), configuration.tokenizer.bits)  # (V, bits), columns at right angles
    directions = signs.T @ matrix / configuration.codes
    return {**found, "image_head.directions": directions, "image_head.table": matrix - signs @ directions}
