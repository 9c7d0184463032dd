"""Counter-based noise: a pure function of (seed, step, position, code), so a seed determines a face.

A request's noise depends only on the request, so its tokens are the same alone, in any batch, before and after a restart.  Noise is
hashed per code (not drawn as one uniform per position), because perturbed logits then change 2 % of the tokens instead of 57 % under
inverse-CDF sampling; precisions and backends stay close to each other.

Definition.  All integers are unsigned 32 bit and wrap; ``>>`` shifts in zeros, ``^`` is exclusive or.

1. The key of a position, computed on the host (:func:`noise_key`) from the four words
   ``w0 = seed mod 2^32, w1 = seed >> 32, w2 = step, w3 = position``::

       k = 0
       for w in (w0, w1, w2, w3):
           k = k ^ (w + 0x9E3779B9)
           k = k ^ (k >> 16);  k = k * 0x85EBCA6B
           k = k ^ (k >> 13);  k = k * 0xC2B2AE35
           k = k ^ (k >> 16)
           k = k + 0x9E3779B9

2. The uniform of a code ``c``, computed inside the step graph (:func:`uniform`)::

       h = k + c * 0x9E3779B9
       h = h ^ (h >> 16);  h = h * 0x85EBCA6B
       h = h ^ (h >> 13);  h = h ^ k;  h = h * 0xC2B2AE35
       u = (float32(h >> 9) + 0.5) * 2^-23

   ``u`` is exact in float32 and lies in ``[2^-24, 1 - 2^-24]``: 23 bits, because with 24 the half would round the largest value up to
   1, whose Gumbel noise is infinite.  The finaliser's last ``h ^ (h >> 16)`` is left out (it reaches only the low half); ``^ k`` keeps
   two positions from sharing a shifted stream.

3. Gumbel noise: ``g = -log(-log(u))`` in float32, in ``[-2.81, 16.64]``.

Codes ``0 … V-1`` choose the token: ``argmax_c(logits_c / token_temperature + g_c)``, the lowest code winning a tie.  Code ``V`` is the
confidence's stream: ``confidence = log p(token) + temperature * g_V + priority``, p the softmax of the same tempered, guided logits.

**Races of blocks** (``ModelConfiguration.draw`` "blocks").  With ``E = -log(u)`` the law above is a race, ``argmax_c(p_c / E_c)``.
Codes fall into ``V / w`` blocks of ``w = block_width(V)`` consecutive codes; a block's probability is the sum of its codes'.  First the
blocks race, block ``b`` with the noise of code ``V + 1 + b``; then the codes of the winning block, the ``i``-th with the noise of code
``i``.  By the chain rule the token has the same distribution, from ``w + V / w`` numbers instead of ``V``: 128 instead of 4096.

In ONNX: ``Cast`` to uint32, ``Mul``, ``Add``, ``BitShift(RIGHT)``, ``BitwiseXor``, ``Cast`` to float, ``Log``.  PyTorch, which has no
uint32 arithmetic, does the same in int64 with ``& 0xFFFFFFFF`` after each ``+`` and ``*`` (``*`` wraps mod 2^64, the low half is right).

>>> noise_key(7, 0, np.arange(2)).tolist()
[2422370948, 3424174996]
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2edge.errors import InputError

GOLDEN = 0x9E3779B9
MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)

#: The step index of draws made once per request (its order, a Halton roll); no real step reaches it.
REQUEST_STEP = 0xFFFFFFFF

_U32 = np.uint32


def block_width(codes: int) -> int:
    """Return the codes of a block: the largest divisor of ``codes`` up to its square root."""
    return next(width for width in range(math.isqrt(codes), 0, -1) if codes % width == 0)


def _mix(k: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the murmur3 finaliser of ``k``."""
    k = (k ^ (k >> _U32(16))) * _U32(MULTIPLIERS[0])
    k = (k ^ (k >> _U32(13))) * _U32(MULTIPLIERS[1])
    mixed: NDArray[np.uint32] = k ^ (k >> _U32(16))
    return mixed


def noise_key(seed: int, step: int, positions: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return the noise keys of one request's positions at one step.

    Args:
        seed: in ``[0, 2^64)``.
        step: 0-based step, at most ``REQUEST_STEP``.
        positions: raster indices of image tokens, any shape.

    Returns:
        int64 of the shape of ``positions``, values in ``[0, 2^32)``.

    Raises:
        InputError: a seed outside its range.
    """
    if not 0 <= seed < 1 << 64:
        raise InputError(f"seed {seed} lies outside 0 … 2^64 - 1; choose a whole number in that range")
    k = np.zeros(positions.shape, dtype=_U32)
    words: tuple[NDArray[np.uint32], ...] = (*np.array([[seed & 0xFFFFFFFF], [seed >> 32], [step]], dtype=_U32), positions.astype(_U32))
    for word in words:
        k = _mix(k ^ (word + _U32(GOLDEN))) + _U32(GOLDEN)
    return k.astype(np.int64)


def uniform(key: NDArray[np.integer[Any]], code: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Return uniform noise in the open interval (0, 1) for keys and codes, broadcast against each other; float32."""
    k = key.astype(_U32)
    h = k + code.astype(_U32) * _U32(GOLDEN)
    h = (h ^ (h >> _U32(16))) * _U32(MULTIPLIERS[0])
    h = (h ^ (h >> _U32(13)) ^ k) * _U32(MULTIPLIERS[1])
    u: NDArray[np.float32] = ((h >> _U32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
    return u


def gumbel(key: NDArray[np.integer[Any]], code: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Return standard Gumbel noise (mean 0.5772, variance π²/6) for keys and codes, broadcast; float32."""
    g: NDArray[np.float32] = -np.log(-np.log(uniform(key, code)))
    return g
