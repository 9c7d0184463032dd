"""Sampling at the end of a decoding step for TensorRT, which has no unsigned integers, shifts or exclusive or.

Bit-identical to :mod:`export.graph.sampling`.  The hash runs in int32, as GPUs do: 32-bit values are pairs of 16-bit halves, a product
takes one half by one byte and so stays below 2^27, shifts are divisions by powers of two, and the exclusive or of two bytes is a lookup in
a table of 65536 entries.  Ranks are counted by comparing every pair of positions instead of sorting, which orders ties by position on every
machine (TensorRT does not document how its TopK breaks ties) and needs no scatter.

Axes: R requests, N image tokens, V image codes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from export.graph.sampling import U32, build_sampler, streams
from f2edge.decoding.noise import GOLDEN, MULTIPLIERS
from f2edge.spec.configuration import DRAWS


class _Halves(NamedTuple):
    """Names of a 32-bit value's halves, each below 65536, and of their bytes."""

    high: str
    low: str
    high_bytes: tuple[str, str] = ("", "")
    low_bytes: tuple[str, str] = ("", "")


class _Text:
    """Builder of ONNX text; each method appends operations on non-negative int32 values and returns the result's name."""

    def __init__(self, prefix: str) -> None:
        self.lines: list[str] = []
        self.constants: set[int] = set()
        self._prefix = prefix

    def add(self, expression: str) -> str:
        """Append an operation."""
        name = f"{self._prefix}{len(self.lines)}"
        self.lines.append(f"    {name} = {expression}")
        return name

    def binary(self, op: str, a: str, b: str | int) -> str:
        """``op (a, b)`` of a value and a value or a number."""
        if isinstance(b, int):
            self.constants.add(b)
            b = f"i{b}"
        return self.add(f"{op} ({a}, {b})")

    def sum(self, first: str, *others: str) -> str:
        """The sum of some values."""
        for other in others:
            first = self.binary("Add", first, other)
        return first

    def parts(self, a: str, size: int) -> tuple[str, str]:
        """Quotient and remainder by ``size``."""
        quotient = self.binary("Div", a, size)
        return quotient, self.binary("Sub", a, self.binary("Mul", quotient, size))

    def join(self, high: str, low: str, size: int = 256) -> str:
        """``high * size + low``."""
        return self.binary("Add", self.binary("Mul", high, size), low)

    def xor(self, a: str, b: str) -> str:
        """Exclusive or of two bytes."""
        return self.add(f"Gather <axis = 0> (xor_table, {self.join(a, b)})")

    def times(self, value: _Halves, factor: int) -> tuple[str, str]:
        """The halves of the product of a value, whose bytes are known, with a constant, modulo 2^32."""
        f0, f1, f2, f3 = (factor >> shift & 0xFF for shift in (0, 8, 16, 24))
        (_, high0), (low1, low0) = value.high_bytes, value.low_bytes
        whole = self.sum(self.binary("Mul", value.low, f0), self.binary("Mul", low0, f1 << 8))
        carry, low = self.parts(whole, 1 << 16)
        terms = (value.low, f2), (low0, f3 << 8), (low1, f1), (value.high, f0), (high0, f1 << 8)
        return self.parts(self.sum(carry, *(self.binary("Mul", name, number) for name, number in terms)), 1 << 16)[1], low

    def uniform(self, key: _Halves, stream: _Halves) -> str:
        """:func:`f2edge.decoding.noise.uniform` of a key and a code's stream, float32; ``key`` has its bytes times 256."""
        carry, low = self.parts(self.binary("Add", key.low, stream.low), 1 << 16)
        high = self.parts(self.sum(key.high, stream.high, carry), 1 << 16)[1]
        high_bytes, (low1, low0) = self.parts(high, 256), self.parts(low, 256)
        low_bytes = self.xor(low1, high_bytes[0]), self.xor(low0, high_bytes[1])
        high, low = self.times(_Halves(high, self.join(*low_bytes), high_bytes, low_bytes), MULTIPLIERS[0])
        shifted = self.join(high, self.binary("Div", low, 8192), 8)  # 19 bits
        shifted2, rest = self.parts(shifted, 1 << 16)
        shifts, own = (shifted2, *self.parts(rest, 256)), (*self.parts(high, 256), *self.parts(low, 256))
        mixed = (own[0], *(self.xor(a, b) for a, b in zip(own[1:], shifts, strict=True)))
        keys = (*key.high_bytes, *key.low_bytes)
        b3, b2, b1, b0 = (self.add(f"Gather <axis = 0> (xor_table, {self.sum(b, a)})") for a, b in zip(mixed, keys, strict=True))
        high, low = self.times(_Halves(self.join(b3, b2), self.join(b1, b0), (b3, b2), (b1, b0)), MULTIPLIERS[1])
        bits = self.join(high, self.binary("Div", low, 512), 128)
        return self.binary("Mul", self.binary("Add", self.add(f"Cast <to = 1> ({bits})"), "half"), "ulp")

    def key(self, noise_key: str) -> _Halves:
        """Halves and bytes of int64 keys below 2^32, the bytes times 256."""
        wide = self.add(f"Div ({noise_key}, wide16)")
        rest = self.add(f"Sub ({noise_key}, {self.add(f'Mul ({wide}, wide16)')})")
        high, low = (self.add(f"Cast <to = 6> ({half})") for half in (wide, rest))
        four = (*self.parts(high, 256), *self.parts(low, 256))
        k3, k2, k1, k0 = (self.binary("Mul", byte, 256) for byte in four)
        return _Halves(high, low, (k3, k2), (k1, k0))


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


def tensorrt_sampling_model(image_tokens: int, codes: int, draw: str = DRAWS[0]) -> ir.Model:
    """Return a graph equal to :func:`export.graph.sampling.sampling_model`, with operators that TensorRT has."""
    of_keys, of_codes, own = _Text("k"), _Text("h"), _Text("c")
    key = of_keys.key("noise_key")
    names = [key.high, key.low, *key.high_bytes, *key.low_bytes]
    k = [of_keys.add(f"Unsqueeze ({name}, last)") for name in names]
    u = of_codes.uniform(_Halves(k[0], k[1], (k[2], k[3]), (k[4], k[5])), _Halves("stream_high", "stream_low"))
    own_u = own.uniform(key, _Halves("own_high", "own_low"))
    own_stream = codes * GOLDEN & U32
    numbers = sorted(of_keys.constants | of_codes.constants | own.constants)
    constants = [
        *(f"int32 i{number} = {{{number}}}" for number in numbers),
        f"int32 own_high = {{{own_stream >> 16}}}, int32 own_low = {{{own_stream & 0xFFFF}}}, int64 wide16 = {{{1 << 16}}}",
        f"float half = {{0.5}}, float ulp = {{{2.0**-23}}}, float never = {{3.0e38}}, int64 mask_code = {{{codes}}}",
        "int64[1] axis1 = {1}, int64[1] axis2 = {2}, int64[2] axes12 = {1, 2}, int64[1] last = {-1}",
    ]
    stream = streams(codes, draw) * GOLDEN & U32
    byte = np.arange(256, dtype=np.int32)
    position = np.arange(image_tokens)
    arrays = {
        "stream_high": (stream >> 16).astype(np.int32),
        "stream_low": (stream & 0xFFFF).astype(np.int32),
        "xor_table": (byte[:, None] ^ byte).reshape(-1),
        "earlier": (position < position[:, None])[None],  # [0, i, j]: j stands before i
    }
    return build_sampler(
        image_tokens,
        codes,
        arrays,
        draw,
        constants=", ".join(constants),
        code_noise="\n".join([*of_keys.lines, *of_codes.lines]),
        u=u,
        own_noise="\n".join(own.lines),
        own_u=own_u,
        ranking=_RANKING,
    )
