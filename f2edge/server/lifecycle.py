"""A server from its first to its last second.

Start: bind, answer health checks with NOT_SERVING, load and warm the model, then SERVING.  End, on the first signal: NOT_SERVING; a
lame-duck second in which work is still taken, so that balancers can turn away; then no new work, and what was accepted is finished
within the grace period; the engine stops, the process ends with 0.  A second signal ends it at once.

>>> async with running(ServerSettings(port=0), served) as server:                           # doctest: +SKIP
...     print(server.address)
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from f2edge.errors import InputError
from f2edge.server.engine_protocol import Served
from f2edge.server.health import Readiness
from f2edge.server.metrics import Metrics
from f2edge.server.pictures import PicturePool
from f2edge.server.rpc import SERVICE, Calls
from f2edge.server.security import Certificates, TokenGate
from f2edge.server.service import FaceService
from f2edge.server.settings import ServerSettings
from f2edge.server.tokens import Tokens

logger = logging.getLogger(__name__)

_KEEPALIVE_MS = 20_000
_SHORTEST_PING_MS = 10_000
#: Beyond the grace period, for cut-off calls to clean up.
_LAST_S = 5.0


class FaceServer:
    """One server: :meth:`start`, :meth:`use` an engine, :meth:`drain`.  All of it in one event loop."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.readiness = Readiness(settings.heartbeat_limit_s, settings.hang_exit_s, self.metrics)
        self.address = settings.target
        self.metrics_port: int | None = None
        self.health_address: str | None = None
        tokens = None if settings.token_file is None else Tokens(settings.token_file)
        self._credentials = Certificates(settings).credentials if settings.tls else None
        self._pool = PicturePool(settings.decode_threads, settings.waiting_bytes)
        self._calls = Calls(self.metrics, tokens, settings.deadline_s)
        self._service = FaceService(settings, self._pool, self.metrics)
        self._gates = [] if tokens is None else [TokenGate(tokens, self.metrics.denied.inc)]
        self._server: grpc.aio.Server | None = None
        self._probed: grpc.aio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        self._stop_metrics: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Bind and answer; health checks say NOT_SERVING.

        Raises:
            InputError: an address that cannot be bound.
        """
        await self.readiness.set(False)
        self._server = grpc.aio.server(interceptors=self._gates, options=_options(self.settings))
        self._server.add_generic_rpc_handlers((self._calls.handler(self._service),))
        health_pb2_grpc.add_HealthServicer_to_server(self.readiness.servicer, self._server)
        if self.settings.reflection:
            names = (SERVICE.full_name, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self.address = _bind(self._server, self.settings.target, self._credentials)
        if self.settings.health_target is not None:
            self._probed = grpc.aio.server(options=_options(self.settings))
            health_pb2_grpc.add_HealthServicer_to_server(self.readiness.servicer, self._probed)
            self.health_address = _bind(self._probed, self.settings.health_target, None)
            await self._probed.start()
        if self.settings.metrics_port is not None:
            self._stop_metrics, self.metrics_port = self.metrics.serve(self.settings.metrics_host, self.settings.metrics_port)
        await self._server.start()
        logger.info("listening", extra={"address": self.address, "tls": self.settings.tls, "metrics_port": self.metrics_port})

    async def use(self, served: Served) -> None:
        """Serve this engine; ready once it is warm."""
        self._service.served = served
        self.metrics.watch(served.facts, served.engine.stats, lambda: served.engine.heartbeat_age_ms)
        self._watch = asyncio.create_task(self.readiness.watch(served.engine))

    async def drain(self, lame_duck_s: float, grace_s: float) -> bool:
        """Finish what was accepted and stop; returns whether all of it was finished."""
        assert self._server is not None
        if self._watch is not None:
            self._watch.cancel()
        await self.readiness.drain()
        await asyncio.sleep(lame_duck_s)
        self._calls.close()
        self._service.close()
        started = time.monotonic()
        stopped = asyncio.create_task(self._server.stop(grace_s))  # takes no more connections; what is open goes on
        finished = await self._calls.ended(grace_s)
        await stopped
        await self._calls.ended(_LAST_S)  # gRPC does not wait for what it cuts off to clean up
        if self._service.served is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._service.served.engine.close)
        self._pool.close()
        self._stop_metrics()
        if self._probed is not None:
            await self._probed.stop(None)  # the last to go: a probe hears NOT_SERVING until the end
        logger.info("stopped", extra={"finished": finished, "seconds": round(time.monotonic() - started, 3)})
        return finished


@asynccontextmanager
async def running(settings: ServerSettings, served: Served) -> AsyncIterator[FaceServer]:
    """A server for the length of a block, in the caller's event loop; the engine is closed with it."""
    server = FaceServer(settings)
    await server.start()
    await server.use(served)
    try:
        yield server
    finally:
        await server.drain(0.0, 0.0)


async def serve(settings: ServerSettings, load: Callable[[], Served], stop: asyncio.Event, started: Callable[[FaceServer], None]) -> int:
    """Run until ``stop`` is set; returns the process's exit code: 0, or 1 where the engine gave up.

    Args:
        settings: of the server.
        load: gives the engine; called on a thread, while the server says that it is not ready.
        stop: set by a signal.
        started: told when the server listens.

    Raises:
        InputError: an address, certificate or token file that cannot be used.
        F2EdgeError: what ``load`` raises.
    """
    server = FaceServer(settings)
    await server.start()
    started(server)
    loading: asyncio.Future[Any] = in_thread(load)
    stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    given_up: asyncio.Future[Any] = asyncio.ensure_future(server.readiness.given_up.wait())
    try:
        await asyncio.wait([stopping, loading], return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            await server.use(loading.result())
            await asyncio.wait([stopping, given_up], return_when=asyncio.FIRST_COMPLETED)
    finally:
        if given_up.done():
            faulthandler.dump_traceback()
        in_use = loading.done() and loading.exception() is None and not given_up.done()
        await server.drain(settings.lame_duck_s if in_use else 0.0, settings.grace_s if in_use else 0.0)
        stopping.cancel()
        given_up.cancel()
    return 1 if given_up.done() and not given_up.cancelled() else 0


def in_thread(work: Callable[[], Served]) -> asyncio.Future[Served]:
    """The result of work on a thread that the process does not wait for when it ends, unlike an executor's."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Served] = loop.create_future()

    def tell(result: Served | None, error: Exception | None) -> None:
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001  handed to whoever waits
            error = raised
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(tell, result, error)

    Thread(target=run, name="f2edge-loading", daemon=True).start()
    return future


def _bind(server: grpc.aio.Server, target: str, credentials: grpc.ServerCredentials | None) -> str:
    """The address that was bound, with the port where a free one was asked for."""
    try:
        port = server.add_secure_port(target, credentials) if credentials else server.add_insecure_port(target)
    except RuntimeError as error:
        raise InputError(f"{target}: cannot be bound; it is in use, or not an address of this machine") from error
    return target if target.startswith("unix:") else f"{target.rpartition(':')[0]}:{port}"


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # a second server on a port is an error and not a lottery
        ("grpc.max_receive_message_length", settings.message_bytes),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _SHORTEST_PING_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _SHORTEST_PING_MS),
    ]
