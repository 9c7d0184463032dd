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
_MOST_WATCHERS, _MOST_OF_CONNECTION = 64, 8
_LONGEST_WATCH_S, _LONGEST_REFLECTION_S, _LONGEST_WRITE_S = 3600.0, 60.0, 10.0
_RETRY_MS = 1000.0

Status = health_pb2.HealthCheckResponse.ServingStatus


class HealthState:
    """What health checks say, by the name of the service."""

    def __init__(self) -> None:
        self._status: dict[str, Status] = {}
        self._changed: set[asyncio.Event] = set()

    def set(self, name: str, status: Status) -> None:
        """Change one; those who watch are woken."""
        self._status[name] = status
        for event in self._changed:
            event.set()

    def get(self, name: str) -> Status | None:
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
        self._tasks.add(task)  # type: ignore[arg-type]
        try:
            await asyncio.wait({task}, timeout=longest_s)
            if task.done() and not task.cancelled():
                return task.result()
            raise draining() if self._closed else _too_old(longest_s)
        finally:
            task.cancel()
            self._tasks.discard(task)  # type: ignore[arg-type]
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

    def health(self) -> Handlers:
        """Return the handlers of ``grpc.health.v1``."""
        return {HEALTH: {"Check": _handler(self._check), "Watch": _handler(self._watch)}}

    def reflection(self, names: Sequence[str]) -> Handlers:
        """Return the handlers of reflection over these services."""
        servicer = reflection.aio.ReflectionServicer((*names, reflection.SERVICE_NAME))

        async def info(context: grpc.aio.ServicerContext) -> None:
            async def work() -> None:
                async for answer in servicer.ServerReflectionInfo(self._reflection_requests(context), context):
                    await _write(context, answer)

            await self._reflections.run(context.peer(), work, _LONGEST_REFLECTION_S)

        return {reflection.SERVICE_NAME: {"ServerReflectionInfo": _handler(info)}}

    def close(self) -> None:
        """End every stream and every request that has not arrived."""
        self._watchers.close()
        self._reflections.close()
        self._uploads.close()

    async def _check(self, context: grpc.aio.ServicerContext) -> None:
        status = self._state.get(await self._service(context))
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        await _write(context, health_pb2.HealthCheckResponse(status=status))

    async def _watch(self, context: grpc.aio.ServicerContext) -> None:
        name = await self._service(context)

        async def work() -> None:
            last = None
            with self._state.changes() as changed:
                while True:
                    changed.clear()
                    status = self._state.get(name)
                    status = Status.SERVICE_UNKNOWN if status is None else status
                    if status != last:
                        await _write(context, health_pb2.HealthCheckResponse(status=status))
                        last = status
                    await changed.wait()

        await self._watchers.run(context.peer(), work, _LONGEST_WATCH_S)

    async def _service(self, context: grpc.aio.ServicerContext) -> str:
        return str(_parsed(health_pb2.HealthCheckRequest, await self._uploads.read(context)).service)

    async def _reflection_requests(self, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        while (data := await context.read()) is not grpc.aio.EOF:
            yield _parsed(reflection_pb2.ServerReflectionRequest, data)


def _handler(work: Callable[[grpc.aio.ServicerContext], Awaitable[None]]) -> grpc.RpcMethodHandler:
    async def run(_messages: Any, context: grpc.aio.ServicerContext) -> None:
        try:
            await work(context)
        except RefusedError as error:
            await context.abort(error.code, str(error), trailers(error, ""))

    return grpc.stream_stream_rpc_method_handler(run)


async def _write(context: grpc.aio.ServicerContext, message: Any) -> None:
    try:
        await asyncio.wait_for(context.write(message.SerializeToString()), _LONGEST_WRITE_S)
    except asyncio.TimeoutError:
        drop_call()
        raise asyncio.CancelledError from None


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise bad_field("", f"the message is no {kind.DESCRIPTOR.full_name}", "MESSAGE") from None


def _too_old(seconds: float) -> RefusedError:
    return RefusedError(grpc.StatusCode.UNAVAILABLE, f"the stream is older than {seconds:g} s; open another", "AGE", retry_after_ms=_RETRY_MS)
