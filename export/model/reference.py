"""Slow exact references of the model's layers: one token, one expert, one head at a time.

Each takes a trained layer and implements the written definition independently of the layer's code; tests compare both.

Axes: B sequences, S tokens, N image tokens, D width, E experts, W head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from export.model.attention import Attention
from export.model.experts import Router, TokenExpertLayer
from export.model.sequence_experts import SequenceExpertLayer


def gelu(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (arXiv 1606.08415)."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def chosen_gates(router: Router, x: Tensor) -> dict[int, float]:
    """Return expert → gate of one vector (D,): softmax over all, the K most probable, divided by their sum."""
    scores = (router.weight.detach() @ x.detach()).tolist()
    highest = max(scores)
    powers = [math.exp(score - highest) for score in scores]
    probability = [power / sum(powers) for power in powers]
    chosen = sorted(range(len(scores)), key=lambda e: -probability[e])[: router.active]
    return {e: probability[e] / sum(probability[c] for c in chosen) for e in chosen}


def token_experts(layer: TokenExpertLayer, x: Tensor) -> Tensor:
    """Return the output of :class:`TokenExpertLayer` for x (B, S, D)."""
    shared = layer.shape.shared_width
    output = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for s in range(x.shape[1]):
            token = x[b, s]
            total = layer.down.weight[:, :shared] @ gelu(layer.up.weight[:shared] @ token + layer.up.bias[:shared]) + layer.down.bias
            for expert, gate in chosen_gates(layer.router, token).items():
                rows = layer.slice_of(expert)
                total = total + gate * (layer.down.weight[:, rows] @ gelu(layer.up.weight[rows] @ token + layer.up.bias[rows]))
            output[b, s] = total
    return output


def sequence_experts(layer: SequenceExpertLayer, x: Tensor, sources: Mapping[str, Tensor]) -> Tensor:
    """Return the output of :class:`SequenceExpertLayer` for x (B, N, D) if it routes on the mean of x."""
    output = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for expert, gate in chosen_gates(layer.router, x[b].mean(dim=0)).items():
            kind = layer.kinds[expert]
            for n in range(x.shape[1]):
                token = x[b, n]
                if kind == "copy":
                    output[b, n] += gate * token
                elif kind != "zero":
                    source = sources[kind][b]
                    w = torch.sigmoid(layer.gates[kind](token))
                    mapped = layer.maps[kind](source[min(n, len(source) - 1)])
                    output[b, n] += gate * (w * token + (1 - w) * mapped)
    return output


def attention(layer: Attention, x: Tensor, positions: Tensor, allowed: Tensor, *, rotary: int, base: float) -> Tensor:
    """What :class:`Attention` gives for (B, S, D) without caches; ``positions`` (S,), ``allowed`` bool (B, S, S)."""
    B, S, D = x.shape
    W = D // layer.heads
    mixed = torch.zeros_like(x)
    for b in range(B):
        query, key, value = (x[b] @ layer.input.weight.T + layer.input.bias).chunk(3, dim=-1)  # (S, D)
        for head in range(layer.heads):
            part = slice(head * W, (head + 1) * W)
            turned = [
                torch.stack([_turned(head_norm(norm, v[s, part]), int(positions[s]), rotary, base) for s in range(S)])
                for v, norm in ((query, layer.query_norm if layer.normed else None), (key, layer.key_norm if layer.normed else None))
            ]
            for s in range(S):
                seen = [t for t in range(S) if allowed[b, s, t]]
                scores = torch.stack([turned[0][s] @ turned[1][t] for t in seen]) / math.sqrt(W)
                mixed[b, s, part] = torch.softmax(scores, dim=0) @ value[seen][:, part]
    return mixed @ layer.output.weight.T + layer.output.bias


def head_norm(norm: nn.LayerNorm | None, x: Tensor) -> Tensor:
    """One head's vector (W,) less its mean, over its standard deviation, times weight plus bias; unchanged without ``norm``."""
    if norm is None:
        return x
    spread = torch.sqrt((x - x.mean()).square().mean() + norm.eps)
    return (x - x.mean()) / spread * norm.weight + norm.bias


def _turned(x: Tensor, position: int, rotary: int, base: float) -> Tensor:
    """Rotate one head's vector (W,): dims i and i + rotary/2 as a pair by the angle ``position · base^(-2i/rotary)``."""
    result = x.clone()
    for i in range(rotary // 2):
        angle = position * base ** (-2 * i / rotary)
        a, b = x[i], x[i + rotary // 2]
        result[i] = a * math.cos(angle) - b * math.sin(angle)
        result[i + rotary // 2] = b * math.cos(angle) + a * math.sin(angle)
    return result


def balance(probability: Tensor, chosen: Tensor, valid: Tensor) -> float:
    """Return one layer's balance loss ``E Σ f P`` for probability (B, S, E), chosen (B, S, E), valid (B, S)."""
    B, S, E = probability.shape
    counts, masses, tokens = [0.0] * E, [0.0] * E, 0
    for b in range(B):
        for s in range(S):
            if valid[b, s]:
                tokens += 1
                for e in range(E):
                    counts[e] += float(chosen[b, s, e])
                    masses[e] += float(probability[b, s, e])
    return E * sum(counts[e] / sum(counts) * masses[e] / tokens for e in range(E))
