"""One step of parallel decoding, position by position in plain numbers: slow, and close to the words of ``f2edge.spec.graphs.T2I_STEP``."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

MASK32 = 0xFFFFFFFF


def reference_key(seed: int, step: int, position: int) -> int:
    """The key of ``f2edge.decoding.noise``, in Python's own integers."""
    k = 0
    for word in (seed & MASK32, seed >> 32, step, position):
        k ^= (word + 0x9E3779B9) & MASK32
        k ^= k >> 16
        k = k * 0x85EBCA6B & MASK32
        k ^= k >> 13
        k = k * 0xC2B2AE35 & MASK32
        k ^= k >> 16
        k = (k + 0x9E3779B9) & MASK32
    return k


def reference_uniform(key: int, code: int) -> float:
    h = (key + code * 0x9E3779B9) & MASK32
    h = (h ^ (h >> 16)) * 0x85EBCA6B & MASK32
    h = (h ^ (h >> 13) ^ key) * 0xC2B2AE35 & MASK32
    return ((h >> 9) + 0.5) / 2**23


def reference_gumbel(key: int, code: int) -> float:
    return -log(-log(reference_uniform(key, code)))


def reference_step(branch_logits: NDArray[Any], feeds: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``next_codes`` and ``proposal`` (R, N) from each branch's logits (B, N, V) and the other inputs of the step graph."""
    R, N = feeds["codes"].shape
    V = branch_logits.shape[-1]
    next_codes, proposal = feeds["codes"].copy(), feeds["codes"].copy()
    for r in range(R):
        confidence = {}
        for n in range(N):
            if feeds["codes"][r, n] != V:
                continue
            c, u = branch_logits[r, n], branch_logits[feeds["unconditional_branch"][r], n]
            z = [float(c[v] + feeds["guidance"][r] * (c[v] - u[v])) / float(feeds["token_temperature"][r]) for v in range(V)]
            key = int(feeds["noise_key"][r, n])
            token = max(range(V), key=lambda v: z[v] + reference_gumbel(key, v))
            log_p = z[token] - max(z) - log(sum(exp(x - max(z)) for x in z))
            confidence[n] = log_p + float(feeds["temperature"][r]) * reference_gumbel(key, V) + float(feeds["priority"][r, n])
            proposal[r, n] = next_codes[r, n] = token
        for n in sorted(confidence, key=lambda n: (confidence[n], n))[: feeds["masked_after"][r]]:
            next_codes[r, n] = V
    return next_codes, proposal
