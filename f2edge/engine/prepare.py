"""From a request to its state: every check that needs no graph, and the pictures as the model sees them.  Runs on the caller's thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from f2edge.decoding.autoregressive import TextStream
from f2edge.decoding.noise import noise_key
from f2edge.engine.requests import (
    AnalyzeRequest,
    AskRequest,
    DescribeRequest,
    EditRequest,
    GenerateRequest,
    ImageRequest,
    Limits,
    Priority,
    ReplyKind,
    Request,
)
from f2edge.engine.sequences import AnswerState, EditState, ImageState, ReportState, RequestHandle, RequestState
from f2edge.errors import InputError
from f2edge.imaging.regions import Region, known_region, region_cells
from f2edge.inference import pixel_hash
from f2edge.pipeline import FacePipeline
from f2edge.text import check_text

_WORDS = ("image_encode", "mmu_prefill", "mmu_extend")
_DRAWING = ("t2i_prefill", "t2i_step", "image_decode")
#: Kind and graphs of each request.
_KINDS: Mapping[type[Request], tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        GenerateRequest: ("generate", _DRAWING),
        EditRequest: ("edit", ("image_encode", *_DRAWING)),
        AskRequest: ("ask", _WORDS),
        DescribeRequest: ("describe", _WORDS),
        AnalyzeRequest: ("analyze", _WORDS),
    }
)


def prepare(  # noqa: PLR0917 - what is asked, of whom, and until when
    pipeline: FacePipeline,
    limits: Limits,
    request: Request,
    handle: RequestHandle,
    arrived: float,
    priority: Priority | None,
    deadline: float | None,
    reply: ReplyKind | None = None,
) -> RequestState:
    """Return the state of a request that arrived now.

    Raises:
        InputError: text, options, seed, region, attributes or image are not what the model can use.
        BundleError: the bundle lacks a graph for this.
    """
    kind, graphs = _KINDS[type(request)]
    for graph in graphs:
        pipeline.bundle.path(graph)
    image = isinstance(request, GenerateRequest | EditRequest)
    common = {
        "handle": handle,
        "kind": kind,
        "priority": priority if priority is not None else Priority.NORMAL if image else Priority.LIVE,
        "arrived": arrived,
        "deadline": inf if deadline is None else deadline,
        "reply": reply,
        "due": min(arrived + limits.patience_s, inf if deadline is None else deadline),
    }
    if isinstance(request, GenerateRequest | EditRequest):
        return _image_state(pipeline, limits, request, common)
    if isinstance(request, AnalyzeRequest):
        return _report_state(pipeline, request, common)
    return _answer_state(pipeline, request, common)


def _image_state(pipeline: FacePipeline, limits: Limits, request: ImageRequest, common: dict[str, Any]) -> ImageState:
    edit = isinstance(request, EditRequest)
    presets = pipeline.bundle.editing_presets if edit else pipeline.bundle.presets
    schedule = pipeline.schedule(request.options, edit=edit)
    layout = None
    if isinstance(request, GenerateRequest):
        layout = pipeline.layout(request.layout, request.layout_from, request.layout_strength)
    prompt = pipeline.prompt_text(request.prompt, layout, edit=edit)
    noise_key(request.seed, 0, np.zeros(1, dtype=np.int64))  # refuses a seed outside its range
    common |= {
        "prompt": request.prompt,
        "prompt_ids": prompt.ids,
        "prompt_key": tuple(pipeline.bundle.layout.prompt(prompt.ids)),
        "wording": prompt.wording,
        "seed": request.seed,
        "schedule": schedule,
        "preset": pipeline.preset_name(schedule, request.options, edit=edit),
        "presets": {} if request.options.changes else presets,
        "floor": min(request.min_steps or limits.min_steps, schedule.steps),
        "hard_floor": min(request.min_steps or 1, schedule.steps),
        "preview_every": request.preview_every,
        "preview_images": request.preview_images,
    }
    if request.check or layout is not None:
        refinements = pipeline.refinements(prompt, request.seed, request.check, layout, request.options, edit=edit)
        for graph in _WORDS if refinements.wanted.slots else ():
            pipeline.bundle.path(graph)
        common["refinements"] = refinements
    if not isinstance(request, EditRequest):
        return ImageState(**common)
    pixels, region = pipeline.pixels(request.image), _region(pipeline, request)
    return EditState(**common, pixels=pixels, region=region, image_wh=request.image.size, keep_outside=request.keep_outside)


def _region(pipeline: FacePipeline, request: EditRequest) -> Region:
    """Return a name that the parser has, or the cells of a box or mask: those need no graph."""
    names = pipeline.bundle.regions
    if isinstance(request.region, str) and known_region(request.region, names):
        return request.region
    return region_cells(pipeline.masked(request.region), request.image.size, pipeline.bundle.configuration.tokenizer.grid, names)


def _answer_state(pipeline: FacePipeline, request: AskRequest | DescribeRequest, common: dict[str, Any]) -> AnswerState:
    question = pipeline.describe_question if isinstance(request, DescribeRequest) else request.question
    question_ids = tuple(pipeline.questions.ids(check_text(question, "question")))
    stream = TextStream(pipeline.tokenizer.decode)
    faces = _faces(pipeline, (request.image,))
    return AnswerState(**common, **faces, question_ids=question_ids, max_tokens=request.max_tokens, stream=stream)


def _report_state(pipeline: FacePipeline, request: AnalyzeRequest, common: dict[str, Any]) -> ReportState:
    schema = pipeline.bundle.schema
    if request.attributes is not None:
        if not request.attributes:
            raise InputError("attributes: the list is empty; name at least one, or give none for all of them")
        schema = schema.select(request.attributes)
    return ReportState(**common, **_faces(pipeline, request.images), schema=schema)


def _faces(pipeline: FacePipeline, images: Sequence[Image.Image]) -> dict[str, Any]:
    pixels = tuple(map(pipeline.reading_pixels, images))
    return {"pixels": pixels, "image_keys": tuple(map(pixel_hash, pixels))}
