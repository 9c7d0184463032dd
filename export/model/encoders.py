"""The small encoders of nano: what stands where the paper has CLIP ViT-L/14 and AntelopeV2, and the parser behind named regions.

Three convolutional networks of their own, each of which reads pixels ``(B, 3, Y, X)`` in [-1, 1], looks at 128 x 128 means of larger
pictures, and is exported as one graph.  Ours:
the paper's encoders are large and trained on photographs; these are trained in minutes on renders (``export/training/encoders.py``), so
their features know exactly what the renderer can show.

Every convolution is followed by BatchNorm (folded into the convolution by :func:`folded` and by every inference engine) and works on
``channels_last`` memory; the first layer moves 2 x 2 or 4 x 4 pixels into channels, so that most arithmetic runs at 16 x 16 and 8 x 8.

Axes: B batch, C channels, G token grid, M = G * G grid vectors, F their width, K regions or slots.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from f2edge.errors import InputError
from f2edge.spec.attributes import AttributeSchema
from f2edge.spec.configuration import FeatureShape

#: Pixels along a side of what the encoders look at.
SIDE = 128


class Convolution(nn.Module):
    """3 x 3 convolution without bias, then BatchNorm."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, Y, X)`` → ``(B, outputs, Y / stride, X / stride)``."""
        result: Tensor = self.norm(self.convolution(x))
        return result


class Residual(nn.Module):
    """``relu(x + conv(relu(conv(x))))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Convolution(width, width)
        self.second = Convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width, Y, X)``, same shape out."""
        result: Tensor = functional.relu(x + self.second(functional.relu(self.first(x))))
        return result


class Trunk(nn.Module):
    """A residual network from pixels to an 8 x 8 grid.

    Args:
        unshuffle: side of the pixel square that the first layer takes as channels (2 or 4).
        channels: width of each stage; every stage after the first halves the resolution.
        blocks: residual blocks of each stage.
    """

    def __init__(self, unshuffle: int, channels: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        if len(channels) != len(blocks):
            raise InputError(f"encoder trunk: {len(channels)} widths but {len(blocks)} block counts; give one of each per stage")
        self.unshuffle = unshuffle
        self.width = channels[-1]
        widths = (3 * unshuffle * unshuffle, *channels)
        self.entries = nn.ModuleList(
            Convolution(inputs, outputs, stride=1 if stage == 0 else 2)
            for stage, (inputs, outputs) in enumerate(zip(widths[:-1], channels, strict=True))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Residual(width) for _ in range(count))) for width, count in zip(channels, blocks, strict=True)
        )

    def maps(self, pixels: Tensor) -> Iterator[Tensor]:
        """The output of every stage, finest first."""
        if pixels.shape[-1] > SIDE:
            pixels = functional.avg_pool2d(pixels, pixels.shape[-1] // SIDE)
        x = functional.pixel_unshuffle(pixels, self.unshuffle).contiguous(memory_format=torch.channels_last)
        for entry, stage in zip(self.entries, self.stages, strict=True):
            x = stage(functional.relu(entry(x)))
            yield x

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, 3, Y, X)`` → the last stage's ``(B, C, G, G)``."""
        *_, last = self.maps(pixels)
        return last


class GlobalContext(nn.Module):
    """Adds what the whole picture says to every cell: ``x + up(relu(down(mean(x))))``; a 3 x 3 window alone never sees the other cheek."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, G, G)``, same shape out."""
        context: Tensor = self.up(functional.relu(self.down(x.mean(dim=(2, 3)))))  # (B, C)
        return x + context[:, :, None, None]


class SemanticEncoder(nn.Module):
    """Pixels → the grid of semantic features that the MMU group's semantic expert and the perceptual loss read (paper: CLIP ViT-L/14)."""

    def __init__(self, shape: FeatureShape, channels: tuple[int, ...] = (24, 56, 112, 192), blocks: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.shape, self.channels, self.blocks = shape, channels, blocks
        self.trunk = Trunk(2, channels, blocks)
        self.context = GlobalContext(channels[-1], 64)
        self.project = nn.Conv2d(channels[-1], shape.width, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, 3, 128, 128)`` float in [-1, 1] → ``(B, M, F)``, every vector with mean 0 and variance 1, row-major over the grid."""
        grid = self.project(self.context(self.trunk(pixels)))  # (B, F, G, G)
        features = grid.flatten(2).transpose(1, 2)  # (B, M, F)
        if features.shape[1] != self.shape.vectors:
            raise InputError(f"semantic encoder: pixels give {features.shape[1]} vectors, the configuration says {self.shape.vectors}")
        return functional.layer_norm(features.float(), (self.shape.width,))


class IdentityEncoder(nn.Module):
    """Pixels → one unit vector that stays the same when hair, mood, pose and light of a person change (paper: AntelopeV2, ArcFace)."""

    def __init__(self, shape: FeatureShape, channels: tuple[int, ...] = (32, 64, 112), blocks: tuple[int, ...] = (0, 1, 1)) -> None:
        super().__init__()
        if shape.vectors != 1:
            raise InputError(f"identity encoder: gives one vector, the configuration says {shape.vectors}")
        self.trunk = Trunk(4, channels, blocks)
        self.squeeze = nn.Conv2d(channels[-1], 32, 1)
        self.project = nn.Linear(32 * 64, shape.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, 3, 128, 128)`` float in [-1, 1] → ``(B, 1, F)`` of length 1."""
        grid = functional.relu(self.squeeze(self.trunk(pixels)))  # (B, 32, 8, 8); faces are aligned, so places are told apart
        return functional.normalize(self.project(grid.flatten(1)).float(), dim=-1)[:, None]


class RegionParser(nn.Module):
    """Pixels → which share of each token's patch belongs to hair, eyes, mouth …, for edits of a named region."""

    def __init__(self, regions: int, grid: int = 8) -> None:
        super().__init__()
        self.grid = grid
        channels, blocks = ((24, 40, 64), (0, 1, 1)) if grid == 8 else ((64,), (3,))
        self.trunk = Trunk(SIDE // grid >> len(channels) - 1, channels, blocks)
        self.context = GlobalContext(channels[-1], 32)
        self.project = nn.Conv2d(channels[-1], regions, 1)

    def logits(self, pixels: Tensor) -> Tensor:
        """``(B, 3, Y, X)`` → ``(B, K, G, G)``, before the sigmoid."""
        grid: Tensor = self.project(self.context(self.trunk(pixels)))
        return grid.float()

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, 3, Y, X)`` float in [-1, 1] → coverage ``(B, K, G, G)`` in [0, 1]."""
        return torch.sigmoid(self.logits(pixels))


class AttributeReadout(nn.Module):
    """The training head of the semantic encoder, never exported: for each slot a learned look at the grid, then one linear map.

    It is kept this shallow so that what it reads lies in the features themselves, where the unified model finds it too.
    """

    def __init__(self, schema: AttributeSchema, shape: FeatureShape) -> None:
        super().__init__()
        counts = [len(slot.values) for slot in schema.values()]
        self.query = nn.Parameter(torch.randn(len(counts), shape.width) * 0.02)
        self.place = nn.Parameter(torch.zeros(len(counts), shape.vectors))
        self.weight = nn.Parameter(torch.randn(len(counts), max(counts), shape.width) * shape.width**-0.5)
        self.mean = nn.Linear(shape.width, len(counts) * max(counts))
        self.seen = nn.Parameter(torch.zeros(len(counts), shape.width))
        self.seen_mean = nn.Linear(shape.width, len(counts))
        self.scale = shape.width**-0.5
        self.valid: Tensor
        self.register_buffer("valid", torch.arange(max(counts)) < torch.tensor(counts)[:, None], persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, M, F)`` → logits ``(B, K slots, values)``; values that a slot lacks have the lowest float."""
        values, _ = self.both(features)
        return values

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, M, F)`` → logits of the values ``(B, K slots, values)``, and of whether the picture shows the slot at all ``(B, K)``."""
        look = torch.softmax(torch.einsum("kf,bmf->bkm", self.query, features) * self.scale + self.place, dim=-1)
        found, whole = look @ features, features.mean(dim=1)  # (B, K, F), (B, F)
        mean: Tensor = self.mean(whole)
        logits = torch.einsum("bkf,kvf->bkv", found, self.weight) + mean.view(len(features), *self.valid.shape)
        shown: Tensor = torch.einsum("bkf,kf->bk", found, self.seen) + self.seen_mean(whole)
        return logits.float().masked_fill(~self.valid, torch.finfo(torch.float32).min), shown.float()


def folded(module: nn.Module) -> nn.Module:
    """A copy for inference with every BatchNorm folded into its convolution: same outputs up to rounding, fewer parts to export."""
    result = copy.deepcopy(module).eval()
    for unit in result.modules():
        if isinstance(unit, Convolution) and isinstance(unit.norm, nn.BatchNorm2d):
            unit.convolution = fuse_conv_bn_eval(unit.convolution, unit.norm)
            unit.norm = nn.Identity()
    return result


def perceptual_features(encoder: SemanticEncoder) -> Callable[[Tensor], list[Tensor]]:
    """The feature maps of a trained encoder for a perceptual loss (arXiv 1603.08155): a function of pixels, frozen, finest map first.

    Gradients reach the pixels and never the encoder, which is copied and folded, so that later training of it changes nothing here.
    The maps are ``(B, 24, 64, 64)``, ``(B, 56, 32, 32)``, ``(B, 112, 16, 16)`` and ``(B, 192, 8, 8)``.
    """
    trunk = folded(encoder.trunk).requires_grad_(requires_grad=False)
    assert isinstance(trunk, Trunk)

    def features(pixels: Tensor) -> list[Tensor]:
        return list(trunk.maps(pixels))

    return features


def attribute_reader(encoder: SemanticEncoder, readout: AttributeReadout) -> Callable[[Tensor], Tensor]:
    """Pixels ``(B, 3, 128, 128)`` → slot logits ``(B, K, values)`` of trained, frozen copies; gradients reach the pixels only."""
    network = nn.Sequential(folded(encoder), folded(readout)).requires_grad_(requires_grad=False)

    def read(pixels: Tensor) -> Tensor:
        logits: Tensor = network(pixels)
        return logits

    return read
