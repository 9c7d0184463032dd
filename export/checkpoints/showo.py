"""The published Show-o checkpoint (``showlab/show-o``, 341 tensors) as weights of :class:`export.model.transformer.UnifiedTransformer`.

One table and one head over the whole vocabulary are cut in two: text with the specials, and image codes with the mask.  Rows of the head
that nothing reads (specials and mask) are dropped.  Query, key and value become one matrix.  Checkpoints with CLIP-ViT have four tensors
more: a projector, kept as a module of its own.

    model.load_state_dict(dict(renamed(state, SHOW_O)))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from export.checkpoints.weight_files import Shape
from export.model.transformer import UnifiedTransformer
from f2edge.spec.configuration import ModelConfiguration

#: Width of CLIP ViT-L/14's patch features.
CLIP_WIDTH = 1024
_LAYER = "showo.model.layers.{}."
#: Our block's linears and norm → theirs, beside the attention's input.
_BLOCK = {"norm": "input_layernorm", "attention.output": "self_attn.dense", "dense.up": "mlp.fc1", "dense.down": "mlp.fc2"}
_INPUT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_PROJECTOR = "mm_projector."


class ClipProjector(nn.Sequential):
    """CLIP ViT-L/14 patch features (B, 576, 1024) → vectors (B, 576, D) that stand where image tokens stand: linear, GELU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(CLIP_WIDTH, width), nn.GELU(), nn.Linear(width, width))


def own_shapes(configuration: ModelConfiguration) -> dict[str, Shape]:
    """Names and shapes of the transformer's tensors; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in UnifiedTransformer(configuration).state_dict().items()}


def projector_shapes(configuration: ModelConfiguration) -> dict[str, Shape]:
    """Names and shapes of :class:`ClipProjector`'s tensors."""
    D = configuration.width
    return {"0.weight": (D, CLIP_WIDTH), "0.bias": (D,), "2.weight": (D, D), "2.bias": (D,)}


def foreign_shapes(configuration: ModelConfiguration, *, projector: bool = False) -> dict[str, Shape]:
    """Names and shapes of the published checkpoint, with or without the CLIP-ViT projector."""
    D, rows, hidden = configuration.width, configuration.vocabulary, configuration.token_experts.shared_width
    shapes: dict[str, Shape] = {"showo.model.embed_tokens.weight": (rows, D)}
    for layer in range(configuration.layers):
        at = _LAYER.format(layer)
        shapes |= {f"{at}input_layernorm.weight": (D,), f"{at}input_layernorm.bias": (D,)}
        for linear, out, into in (*((name, D, D) for name in (*_INPUT, "self_attn.dense")), ("mlp.fc1", hidden, D), ("mlp.fc2", D, hidden)):
            shapes |= {f"{at}{linear}.weight": (out, into), f"{at}{linear}.bias": (out,)}
    shapes |= {"showo.model.final_layernorm.weight": (D,), "showo.model.final_layernorm.bias": (D,)}
    shapes |= {"showo.lm_head.weight": (rows, D), "showo.lm_head.bias": (rows,)}
    if projector:
        shapes |= {_PROJECTOR + name: shape for name, shape in projector_shapes(configuration).items()}
    return shapes


def has_projector(names: Mapping[str, object]) -> bool:
    """Whether a checkpoint was trained with CLIP-ViT features."""
    return any(name.startswith(_PROJECTOR) for name in names)


def renamed(state: Mapping[str, Tensor], configuration: ModelConfiguration) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors of a published checkpoint, one at a time; the projector's are left to :func:`projector`."""
    text, V = configuration.text_vocabulary, configuration.codes
    image = text + len(configuration.specials)
    table = state["showo.model.embed_tokens.weight"]
    yield "embedding.text.weight", table[:image]
    yield "embedding.table.weight", table[image:]
    for kind in ("weight", "bias"):
        head = state[f"showo.lm_head.{kind}"]
        yield f"text_head.{kind}", head[:text]
        yield "image_head.table" if kind == "weight" else "image_head.bias", head[image : image + V]
        yield f"norm.{kind}", state[f"showo.model.final_layernorm.{kind}"]
        for layer in range(configuration.layers):
            at = _LAYER.format(layer)
            yield f"blocks.{layer}.attention.input.{kind}", torch.cat([state[f"{at}{name}.{kind}"] for name in _INPUT])
            for ours, theirs in _BLOCK.items():
                yield f"blocks.{layer}.{ours}.{kind}", state[f"{at}{theirs}.{kind}"]


def projector(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """:class:`ClipProjector`'s names and tensors of a checkpoint with CLIP-ViT."""
    for name in state:
        if name.startswith(_PROJECTOR):
            yield name.removeprefix(_PROJECTOR), state[name]
