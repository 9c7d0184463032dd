"""The published MAGVIT-v2 image tokenizer (arXiv 2310.05737, as released with Show-o): pixels ↔ a 16 x 16 grid of 13-bit codes.

The interface is that of :class:`export.model.image_tokenizer.ImageTokenizer`.  Tensor names are the published ones, so a checkpoint loads
without renaming (export/checkpoints/magvit2.py).  The decoder has ``channels[l]`` at level l; the encoder widens one level earlier.

    tokenizer = Magvit2Tokenizer(SHOW_O.tokenizer)
    codes = tokenizer.encode(pixels)        # (B, N) int64, row by row
    pixels = tokenizer.decode(codes)        # (B, 3, H, W) in [-1, 1]

B batch, N tokens, b bits of a code, C channels, H W pixels, G grid side, Y X a level's rows and columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.model.image_tokenizer import ImageTokenizer, bits_of, codes_of
from f2edge.errors import InputError
from f2edge.spec.configuration import ImageTokenizerConfiguration

_GROUPS = 32  # groups of every GroupNorm; widths are multiples of it


def encoder_channels(configuration: ImageTokenizerConfiguration) -> tuple[int, ...]:
    """Return the widths of the encoder's levels, finest first."""
    channels = configuration.channels
    return (*channels[1:], channels[-1])


def encoder_blocks(configuration: ImageTokenizerConfiguration) -> tuple[int, ...]:
    """Return the number of residual blocks of the encoder's levels, finest first; one less where the width changes."""
    before = (configuration.channels[0], *encoder_channels(configuration))
    return tuple(configuration.blocks - (a != b) for a, b in zip(before, encoder_channels(configuration), strict=False))


def decoder_blocks(configuration: ImageTokenizerConfiguration) -> tuple[int, ...]:
    """Return the number of residual blocks of the decoder's levels, finest first."""
    return (configuration.blocks, *encoder_blocks(configuration)[:-1])


class ResidualBlock(nn.Module):
    """Residual block of two normalized 3 x 3 convolutions, with a 1 x 1 shortcut where the width changes."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = _norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.widens = channels != out
        if self.widens:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, Y, X) → (B, C', Y, X)
        y: Tensor = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return (self.nin_shortcut(x) if self.widens else x) + y


class AttentionBlock(nn.Module):
    """Single-head attention over all positions of the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, G, G) → (B, C, G, G)
        h = self.norm(x)
        query, key, value = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))  # (B, C, G·G)
        weights = torch.softmax(torch.matmul(query.transpose(1, 2) * x.shape[1] ** -0.5, key), dim=-1)  # (B, G·G, G·G)
        mixed: Tensor = self.proj_out(torch.matmul(value, weights.transpose(1, 2)).reshape(x.shape))
        return x + mixed


class Middle(nn.Module):
    """Block, attention, block at the coarsest level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return y


class Downsample(nn.Module):
    """Downsampling by a 3 x 3 convolution of stride 2, padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Nearest-neighbor upsampling by two and a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class Level(nn.Module):
    """Residual blocks at one resolution, with an optional change of resolution."""

    def __init__(self, channels: int, out: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(channels if i == 0 else out, out) for i in range(blocks))
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        change = self.downsample or self.upsample
        return x if change is None else change(x)


class Magvit2Encoder(nn.Module):
    """Encoder: pixels (B, 3, H, W) → latent (B, b, G, G)."""

    def __init__(self, configuration: ImageTokenizerConfiguration) -> None:
        super().__init__()
        widths, bits = encoder_channels(configuration), configuration.bits
        before = (configuration.channels[0], *widths)
        self.conv_in = nn.Conv2d(3, before[0], 3, padding=1)
        self.down = nn.ModuleList()
        for level, (width, blocks) in enumerate(zip(widths, encoder_blocks(configuration), strict=True)):
            stage = Level(before[level], width, blocks)
            if level < len(widths) - 1:
                stage.downsample = Downsample(width)
            self.down.append(stage)
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(bits, bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for stage in self.down:
            x = stage(x)
        latent: Tensor = self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))
        return latent


class Magvit2Decoder(nn.Module):
    """Decoder: quantized latent (B, b, G, G) → pixels (B, 3, H, W)."""

    def __init__(self, configuration: ImageTokenizerConfiguration) -> None:
        super().__init__()
        widths, bits = configuration.channels, configuration.bits
        before = (*widths[1:], widths[-1])
        self.conv_in = nn.Conv2d(bits, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()  # finest first; executed from last to first
        for level, (width, blocks) in enumerate(zip(widths, decoder_blocks(configuration), strict=True)):
            stage = Level(before[level], width, blocks)
            if level > 0:
                stage.upsample = Upsample(width)
            self.up.append(stage)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(bits, bits, 1)

    def forward(self, quantized: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(quantized)))
        for stage in reversed(self.up):
            x = stage(x)
        pixels: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return pixels


class Magvit2Tokenizer(nn.Module):
    """Image tokenizer: encoder, sign quantization, decoder.

    Raises:
        InputError: another family, several codes per cell, or unsupported sizes.
    """

    def __init__(self, configuration: ImageTokenizerConfiguration) -> None:
        super().__init__()
        if configuration.family != "magvit2" or configuration.codes_per_cell != 1:
            raise InputError(
                f"MAGVIT-v2: family {configuration.family!r} with {configuration.codes_per_cell} codes per cell is not supported"
            )
        if (
            configuration.image_size % configuration.downsampling
            or configuration.blocks < 2
            or any(c % _GROUPS for c in configuration.channels)
        ):
            raise InputError(
                f"MAGVIT-v2: the size must be a multiple of {configuration.downsampling}, channels of {_GROUPS}, and blocks at least 2; "
                f"got {configuration.image_size}, {configuration.channels} and {configuration.blocks}"
            )
        self.configuration = configuration
        self.encoder = Magvit2Encoder(configuration)
        self.decoder = Magvit2Decoder(configuration)

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) in [-1, 1] to codes (B, N) int64, row by row."""
        return codes_of(self.encoder(pixels).flatten(2).transpose(1, 2))  # (B, b, G, G) → (B, N, b) → (B, N)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, N) int64 to pixels (B, 3, H, W) in [-1, 1]."""
        grid = self.configuration.grid
        quantized = bits_of(codes, self.configuration.bits).transpose(1, 2).reshape(codes.shape[0], -1, grid, grid)  # (B, b, G, G)
        pixels: Tensor = self.decoder(quantized)
        return pixels.clamp(-1, 1)


def build_tokenizer(configuration: ImageTokenizerConfiguration) -> ImageTokenizer | Magvit2Tokenizer:
    """Return an image tokenizer of the configuration's family with new weights."""
    return Magvit2Tokenizer(configuration) if configuration.family == "magvit2" else ImageTokenizer(configuration)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=1e-6)
