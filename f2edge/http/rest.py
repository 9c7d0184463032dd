"""REST: every method of the contract by its own name, its messages as JSON by protobuf's rules.

``Accept: text/event-stream`` gets every message as it comes, ``Accept: image/png`` (jpeg, webp) the finished picture as a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from f2edge.http.bodies import Body, message_of
from f2edge.http.calls import Work
from f2edge.http.exchange import EVENTS, Exchange
from f2edge.server.rpc import SERVICE
from f2edge.v1 import face_pb2 as pb

#: Path → method of the contract.  ``AnalyzeStream`` is of gRPC alone: its client sends while it reads.
PATHS: Mapping[str, str] = MappingProxyType(
    {
        "/v1/generate": "Generate",
        "/v1/edit": "Edit",
        "/v1/describe": "Describe",
        "/v1/ask": "Ask",
        "/v1/analyze": "Analyze",
        "/v1/model": "GetModel",
    }
)
PICTURES: Mapping[str, pb.ImageFormat] = MappingProxyType(
    {"image/png": pb.IMAGE_FORMAT_PNG, "image/jpeg": pb.IMAGE_FORMAT_JPEG, "image/webp": pb.IMAGE_FORMAT_WEBP}
)


def request_type(method: str) -> type[Message]:
    """Return the type of a method's request."""
    kind: type[Message] = GetMessageClass(SERVICE.methods_by_name[method].input_type)
    return kind


def native_work(method: str, body: Body, exchange: Exchange) -> Work:
    """Return the call that a request asks for, and the form of its answer."""
    message: Any = message_of(body, request_type(method))
    if EVENTS in exchange.accept:
        return Work(method, [message], EventsReply(exchange))
    if "previews" in message.DESCRIPTOR.fields_by_name:
        message.ClearField("previews")  # they would not be seen
        wanted = next((kind for kind in PICTURES if kind in exchange.accept), None)
        if wanted is not None:
            message.output.format = PICTURES[wanted]
            return Work(method, [message], PictureReply(exchange, wanted))
    return Work(method, [message], JsonReply(exchange))


def event_of(message: Any) -> tuple[str, Any]:
    """Return the event that a response holds, and its name; "result" for a response that is one as a whole."""
    if "event" not in message.DESCRIPTOR.oneofs_by_name:
        return "result", message
    name = message.WhichOneof("event")
    return name, getattr(message, name)


def as_json(message: Message) -> dict[str, Any]:
    """Return a message by protobuf's rules for JSON, with the contract's names."""
    document: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return document


class JsonReply:
    """The last message of a call as JSON."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._last: Any = None

    async def on_message(self, _index: int, message: Any) -> None:
        name, value = event_of(message)
        self._last = None if name == "piece" else value

    async def finish(self) -> None:
        await self._exchange.document(as_json(self._last))


class PictureReply(JsonReply):
    """The finished picture as a file, with its label and marks; seed, steps and preset are headers."""

    def __init__(self, exchange: Exchange, kind: str) -> None:
        super().__init__(exchange)
        self._kind = kind

    async def finish(self) -> None:
        result = self._last
        headers = {"x-seed": str(result.decoding.seed), "x-steps": str(result.decoding.steps)}
        headers |= {"x-preset": result.decoding.preset} if result.decoding.preset else {}
        await self._exchange.whole(200, self._kind, result.picture.image, headers)


class EventsReply:
    """Every message as a server-sent event, named as in the contract."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def on_message(self, _index: int, message: Any) -> None:
        name, value = event_of(message)
        await self._exchange.event({"text": value} if name == "piece" else as_json(value), name)

    async def finish(self) -> None:
        await self._exchange.end()
