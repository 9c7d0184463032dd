"""A dense model as the start of one with token-level experts: its FFN becomes the shared and the routed experts of both task groups.

The gates of the chosen experts sum to 1, so routed experts that are copies of each other add up to one of them, however the router
chooses (sparse upcycling, arXiv 2212.05055).  The shared expert takes the first hidden units and every routed expert the rest:
exact as long as the dense FFN is no wider than ``shared_width + routed_width``; hidden units left over stay silent (zero weights).

A wider FFN cannot be carried exactly by K of E experts.  Then the shared expert takes the units that matter most, judged by the norms of
their weights, and the others are dealt out to the routed experts; what an expert gives is multiplied by K, because its gate is about
1 / K.  For "1.8b" (2048 + 8 x 512 from 8192) this is a start for training, not the same model: :func:`relative_error` says how far off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from export.model.experts import DenseFeedForward, TokenExpertLayer
from export.model.sequence_experts import KINDS
from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration, TokenExperts

_UP = re.compile(r"blocks\.(\d+)\.dense\.up\.weight")


def is_exact(dense_width: int, shape: TokenExperts) -> bool:
    """Whether a dense FFN of ``dense_width`` can be carried without any change of the output."""
    return dense_width <= shape.shared_width + shape.routed_width


def upcycle(state: Mapping[str, Tensor], configuration: ModelConfiguration, *, seed: int = 0) -> dict[str, Tensor]:
    """The weights of a dense transformer as those of ``configuration``, which has routed experts.

    Args:
        state: of a :class:`~export.model.transformer.UnifiedTransformer` without routed experts, of the same width and layers.
        configuration: of the model to be.
        seed: of the routers' new weights.

    Returns:
        everything but the sequence level, which has no origin in a dense model and begins as in a new one:
        ``UnifiedTransformer(configuration).load_state_dict(weights, strict=False)``.

    Raises:
        InputError: no dense FFN in ``state``, no routed experts in ``configuration``, other sizes,
            or norms of queries and keys in one only.
    """
    layers = sorted(int(match[1]) for name in state if (match := _UP.fullmatch(name)))
    if not layers or not configuration.token_experts.routed:
        raise InputError("upcycling: goes from a dense model to a configuration with routed experts")
    width = state[f"blocks.{layers[0]}.dense.up.weight"].shape[1]
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
    generator = torch.Generator().manual_seed(seed)
    weights = {name: tensor for name, tensor in state.items() if ".dense." not in name}
    for layer in layers:
        dense = {part: state[f"blocks.{layer}.dense.{part}"] for part in ("up.weight", "up.bias", "down.weight", "down.bias")}
        expert = upcycle_layer(dense, configuration.token_experts)
        for group in KINDS:
            router = torch.randn(configuration.token_experts.routed, width, generator=generator) * width**-0.5 * 0.5  # as a new one
            own = {**{part: tensor.clone() for part, tensor in expert.items()}, "router.weight": router.to(dense["up.weight"].dtype)}
            weights |= {f"blocks.{layer}.experts.{group}.{part}": tensor for part, tensor in own.items()}
    return weights


def upcycle_layer(dense: Mapping[str, Tensor], shape: TokenExperts) -> dict[str, Tensor]:
    """One dense FFN's ``up`` (J, D) and ``down`` (D, J) as those of :class:`~export.model.experts.TokenExpertLayer`, without the router."""
    up, bias, down = dense["up.weight"], dense["up.bias"], dense["down.weight"]
    shared, routed, count = shape.shared_width, shape.routed_width, shape.routed
    if is_exact(up.shape[0], shape):
        lacking = shared + routed - up.shape[0]
        up, bias = nn.functional.pad(up, (0, 0, 0, lacking)), nn.functional.pad(bias, (0, lacking))
        down = nn.functional.pad(down, (0, lacking))
        order = torch.cat((torch.arange(shared), torch.arange(shared, shared + routed).repeat(count)))
        scale = torch.ones(len(order))
    else:
        hidden = min(shared + routed * count, up.shape[0])
        weight = up.float().norm(dim=1) * down.float().norm(dim=0)
        ranked = torch.argsort(weight, descending=True, stable=True)[:hidden]
        dealt = torch.nn.functional.pad(ranked[shared:], (0, shared + routed * count - hidden), value=-1)
        order = torch.cat((ranked[:shared], dealt.view(routed, count).T.reshape(-1)))  # in turn, so that no expert gets the best
        scale = torch.cat((torch.ones(shared), torch.full((routed * count,), float(shape.active))))
        scale[order < 0] = 0.0
        order = order.clamp(min=0)
    return {
        "up.weight": up[order],
        "up.bias": bias[order],
        "down.weight": (down[:, order].float() * scale).to(down.dtype),
        "down.bias": dense["down.bias"],
    }


@torch.no_grad()
def relative_error(dense: DenseFeedForward, layer: TokenExpertLayer, x: Tensor) -> float:
    """Root mean square of the difference that upcycling makes, over that of the dense output without its bias; for x (B, S, D)."""
    before = dense(x)
    after, _, _ = layer(x, x)
    return float((after - before).square().mean().sqrt() / (before - dense.down.bias).square().mean().sqrt())
