r"""Export of a bundle with its parity metrics: implementation of ``python -m export onnx``.

    python -m export onnx --unified runs/unified --tokenizer runs/tokenizer --encoders runs/encoders --text tokenizer.json \
        --recipe int8 --out f2edge/bundles/nano

Parity is measured on held-out faces and captions, which are rendered here, and written to the manifest.  A lost expert, or a graph that
routes differently from PyTorch, fails the export.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.bundle_writer import ModelCard, check_destination, layout_of, trace_all, write_bundle
from export.data.text.tokenizer import read_text_tokenizer
from export.defaults import manner_of
from export.export_request import ExportRequest
from export.graph.trace import Models
from export.quantize.recipes import recipe_named
from export.quantize.requantize import calibrate
from export.training.checkpoint import load_weights, weights_file, weights_metadata
from export.verify.census import census_of_folder
from export.verify.parity import Inputs, generate, measure
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.bundle.bundle import TOKENIZER
from f2edge.camera.crops import PORTRAIT_MARGINS
from f2edge.decoding.schedule import Schedule
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA
from f2edge.spec.configuration import CONFIGURATIONS, ModelConfiguration
from f2edge.spec.layout import TokenLayout

#: First seed of the held-out faces for parity.
_FIRST_SEED = 900_000
_LANDMARK_FACES = 64
SMOKE_SEED = 7
#: Precision → bits of a stored weight.
_BITS: Mapping[str, int] = {"fp32": 32, "fp16": 16, "int8": 8, "fp8": 8, "int4": 4}


def load_models(unified: Path, tokenizer: Path, encoders: Path | None, configuration: str = "nano") -> Models:
    """Load the trained parts from their run folders; raises :class:`InputError` for a missing or unsuitable file.

    ``encoders`` is read only for configurations with encoders, and may be None for others.
    """
    from export.model.transformer import UnifiedTransformer
    from export.training.encoders import load_encoders
    from export.training.tokenizer import load_tokenizer

    if configuration not in CONFIGURATIONS:
        raise InputError(f"unknown configuration {configuration!r}; choose one of: {', '.join(CONFIGURATIONS)}")
    image_tokenizer = load_tokenizer(tokenizer)
    chosen = replace(CONFIGURATIONS[configuration], tokenizer=image_tokenizer.configuration)
    finished = unified / "unified.safetensors"
    source = finished if finished.is_file() else unified
    stored = weights_metadata(weights_file(source)).get("configuration", "")
    described = json.loads(stored) if stored.startswith("{") else {}  # a training run writes the name alone
    if described.get("name") == configuration:
        chosen = replace(chosen, layers=described["layers"])  # of a shortened model, for rehearsals
    with torch.device("meta"):
        transformer = UnifiedTransformer(chosen)
    transformer.to_empty(device="cpu")  # skips random initialization: a minute and a second copy of the weights at paper size
    load_weights(source, transformer)
    if chosen.semantic is None and chosen.identity is None:
        return Models(chosen, transformer, image_tokenizer)
    if encoders is None:
        raise InputError(f"configuration {configuration!r} has encoders; give their run folder: --encoders FOLDER")
    trained = load_encoders(encoders, chosen)
    return Models(chosen, transformer, image_tokenizer, trained.semantic, trained.identity, trained.regions, trained.region_names)


def real_inputs(
    text_tokenizer: Path, schedule: Schedule, prompts: int = 50, faces: int = 4, *, size: int = 128, template: str = "{question}\n"
) -> Inputs:
    """Captions and pictures of held-out faces, and the schema's questions, written by ``template``."""
    from export.data.render.renderer import sample_face
    from export.data.text.captions import caption

    tokenizer = read_text_tokenizer(text_tokenizer)
    rng = np.random.default_rng(_FIRST_SEED)
    shown = [sample_face(_FIRST_SEED + 2 * i, "heldout", size, with_regions=False) for i in range(max(prompts, faces))]

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return Inputs(
        prompts=[encode(caption(face.slots, rng).text) for face in shown[:prompts]],
        questions=[encode(template.format(question=slot.question)) for slot in F2EDGE_SCHEMA.values()],
        pixels=np.stack([face.image.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1 for face in shown[:faces]]),
        seeds=list(range(prompts)),
        schedule=schedule,
    )


def landmark_template() -> list[list[float]]:
    """Return the mean positions of a rendered face's five landmarks, in pixels of a 128 x 128 picture."""
    from export.data.render.renderer import sample_face

    faces = [sample_face(_FIRST_SEED + 2 * i, with_regions=False) for i in range(_LANDMARK_FACES)]
    points = np.mean([face.landmarks for face in faces], axis=0)
    return [[round(float(x), 2), round(float(y), 2)] for x, y in points]


def schedule_of(generation: Mapping[str, Any]) -> Schedule:
    """Return the schedule of a manifest's ``generation``."""
    values = dict(generation)
    if "guidance_interval" in values:
        values["guidance_interval"] = tuple(values["guidance_interval"])
    return Schedule(**values)


def smoke_vector(folder: Path, layout: TokenLayout, prompt: str, schedule: Schedule) -> dict[str, Any]:
    """Return the codes that this machine computes with an exported bundle for one prompt and seed."""
    ids = read_text_tokenizer(folder / TOKENIZER).encode(prompt, add_special_tokens=False).ids
    inputs = Inputs([ids], [], np.zeros(0, dtype=np.float32), [SMOKE_SEED], schedule)
    codes = generate(OnnxRuntimeBackend(lambda graph: folder / f"{graph}.onnx"), layout, inputs)[0]
    return {"prompt": prompt, "seed": SMOKE_SEED, "codes": codes.tolist()}


def min_bundle_bytes(models: Models, precisions: Iterable[str]) -> int:
    """Return a lower bound of a bundle's size: transformer and image tokenizer in the smallest of its graphs' precisions."""
    parts = [part for part in (models.transformer, models.image_tokenizer) if part is not None]
    return sum(p.numel() for part in parts for p in part.parameters()) * min(_BITS[name] for name in precisions) // 8


def prepare_export(configuration: ModelConfiguration, request: ExportRequest) -> tuple[ModelCard, TokenLayout, Inputs]:
    """Return the manifest's fields, the token layout, and the inputs for calibration and parity."""
    manner = manner_of(configuration)
    card = ModelCard(
        description=request.description,
        generation=manner.generation,
        editing=manner.editing,
        question_template=manner.question_template,
        describe_question=manner.describe_question,
        alignment={"landmarks": landmark_template(), "margins": list(PORTRAIT_MARGINS)},
        quality=request.quality_metrics(),
    )
    schedule, size = schedule_of(card.generation), configuration.tokenizer.image_size
    inputs = real_inputs(request.text, schedule, request.prompts, request.faces, size=size, template=card.question_template)
    return card, layout_of(configuration, request.text, card.question_template), inputs


def export_models(
    models: Models,
    request: ExportRequest,
    recipe: str = "int8",
    progress: Callable[[str], None] = print,
    *,
    untrained: bool = False,
) -> Path:
    """Trace, quantize, write and measure one model.

    Args:
        models: the trained parts, for instance from :func:`load_models`.
        request: see :class:`export.export_request.ExportRequest`.
        recipe: a name of :data:`export.quantize.recipes.RECIPES`.
        progress: called with short messages.
        untrained: whether the weights are random.

    Returns:
        The bundle's folder.

    Raises:
        InputError: a part is missing or does not fit, or the bundle is too large.
        LostExpertError: a graph lacks an expert or routes differently from PyTorch.
        OutputError: the folder cannot be written.
    """
    chosen = recipe_named(recipe)
    check_destination(request.out, min_bundle_bytes(models, [chosen.of(graph).label for graph in models.graphs]))
    card, layout, inputs = prepare_export(models.configuration, request)
    traced = trace_all(models, progress)
    if chosen.calibrated:
        progress("calibrating")
    calibration = calibrate(traced, chosen, layout, inputs)

    def metrics(folder: Path, _document: dict[str, Any]) -> Mapping[str, Any]:
        alive = census_of_folder(folder, models.transformer)
        precision = {name: chosen.of(name).label for name in models.graphs}
        measured = measure(folder, models, layout, inputs, precision=precision, untrained=untrained)
        measured["experts"]["alive"] = alive
        measured["smoke"] = smoke_vector(folder, layout, card.smoke_prompt, inputs.schedule)
        return measured

    return write_bundle(
        request.out,
        models=models,
        text_tokenizer_path=request.text,
        recipe=recipe,
        card=card,
        traced=traced,
        calibration=calibration,
        largest_bytes=request.largest_bytes,
        measure=metrics,
        progress=progress,
    )
