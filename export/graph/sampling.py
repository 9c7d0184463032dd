"""Sampling inside the graph at the end of a decoding step: noise, token choice, confidence, re-masking; logits never leave the graph.

Two implementations of one algorithm (``f2edge.decoding.noise``, ``f2edge.spec.graphs.T2I_STEP``): :func:`sample` in PyTorch, the
reference of the parity tests, and :func:`sampling_model`, the ONNX graph appended to the transformer.  Noise is hashed in uint32; PyTorch
lacks it and uses masked int64.

Axes: R requests, N image tokens, V image codes, w codes of a block.

Cost: seventeen passes over (R, N, V), six where blocks race.  ``argmax(z + g)`` with Gumbel noise ``g = -log(-log u)`` equals
``argmax(p / -log u)`` with ``p = softmax(z)``, which ``log p`` needs anyway; this saves one logarithm over all codes, the most expensive
pass.  :func:`export.graph.masked_rows.draw_masked` leaves out the positions that are known: a third of them over a cosine schedule.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import Tensor

from export.graph.lower import OPSET, Array, LoweringError, merge
from f2edge.decoding.noise import GOLDEN, MULTIPLIERS, block_width
from f2edge.spec.configuration import DRAWS
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


def _race(z: Tensor, noise_key: Tensor, draw: str) -> Tensor:
    """Return the codes that win the races of tempered logits (R, N, V): int64 (R, N)."""
    V = z.shape[-1]
    if draw == DRAWS[0]:
        return torch.argmax(z + gumbel(noise_key[..., None], torch.arange(V)), dim=-1)
    width = block_width(V)
    blocks = torch.softmax(z, dim=-1).view(*z.shape[:-1], -1, width)  # (R, N, V / w, w)
    waits = -torch.log(uniform(noise_key[..., None], V + 1 + torch.arange(V // width)))
    block = torch.argmax(blocks.sum(dim=-1) / waits, dim=-1)
    inside = blocks.take_along_dim(block[..., None, None], dim=-2)[..., 0, :]  # (R, N, w)
    waits = -torch.log(uniform(noise_key[..., None], torch.arange(width)))
    return block * width + torch.argmax(inside / waits, dim=-1)


def contest(z: Tensor, noise_key: Tensor, pair: Tensor, draw: str) -> Tensor:
    """Return the perturbed logits (2,) of two codes where they raced: their blocks', if those differ, else their own.

    ``z`` are tempered logits (V,) of a position with this key.
    """
    V, width = len(z), block_width(len(z))
    if draw == DRAWS[0]:
        return z[pair] + gumbel(noise_key, pair)
    blocks = pair // width
    if blocks[0] != blocks[1]:
        return torch.logsumexp(z.view(-1, width), dim=-1)[blocks] + gumbel(noise_key, V + 1 + blocks)
    return z[pair] + gumbel(noise_key, pair % width)


def sample(  # noqa: PLR0917 - the graph's inputs in their order
    logits: Tensor,
    codes: Tensor,
    token_temperature: Tensor,
    temperature: Tensor,
    noise_key: Tensor,
    priority: Tensor,
    masked_after: Tensor,
    *,
    draw: str = DRAWS[0],
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
        draw: one of :data:`f2edge.spec.configuration.DRAWS`.

    Returns:
        ``next_codes`` and ``proposal``, int64 (R, N).
    """
    V = logits.shape[-1]
    z = logits / token_temperature[:, None, None]
    token = _race(z, noise_key, draw)  # (R, N)
    log_p = torch.log_softmax(z, dim=-1).gather(-1, token[..., None])[..., 0]
    masked = codes == V
    proposal = torch.where(masked, token, codes)
    spread = temperature[:, None] * gumbel(noise_key, torch.tensor(V))
    confidence = torch.where(masked, log_p + spread + priority, torch.inf)
    order = torch.sort(confidence, dim=-1, stable=True).indices
    rank = torch.argsort(order, dim=-1)
    again = masked & (rank < masked_after[:, None])
    return torch.where(again, V, proposal), proposal


_HEAD = """
<ir_version: 10, opset_import: ["" : {opset}]>
sampling (
    float[R,{N},{V}] logits, int64[R,{N}] codes, float[R] token_temperature, float[R] temperature,
    int64[R,{N}] noise_key, float[R,{N}] priority, int64[R] masked_after
) => (int64[R,{N}] next_codes, int64[R,{N}] proposal)
<
    {constants}
>
{{
    masked = Equal (codes, mask_code)
"""
_TAIL = """
{ranking}
    again = And (masked, low)
    next_codes = Where (again, mask_code, proposal)
}}
"""
#: Choice of ``token`` by ``p`` and the noise, for the last axis of any shape; gives ``chosen``, its probability, and ``log_own``.
_CODES = """
{code_noise}
    log_u = Log ({u})
    score = Div (p, log_u)
{winner}
    chosen_column = GatherElements <axis = -1> (p, token_column)
    chosen = Squeeze (chosen_column, last)
{own_noise}
    log_own = Log ({own_u})
"""
_WINNER = """
    token = ArgMin <axis = -1, keepdims = 0> (score)
    token_column = Unsqueeze (token, last)
"""
#: The same: ONNX Runtime's ``ArgMin`` is slow, its ``ReduceMin`` is not.
_WINNER_BY_BLOCKS = """
    in_blocks = Reshape (score, block_shape)
    block_least = ReduceMin <keepdims = 0> (in_blocks, block_axis)
    block = ArgMin <axis = {leading}, keepdims = 1> (block_least)
    inside = GatherND <batch_dims = {leading}> (in_blocks, block)
    offset = ArgMin <axis = {leading}, keepdims = 1> (inside)
    block_start = Mul (block, block_width)
    token_column = Add (block_start, offset)
    token = Squeeze (token_column, last)
"""
_BLOCKS = """
    in_blocks = Reshape (p, block_shape)
    shares = ReduceSum <keepdims = 0> (in_blocks, block_axis)
{code_noise}
    log_u = Log ({u})
    log_within, log_between, log_own_column = Split <axis = -1> (log_u, stream_sizes)
    block_score = Div (shares, log_between)
    block = ArgMin <axis = {leading}, keepdims = 1> (block_score)
    inside = GatherND <batch_dims = {leading}> (in_blocks, block)
    score = Div (inside, log_within)
    offset = ArgMin <axis = {leading}, keepdims = 1> (score)
    chosen_column = GatherElements <axis = -1> (inside, offset)
    chosen = Squeeze (chosen_column, last)
    block_start = Mul (block, block_width)
    token_column = Add (block_start, offset)
    token = Squeeze (token_column, last)
    log_own = Squeeze (log_own_column, last)
"""
#: Every position is drawn, and what is known stays.
_ALL = """
    heat = Unsqueeze (token_temperature, axes12)
    z = Div (logits, heat)
    p = Softmax <axis = -1> (z)
{choice}
    log_p = Log (chosen)
    proposal = Where (masked, token, codes)
    minus_log = Neg (log_own)
    minus_gumbel = Log (minus_log)
    temperature_column = Unsqueeze (temperature, axis1)
    minus_spread = Mul (temperature_column, minus_gumbel)
    noisy = Sub (log_p, minus_spread)
    wished = Add (noisy, priority)
    confidence = Where (masked, wished, never)
"""
#: The T masked positions alone are drawn: ``places`` (T, 2) are their rows and columns.
_MASKED = """
    spots = NonZero (masked)
    places = Transpose <perm = [1, 0]> (spots)
    place_row = Gather <axis = 1> (places, first)
    row_heat = Gather <axis = 0> (token_temperature, place_row)
    row_temperature = Gather <axis = 0> (temperature, place_row)
    heat = Unsqueeze (row_heat, last)
    masked_logits = GatherND (logits, places)
    masked_key = GatherND (noise_key, places)
    z = Div (masked_logits, heat)
    p = Softmax <axis = -1> (z)
{choice}
    log_p = Log (chosen)
    proposal = ScatterND (codes, places, token)
    minus_log = Neg (log_own)
    minus_gumbel = Log (minus_log)
    minus_spread = Mul (row_temperature, minus_gumbel)
    noisy = Sub (log_p, minus_spread)
    nowhere = Where (masked, never, never)
    spread = ScatterND (nowhere, places, noisy)
    confidence = Add (spread, priority)
"""
_CONSTANTS = """
    uint32 m1 = {{{m1}}}, uint32 m2 = {{{m2}}}, uint32 s16 = {{16}}, uint32 s13 = {{13}}, uint32 s9 = {{9}},
    float half = {{0.5}}, float ulp = {{{ulp}}}, float never = {{3.0e38}}, uint32 own_stream = {{{own}}},
    int64 mask_code = {{{V}}}, int64[1] columns = {{{N}}}, int64[1] axis1 = {{1}}, int64[2] axes12 = {{1, 2}}, int64[1] last = {{-1}},
    int64 first = {{0}}
"""
_KEY = """
    key = Cast <to = 12> ({key})
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


def build_sampler(image_tokens: int, codes: int, arrays: Mapping[str, Array], draw: str, *, masked: bool = False, **parts: str) -> ir.Model:
    """Return a sampling graph for a law of :data:`~f2edge.spec.configuration.DRAWS`.

    Args:
        image_tokens: N.
        codes: V.
        arrays: further constants.
        draw: the law.
        masked: whether only masked positions are drawn.
        parts: parts of the templates above.
    """
    width = block_width(codes)
    shape = ([0] if masked else [0, 0]) + [codes // width, width]
    leading = len(shape) - 2
    if masked or draw != DRAWS[0]:
        # an axis counted from the end is wrong in ONNX Runtime where there are no positions
        arrays = {**arrays, "block_shape": np.array(shape), "block_axis": np.array([leading + 1]), "block_width": np.array(width)}
    if draw == DRAWS[0]:
        winner = _WINNER_BY_BLOCKS.format(leading=leading) if masked else _WINNER
        choice = _CODES.format(winner=winner, **parts)
    else:
        arrays = {**arrays, "stream_sizes": np.array([width, codes // width, 1])}
        choice = _BLOCKS.format(leading=leading, **parts)
    text = _HEAD + (_MASKED if masked else _ALL) + _TAIL
    model = onnx.parser.parse_model(text.format(opset=OPSET, N=image_tokens, V=codes, choice=choice, **parts))
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(model)
    return ir.from_proto(model)


def streams(codes: int, draw: str) -> Array:
    """Return which numbers are drawn for a position, as codes: int64; "blocks": within a block, of the blocks, of the confidence."""
    if draw == DRAWS[0]:
        return np.arange(codes)
    width = block_width(codes)
    return np.concatenate((np.arange(width), codes + 1 + np.arange(codes // width), [codes]))


def sampling_model(image_tokens: int, codes: int, draw: str = DRAWS[0], *, masked: bool = False) -> ir.Model:
    """Return :func:`sample` as an ONNX graph with the same inputs and outputs, for N = ``image_tokens`` and V = ``codes``.

    Ties in confidence are broken by position (``TopK`` ranks equal values by index), so exactly ``masked_after`` positions stay masked.
    With ``masked`` only masked positions are drawn, with the same tokens; shapes inside then depend on the data.
    """
    m1, m2 = MULTIPLIERS
    arrays: dict[str, Array] = {
        "stream": (streams(codes, draw).astype(np.uint64) * GOLDEN).astype(np.uint32),
        "positions": np.arange(image_tokens, dtype=np.int64)[None],
    }
    return build_sampler(
        image_tokens,
        codes,
        arrays,
        draw,
        masked=masked,
        constants=_CONSTANTS.format(N=image_tokens, V=codes, m1=m1, m2=m2, ulp=2.0**-23, own=codes * GOLDEN & U32),
        code_noise=_KEY.format(key="masked_key" if masked else "noise_key") + _UNIFORM.format(n="h", key="key_column", stream="stream"),
        u="h11",
        own_noise=_UNIFORM.format(n="c", key="key", stream="own_stream"),
        own_u="c11",
        ranking=_RANKING,
    )


def replace_sampler(model: ir.Model, sampler: ir.Model) -> ir.Model:
    """Replace what follows the logits of a traced step by another sampler; return the new model.

    Raises:
        LoweringError: the graph has no value "logits".
    """
    order, name, operators = [str(value.name) for value in model.graph.inputs], model.graph.name, dict(model.graph.opset_imports)
    logits = next((value for node in model.graph for value in node.outputs if value.name == "logits"), None)
    if logits is None:
        raise LoweringError("graph 't2i_step': no value 'logits'; the sampler cannot be replaced")
    codes = next(value for value in model.graph.inputs if value.name == "codes")
    model.graph.outputs[:] = [logits]
    passes.RemoveUnusedNodesPass()(model)
    outputs = [value.shape for value in sampler.graph.outputs]
    merged = merge(model, sampler, {"logits": "logits"}, str(name))
    merged.graph.opset_imports.update(operators)
    merged.metadata_props.update(model.metadata_props)
    given = {value.name: value for value in merged.graph.inputs}
    merged.graph.inputs[:] = [given[wanted] for wanted in order]
    for value, shape in zip(merged.graph.outputs, outputs, strict=True):
        value.shape = shape if codes.shape is None else ir.Shape(codes.shape)
    return merged
