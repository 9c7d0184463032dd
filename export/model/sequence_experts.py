"""Sequence-level mixture of experts: one routing decision per image and block, K of four experts, one set per task group.

Axes: B images, J image columns, D width, R resampler width, four experts.  ``x`` is the block's normalized input at the image's columns;
the router reads its mean.  With gates g and w = sigmoid(gate(x)) the layer computes the residual ``g_copy · x + g_zero · 0 + Σ g_k · (w_k
· x + (1 - w_k) · S_k(f))`` (UniF²ace, arXiv 2503.08120; what acts where is ours, model.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from export.model.experts import Router

#: The four experts of each group, in router order.
KINDS: Mapping[str, tuple[str, str, str, str]] = {
    "t2i": ("copy", "copy", "zero", "noise"),
    "mmu": ("copy", "copy", "semantic", "identity"),
}
_FIXED = ("copy", "zero")


class SequenceExpertLayer(nn.Module):
    """Four experts of one task group in one block.

    With ``scaled``, the residual is multiplied by a learned scale of each channel; 0 makes the layer vanish, which is how an upcycled
    dense model begins (ours).
    """

    def __init__(self, group: str, width: int, resampler_width: int, active: int, *, scaled: bool = False) -> None:
        super().__init__()
        self.kinds = KINDS[group]
        mixing = [kind for kind in self.kinds if kind not in _FIXED]
        self.router = Router(width, len(self.kinds), active)
        self.gates = nn.ModuleDict({kind: nn.Linear(width, 1) for kind in mixing})
        self.maps = nn.ModuleDict({kind: nn.Linear(resampler_width, width) for kind in mixing})
        self.scaled = scaled
        if scaled:
            self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, mean: Tensor, sources: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the residual of each image.

        Args:
            x: (B, J, D).
            mean: mean of ``x`` over its columns, (B, D) fp32.
            sources: kind → resampled features or noise embedding, (B, J or 1, R).

        Returns:
            Residual (B, J, D), router probabilities (B, 4), chosen (B, 4).
        """
        gates, probability, chosen = self.router(mean)  # (B, 4)
        straight, mixed = [], []  # factors of x, and what the mixing experts add
        for kind, gate in zip(self.kinds, torch.split(gates[..., None], 1, dim=1), strict=True):  # (B, 1, 1)
            if kind == "copy":
                straight.append(gate)
            elif kind != "zero":
                own = torch.sigmoid(self.gates[kind](x).float())  # (B, J, 1)
                straight.append(gate * own)
                mixed.append((gate * (1 - own)).to(x.dtype) * self.maps[kind](sources[kind]))
        residual = reduce(torch.add, straight).to(x.dtype) * x + reduce(torch.add, mixed)
        return residual * self.scale.to(x.dtype) if self.scaled else residual, probability, chosen
