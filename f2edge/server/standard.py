"""gRPC's standard services: health (``grpc.health.v1``) and reflection, bounded in number, size and age, and ended at once at shutdown.

The servicers of grpcio-health-checking hold a lock while they write, so that one watcher who never reads keeps every change of state and
the shutdown waiting.  Here a watcher is alone with its own write.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from f2edge.server.listener import Handlers, drop_call
from f2edge.server.status import RefusedError, bad_field, draining, trailers
from f2edge.server.uploads import Uploads

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
#: Methods of which a flood may wait: streams, of which few are taken anyway.
PACED = frozenset({f"/{HEALTH}/Watch", f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"})
_MOST_WATCHERS, _MOST_OF_CONNECTION = 64, 8
_LONGEST_WATCH_S, _LONGEST_REFLECTION_S, _LONGEST_WRITE_S = 3600.0, 60.0, 10.0
_RETRY_MS = 1000.0

Status: Any = health_pb2.HealthCheckResponse.ServingStatus


class HealthState:
    """What health checks say, by the name of the service."""

    def __init__(self) -> None:
        self._status: dict[str, int] = {}
        self._changed: set[asyncio.Event] = set()

    def set(self, name: str, status: int) -> None:
        """Change one; those who watch are woken."""
        self._status[name] = status
        for event in self._changed:
            event.set()

    def get(self, name: str) -> int | None:
        """Return the state of a service, None where there is no such service."""
        return self._status.get(name)

    @contextmanager
    def changes(self) -> Iterator[asyncio.Event]:
        """Give an event that is set at every change."""
        event = asyncio.Event()
        self._changed.add(event)
        try:
            yield event
        finally:
            self._changed.discard(event)


class HeldStreams:
    """Streams that their callers may hold open: bounded in all, for each connection and in age; :meth:`close` ends them at once."""

    def __init__(self, most: int = _MOST_WATCHERS, most_of_connection: int = _MOST_OF_CONNECTION) -> None:
        self._most = most
        self._most_of_connection = most_of_connection
        self._open: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def run(self, peer: str, work: Callable[[], Awaitable[None]], longest_s: float) -> None:
        """Run a stream's work.

        Raises:
            RefusedError: there is no room, it is too old, or the server ends.
        """
        own = self._open[peer] >= self._most_of_connection and not peer.startswith("unix")
        if own or self._open.total() >= self._most:
            message = "as many streams of this kind are open as this server takes; close one or try again"
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, "QUEUE_FULL", retry_after_ms=_RETRY_MS)
        self._open[peer] += 1
        task = asyncio.ensure_future(work())
        self._tasks.add(task)
        try:
            await asyncio.wait({task}, timeout=longest_s)
            if task.done() and not task.cancelled():
                return task.result()
            raise draining() if self._closed else _too_old(longest_s)
        finally:
            task.cancel()
            self._tasks.discard(task)
            self._open[peer] -= 1
            self._open += Counter()  # drops zeros

    def close(self) -> None:
        """End every stream; none is taken any more."""
        self._closed, self._most = True, 0
        for task in self._tasks:
            task.cancel()


class StandardServices:
    """Handlers of health and reflection for one server.

    Args:
        state: what health checks say.
    """

    def __init__(self, state: HealthState) -> None:
        self._state = state
        self._uploads = Uploads(slots=32, waiting=256, seconds=5.0, patience_s=0.05)
        self._watchers, self._reflections = HeldStreams(), HeldStreams(16, 4)

    @property
    def begun(self) -> int:
        """Calls so far."""
        return self._uploads.begun

    def health(self) -> Handlers:
        """Return the handlers of ``grpc.health.v1``."""
        return {HEALTH: {"Check": _handler(self._check), "Watch": _handler(self._watch)}}

    def reflection(self, names: Sequence[str]) -> Handlers:
        """Return the handlers of reflection over these services."""
        servicer = reflection.aio.ReflectionServicer((*names, reflection.SERVICE_NAME))

        async def info(caller: _Caller) -> None:
            async def work() -> None:
                async for answer in servicer.ServerReflectionInfo(self._reflection_requests(caller.context), None):
                    await caller.write(answer)

            await self._reflections.run(caller.peer, work, _LONGEST_REFLECTION_S)

        return {reflection.SERVICE_NAME: {"ServerReflectionInfo": _handler(info)}}

    def close(self) -> None:
        """End every stream and every request that has not arrived."""
        self._watchers.close()
        self._reflections.close()
        self._uploads.close()

    async def _check(self, caller: _Caller) -> None:
        status = self._state.get(await self._service(caller))
        if status is None:
            await caller.context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        await caller.write(health_pb2.HealthCheckResponse(status=status))

    async def _watch(self, caller: _Caller) -> None:
        async def work() -> None:
            name, last = await self._service(caller), None
            with self._state.changes() as changed:
                while True:
                    changed.clear()
                    status = self._state.get(name)
                    status = Status.SERVICE_UNKNOWN if status is None else status
                    if status != last:
                        await caller.write(health_pb2.HealthCheckResponse(status=status))
                        last = status
                    await changed.wait()

        await self._watchers.run(caller.peer, work, _LONGEST_WATCH_S)

    async def _service(self, caller: _Caller) -> str:
        return str(_parsed(health_pb2.HealthCheckRequest, await self._uploads.read(caller.context)).service)

    async def _reflection_requests(self, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        while (data := await context.read()) is not grpc.aio.EOF:
            yield _parsed(reflection_pb2.ServerReflectionRequest, data)


def _handler(work: Callable[[_Caller], Awaitable[None]]) -> grpc.RpcMethodHandler:
    async def run(_messages: Any, context: grpc.aio.ServicerContext) -> None:
        caller = _Caller(context)
        try:
            await work(caller)
        except RefusedError as error:
            if caller.waits:  # a status would wait behind the message
                drop_call()
                raise asyncio.CancelledError from None
            await context.abort(error.code, str(error), trailers(error, ""))

    return grpc.stream_stream_rpc_method_handler(run)


class _Caller:
    """The other end of a call, and whether a message waits for it to be read."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self.context = context
        self.peer = context.peer()
        self.waits = False

    async def write(self, message: Any) -> None:
        """Send a message; raises :class:`RefusedError` where the caller does not read."""
        self.waits = True
        try:
            await asyncio.wait_for(self.context.write(message.SerializeToString()), _LONGEST_WRITE_S)
        except asyncio.TimeoutError:
            raise RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, "the caller does not read", "DEADLINE") from None
        self.waits = False


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise bad_field("", f"the message is no {kind.DESCRIPTOR.full_name}", "MESSAGE") from None


def _too_old(seconds: float) -> RefusedError:
    message = f"the stream is older than {seconds:g} s; open another"
    return RefusedError(grpc.StatusCode.UNAVAILABLE, message, "AGE", retry_after_ms=_RETRY_MS)
