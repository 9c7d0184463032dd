"""Conversion between messages of ``f2edge.v1`` and the plain data of this package, for server and client.

Values are checked only for the type of their message: a server validates what it received (:mod:`f2edge.server.validation`), a client
trusts its server's numbers and opens its pictures behind the guard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2edge.decoding.schedule import Schedule
from f2edge.engine.requests import Priority, Timings
from f2edge.imaging.laws import LAWS
from f2edge.results import Answer, Check, FaceReport, GenerateOptions
from f2edge.spec.attributes import AttributeSchema
from f2edge.spec.layout import Ids
from f2edge.spec.lexicon import Wording
from f2edge.spec.sensitive import PHOTOGRAPHED
from f2edge.v1 import face_pb2 as pb

#: Domain of ErrorInfo, and the metadata keys of the contract.
ERROR_DOMAIN = "f2edge"
REQUEST_ID_KEY = "x-request-id"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

_PLAIN_OPTIONS = ("steps", "guidance", "order", "mask_law", "temperature", "temperature_law", "token_temperature", "guidance_ramp")
PRIORITIES: Mapping[pb.Priority, Priority] = MappingProxyType(
    {pb.PRIORITY_LIVE: Priority.LIVE, pb.PRIORITY_NORMAL: Priority.NORMAL, pb.PRIORITY_BACKGROUND: Priority.BACKGROUND}
)
IMAGE_KINDS: Mapping[int, str] = MappingProxyType(
    {pb.IMAGE_FORMAT_UNSPECIFIED: "PNG", pb.IMAGE_FORMAT_PNG: "PNG", pb.IMAGE_FORMAT_JPEG: "JPEG", pb.IMAGE_FORMAT_WEBP: "WEBP"}
)


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a served model.

    Attributes:
        name, description, licence: of the bundle.
        f2edge_version, backend: of the server.
        image_side: of the model's pictures, in pixels.
        grid: G, cells along a side.
        tokens: N, of one image; their codes are below ``codes``.
        prompt_tokens: longest prompt and question.
        generation: defaults of ``generate``.
        editing: defaults of ``edit``.
        regions: names that ``edit`` takes.
        schema: the attributes that ``analyze`` reports.
        faces: which faces the model knows, one of :data:`f2edge.spec.sensitive.FACES`.
        pictures: how pictures become the model's pixels, a law of :mod:`f2edge.imaging.laws`.
        reading_side: side of the pictures that questions and reports are about; 0 for ``image_side``.
    """

    name: str
    description: str
    licence: str
    f2edge_version: str
    backend: str
    image_side: int
    grid: int
    tokens: int
    codes: int
    prompt_tokens: int
    generation: Schedule
    editing: Schedule
    regions: tuple[str, ...]
    schema: AttributeSchema
    faces: str = PHOTOGRAPHED
    pictures: str = "f2edge"
    reading_side: int = 0


def options_message(options: GenerateOptions | Schedule) -> pb.DecodingOptions:
    """Return options as a message; None stays unset."""
    message = pb.DecodingOptions(**{name: value for name in _PLAIN_OPTIONS if (value := getattr(options, name)) is not None})
    if isinstance(options, GenerateOptions) and options.quality is not None:
        message.quality = options.quality
    if options.guidance_interval is not None:
        message.guidance_low, message.guidance_high = options.guidance_interval
    return message


def options_fields(message: pb.DecodingOptions) -> dict[str, Any]:
    """Return the options that a message sets, by the names of :class:`~f2edge.results.GenerateOptions`."""
    values = {name: getattr(message, name) for name in (*_PLAIN_OPTIONS, "quality") if message.HasField(name)}
    if message.HasField("guidance_low") and message.HasField("guidance_high"):
        values["guidance_interval"] = (message.guidance_low, message.guidance_high)
    return values


def schedule_of(message: pb.DecodingOptions) -> Schedule:
    """Return a schedule from a message with every option."""
    return Schedule(**{name: value for name, value in options_fields(message).items() if name != "quality"})


def timings_message(timings: Timings) -> pb.Timings:
    return pb.Timings(queued_ms=timings.queued_ms, first_ms=timings.first_ms, total_ms=timings.total_ms)


def timings_of(message: pb.Timings) -> Timings:
    return Timings(message.queued_ms, message.first_ms, message.total_ms)


def report_message(report: FaceReport) -> pb.FaceReport:
    slots = (
        pb.SlotReport(
            name=slot,
            values=[pb.ValueProbability(value=value, probability=p) for value, p in values.items()],
            hidden=report.hidden.get(slot),
        )
        for slot, values in report.probabilities.items()
    )
    return pb.FaceReport(slots=slots, unfamiliar=report.unfamiliar, include_sensitive=report.include_sensitive)


def report_of(message: pb.FaceReport) -> FaceReport:
    return FaceReport(
        {slot.name: {entry.value: entry.probability for entry in slot.values} for slot in message.slots},
        {slot.name: slot.hidden for slot in message.slots if slot.HasField("hidden")},
        message.unfamiliar if message.HasField("unfamiliar") else None,
        message.include_sensitive,
    )


def answer_message(answer: Answer, timings: Timings) -> pb.Answer:
    return pb.Answer(
        text=answer.text,
        tokens=answer.tokens,
        first_token_ms=answer.first_token_ms,
        tokens_per_second=answer.tokens_per_second,
        timings=timings_message(timings),
        include_sensitive=answer.include_sensitive,
    )


def answer_of(message: pb.Answer) -> Answer:
    return Answer(message.text, tuple(message.tokens), message.first_token_ms, message.tokens_per_second, message.include_sensitive)


def cells_message(cells: NDArray[np.bool_]) -> pb.Cells:
    """Return cells (G, G) as a message, row by row."""
    return pb.Cells(inside=cells.ravel().tolist())


def cells_of(message: pb.Cells, grid: int) -> NDArray[np.bool_]:
    """Return the cells (G, G) of a message that has G² of them."""
    return np.array(message.inside, dtype=np.bool_).reshape(grid, grid)


def ids_of(values: Iterable[int]) -> Ids:
    return np.array(list(values), dtype=np.int64)


def model_message(facts: ModelFacts, limits: pb.RequestLimits) -> pb.GetModelResponse:
    return pb.GetModelResponse(
        name=facts.name,
        description=facts.description,
        licence=facts.licence,
        f2edge_version=facts.f2edge_version,
        backend=facts.backend,
        image_side=facts.image_side,
        grid=facts.grid,
        tokens=facts.tokens,
        codes=facts.codes,
        prompt_tokens=facts.prompt_tokens,
        defaults=options_message(facts.generation),
        edit_defaults=options_message(facts.editing),
        regions=facts.regions,
        slots=[pb.Slot(**row) for row in facts.schema.to_json()],
        limits=limits,
        faces=facts.faces,
        pictures=facts.pictures,
        reading_side=facts.reading_side,
    )


def model_of(message: pb.GetModelResponse) -> ModelFacts:
    rows = [
        {"name": s.name, "values": list(s.values), "question": s.question, "group": s.group, "sensitive": s.sensitive}
        for s in message.slots
    ]
    return ModelFacts(
        name=message.name,
        description=message.description,
        licence=message.licence,
        f2edge_version=message.f2edge_version,
        backend=message.backend,
        image_side=message.image_side,
        grid=message.grid,
        tokens=message.tokens,
        codes=message.codes,
        prompt_tokens=message.prompt_tokens,
        generation=schedule_of(message.defaults),
        editing=schedule_of(message.edit_defaults if message.HasField("edit_defaults") else message.defaults),
        regions=tuple(message.regions),
        schema=AttributeSchema.from_json(rows),
        faces=message.faces or PHOTOGRAPHED,
        pictures=message.pictures if message.pictures in LAWS else "f2edge",
        reading_side=message.reading_side,
    )


def wording_message(wording: Wording) -> pb.Wording:
    """Return what became of a prompt's words as a message."""
    return pb.Wording(unmatched=wording.unmatched, corrected=wording.corrected)


def check_message(check: Check) -> pb.Check:
    """Return how a model reads its picture as a message."""
    return pb.Check(score=check.score, missing=check.missing, named=check.named, repairs=check.repairs)


def check_of(message: pb.GenerateResult | pb.EditResult) -> Check | None:
    """Return the check of a result; None where it has none."""
    found = message.check
    return Check(found.score, tuple(found.missing), found.named, found.repairs) if message.HasField("check") else None


def wording_of(message: pb.Wording) -> Wording:
    """Inverse of :func:`wording_message`."""
    return Wording(tuple(message.unmatched), dict(message.corrected))
