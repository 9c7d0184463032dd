"""Requests on their way in: how many may be read at once, for how long, and who makes room when there is none.

gRPC takes in as much of a request as it promises as soon as somebody reads it, up to the largest message.  So a request is read only in a
slot; the others wait with what fits into HTTP/2's window.  A request that is not complete in time is ended.  Where every slot is taken,
the oldest request of the connection that holds most of them makes room, so half-sent requests do not hold up others.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from f2edge.server.status import RefusedError, bad_field, draining

_RETRY_MS = 500.0


@dataclass(eq=False)
class _Upload:
    peer: str
    started: float
    granted: asyncio.Event = field(default_factory=asyncio.Event)
    ended: Callable[[RefusedError], None] = lambda _error: None


class _Queues:
    """Uploads that wait, a queue for each connection; the connections take turns."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[_Upload]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def every(self) -> list[_Upload]:
        return [upload for queue in self._queues.values() for upload in queue]

    def append(self, upload: _Upload) -> None:
        self._queues.setdefault(upload.peer, deque()).append(upload)
        self._count += 1

    def pop(self) -> _Upload:
        """Take the oldest upload of the connection whose turn it is."""
        peer = next(iter(self._queues))
        queue = self._queues.pop(peer)
        upload = queue.popleft()
        self._count -= 1
        if queue:
            self._queues[peer] = queue  # behind the others
        return upload

    def longest(self) -> _Upload:
        """Return the oldest upload of the connection with most of them."""
        return max(self._queues.values(), key=len)[0]

    def discard(self, upload: _Upload) -> None:
        queue = self._queues.get(upload.peer, deque())
        if upload in queue:
            queue.remove(upload)
            self._count -= 1
            if not queue:
                del self._queues[upload.peer]


class Uploads:
    """Slots for reading requests.

    Args:
        slots: requests read at once; each may hold a message of the largest size.
        waiting: requests that wait for a slot; beyond it the connection with most of them loses its oldest.
        seconds: for a request to be complete, its wait for a slot included.
        patience_s: a request is not made to give way before it has had its slot for so long.

    Attributes:
        begun: requests so far.
    """

    def __init__(self, slots: int = 32, waiting: int = 512, seconds: float = 20.0, patience_s: float = 0.25) -> None:
        self._slots = slots
        self._most_waiting = waiting
        self._seconds = seconds
        self._patience_s = patience_s
        self._reading: dict[_Upload, None] = {}
        self._waiting = _Queues()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.begun = 0

    async def read(self, context: grpc.aio.ServicerContext) -> bytes:
        """Return the one message of a call.

        Raises:
            RefusedError: there is none, it does not arrive in time, it had to make room, or the server ends.
        """

        async def message() -> Any:
            return await context.read()

        data = await self.hold(context.peer(), message)
        if data is grpc.aio.EOF:
            raise bad_field("", "the call has no message", "MESSAGE")
        return bytes(data)

    async def hold(self, peer: str, read: Callable[[], Awaitable[Any]]) -> Any:
        """Return what ``read`` gives, read in a slot; errors as of :meth:`read`."""
        if self._closed:
            raise draining()
        with self._place(peer) as upload:
            work = asyncio.ensure_future(self._work(upload, read))
            failure: list[RefusedError] = []

            def ended(error: RefusedError) -> None:
                failure.append(error)
                work.cancel()

            upload.ended = ended
            try:
                await asyncio.wait({work}, timeout=self._seconds)
                if work.done() and not work.cancelled():
                    return work.result()
                raise failure[0] if failure else _late(self._seconds)
            finally:
                work.cancel()

    def close(self) -> None:
        """End what has not arrived; nothing more is read."""
        self._closed = True
        for upload in [*self._reading, *self._waiting.every()]:
            upload.ended(draining())

    async def _work(self, upload: _Upload, read: Callable[[], Awaitable[Any]]) -> Any:
        await upload.granted.wait()
        return await read()

    @contextmanager
    def _place(self, peer: str) -> Iterator[_Upload]:
        upload = _Upload(peer, time.monotonic())
        self.begun += 1
        self._waiting.append(upload)
        self._arrange()
        try:
            yield upload
        finally:
            self._reading.pop(upload, None)
            self._waiting.discard(upload)
            self._arrange()

    def _arrange(self) -> None:
        """Give free slots to those that wait, make room where that is due, and come back when it will be."""
        if len(self._waiting) > self._most_waiting:
            self._end(self._waiting.longest())
        while len(self._waiting) and (len(self._reading) < self._slots or self._make_room()):
            upload = self._waiting.pop()
            upload.started = time.monotonic()
            self._reading[upload] = None
            upload.granted.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if len(self._waiting):
            self._timer = asyncio.get_running_loop().call_later(self._patience_s / 2, self._arrange)

    def _make_room(self) -> bool:
        victim = _victim(self._reading)
        if time.monotonic() - victim.started < self._patience_s:
            return False
        self._end(victim)
        return True

    def _end(self, upload: _Upload) -> None:
        self._reading.pop(upload, None)
        self._waiting.discard(upload)
        message = f"the request came so slowly that it had to make room; send it again in {_RETRY_MS:.0f} ms"
        upload.ended(RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, "QUEUE_FULL", retry_after_ms=_RETRY_MS))


def _victim(uploads: dict[_Upload, None]) -> _Upload:
    """Return the oldest upload of the connection that has most."""
    counts = Counter(upload.peer for upload in uploads)
    most = max(counts.values())
    return next(upload for upload in uploads if counts[upload.peer] == most)


def _late(seconds: float) -> RefusedError:
    return RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, f"the request was not complete within {seconds:g} s", "DEADLINE")
