"""Random layers for the tests of the fused experts, scaled so that every stage matters: scores near 1, hidden values near 1."""

from __future__ import annotations

import numpy as np

from engines.plugins.fused_moe import MoEShape
from tests.support.tensorrt.plugin_interpreter import Array


def random_weights(shape: MoEShape, seed: int = 0) -> dict[str, Array]:
    """The node's six weights by name."""
    random = np.random.default_rng(seed)
    D, E, I = shape.width, shape.experts, shape.expert_width
    J = 2 * I if shape.gated else I

    def normal(*sizes: int, scale: float, dtype: type = np.float16) -> Array:
        return (random.standard_normal(sizes) * scale).astype(dtype)

    return {
        "router_weight": normal(D, E, scale=D**-0.5, dtype=np.float32),
        "router_bias": normal(E, scale=0.1, dtype=np.float32),
        "up_weight": normal(E, D, J, scale=D**-0.5),
        "up_bias": normal(E, J, scale=0.1),
        "down_weight": normal(E, I, D, scale=I**-0.5),
        "down_bias": normal(E, D, scale=0.1),
    }


def random_rows(tokens: int, width: int, seed: int = 1) -> Array:
    """x (T, D) fp32, as a LayerNorm gives it."""
    return np.random.default_rng(seed).standard_normal((tokens, width)).astype(np.float32)


def row_errors(output: Array, exact: Array) -> Array:
    """The length of output - exact over that of exact, row by row: (T,)."""
    wide = output.astype(np.float64)
    result: Array = np.linalg.norm(wide - exact, axis=1) / np.linalg.norm(exact, axis=1)
    return result
