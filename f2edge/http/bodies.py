"""Bodies of requests: JSON or a form, turned into messages of ``f2edge.v1``.

Only the form is looked at here; what a field may hold is checked where gRPC's requests are (:mod:`f2edge.server.validation`).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from f2edge.server.status import RefusedError, bad_field

_MOST_PARTS = 64
_LONGEST_TEXT = 64 << 10
_TRUTH = {"true": True, "false": False}

Kind = TypeVar("Kind", bound=Message)


@dataclass(frozen=True)
class Body:
    """A body as it was sent.

    Attributes:
        values: a JSON object; of a form, the texts of each field, by its name.
        files: of a form: the content of each file, by the name of its field.
        is_form: whether it was one.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, list[bytes]] = field(default_factory=dict)
    is_form: bool = False

    def text(self, name: str) -> Any:
        """Return one value: JSON, or the text of a form's field; None where there is none."""
        value = self.values.get(name)
        if not self.is_form or value is None:
            return value
        return value[0] if len(value) == 1 else _refuse(name, f"{name} is given {len(value)} times; give it once")


def parse(content_type: str, data: bytes) -> Body:
    """Return the body of a request; raises a :class:`RefusedError` that says what is wrong with its form."""
    kind, parameters = parse_options_header(content_type)
    if kind == b"application/json":
        return Body(_json(data))
    if kind == b"multipart/form-data" and parameters.get(b"boundary"):
        return _form(parameters[b"boundary"], data)
    message = "send application/json, or multipart/form-data for pictures as files (curl -F)"
    raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, message, "MEDIA", field="content-type")


def message_of(body: Body, kind: type[Kind]) -> Kind:
    """Return a body as a message: its fields by the names of the contract, pictures as files, data URIs or base64."""
    values = _nested(kind, body) if body.is_form else dict(body.values)
    pictures = {name: _file(body, name) for name in body.files}
    for field_ in kind.DESCRIPTOR.fields:
        if field_.type == field_.TYPE_BYTES and field_.name in values:
            pictures[field_.name] = picture_bytes(values.pop(field_.name), field_.name)
    message: Kind = filled(kind, values)
    for name, data in pictures.items():
        known = kind.DESCRIPTOR.fields_by_name.get(name)
        if known is None or known.type != known.TYPE_BYTES:
            raise bad_field(name, "the request takes no file of that name; call it image or mask")
        setattr(message, name, data)
    return message


def filled(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """Return a message with these values, by protobuf's rules for JSON."""
    message: Kind = kind()
    try:
        json_format.ParseDict(values, message)
    except (json_format.Error, RecursionError, ValueError, TypeError, AttributeError) as error:
        raise bad_field("", f"the request is no {kind.DESCRIPTOR.full_name}: {error}", "MESSAGE") from None
    return message


def picture_bytes(value: Any, name: str) -> bytes:
    """Return the content of a picture that is a data URI or base64; an address is refused, for nothing is fetched."""
    if not isinstance(value, str):
        raise bad_field(name, f"{name} must be base64 or a data URI (data:image/png;base64,…)", "IMAGE")
    if value[:8].lower().startswith(("http:", "https:", "file:", "ftp:")):
        raise bad_field(name, "pictures by URL are refused, nothing is fetched; send a data URI (data:image/png;base64,…)", "IMAGE")
    if value[:5].lower() == "data:":
        head, comma, value = value.partition(",")
        if not (comma and head.lower().endswith(";base64")):
            raise bad_field(name, "the data URI must be in base64 (data:image/png;base64,…)", "IMAGE")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise bad_field(name, f"{name} is not valid base64; send base64 or a data URI (data:image/png;base64,…)", "IMAGE") from None


def _json(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data, parse_constant=lambda name: _refuse("", f"{name} is no JSON", "MESSAGE"))
    except (ValueError, RecursionError):
        raise bad_field("", "the body is not valid JSON in UTF-8", "MESSAGE") from None
    return values if isinstance(values, dict) else _refuse("", "the body must be a JSON object", "MESSAGE")


def _form(boundary: bytes, data: bytes) -> Body:
    values: dict[str, list[str]] = {}
    files: dict[str, list[bytes]] = {}
    parts = 0

    def part(add: Callable[[Any], None]) -> Callable[[Any], None]:
        def arrived(found: Any) -> None:
            nonlocal parts
            parts += 1
            if parts > _MOST_PARTS:
                raise bad_field("", f"the form has more than {_MOST_PARTS} fields", "MESSAGE")
            add(found)

        return arrived

    def text(found: Any) -> None:
        value = found.value or b""
        if len(value) > _LONGEST_TEXT:
            raise bad_field("", f"a field of the form is longer than {_LONGEST_TEXT} bytes; send pictures as files", "MESSAGE")
        values.setdefault((found.field_name or b"").decode(), []).append(value.decode())

    def file(found: Any) -> None:
        found.file_object.seek(0)
        files.setdefault((found.field_name or b"").decode(), []).append(found.file_object.read())

    try:
        in_memory = {"MAX_MEMORY_FILE_SIZE": len(data) + 1}
        parser = FormParser("multipart/form-data", part(text), part(file), boundary=boundary, config=in_memory)
        parser.write(data)
        parser.finalize()
    except (FormParserError, UnicodeDecodeError):
        raise bad_field("", "the body is not a valid form in UTF-8", "MESSAGE") from None
    if not data.rstrip().endswith(b"--" + boundary + b"--"):  # its last part would be missing, or half there
        raise bad_field("", "the form is not complete", "MESSAGE")
    return Body(values, files, is_form=True)


def _file(body: Body, name: str) -> bytes:
    found = body.files[name]
    return found[0] if len(found) == 1 else _refuse(name, f"{name} is given {len(found)} times; give one file")


def _nested(kind: type[Message], body: Body) -> dict[str, Any]:
    """Return the fields of a form as JSON: ``options.steps=8`` becomes ``{"options": {"steps": "8"}}``."""
    values: dict[str, Any] = {}
    for path in body.values:
        descriptor, inner = kind.DESCRIPTOR, values
        *above, last = path.split(".")
        for name in above:
            descriptor = getattr(descriptor.fields_by_name.get(name), "message_type", None) if descriptor is not None else None
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise bad_field(path, f"{name} is given twice in different forms", "MESSAGE")
        known = None if descriptor is None else descriptor.fields_by_name.get(last)
        inner[last] = _typed(known, body, path)
    return values


def _typed(known: Any, body: Body, path: str) -> Any:
    if known is not None and known.is_repeated:
        return [_TRUTH.get(text, text) if known.type == known.TYPE_BOOL else text for text in body.values[path]]
    text = body.text(path)
    return _TRUTH.get(text, text) if known is not None and known.type == known.TYPE_BOOL else text


def _refuse(name: str, message: str, reason: str = "ARGUMENT") -> NoReturn:
    raise bad_field(name, message, reason)
