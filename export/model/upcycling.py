"""A dense model as the start of one with token-level experts: its FFN becomes the shared and the routed experts of both task groups.

Sparse upcycling (arXiv 2212.05055) in two kinds.

**Exact**: the dense FFN is no wider than the shared expert, or than a shared and one routed expert together.

* As wide as a shared expert that both groups have in common ("1.8b-exact"), or as each group's own: the routed experts begin with
  random inputs and outputs of 0.
* Wider than the shared expert: it takes the first hidden units and every routed expert the rest.  The gates of the chosen experts sum to
  1, so copies add up to one of them, however the router chooses.

**Narrow** ("1.8b": 2048 + 8 x 512 from 8192): the shared expert takes the units that matter most, the others are dealt out to the routed
experts, whose outputs are multiplied by K, because the gate of a chosen expert is about 1 / K.  What matters is measured for each group
on batches of its own task: root mean square of a unit times the norm of its output.  The mean of what is missing (an expert speaks for K of
E tokens, and some units have no place) moves into the bias.  This is a start for training, not the same model.

The sequence level begins as in a new model, with its scale at 0 where the configuration has one, so that it changes nothing at first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.model.experts import DenseFeedForward, TokenExpertLayer
from export.model.sequence_experts import KINDS
from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration, TokenExperts

_UP = re.compile(r"blocks\.(\d+)\.dense\.up\.weight")
_NEW = 0.02  # standard deviation of hidden units without an origin


@dataclass(frozen=True)
class Importance:
    """What the hidden units of one dense FFN do on a task's batches: mean value and weight in the output, each (J,)."""

    mean: Tensor
    weight: Tensor


def dense_width(state: Mapping[str, Tensor]) -> int | None:
    """Return the width of the FFNs if these are weights of a transformer without routed experts, else None."""
    if any(".experts." in name for name in state):
        return None
    return next((len(tensor) for name, tensor in state.items() if _UP.fullmatch(name)), None)


def is_exact(width: int, shape: TokenExperts) -> bool:
    """Whether a dense FFN of ``width`` can be carried without any change of the output."""
    return width <= shape.shared_width + (0 if shape.common else shape.routed_width)


def upcycle(
    state: Mapping[str, Tensor],
    configuration: ModelConfiguration,
    *,
    seed: int = 0,
    importance: Mapping[str, Sequence[Importance]] | None = None,
) -> dict[str, Tensor]:
    """The weights of a dense transformer as those of ``configuration``, which has routed experts.

    Args:
        state: of a :class:`~export.model.transformer.UnifiedTransformer` without routed experts, of the same width and layers.
        configuration: of the model to be.
        seed: of new weights: routers, and hidden units without an origin.
        importance: of the hidden units, by group and layer; None judges them by the norms of their weights.

    Returns:
        everything but the sequence level's new weights:
        ``UnifiedTransformer(configuration).load_state_dict(weights, strict=False)``.

    Raises:
        InputError: no dense FFN in ``state``, no routed experts in ``configuration``, other sizes,
            or norms of queries and keys in one only.
    """
    layers, width = _checked(state, configuration)
    shape, generator = configuration.token_experts, torch.Generator().manual_seed(seed)
    weights = {name: tensor for name, tensor in state.items() if ".dense." not in name}
    for layer in layers:
        dense = {part: state[f"blocks.{layer}.dense.{part}"] for part in ("up.weight", "up.bias", "down.weight", "down.bias")}
        if shape.common:
            weights |= {f"blocks.{layer}.dense.{part}": tensor for part, tensor in _padded(dense, shape.shared_width, generator).items()}
        for group in KINDS:
            router = torch.randn(shape.routed, width, generator=generator) * width**-0.5 * 0.5  # as a new one
            known = importance[group][layer] if importance is not None else None
            own = _silent(dense, shape, generator) if shape.common else upcycle_layer(dense, shape, known, generator)
            own["router.weight"] = router.to(dense["up.weight"].dtype)
            weights |= {f"blocks.{layer}.experts.{group}.{part}": tensor.clone() for part, tensor in own.items()}
            if configuration.sequence_experts and configuration.sequence_scale:
                weights[f"blocks.{layer}.sequence.{group}.scale"] = torch.zeros(width, dtype=dense["up.weight"].dtype)
    return weights


def _checked(state: Mapping[str, Tensor], configuration: ModelConfiguration) -> tuple[list[int], int]:
    """The numbers of the dense layers and the model's width; raises :class:`InputError` where the two do not fit."""
    shape = configuration.token_experts
    layers = sorted(int(match[1]) for name in state if (match := _UP.fullmatch(name)))
    if not layers or not shape.routed or dense_width(state) is None:
        raise InputError("upcycling: goes from a dense model to a configuration with routed experts")
    hidden, width = state[f"blocks.{layers[0]}.dense.up.weight"].shape
    if len(layers) != configuration.layers or width != configuration.width:
        raise InputError(
            f"upcycling: the dense model has {len(layers)} layers of width {width}, "
            f"configuration {configuration.name!r} {configuration.layers} of {configuration.width}; they must agree"
        )
    if (f"blocks.{layers[0]}.attention.query_norm.weight" in state) is not configuration.query_key_norm:
        raise InputError(
            f"upcycling: query_key_norm must be the same in the dense model and in configuration {configuration.name!r} "
            f"({configuration.query_key_norm})"
        )
    if shape.common and hidden > shape.shared_width:
        raise InputError(
            f"upcycling: the dense FFN has {hidden} units, the common shared expert {shape.shared_width}; use another configuration"
        )
    return layers, width


def _new(rows: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randn(rows, like.shape[1], generator=generator) * _NEW).to(like.dtype)


def _padded(dense: Mapping[str, Tensor], width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A dense FFN widened by units without output."""
    lacking = width - len(dense["up.weight"])
    return {
        "up.weight": torch.cat((dense["up.weight"], _new(lacking, dense["up.weight"], generator))),
        "up.bias": nn.functional.pad(dense["up.bias"], (0, lacking)),
        "down.weight": nn.functional.pad(dense["down.weight"], (0, lacking)),
        "down.bias": dense["down.bias"],
    }


def _silent(dense: Mapping[str, Tensor], shape: TokenExperts, generator: torch.Generator) -> dict[str, Tensor]:
    """Routed experts without output, beside a shared expert that is kept elsewhere."""
    rows, up = shape.routed * shape.routed_width, dense["up.weight"]
    return {
        "up.weight": _new(rows, up, generator),
        "up.bias": up.new_zeros(rows),
        "down.weight": up.new_zeros(up.shape[1], rows),
        "down.bias": torch.zeros_like(dense["down.bias"]),
    }


def upcycle_layer(
    dense: Mapping[str, Tensor], shape: TokenExperts, importance: Importance | None = None, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """One dense FFN's ``up`` (J, D) and ``down`` (D, J) as those of :class:`~export.model.experts.TokenExpertLayer`, without the router."""
    generator = generator or torch.Generator().manual_seed(0)
    up, bias, down, offset = dense["up.weight"], dense["up.bias"], dense["down.weight"], dense["down.bias"]
    shared, routed, count, width = shape.shared_width, shape.routed_width, shape.routed, len(dense["up.weight"])
    scale = torch.ones(shared + routed * count)
    if is_exact(width, shape):
        order = torch.cat((torch.arange(shared), torch.arange(shared, shared + routed).repeat(count)))
    else:
        weight = up.float().norm(dim=1) * down.float().norm(dim=0) if importance is None else importance.weight
        ranked = torch.argsort(weight, descending=True, stable=True)[: len(scale)]
        dealt = nn.functional.pad(ranked[shared:], (0, len(scale) - len(ranked)), value=width)
        order = torch.cat((ranked[:shared], dealt.view(routed, count).T.reshape(-1)))  # in turn, so that no expert gets the best
        scale[shared:] = shape.active
        if importance is not None:
            missing = torch.ones(width)
            missing[ranked[:shared]] = 0.0
            missing[ranked[shared:]] = 1 - shape.active / count
            offset = offset + (down.float() @ (missing * importance.mean)).to(offset.dtype)
    known, place = order < width, order.clamp(max=width - 1)
    return {
        "up.weight": torch.where(known[:, None], up[place], _new(len(order), up, generator)),
        "up.bias": bias[place] * known.to(bias.dtype),
        "down.weight": (down[:, place].float() * (scale * known)).to(down.dtype),
        "down.bias": offset,
    }


@torch.no_grad()
def relative_error(dense: DenseFeedForward, layer: TokenExpertLayer, x: Tensor) -> float:
    """Root mean square of the difference that upcycling makes, over that of the dense output without its bias; for x (B, S, D)."""
    before = dense(x)
    after, _, _ = layer(x, x)
    return float((after - before).square().mean().sqrt() / (before - dense.down.bias).square().mean().sqrt())
