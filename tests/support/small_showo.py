"""A small Show-o under the published names: its configuration, random weights, folders of files, and the model that they become."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoints import magvit2 as magvit2_checkpoint
from export.checkpoints import showo as showo_checkpoint
from export.model.image_tokenizer import bits_of
from export.model.transformer import UnifiedTransformer
from f2edge.spec.configuration import SHOW_O, ImageTokenizerConfiguration, ModelConfiguration, TokenExperts
from f2edge.spec.layout import left_pad

SMALL_TOKENIZER = ImageTokenizerConfiguration(image_size=64, bits=5, channels=(32, 32, 64, 64, 64), blocks=2, family="magvit2")
SMALL = replace(
    SHOW_O, text_vocabulary=40, prompt_tokens=8, image_offset=11, width=32, layers=3, heads=4, rotary=4,
    token_experts=TokenExperts(64), tokenizer=SMALL_TOKENIZER,
)  # fmt: skip
N, V = 16, 32
START = END = 39


def show_o_state(configuration: ModelConfiguration = SMALL, *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the published names, large enough that every part matters; ids that are no text are never the answer."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in showo_checkpoint.published_shapes(configuration).items():
        scale = 0.5 if len(shape) == 1 or "embed_tokens" in name else (0.4 if "lm_head" in name else 1.0) / shape[-1] ** 0.5
        scale = 0.1 if name == "showo.lm_head.bias" else scale
        state[name] = torch.randn(shape, generator=generator) * scale + (1.0 if "norm.weight" in name else 0.0)
    state["showo.lm_head.bias"][configuration.text_vocabulary :] -= 100.0
    return state


def magvit_state(configuration: ImageTokenizerConfiguration = SMALL_TOKENIZER) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, shape in magvit2_checkpoint.published_shapes(configuration).items():
        scale = 0.2 if len(shape) == 1 else 1.5 / prod(shape[1:]) ** 0.5
        state[name] = torch.randn(shape, generator=generator) * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    state["quantize.embedding"] = bits_of(torch.arange(configuration.codes), configuration.bits)
    state["quantize.power_vals"] = 2 ** torch.arange(configuration.bits - 1, -1, -1)
    return state


def imported(state: Mapping[str, Tensor]) -> UnifiedTransformer:
    model = UnifiedTransformer(SMALL).eval()
    model.load_state_dict(dict(showo_checkpoint.renamed(state, SMALL)))
    return model.requires_grad_(requires_grad=False)


def prefix(model: UnifiedTransformer, prompts: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    words = [[model.special("<|t2i|>"), START, *prompt, END] for prompt in prompts]
    ids, lengths = (torch.from_numpy(array) for array in left_pad(words, model.special("[PAD]")))
    return *model.prefill_prompt(ids, lengths), lengths


Save = Callable[[Path, dict[str, Tensor]], None]


def save_safetensors(folder: Path, state: dict[str, Tensor]) -> None:
    save_file(state, folder / "pytorch_model.safetensors")


def folders(
    tmp_path: Path, state: dict[str, Tensor], magvit: dict[str, Tensor], save: Save = save_safetensors, **config: Any
) -> tuple[Path, Path]:
    rows = {
        "show-o": {"_class_name": "Showo", "vocab_size": 83, "llm_vocab_size": 40, "codebook_size": 32, "num_vq_tokens": N, **config},
        "magvitv2": {"_class_name": "MAGVITv2"},
    }
    for (name, row), tensors in zip(rows.items(), (state, magvit), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(row))
        save(tmp_path / name, tensors)
    return tmp_path / "show-o", tmp_path / "magvitv2"
