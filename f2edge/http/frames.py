"""``POST /v1/analyze-stream``: frames as lines of JSON, reports as lines of JSON, while the request still goes on.

    curl -sNT frames.jsonl -H 'Content-Type: application/x-ndjson' -X POST http://127.0.0.1:8080/v1/analyze-stream

Each line is an ``AnalyzeStreamRequest``; as in gRPC a frame that still waits when a later one arrives is dropped and counted.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message

from f2edge.http.bodies import Body, message_of
from f2edge.http.calls import CallContext
from f2edge.http.exchange import LINES, Exchange, dumped
from f2edge.http.rest import as_json
from f2edge.server.status import RefusedError, bad_field
from f2edge.v1 import face_pb2 as pb


class FrameContext(CallContext):
    """Context of ``AnalyzeStream`` for a request whose body arrives line by line.

    Args:
        exchange: the request.
        most: bytes of a line.
    """

    def __init__(self, exchange: Exchange, most: int) -> None:
        super().__init__(exchange, exchange.time_remaining(), _unused, self._line)
        self._most = most
        self._pending = bytearray()
        self._ended = False
        kind = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != LINES:
            raise bad_field("content-type", f"send {LINES}: a JSON object on each line", "MEDIA")

    async def read(self) -> Any:
        """Return the next frame, serialized, or the end of the stream."""
        while True:
            end = self._pending.find(b"\n")
            if end < 0 and not self._ended:
                await self._more()
                continue
            line = bytes(self._pending[: end if end >= 0 else None]).strip()
            self._pending = self._pending[end + 1 :] if end >= 0 else bytearray()
            if line:
                return _frame(line)
            if self._ended and not self._pending:
                return grpc.aio.EOF

    async def _more(self) -> None:
        data = await self._exchange.part()
        self._ended = data is None
        self._pending += data or b""
        if len(self._pending) > self._most and b"\n" not in self._pending:
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"a line is longer than {self._most} bytes; send smaller frames", "SIZE")

    async def _line(self, message: Message) -> None:
        await self._exchange.line(dumped(as_json(message)))


def _frame(line: bytes) -> bytes:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise bad_field("", "a line is no JSON object in UTF-8", "MESSAGE")
    message: bytes = message_of(Body(values), pb.AnalyzeStreamRequest).SerializeToString()
    return message


def _unused() -> NoReturn:
    raise AssertionError("frames are read one after another")
