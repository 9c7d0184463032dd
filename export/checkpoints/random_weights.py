"""Seeded random weights of any size, one tensor at a time, for tests and benchmarks at paper size without a checkpoint.

    write_published(Path("runs/published"), SHOW_O)        # show-o/ and magvitv2/ as they are published, for `import-showo`
    models = random_models_of(PAPER, seed=0)               # in memory, fp32

A tensor's values depend on the seed and its name only.  Scales keep the magnitude of activations over the layers and make routing and
sampling far from uniform; the model's output is meaningless.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from math import isqrt, prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.checkpoints import magvit2 as magvit2_checkpoint
from export.checkpoints import showo as showo_checkpoint
from export.checkpoints.weight_files import Shape, TensorInfo, write_streamed
from export.graph.trace import Models
from export.model.image_tokenizer import bits_of
from export.model.magvit2 import build_tokenizer
from export.model.transformer import UnifiedTransformer
from f2edge.errors import InputError, OutputError
from f2edge.spec.configuration import CONFIGURATIONS, FeatureShape, ImageTokenizerConfiguration, ModelConfiguration

_WEIGHTS = "pytorch_model.safetensors"


def shortened(name: str, layers: int | None = None) -> ModelConfiguration:
    """Return a named configuration with ``layers`` layers; raises :class:`InputError` for an unknown name or too many layers."""
    if name not in CONFIGURATIONS:
        raise InputError(f"unknown configuration {name!r}; choose one of: {', '.join(CONFIGURATIONS)}")
    whole = CONFIGURATIONS[name]
    if layers is None:
        return whole
    if not 1 <= layers <= whole.layers:
        raise InputError(f"configuration {name!r} has {whole.layers} layers; choose 1 … {whole.layers}, got {layers}")
    return replace(whole, layers=layers)


def random_tensor(name: str, shape: Shape, seed: int) -> Tensor:
    """Return the fp32 tensor called ``name``: norms around 1; deviation 0.5 of tables, 1/√inputs of linears, twice that of heads."""
    generator = torch.Generator().manual_seed(int.from_bytes(blake2b(f"{seed} {name}".encode(), digest_size=7).digest(), "big"))
    values = torch.randn(shape, generator=generator)
    if len(shape) < 2:
        norm = "norm" in name and name.endswith("weight")
        return values.mul_(0.1).add_(1.0 if norm else 0.0)
    if "head" in name:
        return values.mul_(2 / shape[-1] ** 0.5)
    table = any(part in name for part in ("embed", "places", "queries", "place", "mask"))
    return values.mul_(0.5 if table else prod(shape[1:]) ** -0.5)


def fill(module: nn.Module, seed: int) -> None:
    """Set every parameter of ``module`` to its random tensor, in place."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(random_tensor(name, tuple(parameter.shape), seed))


class PooledEncoder(nn.Module):
    """Placeholder for an external encoder: mean colors over a grid, mapped to the width of its features."""

    def __init__(self, shape: FeatureShape) -> None:
        super().__init__()
        self.grid = isqrt(shape.vectors)
        if self.grid**2 != shape.vectors:
            raise InputError(f"pooled encoder: {shape.vectors} vectors do not form a square grid")
        self.map = nn.Linear(3, shape.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, Y, X) to features (B, M, F)."""
        features: Tensor = self.map(functional.adaptive_avg_pool2d(pixels, self.grid).flatten(2).transpose(1, 2))
        return features


def random_models_of(configuration: ModelConfiguration, seed: int = 0) -> Models:
    """Return transformer and image tokenizer with random weights, and a :class:`PooledEncoder` for each encoder."""
    with torch.device("meta"):
        transformer = UnifiedTransformer(configuration)
    transformer.to_empty(device="cpu")
    tokenizer = build_tokenizer(configuration.tokenizer)
    semantic, identity = (None if shape is None else PooledEncoder(shape) for shape in (configuration.semantic, configuration.identity))
    for module in (transformer, tokenizer, semantic, identity):
        if module is not None:
            fill(module, seed)
    return Models(configuration, transformer, tokenizer, semantic, identity)


def write_published(out: Path, configuration: ModelConfiguration, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> tuple[Path, Path]:
    """Write random weights in the published layouts of Show-o and MAGVIT-v2; return both folders.

    Args:
        out: parent of the folders ``show-o`` and ``magvitv2``.
        configuration: :data:`f2edge.spec.configuration.SHOW_O`, or one with fewer layers or another picture size.
        seed: seed of the weights.
        dtype: dtype of the transformer's file; the tokenizer's is fp32, as published.

    Raises:
        OutputError: the folder cannot be written or the disk is too small.
    """
    rows = {
        "show-o": {
            "_class_name": "Showo",
            "w_clip_vit": False,
            "vocab_size": configuration.vocabulary,
            "llm_vocab_size": configuration.text_vocabulary,
            "codebook_size": configuration.codes,
            "num_vq_tokens": configuration.image_tokens,
            "mask_token_id": configuration.vocabulary - 1,
        },
        "magvitv2": {"_class_name": "MAGVITv2"},
    }
    try:
        for name, row in rows.items():
            (out / name).mkdir(parents=True, exist_ok=True)
            (out / name / "config.json").write_text(json.dumps(row), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    showo = showo_checkpoint.published_shapes(configuration)
    infos = {name: TensorInfo(shape, dtype) for name, shape in showo.items()}
    write_streamed(out / "show-o" / _WEIGHTS, infos, ((name, random_tensor(name, shape, seed)) for name, shape in showo.items()), {})
    magvit = magvit2_checkpoint.published_shapes(configuration.tokenizer)
    infos = {name: TensorInfo(shape, torch.int64 if "power" in name else torch.float32) for name, shape in magvit.items()}
    write_streamed(out / "magvitv2" / _WEIGHTS, infos, _magvit(configuration.tokenizer, magvit, seed), {})
    return out / "show-o", out / "magvitv2"


def _magvit(configuration: ImageTokenizerConfiguration, shapes: Mapping[str, Shape], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield random convolution weights and the two constant tables."""
    tables = {
        "quantize.embedding": bits_of(torch.arange(configuration.codes), configuration.bits),
        "quantize.power_vals": 2 ** torch.arange(configuration.bits - 1, -1, -1),
    }
    for name, shape in shapes.items():
        yield name, tables[name] if name in tables else random_tensor(name, shape, seed)
