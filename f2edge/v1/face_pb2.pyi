# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LIVE: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_BACKGROUND: _ClassVar[Priority]

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JPEG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_WEBP: _ClassVar[ImageFormat]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LIVE: Priority
PRIORITY_NORMAL: Priority
PRIORITY_BACKGROUND: Priority
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
IMAGE_FORMAT_JPEG: ImageFormat
IMAGE_FORMAT_WEBP: ImageFormat

class DecodingOptions(_message.Message):
    __slots__ = ("steps", "guidance", "order", "mask_law", "temperature", "temperature_law", "token_temperature", "guidance_low", "guidance_high", "guidance_ramp", "quality")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    MASK_LAW_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_LAW_FIELD_NUMBER: _ClassVar[int]
    TOKEN_TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_LOW_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_HIGH_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_RAMP_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    steps: int
    guidance: float
    order: str
    mask_law: str
    temperature: float
    temperature_law: str
    token_temperature: float
    guidance_low: float
    guidance_high: float
    guidance_ramp: bool
    quality: str
    def __init__(self, steps: _Optional[int] = ..., guidance: _Optional[float] = ..., order: _Optional[str] = ..., mask_law: _Optional[str] = ..., temperature: _Optional[float] = ..., temperature_law: _Optional[str] = ..., token_temperature: _Optional[float] = ..., guidance_low: _Optional[float] = ..., guidance_high: _Optional[float] = ..., guidance_ramp: _Optional[bool] = ..., quality: _Optional[str] = ...) -> None: ...

class PreviewOptions(_message.Message):
    __slots__ = ("every_steps", "tokens", "proposal", "picture_side")
    EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    PICTURE_SIDE_FIELD_NUMBER: _ClassVar[int]
    every_steps: int
    tokens: bool
    proposal: bool
    picture_side: int
    def __init__(self, every_steps: _Optional[int] = ..., tokens: _Optional[bool] = ..., proposal: _Optional[bool] = ..., picture_side: _Optional[int] = ...) -> None: ...

class OutputOptions(_message.Message):
    __slots__ = ("format", "side", "quality")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    format: ImageFormat
    side: int
    quality: int
    def __init__(self, format: _Optional[_Union[ImageFormat, str]] = ..., side: _Optional[int] = ..., quality: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "seed", "options", "previews", "output", "min_steps", "priority", "check", "layout", "layout_from", "layout_strength")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PREVIEWS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    MIN_STEPS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FROM_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_STRENGTH_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    seed: int
    options: DecodingOptions
    previews: PreviewOptions
    output: OutputOptions
    min_steps: int
    priority: Priority
    check: int
    layout: bytes
    layout_from: bytes
    layout_strength: float
    def __init__(self, prompt: _Optional[str] = ..., seed: _Optional[int] = ..., options: _Optional[_Union[DecodingOptions, _Mapping]] = ..., previews: _Optional[_Union[PreviewOptions, _Mapping]] = ..., output: _Optional[_Union[OutputOptions, _Mapping]] = ..., min_steps: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ..., check: _Optional[int] = ..., layout: _Optional[bytes] = ..., layout_from: _Optional[bytes] = ..., layout_strength: _Optional[float] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("preview", "result")
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    preview: Preview
    result: GenerateResult
    def __init__(self, preview: _Optional[_Union[Preview, _Mapping]] = ..., result: _Optional[_Union[GenerateResult, _Mapping]] = ...) -> None: ...

class Wording(_message.Message):
    __slots__ = ("unmatched", "corrected")
    class CorrectedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    UNMATCHED_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_FIELD_NUMBER: _ClassVar[int]
    unmatched: _containers.RepeatedScalarFieldContainer[str]
    corrected: _containers.ScalarMap[str, str]
    def __init__(self, unmatched: _Optional[_Iterable[str]] = ..., corrected: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Check(_message.Message):
    __slots__ = ("score", "missing", "named", "repairs")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    NAMED_FIELD_NUMBER: _ClassVar[int]
    REPAIRS_FIELD_NUMBER: _ClassVar[int]
    score: float
    missing: _containers.RepeatedScalarFieldContainer[str]
    named: int
    repairs: int
    def __init__(self, score: _Optional[float] = ..., missing: _Optional[_Iterable[str]] = ..., named: _Optional[int] = ..., repairs: _Optional[int] = ...) -> None: ...

class GenerateResult(_message.Message):
    __slots__ = ("picture", "decoding", "timings", "wording", "check", "layout_agreement")
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    WORDING_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    picture: Picture
    decoding: Decoding
    timings: Timings
    wording: Wording
    check: Check
    layout_agreement: float
    def __init__(self, picture: _Optional[_Union[Picture, _Mapping]] = ..., decoding: _Optional[_Union[Decoding, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., wording: _Optional[_Union[Wording, _Mapping]] = ..., check: _Optional[_Union[Check, _Mapping]] = ..., layout_agreement: _Optional[float] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("x", "y", "width", "height")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    width: float
    height: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ..., width: _Optional[float] = ..., height: _Optional[float] = ...) -> None: ...

class Cells(_message.Message):
    __slots__ = ("inside",)
    INSIDE_FIELD_NUMBER: _ClassVar[int]
    inside: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, inside: _Optional[_Iterable[bool]] = ...) -> None: ...

class EditRequest(_message.Message):
    __slots__ = ("image", "prompt", "name", "box", "mask", "cells", "seed", "options", "previews", "output", "min_steps", "priority", "redraw_outside", "check")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PREVIEWS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    MIN_STEPS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    REDRAW_OUTSIDE_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    prompt: str
    name: str
    box: Box
    mask: bytes
    cells: Cells
    seed: int
    options: DecodingOptions
    previews: PreviewOptions
    output: OutputOptions
    min_steps: int
    priority: Priority
    redraw_outside: bool
    check: int
    def __init__(self, image: _Optional[bytes] = ..., prompt: _Optional[str] = ..., name: _Optional[str] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., mask: _Optional[bytes] = ..., cells: _Optional[_Union[Cells, _Mapping]] = ..., seed: _Optional[int] = ..., options: _Optional[_Union[DecodingOptions, _Mapping]] = ..., previews: _Optional[_Union[PreviewOptions, _Mapping]] = ..., output: _Optional[_Union[OutputOptions, _Mapping]] = ..., min_steps: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ..., redraw_outside: _Optional[bool] = ..., check: _Optional[int] = ...) -> None: ...

class EditResponse(_message.Message):
    __slots__ = ("preview", "result")
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    preview: Preview
    result: EditResult
    def __init__(self, preview: _Optional[_Union[Preview, _Mapping]] = ..., result: _Optional[_Union[EditResult, _Mapping]] = ...) -> None: ...

class EditResult(_message.Message):
    __slots__ = ("picture", "decoding", "timings", "original_tokens", "region", "wording", "check")
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    WORDING_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    picture: Picture
    decoding: Decoding
    timings: Timings
    original_tokens: _containers.RepeatedScalarFieldContainer[int]
    region: Cells
    wording: Wording
    check: Check
    def __init__(self, picture: _Optional[_Union[Picture, _Mapping]] = ..., decoding: _Optional[_Union[Decoding, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., original_tokens: _Optional[_Iterable[int]] = ..., region: _Optional[_Union[Cells, _Mapping]] = ..., wording: _Optional[_Union[Wording, _Mapping]] = ..., check: _Optional[_Union[Check, _Mapping]] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("step", "steps", "positions", "codes", "proposal", "picture")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    PICTURE_FIELD_NUMBER: _ClassVar[int]
    step: int
    steps: int
    positions: _containers.RepeatedScalarFieldContainer[int]
    codes: _containers.RepeatedScalarFieldContainer[int]
    proposal: _containers.RepeatedScalarFieldContainer[int]
    picture: bytes
    def __init__(self, step: _Optional[int] = ..., steps: _Optional[int] = ..., positions: _Optional[_Iterable[int]] = ..., codes: _Optional[_Iterable[int]] = ..., proposal: _Optional[_Iterable[int]] = ..., picture: _Optional[bytes] = ...) -> None: ...

class Picture(_message.Message):
    __slots__ = ("image", "format", "width", "height", "tokens", "provenance")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    format: ImageFormat
    width: int
    height: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    provenance: Provenance
    def __init__(self, image: _Optional[bytes] = ..., format: _Optional[_Union[ImageFormat, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("synthetic", "digital_source_type", "software", "model", "marks")
    SYNTHETIC_FIELD_NUMBER: _ClassVar[int]
    DIGITAL_SOURCE_TYPE_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    synthetic: bool
    digital_source_type: str
    software: str
    model: str
    marks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, synthetic: _Optional[bool] = ..., digital_source_type: _Optional[str] = ..., software: _Optional[str] = ..., model: _Optional[str] = ..., marks: _Optional[_Iterable[str]] = ...) -> None: ...

class Decoding(_message.Message):
    __slots__ = ("seed", "options", "steps", "steps_planned", "degraded", "step_ms", "preset")
    SEED_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_PLANNED_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    seed: int
    options: DecodingOptions
    steps: int
    steps_planned: int
    degraded: bool
    step_ms: _containers.RepeatedScalarFieldContainer[float]
    preset: str
    def __init__(self, seed: _Optional[int] = ..., options: _Optional[_Union[DecodingOptions, _Mapping]] = ..., steps: _Optional[int] = ..., steps_planned: _Optional[int] = ..., degraded: _Optional[bool] = ..., step_ms: _Optional[_Iterable[float]] = ..., preset: _Optional[str] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queued_ms", "first_ms", "total_ms")
    QUEUED_MS_FIELD_NUMBER: _ClassVar[int]
    FIRST_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    queued_ms: float
    first_ms: float
    total_ms: float
    def __init__(self, queued_ms: _Optional[float] = ..., first_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("image", "max_tokens", "priority", "include_sensitive")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SENSITIVE_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    max_tokens: int
    priority: Priority
    include_sensitive: bool
    def __init__(self, image: _Optional[bytes] = ..., max_tokens: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ..., include_sensitive: _Optional[bool] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("piece", "answer")
    PIECE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    piece: str
    answer: Answer
    def __init__(self, piece: _Optional[str] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class AskRequest(_message.Message):
    __slots__ = ("image", "question", "max_tokens", "priority", "include_sensitive")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SENSITIVE_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    question: str
    max_tokens: int
    priority: Priority
    include_sensitive: bool
    def __init__(self, image: _Optional[bytes] = ..., question: _Optional[str] = ..., max_tokens: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ..., include_sensitive: _Optional[bool] = ...) -> None: ...

class AskResponse(_message.Message):
    __slots__ = ("piece", "answer")
    PIECE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    piece: str
    answer: Answer
    def __init__(self, piece: _Optional[str] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("text", "tokens", "first_token_ms", "tokens_per_second", "timings", "include_sensitive")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SENSITIVE_FIELD_NUMBER: _ClassVar[int]
    text: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    first_token_ms: float
    tokens_per_second: float
    timings: Timings
    include_sensitive: bool
    def __init__(self, text: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ..., first_token_ms: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., include_sensitive: _Optional[bool] = ...) -> None: ...

class AnalyzeRequest(_message.Message):
    __slots__ = ("image", "attributes", "include_sensitive", "priority")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SENSITIVE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    attributes: _containers.RepeatedScalarFieldContainer[str]
    include_sensitive: bool
    priority: Priority
    def __init__(self, image: _Optional[bytes] = ..., attributes: _Optional[_Iterable[str]] = ..., include_sensitive: _Optional[bool] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class AnalyzeResponse(_message.Message):
    __slots__ = ("report", "timings")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    report: FaceReport
    timings: Timings
    def __init__(self, report: _Optional[_Union[FaceReport, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class FaceReport(_message.Message):
    __slots__ = ("slots", "unfamiliar", "include_sensitive")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    UNFAMILIAR_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SENSITIVE_FIELD_NUMBER: _ClassVar[int]
    slots: _containers.RepeatedCompositeFieldContainer[SlotReport]
    unfamiliar: float
    include_sensitive: bool
    def __init__(self, slots: _Optional[_Iterable[_Union[SlotReport, _Mapping]]] = ..., unfamiliar: _Optional[float] = ..., include_sensitive: _Optional[bool] = ...) -> None: ...

class SlotReport(_message.Message):
    __slots__ = ("name", "values", "hidden")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedCompositeFieldContainer[ValueProbability]
    hidden: float
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[_Union[ValueProbability, _Mapping]]] = ..., hidden: _Optional[float] = ...) -> None: ...

class ValueProbability(_message.Message):
    __slots__ = ("value", "probability")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    value: str
    probability: float
    def __init__(self, value: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class AnalyzeStreamRequest(_message.Message):
    __slots__ = ("frame_id", "image", "faces", "settings")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    FACES_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    image: bytes
    faces: _containers.RepeatedCompositeFieldContainer[Box]
    settings: AnalyzeStreamSettings
    def __init__(self, frame_id: _Optional[int] = ..., image: _Optional[bytes] = ..., faces: _Optional[_Iterable[_Union[Box, _Mapping]]] = ..., settings: _Optional[_Union[AnalyzeStreamSettings, _Mapping]] = ...) -> None: ...

class AnalyzeStreamSettings(_message.Message):
    __slots__ = ("attributes", "include_sensitive")
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SENSITIVE_FIELD_NUMBER: _ClassVar[int]
    attributes: _containers.RepeatedScalarFieldContainer[str]
    include_sensitive: bool
    def __init__(self, attributes: _Optional[_Iterable[str]] = ..., include_sensitive: _Optional[bool] = ...) -> None: ...

class AnalyzeStreamResponse(_message.Message):
    __slots__ = ("frame_id", "reports", "dropped", "problem", "timings")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    reports: _containers.RepeatedCompositeFieldContainer[FaceReport]
    dropped: int
    problem: Problem
    timings: Timings
    def __init__(self, frame_id: _Optional[int] = ..., reports: _Optional[_Iterable[_Union[FaceReport, _Mapping]]] = ..., dropped: _Optional[int] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("reason", "field", "description")
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    reason: str
    field: str
    description: str
    def __init__(self, reason: _Optional[str] = ..., field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("name", "description", "licence", "f2edge_version", "backend", "image_side", "grid", "tokens", "codes", "prompt_tokens", "defaults", "regions", "slots", "limits", "edit_defaults", "faces", "pictures", "reading_side")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    F2EDGE_VERSION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIDE_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    EDIT_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    FACES_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    READING_SIDE_FIELD_NUMBER: _ClassVar[int]
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
    defaults: DecodingOptions
    regions: _containers.RepeatedScalarFieldContainer[str]
    slots: _containers.RepeatedCompositeFieldContainer[Slot]
    limits: RequestLimits
    edit_defaults: DecodingOptions
    faces: str
    pictures: str
    reading_side: int
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., licence: _Optional[str] = ..., f2edge_version: _Optional[str] = ..., backend: _Optional[str] = ..., image_side: _Optional[int] = ..., grid: _Optional[int] = ..., tokens: _Optional[int] = ..., codes: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., defaults: _Optional[_Union[DecodingOptions, _Mapping]] = ..., regions: _Optional[_Iterable[str]] = ..., slots: _Optional[_Iterable[_Union[Slot, _Mapping]]] = ..., limits: _Optional[_Union[RequestLimits, _Mapping]] = ..., edit_defaults: _Optional[_Union[DecodingOptions, _Mapping]] = ..., faces: _Optional[str] = ..., pictures: _Optional[str] = ..., reading_side: _Optional[int] = ...) -> None: ...

class Slot(_message.Message):
    __slots__ = ("name", "values", "question", "group", "sensitive")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SENSITIVE_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[str]
    question: str
    group: str
    sensitive: bool
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ..., question: _Optional[str] = ..., group: _Optional[str] = ..., sensitive: _Optional[bool] = ...) -> None: ...

class RequestLimits(_message.Message):
    __slots__ = ("image_bytes", "smallest_side", "largest_side", "image_pixels", "side_ratio", "deadline_s")
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_SIDE_FIELD_NUMBER: _ClassVar[int]
    LARGEST_SIDE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    SIDE_RATIO_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    image_bytes: int
    smallest_side: int
    largest_side: int
    image_pixels: int
    side_ratio: float
    deadline_s: float
    def __init__(self, image_bytes: _Optional[int] = ..., smallest_side: _Optional[int] = ..., largest_side: _Optional[int] = ..., image_pixels: _Optional[int] = ..., side_ratio: _Optional[float] = ..., deadline_s: _Optional[float] = ...) -> None: ...
