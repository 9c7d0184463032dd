"""The published MAGVIT-v2 in plain PyTorch over its own state dict, key by key: no modules, nothing shared with export/model/magvit2.py.

Axes: B pictures, C channels, Y X rows and columns, b bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

ENCODER_BLOCKS, DECODER_BLOCKS = (4, 3, 4, 3, 4), (4, 4, 3, 4, 3)
State = Mapping[str, Tensor]


def convolution(state: State, name: str, x: Tensor, padding: int = 0, stride: int = 1) -> Tensor:
    return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride, padding=padding)


def normalised(state: State, name: str, x: Tensor) -> Tensor:
    """GroupNorm of 32 groups, from its definition."""
    groups = x.reshape(x.shape[0], 32, -1)
    mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, unbiased=False, keepdim=True)
    flat = ((groups - mean) / torch.sqrt(variance + 1e-6)).reshape(x.shape)
    return flat * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def residual(state: State, name: str, x: Tensor) -> Tensor:
    h = convolution(state, f"{name}.conv1", swish(normalised(state, f"{name}.norm1", x)), padding=1)
    h = convolution(state, f"{name}.conv2", swish(normalised(state, f"{name}.norm2", h)), padding=1)
    shortcut = f"{name}.nin_shortcut"
    return h + (convolution(state, shortcut, x) if f"{shortcut}.weight" in state else x)


def attention(state: State, name: str, x: Tensor) -> Tensor:
    B, C, Y, X = x.shape
    h = normalised(state, f"{name}.norm", x)
    query, key, value = (convolution(state, f"{name}.{part}", h).permute(0, 2, 3, 1).reshape(B, Y * X, C) for part in "qkv")
    mixed = torch.softmax(query @ key.transpose(1, 2) / C**0.5, dim=-1) @ value
    return x + convolution(state, f"{name}.proj_out", mixed.reshape(B, Y, X, C).permute(0, 3, 1, 2))


def middle(state: State, name: str, x: Tensor) -> Tensor:
    x = attention(state, f"{name}.attn_1", residual(state, f"{name}.block_1", x))
    return residual(state, f"{name}.block_2", x)


def encoded(state: State, pixels: Tensor, blocks: tuple[int, ...] = ENCODER_BLOCKS) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] → codes (B, N)."""
    x = convolution(state, "encoder.conv_in", pixels, padding=1)
    for level, count in enumerate(blocks):
        for block in range(count):
            x = residual(state, f"encoder.down.{level}.block.{block}", x)
        if level < len(blocks) - 1:
            x = convolution(state, f"encoder.down.{level}.downsample.conv", functional.pad(x, (0, 1, 0, 1)), stride=2)
    x = swish(normalised(state, "encoder.norm_out", middle(state, "encoder.mid", x)))
    latent = convolution(state, "encoder.quant_conv", convolution(state, "encoder.conv_out", x, padding=1))  # (B, b, Y, X)
    powers = state["quantize.power_vals"].reshape(1, -1, 1, 1)
    return ((latent > 0) * powers).sum(1).flatten(1)


def decoded(state: State, codes: Tensor, grid: int, blocks: tuple[int, ...] = DECODER_BLOCKS) -> Tensor:
    """Codes (B, N) → pixels (B, 3, H, W), not clamped."""
    quantized = state["quantize.embedding"][codes].reshape(codes.shape[0], grid, grid, -1).permute(0, 3, 1, 2)
    x = convolution(state, "decoder.conv_in", convolution(state, "decoder.post_quant_conv", quantized), padding=1)
    x = middle(state, "decoder.mid", x)
    for level in range(len(blocks) - 1, -1, -1):
        for block in range(blocks[level]):
            x = residual(state, f"decoder.up.{level}.block.{block}", x)
        if level > 0:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = convolution(state, f"decoder.up.{level}.upsample.conv", x, padding=1)
    return convolution(state, "decoder.conv_out", swish(normalised(state, "decoder.norm_out", x)), padding=1)
