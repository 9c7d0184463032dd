"""NumPy reference of the node ``F2FusedMoE``: one token and one expert at a time, in float64.  Definition: :mod:`engines.plugins`.

>>> fused_moe(x, weights, active=4).shape == x.shape  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def gelu(x: Array) -> Array:
    """GELU by its tanh approximation (arXiv 1606.08415)."""
    result: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return result


def silu(x: Array) -> Array:
    """SiLU: x times its logistic function."""
    result: Array = x * 0.5 * (1 + np.tanh(x / 2))
    return result


def route(x: Array, weight: Array, bias: Array, active: int) -> tuple[Array, Array]:
    """Route x (T, D) with weight (D, E) and bias (E,).

    Returns:
        Experts (T, K) by descending probability, ties by index, and their gates (T, K), which sum to 1.
    """
    scores = x.astype(np.float64) @ weight.astype(np.float64) + bias.astype(np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    probability = powers / powers.sum(axis=1, keepdims=True)
    experts = np.argsort(-scores, axis=1, kind="stable")[:, :active]
    chosen = np.take_along_axis(probability, experts, axis=1)
    return experts, chosen / chosen.sum(axis=1, keepdims=True)


def fused_moe(x: Array, weights: Mapping[str, Array], active: int, *, gated: bool = False) -> Array:
    """Return the node's output float64 (T, D) for x (T, D) and its six weights by name; the experts use x rounded to fp16."""
    experts, gates = route(x, weights["router_weight"], weights["router_bias"], active)
    up, up_bias, down, down_bias = (weights[n].astype(np.float64) for n in ("up_weight", "up_bias", "down_weight", "down_bias"))
    rows = x.astype(np.float16).astype(np.float64)
    output = np.zeros(x.shape, dtype=np.float64)
    for t in range(len(x)):
        for expert, gate in zip(experts[t], gates[t], strict=True):
            hidden = rows[t] @ up[expert] + up_bias[expert]
            if gated:
                first, second = np.split(hidden, 2)
                hidden = silu(first) * second
            else:
                hidden = gelu(hidden)
            output[t] += gate * (hidden @ down[expert] + down_bias[expert])
    return output
