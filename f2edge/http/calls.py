"""Requests as calls of the gRPC service: a context that its handlers take for gRPC's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.message import Message

from f2edge.http.exchange import LINES, Exchange
from f2edge.server.rpc import SERVICE, Calls
from f2edge.server.status import refusal_from


class Reply(Protocol):
    """How the messages of calls become a response."""

    async def on_message(self, index: int, message: Any) -> None:
        """Take a message of the call of this number."""

    async def finish(self) -> None:
        """End the response, after the last message of the last call."""


@dataclass(frozen=True)
class Work:
    """What a request asks for: calls of one method side by side, and what becomes of their messages."""

    method: str
    messages: Sequence[Message]
    reply: Reply


class CallContext:
    """The part of ``grpc.aio.ServicerContext`` that :mod:`f2edge.server.rpc` uses, for a request over HTTP.

    Args:
        exchange: the request.
        remaining_s: seconds until the caller's deadline; None without one.
        read: gives the message, serialized.
        write: takes each message of the answer.
    """

    def __init__(
        self,
        exchange: Exchange,
        remaining_s: float | None,
        read: Callable[[], bytes],
        write: Callable[[Message], Awaitable[None]],
    ) -> None:
        self._exchange, self._remaining_s, self._read, self._write = exchange, remaining_s, read, write

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._exchange.metadata

    def time_remaining(self) -> float | None:
        return self._remaining_s

    def peer(self) -> str:
        return self._exchange.peer

    def cancelled(self) -> bool:
        return self._exchange.gone

    def set_trailing_metadata(self, _pairs: Any) -> None:
        """The request id is in the response's head already."""

    async def read(self) -> bytes:
        return self._read()

    async def write(self, message: Message) -> None:
        await self._write(message)

    async def abort(self, code: grpc.StatusCode, message: str, metadata: Any) -> NoReturn:
        raise refusal_from(code, message, metadata)


class Caller:
    """Calls the service's handlers.

    Args:
        calls: of the server, shared with gRPC.
        service: answers them.
    """

    def __init__(self, calls: Calls, service: object) -> None:
        self._handlers = calls.handlers(service)[SERVICE.full_name]

    async def run(self, exchange: Exchange, work: Work) -> None:
        """Run all calls; the first that fails ends the others, and its :class:`RefusedError` is raised."""
        remaining_s = exchange.time_remaining()

        def one(index: int, message: Message) -> Awaitable[None]:
            write = partial(work.reply.on_message, index)
            return self._call(work.method, CallContext(exchange, remaining_s, message.SerializeToString, write))

        if len(work.messages) == 1:
            await one(0, work.messages[0])
        else:
            tasks = [asyncio.ensure_future(one(*pair)) for pair in enumerate(work.messages)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        await work.reply.finish()

    async def stream(self, exchange: Exchange, method: str, context: CallContext) -> None:
        """Run a call whose request is read while it is answered; the context writes the answer."""
        await self._call(method, context)
        if not exchange.started:
            await exchange.start(200, LINES)
        await exchange.end()

    async def refuse(self, exchange: Exchange, method: str, error: Exception) -> None:
        """Count and log a call that never came to be, and raise the :class:`RefusedError` that says why."""

        def read() -> bytes:
            raise error

        async def write(_message: Message) -> None:
            raise AssertionError("a refused call has no answer")

        await self._call(method, CallContext(exchange, None, read, write))

    async def _call(self, method: str, context: CallContext) -> None:
        await self._handlers[method].stream_stream(None, context)
