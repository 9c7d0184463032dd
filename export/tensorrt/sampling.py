"""Sampling at the end of a decoding step for TensorRT, which has no unsigned integers, shifts or exclusive or.

Bit-identical to :mod:`export.graph.sampling`: the hash runs in int64, where a product of 32 by 16 bits cannot overflow; shifts are
divisions by powers of two; the exclusive or of two bytes is a lookup in a table of 65536 entries.  Ranks are counted by comparing every
pair of positions instead of sorting, which orders ties by position on every machine (TensorRT does not document how its TopK breaks ties)
and needs no scatter.

Axes: R requests, N image tokens, V image codes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.graph.sampling import U32, build_sampler
from f2edge.decoding.noise import GOLDEN, MULTIPLIERS


class _Text:
    """Builder of ONNX text; each method appends one operation on int64 values and returns the result's name."""

    def __init__(self, prefix: str) -> None:
        self.lines: list[str] = []
        self._prefix = prefix

    def _add(self, expression: str) -> str:
        name = f"{self._prefix}{len(self.lines)}"
        self.lines.append(f"    {name} = {expression}")
        return name

    def binary(self, op: str, a: str, b: str) -> str:
        """``op (a, b)``."""
        return self._add(f"{op} ({a}, {b})")

    def high(self, a: str, bits: int) -> str:
        """``a >> bits`` of a non-negative value."""
        return self.binary("Div", a, f"two{bits}")

    def parts(self, a: str, bits: int) -> tuple[str, str]:
        """``a >> bits`` and the lower bits."""
        high = self.high(a, bits)
        return high, self.binary("Sub", a, self.join(high, None, bits))

    def join(self, high: str, low: str | None, bits: int) -> str:
        """``(high << bits) + low``."""
        shifted = self.binary("Mul", high, f"two{bits}")
        return shifted if low is None else self.binary("Add", shifted, low)

    def low(self, a: str, bits: int) -> str:
        """The lowest bits of a non-negative value."""
        return self.parts(a, bits)[1]

    def xor_byte(self, a: str, b: str) -> str:
        """Exclusive or of two values below 256."""
        return self._add(f"Gather <axis = 0> (xor_table, {self.join(a, b, 8)})")

    def bytes(self, a: str, count: int) -> list[str]:
        """The bytes of a value below 256 to the power of ``count``, lowest first."""
        found = []
        for _ in range(count - 1):
            a, byte = self.parts(a, 8)
            found.append(byte)
        return [*found, a]

    def joined(self, parts: list[str]) -> str:
        """Inverse of :meth:`bytes`."""
        value = parts[-1]
        for part in reversed(parts[:-1]):
            value = self.join(value, part, 8)
        return value

    def times(self, a: str, number: int) -> str:
        """The low 32 bits of the product with a multiplier given by its 16-bit halves ``m…_low`` and ``m…_high``."""
        upper = self.low(self.binary("Mul", a, f"m{number}_high"), 16)
        return self.low(self.join(upper, self.binary("Mul", a, f"m{number}_low"), 16), 32)

    def uniform(self, key: str, stream: str) -> str:
        """:func:`f2edge.decoding.noise.uniform` of a key and a code's stream (both below 2³²), float32."""
        high, low = self.parts(self.low(self.binary("Add", key, stream), 32), 16)
        mixed = [self.xor_byte(a, b) for a, b in zip(self.bytes(low, 2), self.bytes(high, 2), strict=True)]
        h = self.times(self.join(high, self.joined(mixed), 16), 1)
        own, shifted, keys = self.bytes(h, 4), self.bytes(self.high(h, 13), 3), self.bytes(key, 4)
        mixed = [self.xor_byte(a, b) for a, b in zip(own[:3], shifted, strict=True)] + own[3:]
        h = self.times(self.joined([self.xor_byte(a, b) for a, b in zip(mixed, keys, strict=True)]), 2)
        centred = self.binary("Add", self._add(f"Cast <to = 1> ({self.high(h, 9)})"), "half")
        return self.binary("Mul", centred, "ulp")


_RANKING = """
    mine = Unsqueeze (confidence, axis2)
    theirs = Unsqueeze (confidence, axis1)
    lower = Less (theirs, mine)
    same = Equal (theirs, mine)
    tied = And (same, earlier)
    before = Or (lower, tied)
    counted = Cast <to = 1> (before)
    rank = ReduceSum <keepdims = 0> (counted, axis2)
    after = Cast <to = 1> (masked_after)
    after_column = Unsqueeze (after, axis1)
    low = Less (rank, after_column)
"""


def tensorrt_sampling_model(image_tokens: int, codes: int) -> ir.Model:
    """Return a graph equal to :func:`export.graph.sampling.sampling_model`, with operators that TensorRT has."""
    of_codes, own = _Text("h"), _Text("c")
    u, own_u = of_codes.uniform("key_column", "stream"), own.uniform("noise_key", "own_stream")
    constants = [f"int64 two{bits} = {{{1 << bits}}}" for bits in (8, 9, 13, 16, 32)]
    for number, multiplier in enumerate(MULTIPLIERS, start=1):
        constants += [f"int64 m{number}_low = {{{multiplier & 0xFFFF}}}", f"int64 m{number}_high = {{{multiplier >> 16}}}"]
    constants += [
        f"float half = {{0.5}}, float ulp = {{{2.0**-23}}}, float never = {{3.0e38}}",
        f"int64 own_stream = {{{codes * GOLDEN & U32}}}",
    ]
    constants += [
        f"int64 mask_code = {{{codes}}}",
        "int64[1] axis1 = {1}, int64[1] axis2 = {2}, int64[2] axes12 = {1, 2}, int64[1] last = {-1}",
    ]
    byte = np.arange(256, dtype=np.int64)
    position = np.arange(image_tokens)
    arrays = {
        "stream": np.arange(codes, dtype=np.int64) * GOLDEN & U32,
        "xor_table": (byte[:, None] ^ byte).reshape(-1),
        "earlier": (position < position[:, None])[None],  # [0, i, j]: j stands before i
    }
    return build_sampler(
        image_tokens,
        codes,
        arrays,
        constants=", ".join(constants),
        code_noise="\n".join(["    key_column = Unsqueeze (noise_key, last)", *of_codes.lines]),
        u=u,
        own_noise="\n".join(own.lines),
        own_u=own_u,
        ranking=_RANKING,
    )
