"""The OpenAPI document, made from the contract's own descriptors, so that it cannot say anything else than the server does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from f2edge import __version__
from f2edge.http.exchange import DEADLINE_KEY, EVENTS, JSON, LINES
from f2edge.http.failures import STATUSES
from f2edge.http.rest import PATHS, PICTURES
from f2edge.server.rpc import SERVICE
from f2edge.wire import REQUEST_ID_KEY

_F = FieldDescriptor
_PLAIN: Mapping[int, dict[str, Any]] = MappingProxyType(
    {
        _F.TYPE_STRING: {"type": "string"},
        _F.TYPE_BOOL: {"type": "boolean"},
        _F.TYPE_DOUBLE: {"type": "number", "format": "double"},
        _F.TYPE_FLOAT: {"type": "number", "format": "float"},
        _F.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1},
        _F.TYPE_UINT64: {"type": ["string", "integer"], "format": "uint64", "description": "answers have it as a string"},
        _F.TYPE_BYTES: {"type": "string", "format": "byte", "description": "base64, or a data URI; never an address"},
    }
)
_SUMMARIES: Mapping[str, str] = MappingProxyType(
    {
        "Generate": "A face from words.",
        "Edit": "A region of a face drawn anew.",
        "Describe": "A face in words.",
        "Ask": "An answer to a question about a face.",
        "Analyze": "Every attribute of a face with its probability.",
        "GetModel": "What the server runs, its limits and its defaults.",
    }
)
#: The path of ``AnalyzeStream``, whose request and answer are lines.
FRAMES = "/v1/analyze-stream"
_STREAMED = frozenset({"Generate", "Edit", "Describe", "Ask"})
_LIKE_OPENAI: Mapping[str, tuple[str, str, tuple[str, ...]]] = MappingProxyType(
    {
        "/v1/images/generations": ("post", "Pictures from words, as OpenAI's clients ask for them.", (JSON,)),
        "/v1/images/edits": ("post", "A picture edited, as OpenAI's clients ask for it.", ("multipart/form-data", JSON)),
        "/v1/chat/completions": ("post", "A question about a picture, as OpenAI's clients ask it.", (JSON,)),
        "/v1/models": ("get", "The model, as OpenAI's clients list it.", ()),
        "/v1/models/{model}": ("get", "One model, as OpenAI's clients look it up.", ()),
    }
)
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code", "status", "request_id"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the field that is wrong"},
                "code": {"type": "string", "description": "stable, for programs: PROMPT, IMAGE, QUEUE_FULL …"},
                "status": {"type": "string", "description": "the gRPC status"},
                "request_id": {"type": "string"},
                "retry_after_ms": {"type": "number"},
            },
        }
    },
}
_ANY = {"type": "object"}
_HEADERS = [
    {"name": DEADLINE_KEY, "in": "header", "required": False, "schema": {"type": "integer", "minimum": 1, "maximum": 999999999}},
    {"name": REQUEST_ID_KEY, "in": "header", "required": False, "schema": {"type": "string"}},
]


@cache
def openapi_document() -> dict[str, Any]:
    """Return the document, as OpenAPI 3.1."""
    schemas: dict[str, Any] = {"Error": _ERROR}
    paths = {path: _native(method, schemas) for path, method in PATHS.items()}
    paths |= {path: {verb: _like_openai(path, summary, kinds)} for path, (verb, summary, kinds) in _LIKE_OPENAI.items()}
    paths[FRAMES] = {"post": _frames()}
    paths["/metrics"] = {"get": {"summary": "Prometheus metrics.", "responses": _responses({"text/plain": {"schema": {"type": "string"}}})}}
    paths["/healthz"] = {"get": {"summary": "Readiness.", "security": [], "responses": _responses({JSON: {"schema": _ANY}})}}
    paths["/openapi.json"] = {"get": {"summary": "This document.", "responses": _responses({JSON: {"schema": _ANY}})}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "f2edge", "version": __version__, "description": "Text to face, face to words. Nothing is fetched by address."},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _native(method: str, schemas: dict[str, Any]) -> dict[str, Any]:
    described = SERVICE.methods_by_name[method]
    output = described.output_type
    if method in _STREAMED:  # the last event is the answer
        output = output.fields[1].message_type
    content: dict[str, Any] = {JSON: {"schema": _schema(output, schemas)}}
    if method in _STREAMED:
        content[EVENTS] = {"schema": {"type": "string", "description": f"events of {described.output_type.name}"}}
    if method in ("Generate", "Edit"):
        content |= {kind: {"schema": {"type": "string", "format": "binary"}} for kind in PICTURES}
    operation = {"summary": _SUMMARIES[method], "operationId": method, "parameters": _HEADERS, "responses": _responses(content)}
    if method == "GetModel":
        return {"get": operation}
    body = {kind: {"schema": _schema(described.input_type, schemas)} for kind in (JSON, "multipart/form-data")}
    return {"post": {**operation, "requestBody": {"required": True, "content": body}}}


def _frames() -> dict[str, Any]:
    text = {"type": "string", "description": "an AnalyzeStreamRequest as JSON on each line; reports come as lines while frames are sent"}
    return {
        "summary": "Frames of a camera, each with its faces' attributes; the newest frame wins.",
        "operationId": "AnalyzeStream",
        "parameters": _HEADERS,
        "requestBody": {"required": True, "content": {LINES: {"schema": text}}},
        "responses": _responses({LINES: {"schema": {"type": "string"}}}),
    }


def _like_openai(path: str, summary: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    content = {JSON: {"schema": _ANY}, **({EVENTS: {"schema": {"type": "string"}}} if kinds else {})}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    parameters = [*_HEADERS, *([name] if "{model}" in path else [])]
    operation: dict[str, Any] = {"summary": summary, "parameters": parameters, "responses": _responses(content)}
    if kinds:
        operation["requestBody"] = {"required": True, "content": {kind: {"schema": _ANY} for kind in kinds}}
    return operation


def _responses(content: dict[str, Any]) -> dict[str, Any]:
    error = {"description": "refused", "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}}
    return {"200": {"description": "done", "content": content}, **{str(status): error for status in STATUSES}}


def _schema(message: Descriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return a reference to a message's schema, which is added to ``schemas``."""
    if message.name not in schemas:
        schemas[message.name] = {}  # a message within itself finds the reference
        schemas[message.name] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {field.name: _field(field, schemas) for field in message.fields},
        }
    return {"$ref": f"#/components/schemas/{message.name}"}


def _field(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _single(kind.fields_by_name["value"], schemas)}
    single = _single(field, schemas)
    return {"type": "array", "items": single} if field.is_repeated else single


def _single(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        return _schema(field.message_type, schemas)
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    return _PLAIN[field.type]
