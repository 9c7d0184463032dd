"""Messages from requests and events from responses, for the synchronous and the asyncio client.

A picture is sent as the model sees it, cropped to its square and scaled to the model's side, so a server produces the same tokens as a
local model, and a photograph of 4000 pixels takes 30 KB.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from f2edge.client.connection import LARGEST_RESPONSE_BYTES
from f2edge.decoding.parallel import StepEvent
from f2edge.engine.requests import Done, EditRequest, GenerateRequest, ImageRequest, Priority, Timings, Token
from f2edge.errors import InputError
from f2edge.imaging.guard import ImageLimits
from f2edge.imaging.images import ImageSource, load_image, open_image
from f2edge.imaging.laws import law_named
from f2edge.imaging.map_pictures import LayoutSource, open_map
from f2edge.imaging.region_map import sources
from f2edge.imaging.regions import known_region, region_cells
from f2edge.results import EditedFace, FaceReport, GeneratedFace, paired
from f2edge.text import check_text
from f2edge.v1 import face_pb2 as pb
from f2edge.wire import (
    PRIORITIES,
    ModelFacts,
    answer_of,
    cells_message,
    cells_of,
    check_of,
    ids_of,
    options_message,
    report_of,
    schedule_of,
    timings_of,
    wording_of,
)

_EVERY_STEP = 1024
_FRAME_QUALITY = 92
_PRIORITY_VALUES = {priority: value for value, priority in PRIORITIES.items()}


def generate_message(facts: ModelFacts, request: GenerateRequest, priority: Priority | None = None) -> pb.GenerateRequest:
    """Return a ``Generate`` request; without ``min_steps`` a deadline that leaves no time for all steps refuses the call."""
    request.options.resolve(facts.generation)
    message = pb.GenerateRequest(
        prompt=check_text(request.prompt, "prompt"), seed=_seed(request.seed), **_image_fields(facts, request, priority)
    )
    if request.layout is not None:
        message.layout = _png(open_map(request.layout, facts.regions))
    if request.layout_from is not None:
        message.layout_from = as_seen(request.layout_from, facts, facts.image_side)
    if message.WhichOneof("placement") is not None:
        message.layout_strength = request.layout_strength
    return message


def generate_requests(
    common: GenerateRequest,
    prompts: str | Sequence[str],
    seeds: int | Sequence[int],
    layout: LayoutSource | Sequence[LayoutSource] | None = None,
    layout_from: ImageSource | Sequence[ImageSource] | None = None,
) -> list[GenerateRequest]:
    """Return ``common`` once for each face, with its prompt, seed and layout; one of any goes with all of the others.

    Raises:
        InputError: the numbers do not fit, or both layouts are given.
    """
    pairs = list(paired(prompts, seeds))
    return [
        replace(common, prompt=prompt, seed=seed, layout=map_, layout_from=face)
        for (prompt, seed), (map_, face) in zip(pairs, sources(layout, layout_from, len(pairs)), strict=True)
    ]


def edit_message(facts: ModelFacts, request: EditRequest, priority: Priority | None = None) -> pb.EditRequest:
    """Return an ``Edit`` request; named regions are resolved by the server, others here."""
    request.options.resolve(facts.editing)
    prompt, picture, region = check_text(request.prompt, "prompt"), open_image(request.image), request.region
    message = pb.EditRequest(
        image=as_seen(picture, facts, facts.image_side),
        prompt=prompt,
        seed=_seed(request.seed),
        redraw_outside=not request.keep_outside,
        **_image_fields(facts, request, priority),
    )
    if isinstance(region, str) and known_region(region, facts.regions):
        message.name = region
    else:
        message.cells.CopyFrom(cells_message(region_cells(region, picture.size, facts.grid, facts.regions)))
    return message


def _image_fields(facts: ModelFacts, request: ImageRequest, priority: Priority | None) -> dict[str, Any]:
    wanted = request.preview_every > 0
    side = facts.image_side if wanted and request.preview_images else 0
    return {
        "options": options_message(request.options),
        "previews": pb.PreviewOptions(every_steps=request.preview_every, tokens=wanted, proposal=wanted, picture_side=side),
        "min_steps": _EVERY_STEP if request.min_steps is None else request.min_steps,
        "priority": priority_value(priority),
        "check": request.check,
    }


def ask_message(
    facts: ModelFacts,
    image: ImageSource,
    question: str,
    max_tokens: int,
    priority: Priority | None,
    *,
    include_sensitive: bool = False,
) -> pb.AskRequest:
    """Return an ``Ask`` request."""
    return pb.AskRequest(
        question=check_text(question, "question"),
        image=as_seen(image, facts),
        max_tokens=_tokens(max_tokens),
        priority=priority_value(priority),
        include_sensitive=include_sensitive,
    )


def describe_message(
    facts: ModelFacts, image: ImageSource, max_tokens: int, priority: Priority | None, *, include_sensitive: bool = False
) -> pb.DescribeRequest:
    """Return a ``Describe`` request."""
    return pb.DescribeRequest(
        image=as_seen(image, facts),
        max_tokens=_tokens(max_tokens),
        priority=priority_value(priority),
        include_sensitive=include_sensitive,
    )


def analyze_message(
    facts: ModelFacts,
    image: ImageSource,
    attributes: Sequence[str] | None,
    priority: Priority | None,
    *,
    include_sensitive: bool = False,
) -> pb.AnalyzeRequest:
    """Return a request for attributes; without names all that the server permits (:mod:`f2edge.spec.sensitive`)."""
    if attributes is not None and not attributes:
        raise InputError("attributes: the list is empty; name at least one, or give none for all of them")
    names = () if attributes is None else tuple(facts.schema.select(attributes))
    return pb.AnalyzeRequest(
        image=as_seen(image, facts), attributes=names, include_sensitive=include_sensitive, priority=priority_value(priority)
    )


@dataclass(frozen=True)
class FrameRequest:
    """A frame for ``analyze_frames``.

    Attributes:
        image: a picture; the bytes of a JPEG, PNG or WebP are sent as they are.
        faces: boxes x, y, width, height in pixels; empty if the centred square is the face.
        number: returned with the answer.
    """

    image: ImageSource
    faces: Sequence[tuple[float, float, float, float]] = ()
    number: int = 0


@dataclass(frozen=True)
class FrameAnswer:
    """Reports of a frame's faces, in order.

    Attributes:
        dropped: number of earlier frames dropped because a later one had arrived.
        problem: error of this frame, or "".
    """

    number: int
    reports: tuple[FaceReport, ...]
    dropped: int
    problem: str
    timings: Timings


def frame_message(facts: ModelFacts, frame: FrameRequest, settings: pb.AnalyzeStreamSettings | None) -> pb.AnalyzeStreamRequest:
    """Return a message of ``AnalyzeStream``; the first one carries the settings."""
    faces = [pb.Box(x=x, y=y, width=width, height=height) for x, y, width, height in frame.faces]
    data = frame.image if isinstance(frame.image, bytes) else _jpeg(open_image(frame.image)) if faces else as_seen(frame.image, facts)
    return pb.AnalyzeStreamRequest(frame_id=frame.number, image=data, faces=faces, settings=settings)


def frame_answer(message: pb.AnalyzeStreamResponse) -> FrameAnswer:
    """Return the answer of an ``AnalyzeStream`` message."""
    reports = tuple(map(report_of, message.reports))
    return FrameAnswer(message.frame_id, reports, message.dropped, message.problem.description, timings_of(message.timings))


def as_seen(image: ImageSource, facts: ModelFacts, side: int | None = None) -> bytes:
    """Return a picture as the model sees it, encoded as PNG; ``side`` is that of pictures to read, unless it is given."""
    return _png(law_named(facts.pictures).square(open_image(image), side or facts.reading_side or facts.image_side))


def priority_value(priority: Priority | None) -> pb.Priority:
    """Return the wire value of a priority."""
    return pb.PRIORITY_UNSPECIFIED if priority is None else _PRIORITY_VALUES[priority]


# Responses -------------------------------------------------------------------------------------------------------------------------------


class ImageReader:
    """Converter of ``Generate`` or ``Edit`` messages into events."""

    def __init__(self, facts: ModelFacts, prompt: str) -> None:
        self._facts = facts
        self._prompt = prompt
        self._codes = np.full(facts.tokens, facts.codes, dtype=np.int64)
        self._last = perf_counter()

    def read(self, message: pb.GenerateResponse | pb.EditResponse) -> StepEvent | Done:
        """Return the event of a message; a step's duration is the time since the message before it."""
        if message.WhichOneof("event") == "preview":
            preview, now = message.preview, perf_counter()
            elapsed_ms, self._last = 1e3 * (now - self._last), now
            self._codes = self._codes.copy()
            self._codes[list(preview.positions)] = list(preview.codes)
            proposal = ids_of(preview.proposal) if preview.proposal else self._codes
            images = (_picture(preview.picture),) if preview.picture else ()
            return StepEvent(preview.step, preview.steps, self._codes[None], proposal[None], elapsed_ms, images)
        result = message.result
        codes, image = ids_of(result.picture.tokens), _picture(result.picture.image)
        if isinstance(result, pb.EditResult):
            cells = cells_of(result.region, self._facts.grid)
            marks, wording = _pixel_marks(result.picture), wording_of(result.wording)
            prompt, seed, name, check = self._prompt, result.decoding.seed, self._facts.name, check_of(result)
            original = ids_of(result.original_tokens)
            options, preset = schedule_of(result.decoding.options), result.decoding.preset
            edited = EditedFace(image, codes, original, cells, marks, wording, prompt, seed, name, check, preset, options)
            return _done(result, edited)
        options = schedule_of(result.decoding.options)
        step_ms, marks = tuple(result.decoding.step_ms), _pixel_marks(result.picture)
        wording = wording_of(result.wording)
        seed, name, check, preset = result.decoding.seed, self._facts.name, check_of(result), result.decoding.preset
        placed = result.layout_agreement if result.HasField("layout_agreement") else None
        return _done(result, GeneratedFace(image, codes, self._prompt, seed, options, step_ms, marks, wording, name, check, preset, placed))


def read_words(message: pb.AskResponse | pb.DescribeResponse) -> Token | Done:
    """Return the event of an ``Ask`` or ``Describe`` message."""
    if message.WhichOneof("event") == "piece":
        return Token(message.piece)
    answer = answer_of(message.answer)
    return Done(answer, timings_of(message.answer.timings), len(answer.tokens), len(answer.tokens))


class StepMerger:
    """Merger of several calls' events into the :class:`StepEvent` of a local pipeline.

    A step is emitted when every row has done it; a finished row keeps its last state.
    """

    def __init__(self, rows: int) -> None:
        self._steps: list[dict[int, StepEvent]] = [{} for _ in range(rows)]
        self._ends: list[int | None] = [None] * rows
        self._emitted = 0
        self._last = perf_counter()

    def add(self, row: int, event: StepEvent | Done) -> list[StepEvent]:
        """Return the steps that are complete now; the last step of a row comes with its result."""
        if isinstance(event, Done):
            face = event.result
            assert isinstance(face, GeneratedFace | EditedFace)
            self._ends[row] = event.steps
            event = StepEvent(event.steps, event.steps, face.codes[None], face.codes[None], 0.0, (face.image,))
        self._steps[row][event.step] = event
        return list(self._complete())

    def _complete(self) -> Iterator[StepEvent]:
        while True:
            rows = [self._at(row, self._emitted + 1) for row in range(len(self._steps))]
            present = [event for event in rows if event is not None]
            if len(present) < len(rows) or all(end is not None and self._emitted >= end for end in self._ends):
                return
            self._emitted += 1
            now = perf_counter()
            elapsed_ms, self._last = 1e3 * (now - self._last), now
            images = tuple(image for event in present for image in event.images)
            codes, proposal = np.concatenate([e.codes for e in present]), np.concatenate([e.proposal for e in present])
            steps = max(event.steps for event in present)
            yield StepEvent(self._emitted, steps, codes, proposal, elapsed_ms, images if len(images) == len(present) else ())

    def _at(self, row: int, step: int) -> StepEvent | None:
        """Return a row's event of a step, or of the next later one that the server sent."""
        later = [known for known in self._steps[row] if known >= step]
        end = self._ends[row]
        return self._steps[row][min(later)] if later else None if end is None else self._steps[row][end]


def _done(result: pb.GenerateResult | pb.EditResult, face: GeneratedFace | EditedFace) -> Done:
    decoding = result.decoding
    return Done(face, timings_of(result.timings), decoding.steps, decoding.steps_planned, decoding.degraded)


def _picture(data: bytes) -> Image.Image:
    return load_image(data, limits=ImageLimits(largest_bytes=LARGEST_RESPONSE_BYTES))


def _pixel_marks(picture: pb.Picture) -> tuple[str, ...]:
    """Return the marks of a picture that survive re-encoding."""
    return tuple(mark for mark in picture.provenance.marks if mark == "watermark")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=_FRAME_QUALITY)
    return buffer.getvalue()


def _tokens(count: int) -> int:
    if not 1 <= count < 1 << 31:
        raise InputError(f"max_tokens must be at least 1 and below 2^31, got {count}")
    return count


def _seed(seed: int) -> int:
    if not 0 <= seed < 1 << 64:
        raise InputError(f"seed {seed} lies outside 0 … 2^64 - 1; choose a whole number in that range")
    return seed
