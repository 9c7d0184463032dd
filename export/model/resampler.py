"""Inputs of the sequence-level experts: encoder features resampled to the token grid, and the embedding of the mask ratio.

Axes: B images, J image columns, M feature vectors of width F, R resampler width, A heads.  Both run once per image (or per decoding step,
for the mask ratio) and are shared by all layers, each of which has its own linear map R → D (export/model/sequence_experts.py).  The
shapes are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from f2edge.spec.configuration import FeatureShape

_HEADS = 4


def grid_code(count: int, width: int) -> Tensor:
    """Return a sine code of an image's tokens (count, width), to initialize learned positions.

    Tokens are the cells of a square grid; if ``count`` is not a square, each cell has the smallest number of tokens that makes the number
    of cells a square, and they differ by a sign in the last quarter.
    """
    repeat = next(k for k in range(1, count + 1) if count % k == 0 and math.isqrt(count // k) ** 2 == count // k)
    side = math.isqrt(count // repeat)
    rows, columns = side, side
    quarter = (width + 3) // 4
    frequency = torch.pi / 2 ** (torch.arange(quarter) * 4.0 / quarter)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    parts = [f(axis.flatten()[:, None] * frequency) for axis in (y, x) for f in (torch.sin, torch.cos)]
    code = torch.cat(parts, dim=1)[:, :width].repeat_interleave(repeat, dim=0)
    code[:, -quarter:] *= torch.cos(torch.pi * (torch.arange(count) % repeat))[:, None]
    return code


class Resampler(nn.Module):
    """Cross-attention of one learned query per column to M feature vectors, and a two-layer MLP (after arXiv 2204.14198).

    Queries and feature positions are initialized with the same grid code, so a column initially attends to features of its own place.
    """

    def __init__(self, columns: int, features: FeatureShape, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(grid_code(columns, width))
        self.places = nn.Parameter(grid_code(features.vectors, width))
        self.input_norm = nn.LayerNorm(features.width)
        self.key = nn.Linear(features.width, width)
        self.value = nn.Linear(features.width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.output_norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, M, F) fp32 to columns (B, J, R)."""
        B, M, _ = features.shape
        J, R = self.queries.shape
        features = self.input_norm(features)
        key = (self.key(features) + self.places).view(B, M, _HEADS, R // _HEADS).permute(0, 2, 3, 1)  # (B, A, R/A, M)
        value = self.value(features).view(B, M, _HEADS, R // _HEADS).transpose(1, 2)  # (B, A, M, R/A)
        query = self.queries.view(1, J, _HEADS, R // _HEADS).transpose(1, 2)  # (1, A, J, R/A)
        weights = torch.softmax(torch.matmul(query.to(key.dtype), key).float() * (R // _HEADS) ** -0.5, dim=-1)  # (B, A, J, M)
        read = torch.matmul(weights.to(value.dtype), value).transpose(1, 2).reshape(B, J, R)
        x = self.queries + self.output(read)
        x = x + self.down(functional.gelu(self.up(self.norm(x)), approximate="tanh"))
        output: Tensor = self.output_norm(x)
        return output


class NoiseEmbedding(nn.Module):
    """Sinusoidal embedding of the mask ratio and a two-layer MLP, the input of the noise expert."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        self.output_norm = nn.LayerNorm(width)

    def forward(self, ratio: Tensor) -> Tensor:
        """Map mask ratios (B,) in [0, 1] to (B, 1, R), the same for every position."""
        half = self.width // 2
        frequency = torch.pow(1000.0, torch.arange(half, dtype=torch.float32, device=ratio.device) / half)
        angle = ratio.to(torch.float32)[:, None] * frequency
        code = torch.cat((angle.sin(), angle.cos()), dim=-1)
        output: Tensor = self.output_norm(self.down(functional.gelu(self.up(code), approximate="tanh")))
        return output[:, None]
