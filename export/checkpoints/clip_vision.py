"""CLIP's vision transformer (arXiv 2103.00020) up to the features that Show-o reads: every patch of the last layer but one, no class token.

    encoder = clip_vision(Path("clip-vit-large-patch14-336"))
    encoder(pixels)                       # (B, 3, 336, 336) in [-1, 1] → (B, 576, 1024)

The last layer, the norm behind it and the projection to CLIP's shared space are not read, so they are left out.

Axes: B pictures, M patches, F width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from export.checkpoints.external_encoders import CLIP, CLIP_LAYERS, CLIP_PATCH, CLIP_WIDTH, ExternalEncoder, clip_prefix, semantic_encoder
from export.checkpoints.weight_files import Shape, mismatches, open_weights
from f2edge.errors import InputError

#: Mean and spread of CLIP's pixels in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
SPREAD = (0.26862954, 0.26130258, 0.27577711)
_HEAD_WIDTH, _EPS = 64, 1e-5
#: Our names of a layer → theirs.
_LAYER = {"norm1": "layer_norm1", "norm2": "layer_norm2", "output": "self_attn.out_proj", "up": "mlp.fc1", "down": "mlp.fc2"}
_INPUT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


class ClipLayer(nn.Module):
    """Attention, then a feed-forward network, each behind a LayerNorm and added to what it read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=_EPS) for _ in range(2))
        self.input, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M + 1, F), same shape out."""
        B, S, F = x.shape
        query, key, value = self.input(self.norm1(x)).view(B, S, 3, F // _HEAD_WIDTH, _HEAD_WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(torch.matmul(query * _HEAD_WIDTH**-0.5, key.transpose(-1, -2)), dim=-1)
        x = x + self.output(torch.matmul(weights, value).transpose(1, 2).reshape(B, S, F))
        hidden = self.up(self.norm2(x))
        down: Tensor = self.down(hidden * torch.sigmoid(1.702 * hidden))  # CLIP's quick GELU
        return x + down


class ClipVision(nn.Module):
    """Pixels (B, 3, Y, X) in [-1, 1] → features (B, M, F)."""

    def __init__(self, width: int, layers: int, image_size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, CLIP_PATCH, CLIP_PATCH, bias=False)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.places = nn.Parameter(torch.zeros((image_size // CLIP_PATCH) ** 2 + 1, width))
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.layers = nn.ModuleList(ClipLayer(width) for _ in range(layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        mean, spread = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, SPREAD))
        patches = self.patches(((pixels + 1) / 2 - mean) / spread).flatten(2).transpose(1, 2)  # (B, M, F)
        first = self.class_token.expand(patches.shape[0], 1, -1)
        x: Tensor = self.norm(torch.cat((first, patches), dim=1) + self.places)
        for layer in self.layers:
            x = layer(x)
        return x[:, 1:]


def published_shapes(patches: int, at: str = "vision_model.") -> dict[str, Shape]:
    """Names and shapes of the tensors that are read of a checkpoint for pictures of so many patches: all layers but the last."""
    F = CLIP_WIDTH
    shapes: dict[str, Shape] = {
        f"{at}embeddings.class_embedding": (F,),
        f"{at}embeddings.patch_embedding.weight": (F, 3, CLIP_PATCH, CLIP_PATCH),
        f"{at}embeddings.position_embedding.weight": (patches + 1, F),
    }
    norms, linears = [f"{at}pre_layrnorm"], dict[str, Shape]()
    for layer in range(CLIP_LAYERS - 1):
        of = f"{at}encoder.layers.{layer}."
        norms += [f"{of}layer_norm1", f"{of}layer_norm2"]
        linears |= {f"{of}self_attn.{name}_proj": (F, F) for name in ("q", "k", "v", "out")}
        linears |= {f"{of}mlp.fc1": (4 * F, F), f"{of}mlp.fc2": (F, 4 * F)}
    for name in norms:
        shapes |= {f"{name}.weight": (F,), f"{name}.bias": (F,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def renamed(state: Mapping[str, Tensor], layers: int, at: str = "vision_model.") -> Iterator[tuple[str, Tensor]]:
    """:class:`ClipVision`'s names and tensors of a published checkpoint, one at a time."""
    yield "patches.weight", state[f"{at}embeddings.patch_embedding.weight"]
    yield "class_token", state[f"{at}embeddings.class_embedding"]
    yield "places", state[f"{at}embeddings.position_embedding.weight"]
    for kind in ("weight", "bias"):
        yield f"norm.{kind}", state[f"{at}pre_layrnorm.{kind}"]  # their spelling
        for layer in range(layers):
            theirs = f"{at}encoder.layers.{layer}."
            yield f"layers.{layer}.input.{kind}", torch.cat([state[f"{theirs}{name}.{kind}"] for name in _INPUT])
            for ours, name in _LAYER.items():
                yield f"layers.{layer}.{ours}.{kind}", state[f"{theirs}{name}.{kind}"]


def clip_vision(folder: Path) -> tuple[ClipVision, ExternalEncoder]:
    """The vision tower of a folder that :func:`~export.checkpoints.external_encoders.semantic_encoder` accepts, and what was found there.

    Raises:
        InputError: not there, or another model.
    """
    found = semantic_encoder(folder)
    weights = open_weights(folder)
    prefix = clip_prefix(weights.infos)
    layers, expected = CLIP_LAYERS - 1, published_shapes(found.vectors, prefix)
    lines = mismatches({name: info for name, info in weights.infos.items() if name in expected}, expected)
    if lines:
        raise InputError("\n  ".join((f"{folder}: is another model; bring {CLIP}", *lines)))
    with torch.device("meta"):
        model = ClipVision(found.width, layers, found.image_size)
    tensors = {name: tensor.float() for name, tensor in renamed(weights, layers, prefix)}
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(requires_grad=False), found
