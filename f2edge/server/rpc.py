"""Around every call: its request id, deadline, log line and figures, and one place where errors become statuses.

Requests are read and parsed here and not by gRPC: after the token has been checked, in a slot and in time (:mod:`.uploads`), and a message
of another type is INVALID_ARGUMENT and not INTERNAL.  Handlers write through :class:`Call` and leave by returning or raising; only this
module ends calls.  The request id travels in the trailer: a header
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
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from f2edge.errors import InputError
from f2edge.server.listener import Handlers, drop_call
from f2edge.server.security import authorization, no_token
from f2edge.server.status import RefusedError, bad_field, draining, refusal_of, trailers
from f2edge.server.tokens import Tokens
from f2edge.server.uploads import Uploads
from f2edge.v1 import face_pb2 as pb
from f2edge.wire import REQUEST_ID_KEY

logger = logging.getLogger("f2edge.server.access")

SERVICE = pb.DESCRIPTOR.services_by_name["FaceService"]
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_SNAKE = re.compile(r"(?<!^)(?=[A-Z])")
#: Calls at once, whatever their state; a caller who does not read for a second makes room, and is cut off after half a minute anyway.
_MOST_OPEN, _PATIENCE_S, _LONGEST_WRITE_S = 2048, 1.0, 30.0
#: Longest wait at shutdown for a caller to read.
_LAST_WRITE_S = 3.0
_LOOK_S = 0.25
_RETRY_MS = 500.0


@dataclass
class Call:
    """One call, for its handler.

    Attributes:
        method: "Generate" …
        ends: when it is cut off, on ``time.monotonic``: the caller's deadline or the server's longest, whichever is first.  A stream of
            frames lasts as long as its caller wants: infinity, without a deadline.
        deadline: the caller's, within the server's longest; None where the caller gave none.
        fields: for bad inputs whose error does not say which field it was.
        authorization: the header of that name.
        refusal: why the server has ended the call before its time, if it has.
        writing_since: since when a message waits for its reader.
        last_write_s: how long the message sent last waited for it.
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
    authorization: str = ""
    refusal: RefusedError | None = None
    writing_since: float | None = None
    last_write_s: float = 0.0
    traceparent: str = ""
    task: asyncio.Task[Any] | None = None

    async def send(self, message: Message) -> None:
        """Send a message of a stream; waits where the reader is slow, and ends the call where there is none."""
        self.writing_since = time.monotonic()
        if self.first_sent is None:
            self.first_sent = self.writing_since
        timer = asyncio.get_running_loop().call_later(_LONGEST_WRITE_S, self.end, _unread())
        try:
            await self.context.write(message)
        finally:
            timer.cancel()
            self.last_write_s = time.monotonic() - self.writing_since
        self.writing_since = None

    def end(self, refusal: RefusedError) -> None:
        """End the call with this status, from outside of its handler."""
        if self.refusal is None and self.task is not None:
            self.refusal = refusal
            self.task.cancel()


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

    Attributes:
        uploads: the slots in which requests are read, whatever way they come.
    """

    def __init__(self, meter: CallMeter, tokens: Tokens | None, longest_s: float) -> None:
        self._meter = meter
        self._tokens = tokens
        self._longest_s = longest_s
        self.uploads = Uploads()
        self._open: dict[asyncio.Task[Any], Call] = {}
        self.closed = False

    @property
    def begun(self) -> int:
        """Calls with one request so far."""
        return self.uploads.begun

    def handlers(self, service: object) -> Handlers:
        """Return the handlers of a service object with one coroutine method for each method of the contract, in snake case."""
        table = {method.name: self._method(method, getattr(service, _SNAKE.sub("_", method.name).lower())) for method in SERVICE.methods}
        return {SERVICE.full_name: table}

    def close(self) -> None:
        """Refuse what comes from now on, and what has not arrived."""
        self.closed = True
        self.uploads.close()

    async def ended(self, timeout_s: float) -> bool:
        """Wait for the calls that are open; False where some are still open after ``timeout_s``."""
        until = time.monotonic() + timeout_s
        while self._open and time.monotonic() < until:
            left_s = max(0.0, until - time.monotonic())
            await asyncio.wait(set(self._open), timeout=min(left_s, _LOOK_S), return_when=asyncio.FIRST_COMPLETED)
            if self.closed:
                self._make_room(_LAST_WRITE_S)
        return not self._open

    async def watch_tokens(self) -> None:
        """End calls whose token does not count any more, until cancelled."""
        while self._tokens is not None:
            await asyncio.sleep(_LOOK_S)
            for call in list(self._open.values()):
                if self._tokens.holder(call.authorization) is None:
                    call.end(no_token())

    def _method(self, method: Any, handle: Handler) -> grpc.RpcMethodHandler:
        message_type = GetMessageClass(method.input_type)

        def parsed(data: bytes) -> Message:
            try:
                return message_type.FromString(data)
            except DecodeError:
                raise bad_field("", f"the message is no {method.input_type.full_name}", "MESSAGE") from None

        async def all_parsed(context: grpc.aio.ServicerContext) -> AsyncIterator[Message]:
            while (data := await context.read()) is not grpc.aio.EOF:
                yield parsed(data)

        async def work(call: Call) -> Message | None:
            if method.client_streaming:
                return await handle(all_parsed(call.context), call)
            return await handle(parsed(await self.uploads.read(call.context)), call)

        async def run(_messages: Any, context: grpc.aio.ServicerContext) -> None:
            await self._run(self._call(method, context), work)

        return grpc.stream_stream_rpc_method_handler(run, response_serializer=lambda message: message.SerializeToString())

    def _call(self, method: Any, context: grpc.aio.ServicerContext) -> Call:
        received = context.invocation_metadata()  # decoded anew at every look
        shown = authorization(received)
        metadata = {key: value for key, value in received or () if isinstance(value, str)}
        trace = _TRACEPARENT.fullmatch(metadata.get("traceparent", ""))
        remaining, now = context.time_remaining(), time.monotonic()
        longest_s = inf if method.client_streaming else self._longest_s
        if remaining is not None:
            longest_s = min(longest_s, max(0.0, remaining))
        return Call(
            method=method.name,
            request_id=request_id_of(metadata.get(REQUEST_ID_KEY, "")),
            trace_id=trace[1] if trace else "",
            traceparent=trace[0] if trace else "",
            holder=(self._tokens.holder(shown) or "") if self._tokens else "",
            peer=context.peer(),
            started=now,
            ends=now + longest_s,
            deadline=None if remaining is None else now + longest_s,
            context=context,
            authorization=shown,
            task=asyncio.current_task(),
        )

    async def _run(self, call: Call, work: Callable[[Call], Awaitable[Message | None]]) -> None:
        assert call.task is not None
        self._open[call.task] = call
        self._meter.call_started(call.method)
        code = "OK"
        try:
            seconds = None if call.ends == inf else max(0.0, call.ends - time.monotonic())
            response = await asyncio.wait_for(self._admitted(call, work), seconds)
            if response is not None:
                await call.send(response)
            call.context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        except asyncio.CancelledError:
            if call.refusal is not None:
                code = call.refusal.code.name
                await self._abort(call, call.refusal)
            code = "CANCELLED" if time.monotonic() < call.ends else "DEADLINE_EXCEEDED"
            raise
        except Exception as error:
            if call.context.cancelled() or isinstance(error, grpc.aio.BaseError):  # writing to a caller who has gone fails in several ways
                code = "CANCELLED"
                raise asyncio.CancelledError from error
            refusal = self._refusal(error, call)
            code = refusal.code.name
            await self._abort(call, refusal)
        finally:
            del self._open[call.task]
            self._end(call, code)

    async def _admitted(self, call: Call, work: Callable[[Call], Awaitable[Message | None]]) -> Message | None:
        if self.closed:
            raise draining()
        if len(self._open) > _MOST_OPEN and not self._make_room(_PATIENCE_S):
            message = "as many calls are open as this server takes; try again"
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, "QUEUE_FULL", retry_after_ms=_RETRY_MS)
        return await work(call)

    def _make_room(self, patience_s: float) -> bool:
        """End the calls whose callers have not read for so long; False where there are none."""
        latest = time.monotonic() - patience_s
        stuck = [call for call in self._open.values() if (call.writing_since or inf) <= latest and call.refusal is None]
        for call in stuck:
            call.end(_unread())
        return bool(stuck)

    async def _abort(self, call: Call, refusal: RefusedError) -> NoReturn:
        """End a call with a status, or without one where it would wait behind what the caller does not read."""
        if call.writing_since is not None:
            drop_call()
            raise asyncio.CancelledError
        await call.context.abort(refusal.code, str(refusal), trailers(refusal, call.request_id))
        raise AssertionError("abort raises")

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


def request_id_of(given: str) -> str:
    """Return the caller's request id, or a new one where there is none or it is not plain."""
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _unread() -> RefusedError:
    return RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, "the caller does not read what it asked for", "DEADLINE")
