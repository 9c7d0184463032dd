"""From a request to a job: every check that needs no graph, and the pictures as the model sees them.  Runs on the caller's thread."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

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
    Request,
)
from f2edge.engine.sequences import AnswerJob, EditWork, ImageJob, Job, ReportJob, Ticket
from f2edge.errors import InputError
from f2edge.imaging.regions import Region, known_region, region_cells
from f2edge.pipeline import FacePipeline
from f2edge.prefix_cache import pixel_hash
from f2edge.text import check_text

_GRAPHS = {
    GenerateRequest: ("t2i_prefill", "t2i_step", "image_decode"),
    EditRequest: ("image_encode", "t2i_prefill", "t2i_step", "image_decode"),
    AskRequest: ("image_encode", "mmu_prefill", "mmu_extend"),
    DescribeRequest: ("image_encode", "mmu_prefill", "mmu_extend"),
    AnalyzeRequest: ("image_encode", "mmu_prefill", "mmu_extend"),
}


def kind_of(request: Request) -> str:
    """The method that a request is of: "generate", "edit", "ask", "describe" or "analyze"."""
    return type(request).__name__.removesuffix("Request").lower()


@dataclass(frozen=True)
class Intake:
    """Makes jobs for one pipeline."""

    pipeline: FacePipeline
    limits: Limits

    def job(self, request: Request, ticket: Ticket, arrived: float, priority: Priority | None, deadline: float | None) -> Job:
        """The job of a request that arrived now.

        Raises:
            InputError: text, options, seed, region, attributes or image are not what the model can use.
            BundleError: the bundle lacks a graph for this.
        """
        for graph in _GRAPHS[type(request)]:
            self.pipeline.bundle.path(graph)
        image = isinstance(request, GenerateRequest | EditRequest)
        common = {
            "ticket": ticket,
            "kind": kind_of(request),
            "lane": priority if priority is not None else Priority.NORMAL if image else Priority.LIVE,
            "arrived": arrived,
            "deadline": inf if deadline is None else deadline,
            "due": min(arrived + self.limits.patience_s, inf if deadline is None else deadline),
        }
        if isinstance(request, GenerateRequest | EditRequest):
            return self._image(request, common)
        if isinstance(request, AnalyzeRequest):
            return self._reports(request, common)
        return self._answer(request, common)

    def _image(self, request: ImageRequest, common: dict[str, Any]) -> ImageJob:
        pipeline = self.pipeline
        schedule = request.options.resolve(pipeline.bundle.editing if isinstance(request, EditRequest) else pipeline.bundle.generation)
        prompt = tuple(pipeline.tokenizer.encode(check_text(request.prompt, "prompt")))
        noise_key(request.seed, 0, np.zeros(1, dtype=np.int64))  # refuses a seed outside its range
        edit = None
        if isinstance(request, EditRequest):
            region = self._region(request)
            edit = EditWork(
                pixels=pipeline.pixels(request.image), region=region, image_wh=request.image.size, keep_outside=request.keep_outside
            )
        return ImageJob(
            **common,
            prompt=request.prompt,
            prompt_ids=prompt,
            prompt_key=tuple(pipeline.bundle.layout.prompt(prompt)),
            seed=request.seed,
            schedule=schedule,
            floor=min(request.min_steps or self.limits.min_steps, schedule.steps),
            preview_every=request.preview_every,
            preview_images=request.preview_images,
            edit=edit,
        )

    def _region(self, request: EditRequest) -> Region:
        """A name that the parser has, or the cells of a box or mask: those need no graph."""
        pipeline = self.pipeline
        names = pipeline.bundle.regions
        if isinstance(request.region, str) and known_region(request.region, names):
            return request.region
        return region_cells(pipeline.masked(request.region), request.image.size, pipeline.bundle.configuration.tokenizer.grid, names)

    def _answer(self, request: AskRequest | DescribeRequest, common: dict[str, Any]) -> AnswerJob:
        pipeline = self.pipeline
        question = pipeline.describe_question if isinstance(request, DescribeRequest) else request.question
        ids = tuple(pipeline.understanding.question_ids(check_text(question, "question")))
        pixels = pipeline.reading_pixels(request.image)
        stream = TextStream(pipeline.tokenizer.decode)
        return AnswerJob(
            **common, pixels=pixels, image_key=pixel_hash(pixels), question_ids=ids, max_tokens=request.max_tokens, stream=stream
        )

    def _reports(self, request: AnalyzeRequest, common: dict[str, Any]) -> ReportJob:
        schema = self.pipeline.bundle.schema
        if request.attributes is not None:
            if not request.attributes:
                raise InputError("attributes: the list is empty; name at least one, or give none for all of them")
            schema = schema.select(request.attributes)
        pixels = tuple(self.pipeline.reading_pixels(image) for image in request.images)
        return ReportJob(**common, pixels=pixels, image_keys=tuple(map(pixel_hash, pixels)), schema=schema)
