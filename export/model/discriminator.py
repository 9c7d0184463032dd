"""The critic of the tokenizer's late adversarial phase: judges overlapping patches as real or reconstructed (PatchGAN, arXiv 1611.07004).

Training only, never exported.  Hinge loss (arXiv 1705.02894): the critic wants real above 1 and fake below -1.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Pixels (B, 3, H, W) → one score per patch (B, 1, H/16, W/16); each sees 46 x 46 pixels.

    Spectral normalisation (arXiv 1802.05957) bounds its slope, so that a short training needs no gradient penalty.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            convolution = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
            layers += [nn.utils.parametrizations.spectral_norm(convolution), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.layers(pixels.contiguous(memory_format=torch.channels_last))
        return scores.float()


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the critic, from its scores of real and of (detached) reconstructed pictures."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """What the reconstruction pays for being recognised."""
    return -fake.mean()
