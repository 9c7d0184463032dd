"""Patch discriminator of the image tokenizer's adversarial phase (PatchGAN, arXiv 1611.07004); used in training only.

Hinge loss (arXiv 1705.02894): the target is above 1 for real pictures and below -1 for reconstructions.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Discriminator: pixels (B, 3, H, W) → one score per patch (B, 1, H/16, W/16) with a receptive field of 46 x 46 pixels.

    Spectral normalization (arXiv 1802.05957) bounds the gradient, so no gradient penalty is needed.
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
    """Return the hinge loss of the discriminator from its scores of real and (detached) reconstructed pictures."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Return the adversarial loss of the reconstruction from its scores."""
    return -fake.mean()
