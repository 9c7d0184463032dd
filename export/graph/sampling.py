"""Sampling inside the graph at the end of a decoding step: noise, token choice, confidence, re-masking; logits never leave the graph.

Two implementations of one algorithm (``f2edge.decoding.noise``, ``f2edge.spec.graphs.T2I_STEP``): :func:`sample` in PyTorch, the
reference of the parity tests, and :func:`sampling_model`, the ONNX graph appended to the transformer.  Noise is hashed in uint32; PyTorch
lacks it and uses masked int64.

Axes: R requests, N image tokens, V image codes.

Cost: seventeen passes over (R, N, V).  ``argmax(z + g)`` with Gumbel noise ``g = -log(-log u)`` equals ``argmax(p / -log u)`` with
``p = softmax(z)``, which ``log p`` needs anyway; this saves one logarithm over all codes, the most expensive pass.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from export.graph.lower import OPSET, Array
from f2edge.decoding.noise import GOLDEN, MULTIPLIERS
from f2edge.spec.graphs import T2I_STEP

#: Inputs of the step graph that sampling reads; all but ``codes`` are read by sampling only.
SAMPLING_INPUTS = ("codes", "token_temperature", "temperature", "noise_key", "priority", "masked_after")
U32 = 0xFFFFFFFF


def step_inputs() -> list[str]:
    """Return the inputs of the step graph that the transformer reads, in order."""
    return [tensor.name for tensor in T2I_STEP.inputs if tensor.name not in SAMPLING_INPUTS[1:]]


def uniform(key: Tensor, code: Tensor) -> Tensor:
    """Return :func:`f2edge.decoding.noise.uniform` of int64 keys and codes, broadcast; float32 in (0, 1)."""
    h = (key + code * GOLDEN) & U32
    h = ((h ^ (h >> 16)) * MULTIPLIERS[0]) & U32
    h = ((h ^ (h >> 13) ^ key) * MULTIPLIERS[1]) & U32
    return ((h >> 9).to(torch.float32) + 0.5) * 2.0**-23


def gumbel(key: Tensor, code: Tensor) -> Tensor:
    """Return standard Gumbel noise of keys and codes, broadcast; float32."""
    return -torch.log(-torch.log(uniform(key, code)))


def guide(conditional: Tensor, unconditional: Tensor, guidance: Tensor) -> Tensor:
    """Return ``c + g (c - u)`` (classifier-free guidance) of ``(R, N, …)`` with g ``(R,)``: logits, or inputs of an affine head."""
    strength = guidance.view(-1, 1, 1)
    return conditional + strength * (conditional - unconditional)


def sample(  # noqa: PLR0917 - the graph's inputs in their order
    logits: Tensor,
    codes: Tensor,
    token_temperature: Tensor,
    temperature: Tensor,
    noise_key: Tensor,
    priority: Tensor,
    masked_after: Tensor,
) -> tuple[Tensor, Tensor]:
    """Choose one step's tokens: the reference implementation.

    Args:
        logits: guided logits, float32 (R, N, V).
        codes: int64 (R, N), V where masked.
        token_temperature: float32 (R,), divides the logits.
        temperature: float32 (R,), scales the noise on the confidence.
        noise_key: int64 (R, N).
        priority: float32 (R, N), added to the confidence.
        masked_after: int64 (R,), tokens that stay masked.

    Returns:
        ``next_codes`` and ``proposal``, int64 (R, N).
    """
    V = logits.shape[-1]
    z = logits / token_temperature[:, None, None]
    noise = gumbel(noise_key[..., None], torch.arange(V))  # (R, N, V)
    token = torch.argmax(z + noise, dim=-1)  # (R, N)
    log_p = torch.log_softmax(z, dim=-1).gather(-1, token[..., None])[..., 0]
    masked = codes == V
    proposal = torch.where(masked, token, codes)
    spread = temperature[:, None] * gumbel(noise_key, torch.tensor(V))
    confidence = torch.where(masked, log_p + spread + priority, torch.inf)
    order = torch.sort(confidence, dim=-1, stable=True).indices
    rank = torch.argsort(order, dim=-1)
    again = masked & (rank < masked_after[:, None])
    return torch.where(again, V, proposal), proposal


_TEMPLATE = """
<ir_version: 10, opset_import: ["" : {opset}]>
sampling (
    float[R,{N},{V}] logits, int64[R,{N}] codes, float[R] token_temperature, float[R] temperature,
    int64[R,{N}] noise_key, float[R,{N}] priority, int64[R] masked_after
) => (int64[R,{N}] next_codes, int64[R,{N}] proposal)
<
    {constants}
>
{{
    heat = Unsqueeze (token_temperature, axes12)
    z = Div (logits, heat)
    p = Softmax <axis = -1> (z)
{code_noise}
    log_u = Log ({u})
    score = Div (p, log_u)
    token = ArgMin <axis = -1, keepdims = 0> (score)
    token_column = Unsqueeze (token, last)
    chosen_column = GatherElements <axis = -1> (p, token_column)
    chosen = Squeeze (chosen_column, last)
    log_p = Log (chosen)
    masked = Equal (codes, mask_code)
    proposal = Where (masked, token, codes)
{own_noise}
    log_own = Log ({own_u})
    minus_log = Neg (log_own)
    minus_gumbel = Log (minus_log)
    temperature_column = Unsqueeze (temperature, axis1)
    minus_spread = Mul (temperature_column, minus_gumbel)
    noisy = Sub (log_p, minus_spread)
    wished = Add (noisy, priority)
    confidence = Where (masked, wished, never)
{ranking}
    again = And (masked, low)
    next_codes = Where (again, mask_code, proposal)
}}
"""
_CONSTANTS = """
    uint32 m1 = {{{m1}}}, uint32 m2 = {{{m2}}}, uint32 s16 = {{16}}, uint32 s13 = {{13}}, uint32 s9 = {{9}},
    float half = {{0.5}}, float ulp = {{{ulp}}}, float never = {{3.0e38}}, uint32 own_stream = {{{own}}},
    int64 mask_code = {{{V}}}, int64[1] columns = {{{N}}}, int64[1] axis1 = {{1}}, int64[2] axes12 = {{1, 2}}, int64[1] last = {{-1}}
"""
_KEY = """
    key = Cast <to = 12> (noise_key)
    key_column = Unsqueeze (key, last)
"""
_UNIFORM = """
    {n}0 = Add ({key}, {stream})
    {n}1 = BitShift <direction = "RIGHT"> ({n}0, s16)
    {n}2 = BitwiseXor ({n}0, {n}1)
    {n}3 = Mul ({n}2, m1)
    {n}4 = BitShift <direction = "RIGHT"> ({n}3, s13)
    {n}5 = BitwiseXor ({n}3, {n}4)
    {n}6 = BitwiseXor ({n}5, {key})
    {n}7 = Mul ({n}6, m2)
    {n}8 = BitShift <direction = "RIGHT"> ({n}7, s9)
    {n}9 = Cast <to = 1> ({n}8)
    {n}10 = Add ({n}9, half)
    {n}11 = Mul ({n}10, ulp)
"""
_RANKING = """
    least, order = TopK <axis = -1, largest = 0, sorted = 1> (confidence, columns)
    after_column = Unsqueeze (masked_after, axis1)
    ranked = Less (positions, after_column)
    low = ScatterElements <axis = 1> (masked, order, ranked)
"""


def build_sampler(image_tokens: int, codes: int, arrays: Mapping[str, Array], **parts: str) -> ir.Model:
    """Return a sampling graph from the parts of :data:`_TEMPLATE`; ``arrays`` are further constants."""
    model = onnx.parser.parse_model(_TEMPLATE.format(opset=OPSET, N=image_tokens, V=codes, **parts))
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(model)
    return ir.from_proto(model)


def sampling_model(image_tokens: int, codes: int) -> ir.Model:
    """Return :func:`sample` as an ONNX graph with the same inputs and outputs, for N = ``image_tokens`` and V = ``codes``.

    Ties in confidence are broken by position (``TopK`` ranks equal values by index), so exactly ``masked_after`` positions stay masked.
    """
    m1, m2 = MULTIPLIERS
    arrays: dict[str, Array] = {
        "stream": (np.arange(codes, dtype=np.uint64) * GOLDEN).astype(np.uint32),
        "positions": np.arange(image_tokens, dtype=np.int64)[None],
    }
    return build_sampler(
        image_tokens,
        codes,
        arrays,
        constants=_CONSTANTS.format(N=image_tokens, V=codes, m1=m1, m2=m2, ulp=2.0**-23, own=codes * GOLDEN & U32),
        code_noise=_KEY + _UNIFORM.format(n="h", key="key_column", stream="stream"),
        u="h11",
        own_noise=_UNIFORM.format(n="c", key="key", stream="own_stream"),
        own_u="c11",
        ranking=_RANKING,
    )
