"""Expert census: checks that every expert of a task is in its graph and that the graph routes as PyTorch does.

Tracing a mixture of experts can silently freeze a routing decision, or drop an expert that the example input did not choose.  Three
independent checks: :func:`census` finds every router and every expert's weights among the constants that the graph's outputs depend on;
:func:`routing_agreement` compares the running graph's choices with PyTorch's on real inputs; and :mod:`export.verify.parity` compares
outputs.  A difference fails the export (:class:`LostExpertError`).

Axes: E experts, K active.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import nn

from export.graph.lower import Array
from export.graph.stored_weights import StoredWeight, stored_expert, stored_weight
from export.model.experts import Router, TokenExpertLayer
from export.model.sequence_experts import SequenceExpertLayer
from export.model.transformer import UnifiedTransformer
from f2edge.errors import F2EdgeError

#: Graph with experts → task group, whether it has sequence-level experts, and whether its last block's output is used.
_GRAPHS: Mapping[str, tuple[str, bool, bool]] = {
    "t2i_prefill": ("t2i", False, False),
    "t2i_step": ("t2i", True, True),
    "mmu_prefill": ("mmu", True, False),
    "mmu_extend": ("mmu", False, True),
}
#: Minimum cosine between an expert's four-bit weights and PyTorch's.
MIN_COSINE = 0.8


class LostExpertError(F2EdgeError, RuntimeError):
    """A graph lacks an expert, or routes differently from PyTorch."""


@dataclass(frozen=True)
class LayerCensus:
    """One mixture of experts in one graph; ``alive`` lists the router indices of the experts found."""

    name: str
    experts: int
    active: int
    alive: tuple[int, ...]


def mixtures(model: UnifiedTransformer, graph: str) -> dict[str, TokenExpertLayer | SequenceExpertLayer]:
    """Return the mixtures of experts that ``graph`` must contain, by module name."""
    if graph not in _GRAPHS:
        return {}
    group, sequence_level, whole = _GRAPHS[graph]
    last = model.configuration.layers - 1
    found: dict[str, TokenExpertLayer | SequenceExpertLayer] = {}
    for name, module in model.named_modules():
        if not isinstance(module, TokenExpertLayer | SequenceExpertLayer) or not name.endswith(f".{group}"):
            continue
        block = int(name.split(".")[1])
        if (whole or block < last) and (sequence_level or isinstance(module, TokenExpertLayer)):
            found[name] = module
    return found


def find_routers(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the chosen experts (``TopK`` indices) of every router in a graph, by name of the mixture.

    A frozen router, whose choice does not depend on its weight, is not found.
    """
    found: dict[str, ir.Value] = {}
    for value in graph.initializers.values():
        match = re.fullmatch(r"(?:model|stem)\.(.+)\.router\.weight(\.T)?", value.name or "")
        if match is None:
            continue
        seen: set[int] = set()
        ahead = [usage.node for usage in value.uses()]
        for _ in range(4):  # MatMul, maybe Split, Softmax, TopK
            chosen = [node for node in ahead if node.op_type == "TopK" and node.outputs[1].uses()]
            if chosen:
                found[match[1]] = chosen[0].outputs[1]
                break
            ahead = [usage.node for node in ahead for output in node.outputs for usage in output.uses() if id(usage.node) not in seen]
            seen |= {id(node) for node in ahead}
    return found


def _same(stored: StoredWeight | None, linear: nn.Module, hidden: slice, axis: int, tolerance: float) -> bool:
    """Return whether the stored part ``hidden`` of a linear layer's outputs (axis 1) or inputs (axis 0) equals PyTorch's.

    Four-bit quantization, GPTQ above all, changes single values much, so there the cosine over all values is compared.
    """
    if stored is None:
        return False
    whole = linear.weight.detach().numpy().T  # type: ignore[operator]
    wanted = whole[hidden] if axis == 0 else whole[:, hidden]
    if stored.values.shape != wanted.shape:
        return False
    if stored.coarse:
        norms = float(np.linalg.norm(wanted)) * float(np.linalg.norm(stored.values))
        return norms > 0 and float((wanted * stored.values).sum()) / norms >= MIN_COSINE
    smoothed = wanted * stored.smooth
    largest = np.abs(whole * (stored.smooth if np.shape(stored.smooth)[:1] == whole.shape[:1] else 1.0)).max()
    return bool(np.abs(stored.values - smoothed).max() <= tolerance * max(float(largest), float(np.abs(smoothed).max())))


def _alive(layer: TokenExpertLayer | SequenceExpertLayer, name: str, graph: ir.Graph, tolerance: float) -> tuple[int, ...]:
    if isinstance(layer, TokenExpertLayer):
        return tuple(
            e
            for e in range(layer.shape.routed)
            if _same(stored_expert(graph, f"{name}.up.weight", e, layer.slice_of(e), 1), layer.up, layer.slice_of(e), 1, tolerance)
            and _same(stored_expert(graph, f"{name}.down.weight", e, layer.slice_of(e), 0), layer.down, layer.slice_of(e), 0, tolerance)
        )

    def whole(part: str, kind: str) -> bool:
        linear = getattr(layer, part)[kind]
        stored = stored_weight(graph, f"{name}.{part}.{kind}.weight", linear.weight.shape[1])
        return _same(stored, linear, slice(None), 1, tolerance)

    # copy and zero have no weights besides the router's
    return tuple(e for e, kind in enumerate(layer.kinds) if kind not in layer.maps or (whole("maps", kind) and whole("gates", kind)))


def census(graph: ir.Graph, name: str, model: UnifiedTransformer, tolerance: float = 0.02) -> list[LayerCensus]:
    """Count the experts of a graph whose unused constants have been removed.

    Args:
        graph: graph as written to the bundle.
        name: graph name of :mod:`f2edge.spec.graphs`.
        model: the traced model.
        tolerance: maximum error of a weight relative to its layer's largest; int8 rounds by half a code (1/128 with 7 bits).

    Raises:
        LostExpertError: an expert or a live router is missing; names graph, layer and experts.
    """
    routers = find_routers(graph)
    rows = []
    for layer_name, layer in mixtures(model, name).items():
        router = layer.router
        assert isinstance(router, Router)
        if layer_name not in routers:
            raise LostExpertError(f"graph {name!r}: {layer_name} has no live router, tracing froze its choice; export again")
        row = LayerCensus(layer_name, router.weight.shape[0], router.active, _alive(layer, layer_name, graph, tolerance))
        if missing := sorted(set(range(row.experts)) - set(row.alive)):
            raise LostExpertError(f"graph {name!r}: {layer_name} lost experts {missing} of {row.experts}; the traced module must keep them")
        rows.append(row)
    return rows


def census_rows(graph: ir.Graph, name: str, model: UnifiedTransformer) -> dict[str, str]:
    """Return :func:`census` of one graph for the manifest: mixture → "alive/all, active"."""
    return {row.name: f"{len(row.alive)}/{row.experts}, {row.active} active" for row in census(graph, name, model)}


def census_of_folder(folder: Path, model: UnifiedTransformer | None) -> dict[str, dict[str, str]]:
    """Return :func:`census` of every graph in a bundle's folder: graph → mixture → "alive/all, active"."""
    if model is None:
        return {}
    return {
        name: census_rows(ir.load(folder / f"{name}.onnx").graph, name, model)
        for name in _GRAPHS
        if model.configuration.token_experts.routed or model.configuration.sequence_experts
    }


@dataclass(frozen=True)
class RoutingAgreement:
    """Routing decisions of a graph compared with PyTorch's.

    Attributes:
        decisions: number of decisions.
        same: decisions with the same set of experts.
        usage: layer → share of decisions that chose each expert; sums to K.
    """

    decisions: int
    same: int
    usage: Mapping[str, tuple[float, ...]]

    @property
    def share(self) -> float:
        """Share of equal decisions."""
        return self.same / self.decisions if self.decisions else 1.0


def _sets(indices: Array, experts: int) -> Array:
    """Convert chosen experts (…, K) to bool (decisions, E)."""
    flat = indices.reshape(-1, indices.shape[-1])
    sets = np.zeros((len(flat), experts), dtype=bool)
    np.put_along_axis(sets, flat, values=True, axis=1)
    return sets


def routing_agreement(
    reference: Mapping[str, list[Array]], found: Mapping[str, list[Array]], experts: Mapping[str, int]
) -> RoutingAgreement:
    """Compare routing decisions ``(…, K)`` of one graph over the same inputs, by layer.

    Args:
        reference: PyTorch's decisions.
        found: the graph's decisions.
        experts: number of experts E of each layer.

    Raises:
        LostExpertError: a layer decides in only one of the two, or for another number of tokens.
    """
    if set(reference) != set(found):
        only = sorted(set(reference) ^ set(found))
        raise LostExpertError(f"routers found in only one of PyTorch and the graph: {only}; the traced module must keep them")
    decisions = same = 0
    usage: dict[str, tuple[float, ...]] = {}
    for name, wanted in reference.items():
        sets = [np.concatenate([_sets(part, experts[name]) for part in parts]) for parts in (wanted, found[name])]
        if sets[0].shape != sets[1].shape:
            raise LostExpertError(f"router {name}: decides {len(sets[1])} times in the graph, {len(sets[0])} times in PyTorch")
        decisions += len(sets[0])
        same += int((sets[0] == sets[1]).all(axis=1).sum())
        usage[name] = tuple(np.round(sets[1].mean(axis=0), 4).tolist())
    return RoutingAgreement(decisions, same, usage)
