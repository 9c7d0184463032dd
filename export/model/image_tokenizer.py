"""The image tokenizer: pixels ↔ a small grid of binary codes, by lookup-free quantization (LFQ; MAGVIT-v2, arXiv 2310.05737, section 3).

A convolutional encoder gives ``bits`` numbers per grid cell; their signs are the code.  There is no codebook to learn or to collapse: the
2**bits codes are the corners of a cube, and an entropy term keeps them all in use.  Codes are most significant bit first, +1 is 1.

Ours, for speed on two cores: nothing but stride-2 convolutions, 1 x 1 convolutions and pixel shuffles changes the resolution, the encoder
has no block at full resolution, and most layers work at the two coarsest grids, where a 3 x 3 window sees a quarter of the face.

    tokenizer = ImageTokenizer(NANO.tokenizer)
    codes = tokenizer.encode(pixels)        # (B, N) int64, row-major grid
    pixels = tokenizer.decode(codes)        # (B, 3, H, W) in [-1, 1]

B batch, N tokens, c codes per cell, b bits of a code, C channels, H W pixels, G grid side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from f2edge.errors import InputError
from f2edge.spec.configuration import ImageTokenizerConfiguration


@dataclass(frozen=True)
class Reconstruction:
    """What one pass through the tokenizer gives.

    Attributes:
        pixels: (B, 3, H, W), about [-1, 1], not clamped, so that losses keep their gradient.
        latent: (B, c·b, G, G) before quantization.
        quantized: (B, c·b, G, G) of -1 and +1; its gradient goes to ``latent`` unchanged (straight-through).
    """

    pixels: Tensor
    latent: Tensor
    quantized: Tensor


def codes_of(bits: Tensor) -> Tensor:
    """Codes (...,) int64 of bit vectors (..., b), any dtype; positive counts as 1; the first bit is the most significant."""
    weights = 2 ** torch.arange(bits.shape[-1] - 1, -1, -1, device=bits.device)
    return ((bits > 0).long() * weights).sum(-1)


def bits_of(codes: Tensor, bits: int) -> Tensor:
    """Inverse of :func:`codes_of`: (...,) int64 in [0, 2**bits) → (..., b) float32 of -1 and +1."""
    shifts = torch.arange(bits - 1, -1, -1, device=codes.device)
    return (codes.unsqueeze(-1) >> shifts & 1).float() * 2 - 1


class ConvBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions, normalized on the coarse grids only: at high resolution that costs more than it gives."""

    def __init__(self, channels: int, *, normalized: bool) -> None:
        super().__init__()
        self.norm = _norm(channels) if normalized else nn.Identity()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:  # (B, C, Y, X) → (B, C, Y, X)
        y: Tensor = self.second(F.relu(self.first(F.relu(self.norm(x)))))
        return x + y


class Mixing(nn.Module):
    """Attention of every cell to all others: what one eye looks like tells the other, however far apart convolutions see them."""

    def __init__(self, channels: int, grid: int, head: int = 32) -> None:
        super().__init__()
        self.head = head
        self.norm = _norm(channels)
        self.place = nn.Parameter(torch.randn(channels, grid, grid) * 0.02)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, G, G) → (B, C, G, G)
        B, C, G, _ = x.shape
        cells = self.qkv(self.norm(x) + self.place).reshape(B, 3, C // self.head, self.head, G * G).transpose(3, 4)  # (B, 3, H, G·G, W)
        query, key, value = cells.unbind(1)
        seen = F.scaled_dot_product_attention(query, key, value)  # (B, H, G·G, W)
        y: Tensor = self.out(seen.transpose(2, 3).reshape(B, C, G, G))
        return x + y


def _first_level(configuration: ImageTokenizerConfiguration) -> int:
    """The level at which convolutions begin: the logarithm of the patch's side."""
    return configuration.patch.bit_length() - 1


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) → latent (B, c·b, G, G)."""

    def __init__(self, configuration: ImageTokenizerConfiguration) -> None:
        super().__init__()
        channels, levels, first = configuration.channels, len(configuration.channels) - 1, _first_level(configuration)
        layers: list[nn.Module] = [nn.PixelUnshuffle(1 << first), nn.Conv2d(3 << 2 * first, channels[first], 3, padding=1)]
        for level in range(first, levels + 1):
            if level > first:
                layers += [nn.ReLU(), nn.Conv2d(channels[level - 1], channels[level], 3, stride=2, padding=1)]
            if level == levels and configuration.mixing:
                layers += [Mixing(channels[-1], configuration.grid)]
            layers += [ConvBlock(channels[level], normalized=level > 1) for _ in range(configuration.blocks)]
        layers += [_norm(channels[-1]), nn.ReLU(), nn.Conv2d(channels[-1], configuration.codes_per_cell * configuration.bits, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        latent: Tensor = self.layers(pixels)
        return latent


class Decoder(nn.Module):
    """Quantized latent (B, c·b, G, G) → pixels (B, 3, H, W); the last step to full resolution is a pixel shuffle where ``patch`` is 4."""

    def __init__(self, configuration: ImageTokenizerConfiguration) -> None:
        super().__init__()
        channels, levels, first = configuration.channels, len(configuration.channels) - 1, _first_level(configuration)
        layers: list[nn.Module] = [nn.Conv2d(configuration.codes_per_cell * configuration.bits, channels[-1], 3, padding=1)]
        for level in range(levels, first - 1, -1):
            blocks = configuration.blocks * (2 if level > levels - 2 else 1)
            layers += [ConvBlock(channels[level], normalized=level > 1) for _ in range(blocks)]
            if level == levels and configuration.mixing:
                layers[-1:-1] = [Mixing(channels[-1], configuration.grid)]  # before the last block
            if level > first:
                layers += [nn.Conv2d(channels[level], 4 * channels[level - 1], 1), nn.PixelShuffle(2)]
        layers += [nn.Conv2d(channels[first], 4 * channels[first - 1], 1), nn.PixelShuffle(2), nn.ReLU()]
        layers += [nn.Conv2d(channels[first - 1], 3 << 2 * (first - 1), 3, padding=1)]
        if first > 1:
            layers += [nn.PixelShuffle(1 << (first - 1))]
        self.layers = nn.Sequential(*layers)

    def forward(self, quantized: Tensor) -> Tensor:
        pixels: Tensor = self.layers(quantized)
        return pixels


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(channels // 16, 1), channels)


class ImageTokenizer(nn.Module):
    """Encoder, sign, decoder.

    Raises:
        InputError: ``family`` is not "nano"; MAGVIT-v2 is in :mod:`export.model.magvit2`.
    """

    def __init__(self, configuration: ImageTokenizerConfiguration) -> None:
        super().__init__()
        if configuration.family != "nano":
            raise InputError(f"image tokenizer: family {configuration.family!r} is not built here; this module knows 'nano' only")
        if configuration.image_size % configuration.downsampling:
            raise InputError(f"image tokenizer: size {configuration.image_size} is not a multiple of {configuration.downsampling}")
        self.configuration = configuration
        self.encoder = Encoder(configuration)
        self.decoder = Decoder(configuration)

    def forward(self, pixels: Tensor) -> Reconstruction:
        """Through the bottleneck and back; differentiable. ``pixels`` (B, 3, H, W) in [-1, 1]."""
        latent = self.encoder(pixels.contiguous(memory_format=torch.channels_last)).float()  # (B, c·b, G, G)
        quantized = latent + (_sign(latent) - latent).detach()
        return Reconstruction(self.decoder(quantized).float(), latent, quantized)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] → codes (B, N) int64, column by column, the codes of one cell side by side."""
        return self.codes(self.encoder(pixels.contiguous(memory_format=torch.channels_last)))

    def codes(self, latent: Tensor) -> Tensor:
        """Latent (B, c·b, G, G) → codes (B, N) int64; the cells of one column of the transformer follow each other, row by row."""
        shape, side = self.configuration, self.configuration.block
        across = shape.grid // side
        columns = latent.reshape(*latent.shape[:2], across, side, across, side)
        cells = columns.permute(0, 2, 4, 3, 5, 1).reshape(latent.shape[0], -1, shape.bits)  # (B, N, b)
        return codes_of(cells)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, N) int64 → pixels (B, 3, H, W) in [-1, 1]."""
        shape, side = self.configuration, self.configuration.block
        across = shape.grid // side
        columns = bits_of(codes, shape.bits).reshape(codes.shape[0], across, across, side, side, -1)
        quantized = columns.permute(0, 5, 1, 3, 2, 4).reshape(codes.shape[0], -1, shape.grid, shape.grid)  # (B, c·b, G, G)
        pixels: Tensor = self.decoder(quantized.contiguous(memory_format=torch.channels_last))
        return pixels.clamp(-1, 1)


def _sign(latent: Tensor) -> Tensor:
    """-1 or +1; zero counts as -1, as in :func:`codes_of`."""
    return (latent > 0).to(latent.dtype) * 2 - 1


@dataclass(frozen=True)
class BitStatistics:
    """Terms of the LFQ loss, scalars, in nats.

    Attributes:
        confidence: mean entropy of one cell's code; low when the bits are decided.
        usage: entropy of the code averaged over the batch; high when all codes are in use.
        commitment: mean squared distance of the latent from its sign.
    """

    confidence: Tensor
    usage: Tensor
    commitment: Tensor


def bit_statistics(latent: Tensor, temperature: float = 0.25, codes_per_cell: int = 1) -> BitStatistics:
    """Entropies of soft codes with p(bit = 1) = sigmoid(latent / temperature), exactly (arXiv 2310.05737, equation 4).

    The bits of one cell are independent given the latent, so its code's entropy is a sum; the batch mean over all 2**b codes is one matrix
    product of the distributions of the first and of the second half of the bits.

    Args:
        latent: (B, c·b, G, G) float32.
        temperature: softness of the bits; at 0.25 a latent of 1 stands for 98 % certainty.
        codes_per_cell: c; terms are means over a cell's codes, each of which has its own usage.
    """
    confidence, usage = latent.new_zeros(()), latent.new_zeros(())
    for code in latent.chunk(codes_per_cell, dim=1):
        flat = code.flatten(2).transpose(1, 2).flatten(0, 1) / temperature  # (B·G·G, b)
        p = torch.sigmoid(flat)
        confidence = confidence + F.binary_cross_entropy_with_logits(flat, p, reduction="none").sum(1).mean() / codes_per_cell
        half = p.shape[1] // 2
        joint = _corners(p[:, :half]).T @ _corners(p[:, half:]) / p.shape[0]  # (2**half, 2**(b - half)): P(code), averaged over the batch
        usage = usage + torch.special.entr(joint).sum() / codes_per_cell
    return BitStatistics(confidence, usage, (latent - _sign(latent)).square().mean())


def _corners(p: Tensor) -> Tensor:
    """Probabilities of all bit patterns (n, 2**k) from those of independent bits (n, k); the first bit is the most significant."""
    corners = torch.ones_like(p[:, :1])
    for k in range(p.shape[1]):
        one = p[:, k : k + 1]
        corners = torch.stack((corners * (1 - one), corners * one), dim=2).flatten(1)
    return corners
