"""Triton kernels of the fused mixture of experts; axes and definition: :mod:`engines.plugins`.

Arguments are inputs, the token count T where needed, then outputs: the order of TensorRT's ahead-of-time plug-ins.  All other sizes are
compile-time constants, so a cubin belongs to one layer shape.

1. ``route``: router logits in fp32, softmax, top-K, gates.
2. ``sort``: a counting sort of the assignments by expert, and the table of row blocks for the products.
3. ``up``, 4. ``down``: grouped products, one program per row block and column block; fp16 in, fp32 sums.
5. ``combine``: the gated sum of each token's K results, in the order of its gates.

No kernel adds atomically and each output is written by one program, so results do not depend on the order in which programs run.  A row's
result does not depend on other rows either: a token gets the same result alone and in a batch, as long as the tile is the same.

>>> route[(cdiv(T, 4),)](x, router_weight, router_bias, T, experts, gates, D=2048, E=8, K=4, BT=4, BD=256, BE=8)  # doctest: +SKIP
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def route(
    x, router_weight, router_bias, T, experts, gates,
    D: tl.constexpr, E: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """From x (T, D), weight (D, E), bias (E,): experts (T, K) int32 by falling gate, gates (T, K) fp32 of sum 1.  Grid (cdiv(T, BT),)."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    e = tl.arange(0, BE)
    products = tl.zeros([BT, BD, BE], dtype=tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        row = tl.load(x + t[:, None].to(tl.int64) * D + d[None, :], mask=(t[:, None] < T) & (d[None, :] < D), other=0.0).to(tl.float32)
        weight = tl.load(router_weight + d[:, None] * E + e[None, :], mask=(d[:, None] < D) & (e[None, :] < E), other=0.0)
        products += row[:, :, None] * weight[None, :, :]
    scores = tl.sum(products, axis=1) + tl.load(router_bias + e, mask=e < E, other=0.0)[None, :]  # (BT, BE)
    scores = tl.where(e[None, :] < E, scores, float("-inf"))
    powers = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    probability = powers / tl.sum(powers, axis=1)[:, None]
    # Rank by score, since small probabilities round to equal zeros.  A NaN must reach the output but never select a padding expert: it
    # ranks with the lowest scores, above experts already chosen and above the padding.
    rest = tl.where(scores == scores, tl.maximum(scores, -3.0e38), -3.0e38)  # noqa: PLR0124
    rest = tl.where(e[None, :] < E, rest, float("-inf"))
    place = tl.full([BT, BE], K, dtype=tl.int32)  # K: not chosen
    for k in tl.static_range(K):
        best = tl.argmax(rest, axis=1)  # ties go to the lowest index
        hit = e[None, :] == best[:, None]
        place = tl.where(hit, k, place)
        rest = tl.where(hit, -3.2e38, rest)
    chosen = tl.where(place < K, probability, 0.0)
    chosen = chosen / tl.sum(chosen, axis=1)[:, None]
    target = t[:, None] * K + place
    wanted = (place < K) & (t[:, None] < T)
    tl.store(experts + target, tl.broadcast_to(e[None, :], [BT, BE]), mask=wanted)
    tl.store(gates + target, chosen, mask=wanted)


@triton.jit
def sort(
    experts, T, order, blocks,
    E: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BA: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """From experts (A,): order (A,), assignments by expert, then by index; blocks (cdiv(A, BM) + E, 4): expert or -1, first row, rows, 0.

    Grid (E,): program e counts everything, then places what belongs to expert e.
    """
    expert = tl.program_id(0)
    e = tl.arange(0, BE)
    a = tl.arange(0, BA)
    A = T * K
    counts = tl.zeros([BE], dtype=tl.int32)
    for start in range(0, A, BA):
        ids = tl.load(experts + start + a, mask=start + a < A, other=-1)
        counts += tl.sum((ids[:, None] == e[None, :]).to(tl.int32), axis=0)
    first = tl.sum(tl.where(e < expert, counts, 0), axis=0)
    count = tl.sum(tl.where(e == expert, counts, 0), axis=0)
    placed = first
    for start in range(0, A, BA):
        ids = tl.load(experts + start + a, mask=start + a < A, other=-1)
        mine = (ids == expert).to(tl.int32)
        tl.store(order + placed + tl.cumsum(mine, axis=0) - 1, start + a, mask=mine == 1)
        placed += tl.sum(mine, axis=0)
    tiles = (counts + BM - 1) // BM
    before = tl.sum(tl.where(e < expert, tiles, 0), axis=0)
    own = (count + BM - 1) // BM
    for start in range(0, own, BA):
        b = start + a
        entry = blocks + (before + b) * 4
        tl.store(entry, tl.zeros([BA], dtype=tl.int32) + expert, mask=b < own)
        tl.store(entry + 1, first + b * BM, mask=b < own)
        tl.store(entry + 2, tl.minimum(count - b * BM, BM), mask=b < own)
        tl.store(entry + 3, tl.zeros([BA], dtype=tl.int32), mask=b < own)
    if expert == E - 1:
        for start in range(before + own, (A + BM - 1) // BM + E, BA):
            b = start + a
            tl.store(blocks + b * 4, tl.full([BA], -1, dtype=tl.int32), mask=b < (A + BM - 1) // BM + E)


@triton.jit
def _sigmoid(x):
    """Logistic function of fp32 values, without overflow: exp of non-positive numbers only."""
    power = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, power) / (1.0 + power)


@triton.jit
def _gelu(x):
    """GELU by its tanh approximation (arXiv 1606.08415): (1 + tanh u) / 2 is the logistic function of 2u."""
    return x * _sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def up(
    x, order, blocks, weight, bias, hidden,
    D: tl.constexpr, I: tl.constexpr, K: tl.constexpr, GATED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """From x (T, D), weight (E, D, J), bias (E, J): hidden (A, I) fp16 in sorted order; J is 2·I if GATED.  Grid (blocks, cdiv(I, BN))."""
    J: tl.constexpr = 2 * I if GATED else I
    entry = blocks + tl.program_id(0) * 4
    expert = tl.load(entry).to(tl.int64)
    if expert >= 0:
        first = tl.load(entry + 1)
        m = tl.arange(0, BM)
        inside = m < tl.load(entry + 2)
        token = tl.load(order + first + m, mask=inside, other=0) // K
        n = tl.program_id(1) * BN + tl.arange(0, BN)
        k = tl.arange(0, BK)
        rows = x + token[:, None].to(tl.int64) * D + k[None, :]
        columns = weight + expert * (D * J) + k[:, None] * J + n[None, :]
        total = tl.zeros([BM, BN], dtype=tl.float32)
        scaled = tl.zeros([BM, BN], dtype=tl.float32)
        for start in range(0, D, BK):
            part = tl.load(rows + start, mask=inside[:, None] & (start + k[None, :] < D), other=0.0).to(tl.float16)
            known = (start + k[:, None] < D) & (n[None, :] < I)
            total = tl.dot(part, tl.load(columns + start * J, mask=known, other=0.0), total)
            if GATED:
                scaled = tl.dot(part, tl.load(columns + start * J + I, mask=known, other=0.0), scaled)
        total += tl.load(bias + expert * J + n, mask=n < I, other=0.0).to(tl.float32)[None, :]
        if GATED:
            scaled += tl.load(bias + expert * J + I + n, mask=n < I, other=0.0).to(tl.float32)[None, :]
            total = total * _sigmoid(total) * scaled
        else:
            total = _gelu(total)
        target = hidden + (first + m)[:, None].to(tl.int64) * I + n[None, :]
        tl.store(target, total.to(tl.float16), mask=inside[:, None] & (n[None, :] < I))


@triton.jit
def down(
    hidden, order, blocks, weight, bias, parts,
    D: tl.constexpr, I: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """From hidden (A, I), weight (E, I, D), bias (E, D): parts (A, D) fp16 in the order of the assignments.  Grid (blocks, cdiv(D, BN))."""
    entry = blocks + tl.program_id(0) * 4
    expert = tl.load(entry).to(tl.int64)
    if expert >= 0:
        first = tl.load(entry + 1)
        m = tl.arange(0, BM)
        inside = m < tl.load(entry + 2)
        n = tl.program_id(1) * BN + tl.arange(0, BN)
        k = tl.arange(0, BK)
        rows = hidden + (first + m)[:, None].to(tl.int64) * I + k[None, :]
        columns = weight + expert * (I * D) + k[:, None] * D + n[None, :]
        total = tl.zeros([BM, BN], dtype=tl.float32)
        for start in range(0, I, BK):
            part = tl.load(rows + start, mask=inside[:, None] & (start + k[None, :] < I), other=0.0)
            total = tl.dot(part, tl.load(columns + start * D, mask=(start + k[:, None] < I) & (n[None, :] < D), other=0.0), total)
        total += tl.load(bias + expert * D + n, mask=n < D, other=0.0).to(tl.float32)[None, :]
        assignment = tl.load(order + first + m, mask=inside, other=0)
        target = parts + assignment[:, None].to(tl.int64) * D + n[None, :]
        tl.store(target, total.to(tl.float16), mask=inside[:, None] & (n[None, :] < D))


@triton.jit
def combine(parts, gates, T, y, D: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr):
    """From parts (T, K, D), gates (T, K): y (T, D) fp16.  Grid (cdiv(T, BT), cdiv(D, BD))."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = (t[:, None] < T) & (d[None, :] < D)
    row = t[:, None].to(tl.int64) * D + d[None, :]
    first = parts + row + t[:, None].to(tl.int64) * ((K - 1) * D)
    total = tl.zeros([BT, BD], dtype=tl.float32)
    for k in tl.static_range(K):
        gate = tl.load(gates + t * K + k, mask=t < T, other=0.0)
        total += gate[:, None] * tl.load(first + k * D, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row, total.to(tl.float16), mask=inside)
