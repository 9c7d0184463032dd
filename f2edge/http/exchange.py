"""One HTTP request and its response, over ASGI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import grpc

from f2edge.http.failures import failure_document, status_of
from f2edge.server.rpc import request_id_of
from f2edge.server.status import RefusedError, bad_field
from f2edge.wire import REQUEST_ID_KEY

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

DEADLINE_KEY = "x-deadline-ms"
JSON, EVENTS, LINES = "application/json", "text/event-stream", "application/x-ndjson"
#: For the rest of a body that is not wanted.
_LINGER_S, _LINGER_BYTES = 2.0, 8 << 20
_STANDARD = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Exchange:
    """A request, and the one response that it gets.

    Attributes:
        metadata: the headers as gRPC's metadata, in lower case, with a valid request id.
        gone: the client has left.
        started: the response's first byte has been sent.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.path: str = scope["path"]
        self.verb: str = scope["method"]
        self.scheme: str = scope.get("scheme", "http")
        pairs: list[tuple[str, str]] = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        self.headers = dict(pairs)
        self.request_id = request_id_of(self.headers.get(REQUEST_ID_KEY, ""))
        self.metadata = [*(pair for pair in pairs if pair[0] != REQUEST_ID_KEY), (REQUEST_ID_KEY, self.request_id)]
        host, port = scope.get("client") or ("local", 0)
        self.peer = f"{'ipv6:[' + host + ']' if ':' in host else 'ipv4:' + host}:{port}"
        self.gone = self.started = self._lines = False
        self._began = time.monotonic()
        self._complete = self.headers.get("content-length", "0") == "0" and "transfer-encoding" not in self.headers
        self._ended = False
        self._receive, self._send = receive, send

    @property
    def accept(self) -> str:
        """The header of that name in lower case."""
        return self.headers.get("accept", "").lower()

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, from its header; None without one.

        Raises:
            RefusedError: a header that is no number of milliseconds.
        """
        given = self.headers.get(DEADLINE_KEY)
        if given is None:
            return None
        if not (given.isascii() and given.isdigit() and len(given) <= 9 and int(given) > 0):
            raise bad_field(DEADLINE_KEY, f"{DEADLINE_KEY} must be a whole number of milliseconds, at least 1 and of at most 9 digits")
        return int(given) / 1e3 - (time.monotonic() - self._began)

    async def body(self, most: int) -> bytes:
        """Return the body, of ``most`` bytes at most; a longer one is refused as soon as that is known."""
        declared = self.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            raise _too_large(most)
        parts = bytearray()
        while True:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                self.gone = True
                raise RefusedError(grpc.StatusCode.CANCELLED, "the call was cancelled", "CANCELLED")
            parts += event.get("body", b"")
            if len(parts) > most:
                raise _too_large(most)
            if not event.get("more_body"):
                self._complete = True
                return bytes(parts)

    async def part(self) -> bytes | None:
        """Return the next part of a body; None at its end, or where the client has left."""
        if self._complete:
            return None
        event = await self._receive()
        self.gone = event["type"] == "http.disconnect"
        self._complete = self.gone or not event.get("more_body")
        return None if self.gone else event.get("body", b"")

    async def line(self, data: bytes) -> None:
        """Send a line of JSON."""
        if not self.started:
            await self.start(200, LINES, {"x-accel-buffering": "no"})
        await self.write(data + b"\n")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Cancel the task that is in the block when the client leaves; for after the body."""
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.ensure_future(self._watch(task))
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._ended:
            self.gone = True
            task.cancel()

    async def start(self, status: int, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """Send the head of the response."""
        self.started, self._lines = True, content_type == LINES
        pairs = [(b"content-type", content_type.encode()), (REQUEST_ID_KEY.encode(), self.request_id.encode()), *_STANDARD]
        pairs += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        if not self._complete and not self._lines:
            pairs.append((b"connection", b"close"))  # the rest of the body is not waited for
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def write(self, data: bytes) -> None:
        """Send a piece of the response; waits where the client reads slowly."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece."""
        self._ended = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, content_type: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a response that is there as a whole."""
        await self.start(status, content_type, {"content-length": str(len(data)), **(headers or {})})
        if self._complete:
            await self.end(data)
            return
        await self.write(data)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._discard(), _LINGER_S)
        await self.end()

    async def _discard(self) -> None:
        """Read what is left of a body, a little at a time: a client that still sends would not see the answer of a closed connection."""
        left = _LINGER_BYTES
        while left > 0:
            event = await self._receive()
            left -= len(event.get("body", b"")) + 1
            if event["type"] == "http.disconnect" or not event.get("more_body"):
                return

    async def document(self, document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Send JSON."""
        await self.whole(status, JSON, dumped(document), headers)

    async def event(self, data: Any, name: str = "") -> None:
        """Send a server-sent event, JSON or, of a string, that text."""
        if not self.started:
            await self.start(200, EVENTS, {"x-accel-buffering": "no"})
        text = data.encode() if isinstance(data, str) else dumped(data)
        await self.write((f"event: {name}\n".encode() if name else b"") + b"data: " + text + b"\n\n")

    async def fail(self, refusal: RefusedError) -> None:
        """End with an error: its status, or an event where the response has begun."""
        document = failure_document(refusal, self.request_id)
        if self.started and self._lines:
            await self.line(dumped(document))
            await self.end()
            return
        if self.started:
            await self.event(document, "error")
            await self.end()
            return
        headers = {}
        if refusal.retry_after_ms is not None:
            headers = {"retry-after": str(max(1, round(refusal.retry_after_ms / 1e3))), "retry-after-ms": f"{refusal.retry_after_ms:.0f}"}
        if refusal.code == grpc.StatusCode.UNAUTHENTICATED:
            headers["www-authenticate"] = "Bearer"
        await self.document(document, status_of(refusal), headers)


def dumped(document: Any) -> bytes:
    """Return JSON in one line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _too_large(most: int) -> RefusedError:
    message = f"the request is larger than {most} bytes; send a smaller picture"
    return RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, "SIZE")
