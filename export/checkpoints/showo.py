"""The published Show-o checkpoint (``showlab/show-o``, 437 tensors) as weights of :class:`export.model.transformer.UnifiedTransformer`.

One table and one head over the whole vocabulary are cut in two: text with the specials, and image codes with the mask.  Rows of the head
that nothing reads (specials and mask) are dropped.  Query, key and value become one matrix.  Checkpoints with CLIP-ViT have four tensors
more: the projector of its features.

    model.load_state_dict(dict(renamed(state, SHOW_O)))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from export.checkpoints.weight_files import Shape
from export.model.transformer import UnifiedTransformer
from f2edge.spec.configuration import FeatureShape, ModelConfiguration

#: What a checkpoint with CLIP-ViT's projector changes: 576 patches of CLIP ViT-L/14 at 336 pixels behind a system prompt of 28 tokens.
READS_FEATURES: Mapping[str, Any] = MappingProxyType(
    {"understanding": "features", "system_tokens": 28, "semantic": FeatureShape(vectors=576, width=1024, image_size=336)}
)
_LAYER = "showo.model.layers.{}."
#: Our block's linears and norm → theirs, beside the attention's input.
_BLOCK = {"norm": "input_layernorm", "attention.output": "self_attn.dense", "dense.up": "mlp.fc1", "dense.down": "mlp.fc2"}
#: The norms of queries and keys, where the configuration has them.
_HEAD_NORMS = {"attention.query_norm": "self_attn.q_layernorm", "attention.key_norm": "self_attn.k_layernorm"}
_INPUT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_PROJECTOR = "mm_projector."


def own_shapes(configuration: ModelConfiguration) -> dict[str, Shape]:
    """Return names and shapes of the transformer's tensors, without allocating them."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in UnifiedTransformer(configuration).state_dict().items()}


def published_shapes(configuration: ModelConfiguration) -> dict[str, Shape]:
    """Return names and shapes of the published checkpoint, with the CLIP-ViT projector if the configuration reads features."""
    D, rows, hidden = configuration.width, configuration.vocabulary, configuration.token_experts.shared_width
    shapes: dict[str, Shape] = {"showo.model.embed_tokens.weight": (rows, D)}
    for layer in range(configuration.layers):
        at = _LAYER.format(layer)
        shapes |= {f"{at}input_layernorm.weight": (D,), f"{at}input_layernorm.bias": (D,)}
        for linear, out, into in (*((name, D, D) for name in (*_INPUT, "self_attn.dense")), ("mlp.fc1", hidden, D), ("mlp.fc2", D, hidden)):
            shapes |= {f"{at}{linear}.weight": (out, into), f"{at}{linear}.bias": (out,)}
        for norm in _HEAD_NORMS.values() if configuration.query_key_norm else ():
            shapes |= {f"{at}{norm}.weight": (configuration.head_width,), f"{at}{norm}.bias": (configuration.head_width,)}
    shapes |= {"showo.model.final_layernorm.weight": (D,), "showo.model.final_layernorm.bias": (D,)}
    shapes |= {"showo.lm_head.weight": (rows, D), "showo.lm_head.bias": (rows,)}
    if configuration.understanding == "features":
        assert configuration.semantic is not None
        shapes |= {f"{_PROJECTOR}0.weight": (D, configuration.semantic.width), f"{_PROJECTOR}0.bias": (D,)}
        shapes |= {f"{_PROJECTOR}2.weight": (D, D), f"{_PROJECTOR}2.bias": (D,)}
    return shapes


def is_transformer(names: Mapping[str, object]) -> bool:
    """Whether these are a Show-o checkpoint's names."""
    return "showo.lm_head.weight" in names


def has_projector(names: Mapping[str, object]) -> bool:
    """Whether a checkpoint was trained with CLIP-ViT features."""
    return any(name.startswith(_PROJECTOR) for name in names)


def renamed(state: Mapping[str, Tensor], configuration: ModelConfiguration) -> Iterator[tuple[str, Tensor]]:
    """Yield our names and tensors of a published checkpoint, one at a time."""
    text, V = configuration.text_vocabulary, configuration.codes
    image = text + len(configuration.specials)
    block = _BLOCK | (_HEAD_NORMS if configuration.query_key_norm else {})
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
            for ours, theirs in block.items():
                yield f"blocks.{layer}.{ours}.{kind}", state[f"{at}{theirs}.{kind}"]
    for name in state:
        if name.startswith(_PROJECTOR):
            yield f"projector.{name.removeprefix(_PROJECTOR)}", state[name]
