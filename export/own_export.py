"""Export of a model trained on the user's own data: parts, schema and frame of the faces are those of its token cache.

    export_own(Path("own/unified"), Path("own/tokens"), ExportRequest(Path("own/bundle"), Path("own/tokens/tokenizer.json")))

Parity is measured on held-out captions, questions and pictures of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from export.bundle_writer import ModelCard, layout_of
from export.checkpoints.parts import PartNames, open_parts
from export.data.external.index import Texts
from export.data.text.tokenizer import read_text_tokenizer
from export.data.tokens import TokenCache
from export.defaults import defaults_of, schedule_of
from export.export_request import ExportRequest
from export.graph.trace import Models
from export.onnx_export import export_models, load_transformer
from export.training.checkpoint import configuration_of, finished_or_newest, trained_for_of
from export.verify.parity import SampleInputs
from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.sensitive import PHOTOGRAPHED

_MOST_TEXTS = 64


def export_own(unified: Path, tokens: Path, request: ExportRequest, recipe: str = "int8", progress: Callable[[str], None] = print) -> Path:
    """Export the transformer in ``unified``, trained on the cache ``tokens``, as a bundle; returns its folder.

    Raises:
        InputError: the cache is one of rendered faces, a part of it changed, or the transformer does not fit.
    """
    cache = TokenCache(tokens)
    if not cache.about.get("texts"):
        raise InputError(f"{tokens}: holds rendered faces; export their model with --tokenizer, --encoders and --text")
    configuration = ModelConfiguration.from_json(cache.about["configuration"])
    parts = open_parts(PartNames.from_json(cache.about["parts"]), configuration)
    source = finished_or_newest(unified)
    # The trained model may have other experts.
    configuration = replace(configuration_of(source) or configuration, tokenizer=configuration.tokenizer)
    models = replace(
        parts, configuration=configuration, transformer=load_transformer(source, configuration), trained_for=trained_for_of(source)
    )
    card = own_card(cache, request, models)
    layout = layout_of(configuration, request.text, card.question_template, card.long_prompts)
    samples = own_inputs(cache, models, request, card)
    # A short training leaves routers nearly even, so that quantization turns more of their choices: the bound of untrained models holds.
    return export_models(models, request, recipe, progress, untrained=True, inputs=(card, layout, samples), schema=cache.schema)


def own_card(cache: TokenCache, request: ExportRequest, models: Models) -> ModelCard:
    """Return the manifest's fields."""
    defaults, prompt = defaults_of(models.configuration, models.trained_for), next(iter(_captions(cache)), "a face")
    return ModelCard(
        description=request.description or "Trained on the user's own data.",
        licence="that of the data, and of the parts: " + ", ".join(sorted(map(str, cache.about["parts"]["names"].values()))),
        generation=defaults.generation,
        editing=defaults.editing,
        alignment=cache.about["alignment"],
        question_template=defaults.question_template,
        describe_question=defaults.describe_question,
        pictures=defaults.pictures,
        long_prompts="truncate",
        faces=PHOTOGRAPHED,
        quality=request.quality_metrics(),
        smoke_prompt=prompt,
    )


def _captions(cache: TokenCache) -> list[str]:
    """Return the first caption of some held-out faces."""
    faces = [cache.face(row) for row in range(max(0, len(cache) - _MOST_TEXTS), len(cache))]
    return [face.captions[0] for face in faces if isinstance(face, Texts) and face.captions]


def own_inputs(cache: TokenCache, models: Models, request: ExportRequest, card: ModelCard) -> SampleInputs:
    """Return held-out captions and questions in text tokens, and pictures as the image tokenizer keeps them."""
    tokenizer = read_text_tokenizer(request.text)
    longest = models.configuration.prompt_tokens

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    captions = _captions(cache) or [card.smoke_prompt]
    prompts = [encode(captions[index % len(captions)])[:longest] for index in range(request.prompts)]
    asked = [slot.question for slot in cache.schema.values()] + [card.describe_question]
    rows = np.arange(len(cache) - min(request.faces, len(cache)), len(cache))
    for row in rows.tolist():
        face = cache.face(row)
        asked += [question for question, _ in face.questions[:4]] if isinstance(face, Texts) else []
    assert models.image_tokenizer is not None
    with torch.inference_mode():
        pixels = models.image_tokenizer.decode(torch.from_numpy(cache.codes[rows].astype(np.int64)))  # type: ignore[operator]
    return SampleInputs(
        prompts=prompts,
        questions=[encode(card.question_template.format(question=question)) for question in dict.fromkeys(asked)],
        pixels=pixels.clamp(-1, 1).numpy().astype(np.float32),
        seeds=list(range(len(prompts))),
        schedule=schedule_of(card.generation),
    )
