"""A tiny model with every part of the large one, which traces and runs in seconds, and bundles of it with random weights.

>>> random_bundle(Path("/tmp/tiny"))  # doctest: +SKIP
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from export.bundle_writer import ModelCard, Traced, write_bundle
from export.data.text.tokenizer import train_text_tokenizer
from export.defaults import GENERATION
from export.graph.trace import Models
from export.model.encoders import IdentityEncoder, RegionParser, SemanticEncoder
from export.model.magvit2 import build_tokenizer
from export.model.transformer import UnifiedTransformer
from f2edge.bundle.bundle import TOKENIZER
from f2edge.spec.configuration import FeatureShape, ImageTokenizerConfiguration, ModelConfiguration, TokenExperts

TINY = ModelConfiguration(
    name="tiny",
    text_vocabulary=1024,
    prompt_tokens=96,
    image_offset=99,
    width=64,
    layers=2,
    heads=4,
    rotary=8,
    token_experts=TokenExperts(shared_width=64, routed=4, routed_width=32, active=2),
    tokenizer=ImageTokenizerConfiguration(image_size=128, bits=10, channels=(8, 16, 16, 32, 32), blocks=1, codes_per_cell=2),
    resampler_width=32,
    semantic=FeatureShape(vectors=64, width=32),
    identity=FeatureShape(vectors=1, width=32),
    image_input="bits",
)


def random_models(configuration: ModelConfiguration = TINY, seed: int = 0, regions: tuple[str, ...] = ("hair", "eyes", "mouth")) -> Models:
    """Return models with seeded random weights, scaled up so that routing and sampling are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = UnifiedTransformer(configuration)
        with torch.no_grad():
            for name, parameter in transformer.named_parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(3.0)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.1)
            transformer.image_head.table.normal_(std=0.2)
        return Models(
            configuration,
            transformer,
            build_tokenizer(configuration.tokenizer),
            SemanticEncoder(configuration.semantic) if configuration.semantic else None,
            IdentityEncoder(configuration.identity) if configuration.identity else None,
            RegionParser(len(regions), configuration.tokenizer.grid),
            regions,
        )


def random_bundle(
    out: Path,
    configuration: ModelConfiguration = TINY,
    recipe: str = "fp32",
    seed: int = 0,
    *,
    text_tokenizer_path: Path | None = None,
    traced: Traced | None = None,
) -> Path:
    """Write a bundle of :func:`random_models` with a real text tokenizer, which is trained unless one is given."""
    card = ModelCard(
        description="Random weights; for tests.", generation={**GENERATION, "steps": 4}, typical_answers=("an old man with a big nose.",)
    )
    models = random_models(configuration, seed)
    with tempfile.TemporaryDirectory() as scratch:
        if text_tokenizer_path is None:
            text_tokenizer_path = Path(scratch) / TOKENIZER
            train_text_tokenizer(text_tokenizer_path, vocabulary=configuration.text_vocabulary)
        return write_bundle(out, models=models, text_tokenizer_path=text_tokenizer_path, recipe=recipe, card=card, traced=traced)
