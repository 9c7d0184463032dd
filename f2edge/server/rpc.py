"""Around every call: its request id, deadline, log line and figures, and one place where errors become statuses.

Handlers get bytes parsed here and not by gRPC, so that a message of another type is INVALID_ARGUMENT and not INTERNAL.  They write
through :class:`Call` and leave by returning or raising; only this module ends calls.  The request id travels in the trailer: a header
would count as an answer, after which no client may retry.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from f2edge.errors import InputError
from f2edge.server.security import authorization
from f2edge.server.status import RefusedError, bad_field, draining, refusal_of, trailers
from f2edge.server.tokens import Tokens
from f2edge.v1 import face_pb2 as pb
from f2edge.wire import REQUEST_ID_KEY

logger = logging.getLogger("f2edge.server.access")

SERVICE = pb.DESCRIPTOR.services_by_name["FaceService"]
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_SNAKE = re.compile(r"(?<!^)(?=[A-Z])")


@dataclass
class Call:
    """One call, for its handler.

    Attributes:
        method: "Generate" …
        ends: when it is cut off, on ``time.monotonic``: the caller's deadline or the server's longest, whichever is first.  A stream of
            frames lasts as long as its caller wants: infinity, without a deadline.
        deadline: the caller's, within the server's longest; None where the caller gave none.
        fields: for bad inputs whose error does not say which field it was.
    """

    method: str
    request_id: str
    trace_id: str
    holder: str
    peer: str
    started: float
    ends: float
    deadline: float | None
    context: grpc.aio.ServicerContext
    fields: Mapping[type[InputError], str] = field(default_factory=dict)
    first_sent: float | None = None

    async def send(self, message: Message) -> None:
        """Send a message of a stream; waits where the reader is slow."""
        if self.first_sent is None:
            self.first_sent = time.monotonic()
        await self.context.write(message)


#: ``handler(request or iterator of requests, call)``; a unary method returns its response, a streaming one None.
Handler = Callable[[Any, Call], Awaitable["Message | None"]]


class CallMeter(Protocol):
    """Hears of calls, for metrics."""

    def call_started(self, method: str) -> None: ...

    def call_ended(self, call: Call, code: str, now: float) -> None: ...


class Calls:
    """The calls of one server.

    Args:
        meter: hears of each.
        tokens: for the name behind a call's token.
        longest_s: no call goes on for longer.
    """

    def __init__(self, meter: CallMeter, tokens: Tokens | None, longest_s: float) -> None:
        self._meter = meter
        self._tokens = tokens
        self._longest_s = longest_s
        self._open: set[asyncio.Task[Any]] = set()
        self.closed = False

    def handler(self, service: object) -> grpc.GenericRpcHandler:
        """The handler, in gRPC's terms, of a service object with one coroutine method for each method of the contract, in snake case."""
        table = {method.name: self._method(method, getattr(service, _SNAKE.sub("_", method.name).lower())) for method in SERVICE.methods}
        return grpc.method_handlers_generic_handler(SERVICE.full_name, table)

    def close(self) -> None:
        """Refuse what comes from now on."""
        self.closed = True

    async def ended(self, timeout_s: float) -> bool:
        """Wait for the calls that are open; False where some are still open after ``timeout_s``."""
        until = time.monotonic() + timeout_s
        while self._open and time.monotonic() < until:
            await asyncio.wait(self._open, timeout=max(0.0, until - time.monotonic()), return_when=asyncio.FIRST_COMPLETED)
        return not self._open

    def _method(self, method: Any, handle: Handler) -> grpc.RpcMethodHandler:
        message_type = GetMessageClass(method.input_type)

        def parsed(data: bytes) -> Message:
            try:
                return message_type.FromString(data)
            except DecodeError:
                raise bad_field("", f"the message is no {method.input_type.full_name}", "MESSAGE") from None

        async def all_parsed(messages: AsyncIterator[bytes]) -> AsyncIterator[Message]:
            async for data in messages:
                yield parsed(data)

        async def run(request: Any, context: grpc.aio.ServicerContext) -> Message | None:
            call = self._call(method, context)
            return await self._run(call, lambda: handle(all_parsed(request) if method.client_streaming else parsed(request), call))

        kind = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        return kind(run, request_deserializer=None, response_serializer=lambda message: message.SerializeToString())

    def _call(self, method: Any, context: grpc.aio.ServicerContext) -> Call:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        given = metadata.get(REQUEST_ID_KEY, "")
        trace = _TRACEPARENT.fullmatch(metadata.get("traceparent", ""))
        remaining, now = context.time_remaining(), time.monotonic()
        longest_s = inf if method.client_streaming else self._longest_s
        if remaining is not None:
            longest_s = min(longest_s, max(0.0, remaining))
        return Call(
            method=method.name,
            request_id=given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8),
            trace_id=trace[1] if trace else "",
            holder=(self._tokens.holder(authorization(context.invocation_metadata())) or "") if self._tokens else "",
            peer=context.peer(),
            started=now,
            ends=now + longest_s,
            deadline=None if remaining is None else now + longest_s,
            context=context,
        )

    async def _run(self, call: Call, work: Callable[[], Awaitable[Message | None]]) -> Message | None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self._meter.call_started(call.method)
        code = "OK"
        try:
            seconds = None if call.ends == inf else max(0.0, call.ends - time.monotonic())
            response = await asyncio.wait_for(self._admitted(work), seconds)
            call.context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            return response  # noqa: TRY300
        except asyncio.CancelledError:
            code = "CANCELLED" if time.monotonic() < call.ends else "DEADLINE_EXCEEDED"
            raise
        except Exception as error:
            if call.context.cancelled():  # writing to a caller who has gone fails in several ways
                code = "CANCELLED"
                raise asyncio.CancelledError from error
            refusal = self._refusal(error, call)
            code = refusal.code.name
            await call.context.abort(refusal.code, str(refusal), trailers(refusal, call.request_id))
            raise AssertionError("abort raises") from error
        finally:
            self._open.discard(task)
            self._end(call, code)

    async def _admitted(self, work: Callable[[], Awaitable[Message | None]]) -> Message | None:
        if self.closed:
            raise draining()
        return await work()

    def _refusal(self, error: Exception, call: Call) -> RefusedError:
        if type(error) is asyncio.TimeoutError:  # ours; the engine's own deadlines are of a class of their own
            message = f"the call was cut off at its deadline, or at the {self._longest_s:g} s that this server allows"
            return RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, message, "DEADLINE")
        refusal = refusal_of(error, call.fields)
        if refusal.code == grpc.StatusCode.INTERNAL:
            logger.error("a call failed", exc_info=error, extra={"method": call.method, "request_id": call.request_id})
        return refusal

    def _end(self, call: Call, code: str) -> None:
        now = time.monotonic()
        self._meter.call_ended(call, code, now)
        logger.info(
            "call",
            extra={
                "method": call.method,
                "code": code,
                "ms": round(1e3 * (now - call.started), 3),
                "request_id": call.request_id,
                "trace_id": call.trace_id,
                "token": call.holder,
                "peer": call.peer,
            },
        )
