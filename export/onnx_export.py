r"""Export of a bundle with its parity metrics: implementation of ``python -m export onnx``.

    python -m export onnx --unified runs/unified --tokenizer runs/tokenizer --encoders runs/encoders --text tokenizer.json \
        --recipe int8 --out f2edge/bundles/nano

Parity is measured on held-out faces and captions, which are rendered here, and written to the manifest.  A lost expert, or a graph that
routes differently from PyTorch, fails the export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.bundle_writer import ModelCard, layout_of, trace_all, write_bundle
from export.checkpoints.parts import encoders_of, tokenizer_of
from export.data.render.renderer import Face, sample_face
from export.data.slots import sample_slots
from export.data.text.captions import describe_text
from export.data.text.mentions import LEXICON
from export.data.text.tokenizer import read_text_tokenizer
from export.defaults import SYSTEM_PROMPT, defaults_of, schedule_of
from export.destination import check_destination
from export.export_request import ExportRequest
from export.graph.lower import Array
from export.graph.trace import Models
from export.model.transformer import UnifiedTransformer
from export.quantize.recipes import recipe_named
from export.quantize.requantize import calibrate
from export.reading import fit_reading
from export.training.checkpoint import configuration_of, finished_or_newest, load_weights, trained_for_of
from export.verify.census import census_of_folder
from export.verify.parity import SampleInputs, generate, measure
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.bundle.bundle import TOKENIZER
from f2edge.camera.crops import PORTRAIT_MARGINS
from f2edge.decoding.schedule import Schedule
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema
from f2edge.spec.configuration import SHIPPED, FeatureShape, ImageTokenizerConfiguration, ModelConfiguration, configuration_named
from f2edge.spec.layout import TokenLayout
from f2edge.spec.sensitive import PHOTOGRAPHED
from f2edge.text import PromptReader, TextTokenizer

#: First seed of the held-out faces for parity.
_FIRST_SEED = 900_000
_LANDMARK_FACES = 64
SMOKE_SEED = 7
#: Precision → bits of a stored weight.
_BITS: Mapping[str, int] = {"fp32": 32, "fp16": 16, "int8": 8, "fp8": 8, "int4": 4, "int4-gptq": 4, "nvfp4": 4}


def load_models(unified: Path, tokenizer: Path, encoders: Path | None, configuration: str | None = None) -> Models:
    """Load the trained parts from their run folders, image tokenizer and encoders also out of bundles.

    Args:
        unified: run folder or weights file of the transformer.
        tokenizer: run folder, weights file or bundle of the image tokenizer.
        encoders: read only for configurations with encoders; None for others.
        configuration: name of the transformer's; None: the one that its weights say, else that of the shipped bundle.

    Raises:
        InputError: a missing or unsuitable file.
    """
    asked = None if configuration is None else configuration_named(configuration)
    source, image_tokenizer = finished_or_newest(unified), tokenizer_of(str(tokenizer))
    shape = image_tokenizer.configuration
    assert isinstance(shape, ImageTokenizerConfiguration)
    said = configuration_of(source)
    if asked is not None and (said is None or said.name != configuration):  # what they say themselves may have fewer layers than its name
        said = asked
    chosen = replace(said or SHIPPED, tokenizer=shape)
    transformer, trained_for = load_transformer(source, chosen), trained_for_of(source)
    if chosen.understanding == "features":
        return replace(_with_clip(chosen, transformer, image_tokenizer, encoders), trained_for=trained_for)
    if chosen.semantic is None and chosen.identity is None:
        return Models(chosen, transformer, image_tokenizer, trained_for=trained_for)
    if encoders is None:
        raise InputError(f"configuration {chosen.name!r} has encoders; give their run folder: --encoders FOLDER")
    return Models(chosen, transformer, image_tokenizer, trained_for=trained_for, **encoders_of(str(encoders), chosen))


def load_transformer(source: Path, configuration: ModelConfiguration) -> UnifiedTransformer:
    """Load a transformer from a run's folder or a weights file; raises :class:`InputError` if it does not fit."""
    with torch.device("meta"):
        transformer = UnifiedTransformer(configuration)
    transformer.to_empty(device="cpu")  # skips random initialization: a minute and a second copy of the weights at paper size
    load_weights(source, transformer)
    return transformer


def _with_clip(configuration: ModelConfiguration, transformer: nn.Module, image_tokenizer: nn.Module, clip: Path | None) -> Models:
    """A model that reads pictures by CLIP's features, with the vision tower in folder ``clip``; its system prompt is yet to come."""
    from export.checkpoints.clip_vision import clip_vision

    if clip is None:
        raise InputError(
            f"configuration {configuration.name!r} reads pictures by CLIP; give its folder: --encoders clip-vit-large-patch14-336"
        )
    encoder, found = clip_vision(clip)
    wanted = FeatureShape(found.vectors, found.width, found.image_size)
    if wanted != configuration.semantic:
        raise InputError(f"{clip}: gives {wanted}, the model reads {configuration.semantic}; bring clip-vit-large-patch14-336")
    assert isinstance(transformer, UnifiedTransformer)
    return Models(configuration, transformer, image_tokenizer, encoder, system_ids=(0,) * configuration.system_tokens)


def with_system_prompt(models: Models, text_tokenizer: Path) -> Models:
    """The models with the ids of the published system prompt, where they have one."""
    if not models.configuration.system_tokens:
        return models
    return replace(models, system_ids=tuple(read_text_tokenizer(text_tokenizer).encode(SYSTEM_PROMPT, add_special_tokens=False).ids))


def held_out(count: int, size: int) -> list[Face]:
    """Faces that training never saw, rendered at ``size`` pixels."""
    return [sample_face(_FIRST_SEED + 2 * i, "heldout", size, with_regions=False) for i in range(count)]


def pixels_of(faces: Sequence[Face]) -> Array:
    """Their pixels, float32 (B, 3, Y, X) in [-1, 1]."""
    return np.stack([face.image.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1 for face in faces])


def real_inputs(
    text_tokenizer: Path,
    schedule: Schedule,
    prompts: int = 50,
    faces: int = 4,
    *,
    size: int = 128,
    template: str = "{question}\n",
    read_size: int | None = None,
) -> SampleInputs:
    """Captions and pictures of held-out faces, and the schema's questions, written by ``template``.

    ``read_size`` is the side of the pictures that an encoder reads instead of the image tokenizer.
    """
    from export.data.text.captions import caption

    tokenizer = read_text_tokenizer(text_tokenizer)
    rng = np.random.default_rng(_FIRST_SEED)
    shown = held_out(max(prompts, faces), size)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return SampleInputs(
        prompts=[encode(caption(face.slots, rng).text) for face in shown[:prompts]],
        questions=[encode(template.format(question=slot.question)) for slot in F2EDGE_SCHEMA.values()],
        pixels=pixels_of(shown[:faces]),
        read_pixels=None if read_size is None else pixels_of(held_out(faces, read_size)),
        seeds=list(range(prompts)),
        schedule=schedule,
    )


def landmark_template() -> list[list[float]]:
    """Return the mean positions of a rendered face's five landmarks, in pixels of a 128 x 128 picture."""
    faces = [sample_face(_FIRST_SEED + 2 * i, with_regions=False) for i in range(_LANDMARK_FACES)]
    points = np.mean([face.landmarks for face in faces], axis=0)
    return [[round(float(x), 2), round(float(y), 2)] for x, y in points]


def smoke_vector(folder: Path, layout: TokenLayout, card: ModelCard, schedule: Schedule) -> dict[str, Any]:
    """Return the codes that this machine computes with an exported bundle for one prompt and seed."""
    prompt = card.smoke_prompt
    ids = PromptReader(TextTokenizer(folder / TOKENIZER), card.lexicon, layout.prompt_tokens).read(prompt).ids
    inputs = SampleInputs([list(ids)], [], np.zeros(0, dtype=np.float32), [SMOKE_SEED], schedule)
    codes = generate(OnnxRuntimeBackend(lambda graph: folder / f"{graph}.onnx"), layout, inputs)[0]
    return {"prompt": prompt, "seed": SMOKE_SEED, "codes": codes.tolist()}


def min_bundle_bytes(models: Models, precisions: Iterable[str]) -> int:
    """Return a lower bound of a bundle's size: transformer and image tokenizer in the smallest of its graphs' precisions."""
    parts = [part for part in (models.transformer, models.image_tokenizer) if part is not None]
    return sum(p.numel() for part in parts for p in part.parameters()) * min(_BITS[name] for name in precisions) // 8


def typical_descriptions(count: int = 128) -> tuple[str, ...]:
    """Return descriptions of random faces, as the model learned to write them.

    Simulated on descriptions by nano, an answer from which drafts are guessed is 1.32 times faster without them, 1.49 times with 32, 1.56
    times with 128 and 1.54 times with 600.
    """
    rng = np.random.default_rng(0)
    return tuple(describe_text(sample_slots(rng), rng).text for _ in range(count))


def prepare_export(models: Models, request: ExportRequest) -> tuple[ModelCard, TokenLayout, SampleInputs]:
    """Return the manifest's fields, the token layout, and the inputs for calibration and parity."""
    configuration, defaults = models.configuration, defaults_of(models.configuration, models.trained_for)
    card = ModelCard(
        description=request.description,
        generation=defaults.generation,
        editing=defaults.editing,
        question_template=defaults.question_template,
        describe_question=defaults.describe_question,
        pictures=defaults.pictures,
        faces=PHOTOGRAPHED if request.photographed else defaults.faces,
        long_prompts=defaults.long_prompts,
        alignment={"landmarks": landmark_template(), "margins": list(PORTRAIT_MARGINS)},
        quality=request.quality_metrics(),
        lexicon=LEXICON if defaults.project_words else None,
        typical_answers=typical_descriptions() if defaults.project_words else (),
    )
    schedule, size = schedule_of(card.generation), configuration.tokenizer.image_size
    read_size = configuration.understanding_size if configuration.understanding == "features" else None
    inputs = real_inputs(
        request.text, schedule, request.prompts, request.faces, size=size, template=card.question_template, read_size=read_size
    )
    return card, layout_of(configuration, request.text, card.question_template, card.long_prompts), inputs


def export_models(
    models: Models,
    request: ExportRequest,
    recipe: str = "int8",
    progress: Callable[[str], None] = print,
    *,
    untrained: bool = False,
    inputs: tuple[ModelCard, TokenLayout, SampleInputs] | None = None,
    schema: AttributeSchema = F2EDGE_SCHEMA,
) -> Path:
    """Trace, quantize, write and measure one model.

    Args:
        models: the trained parts, for instance from :func:`load_models`.
        request: see :class:`export.export_request.ExportRequest`.
        recipe: a name of :data:`export.quantize.recipes.RECIPES`.
        progress: called with short messages.
        untrained: whether the weights are random.
        inputs: the manifest's fields, the token layout and real inputs; those of :func:`prepare_export` by default.
        schema: attributes that ``analyze`` asks for.

    Returns:
        The bundle's folder.

    Raises:
        InputError: a part is missing or does not fit, or the bundle is too large.
        LostExpertError: a graph lacks an expert or routes differently from PyTorch.
        OutputError: the folder cannot be written.
    """
    chosen = recipe_named(recipe)
    check_destination(request.out, min_bundle_bytes(models, [chosen.of(graph).label for graph in models.graphs]))
    models = with_system_prompt(models, request.text)
    card, layout, samples = inputs or prepare_export(models, request)
    traced = trace_all(models, progress)
    if chosen.calibrated:
        progress("calibrating")
    calibration = calibrate(traced, chosen, layout, samples)

    def metrics(folder: Path, _document: dict[str, Any]) -> Mapping[str, Any]:
        alive = census_of_folder(folder, models.transformer)
        precision = {name: chosen.of(name).label for name in models.graphs}
        measured = measure(folder, models, layout, samples, precision=precision, untrained=untrained)
        measured["experts"]["alive"] = alive
        measured["smoke"] = smoke_vector(folder, layout, card, samples.schedule)
        if request.reading:
            progress("fitting probabilities")
            measured["reading"] = fit_reading(folder, request.reading)
        return measured

    return write_bundle(
        request.out,
        models=models,
        text_tokenizer_path=request.text,
        recipe=recipe,
        schema=schema,
        card=card,
        traced=traced,
        calibration=calibration,
        largest_bytes=request.largest_bytes,
        measure=metrics,
        progress=progress,
    )
