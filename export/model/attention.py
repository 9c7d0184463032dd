"""Omni attention of one block over cached and new columns, with rotary positions and additive masks.

Axes: B sequences, S new columns, T columns of a cached part, H heads, W head width, D = H·W.

Two forms give the same numbers.  ``fused`` joins all columns and calls the fused kernel; the plain one (export, and training on CPUs)
multiplies, adds the mask and takes the softmax itself, part by part, so that a cached part with one row is shared by all sequences without
being copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Added to a score that must not count: its softmax is exactly 0 in fp32.  Finite, so that a row without any allowed column stays finite,
#: and within fp16.
MASKED = -30000.0

Columns = tuple[Tensor, Tensor]  # keys and values of one part, each (B or 1, H, T, W), rotated


def rotary_table(positions: Tensor, rotary: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of ``positions`` (…, S), each (…, 1, S, rotary) fp32, in the half-split order of Phi (arXiv 2104.09864)."""
    exponent = torch.arange(0, rotary, 2, dtype=torch.float32, device=positions.device) / rotary
    angle = positions.to(torch.float32)[..., None] * torch.pow(base, -exponent)  # (…, S, rotary/2)
    angle = torch.cat((angle, angle), dim=-1)[..., None, :, :]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the first ``rotary`` dims of ``x`` (B, H, S, W) by the table of :func:`rotary_table`; the rest is unchanged."""
    width = cosine.shape[-1]
    turned = x[..., :width]
    first, second = turned[..., : width // 2], turned[..., width // 2 :]
    turned = turned * cosine.to(x.dtype) + torch.cat((-second, first), dim=-1) * sine.to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), dim=-1)


def additive(allowed: Tensor) -> Tensor:
    """Convert a boolean mask (…, S, T) to fp32 scores to add: 0 where allowed, :data:`MASKED` elsewhere."""
    return torch.where(allowed, 0.0, MASKED)


def attend_plain(query: Tensor, parts: Sequence[Columns], mask: Tensor) -> Tensor:
    """Compute softmax attention of ``query`` (B, H, S, W) over all columns of ``parts`` in order → (B, H, S, W).

    ``mask`` (B or 1, 1, S or 1, all columns) is added to the scores.  fp32 for an fp32 query; the softmax sums in fp32 for every dtype.
    """
    scaled = query * query.shape[-1] ** -0.5
    products = [torch.matmul(scaled, key.transpose(-1, -2)) for key, _ in parts]
    scores = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
    weights = torch.softmax(scores + mask.to(scores.dtype), dim=-1)
    start, output = 0, None
    for key, value in parts:
        width = key.shape[2]
        part = torch.matmul(weights[..., start : start + width], value)
        output = part if output is None else output + part
        start = start + width
    assert output is not None
    return output


def attend_fused(query: Tensor, parts: Sequence[Columns], mask: Tensor) -> Tensor:
    """Compute :func:`attend_plain` by PyTorch's fused kernel."""
    rows = query.shape[0]
    keys = torch.cat([key.expand(rows, -1, -1, -1) for key, _ in parts], dim=2) if len(parts) > 1 else parts[0][0]
    values = torch.cat([value.expand(rows, -1, -1, -1) for _, value in parts], dim=2) if len(parts) > 1 else parts[0][1]
    return functional.scaled_dot_product_attention(query, keys, values, mask.to(query.dtype))


class Attention(nn.Module):
    """Multi-head attention of one block; biases on both linears.

    Args:
        width: D.
        heads: H.
        norm_eps: of the LayerNorms that queries and keys pass before they are rotated, one over the W of a head for all heads (Show-o);
            None where there are none.
    """

    def __init__(self, width: int, heads: int, norm_eps: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.input = nn.Linear(width, 3 * width)  # query, key, value, each (H, W)
        self.output = nn.Linear(width, width)
        self.normed = norm_eps is not None
        if norm_eps is not None:
            self.query_norm = nn.LayerNorm(width // heads, eps=norm_eps)
            self.key_norm = nn.LayerNorm(width // heads, eps=norm_eps)
        self.fused = True

    def forward(
        self, x: Tensor, table: tuple[Tensor, Tensor], mask: Tensor, shared: Columns | None = None, past: Columns | None = None
    ) -> tuple[Tensor, Columns]:
        """``x`` (B, S, D) attends to cached columns and to itself.

        Args:
            x: new columns.
            table: of :func:`rotary_table` for them.
            mask: (B or 1, 1, S or 1, columns), for the columns of ``shared``, ``past`` and ``x`` in this order.
            shared: columns of B rows or of one row that all sequences share.
            past: earlier columns of the same B sequences.

        Returns:
            (B, S, D), and the columns of ``past`` and ``x`` together.
        """
        B, S, D = x.shape
        parts = torch.split(self.input(x), [D, D, D], dim=-1)  # taken apart before they are turned: a permutation of all three costs twice
        query, key, value = (part.view(B, S, self.heads, D // self.heads).transpose(1, 2) for part in parts)  # (B, H, S, W)
        if self.normed:
            query, key = self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype)
        query, key = rotate(query, *table), rotate(key, *table)
        if past is not None:
            key, value = torch.cat((past[0].to(key.dtype), key), dim=2), torch.cat((past[1].to(value.dtype), value), dim=2)
        columns = [(key, value)] if shared is None else [(shared[0].to(key.dtype), shared[1].to(value.dtype)), (key, value)]
        attend = attend_fused if self.fused else attend_plain
        mixed = attend(query, columns, mask)
        return self.output(mixed.transpose(1, 2).reshape(B, S, D)), (key, value)
