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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

from f2edge.backends.memory import give_back
from f2edge.server.engine_protocol import Served
from f2edge.server.health import Readiness
from f2edge.server.listener import GuardedServer, bind, options
from f2edge.server.metrics import Metrics
from f2edge.server.pictures import PicturePool
from f2edge.server.rpc import SERVICE, Calls
from f2edge.server.security import Certificates, TokenGate
from f2edge.server.service import FaceService
from f2edge.server.settings import ServerSettings
from f2edge.server.standard import HEALTH, PACED, StandardServices
from f2edge.server.supervisor import Supervisor
from f2edge.server.tokens import Tokens
from f2edge.traces import TracedMeter

if TYPE_CHECKING:
    from f2edge.http.listener import HttpListener

logger = logging.getLogger(__name__)

#: Beyond the grace period, for cut-off calls and the engine to end; and for a last status to reach its caller.
LAST_S, _FAREWELL_S = 5.0, 0.3
#: An event loop that has done nothing for so long hangs; it says that it lives so often.
_HANGS_S, _PULSE_S = 2.0, 0.2
#: Between two times that memory is given back, which takes a few milliseconds of a thread.
_TIDY_S = 5.0
#: What the port of health checks takes: bytes of a message, connections, streams of each.
_PROBE_BYTES, _PROBES, _PROBE_STREAMS = 1 << 10, 64, 16


class FaceServer:
    """One server: :meth:`start`, :meth:`use` an engine, :meth:`drain`.  All of it in one event loop.

    Args:
        settings: addresses, limits, times.
        unreachable: told, on a thread of its own, where the server has not answered its own calls for 5 s; by default only
            :attr:`readiness` gives up, which an event loop that hangs never hears of.
    """

    def __init__(self, settings: ServerSettings, unreachable: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.readiness = Readiness(settings.heartbeat_limit_s, settings.hang_exit_s, self.metrics)
        self.address = settings.target
        self.metrics_port: int | None = None
        self.health_address: str | None = None
        self.http_address: str | None = None
        tokens = None if settings.token_file is None else Tokens(settings.token_file)
        self._credentials = Certificates(settings).credentials if settings.tls else None
        self._pool = PicturePool(settings.decode_threads, settings.waiting_bytes)
        self._traced = TracedMeter(self.metrics) if settings.traces else None
        self._calls = Calls(self._traced or self.metrics, tokens, settings.deadline_s)
        self._service = FaceService(settings, self._pool, self.metrics)
        self._standard = StandardServices(self.readiness.state)
        self._gates = [] if tokens is None else [TokenGate(tokens, self.metrics.denied.inc)]
        self._http = self._http_listener(tokens) if settings.http_port is not None else None
        self._unreachable = unreachable
        self._server: GuardedServer | None = None
        self._probed: GuardedServer | None = None
        self._supervisor: Supervisor | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False
        self._pulse_at = time.monotonic()
        self._stop_metrics: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Bind and answer; health checks say NOT_SERVING.

        Raises:
            InputError: an address that cannot be bound.
        """
        self.readiness.set(False)
        self._server, self.address = self._listener(self.settings.target)
        if self.settings.health_target is not None:
            probed = StandardServices(self.readiness.state).health()
            self._probed = GuardedServer(probed, [], options(message_bytes=_PROBE_BYTES, connections=_PROBES, streams=_PROBE_STREAMS))
            self.health_address = bind(self._probed, self.settings.health_target, None)
            await self._probed.start()
        if self.settings.metrics_port is not None:
            self._stop_metrics, self.metrics_port = self.metrics.serve(self.settings.metrics_host, self.settings.metrics_port)
        if self._http is not None:
            self.http_address = await self._http.start()
        await self._server.start()
        self._tasks = [asyncio.create_task(self._keep_listening()), asyncio.create_task(self._calls.watch_tokens())]
        self._tasks += [asyncio.create_task(self._tidy()), asyncio.create_task(self._pulse())]
        self._supervise()
        where = {"address": self.address, "http": self.http_address, "metrics_port": self.metrics_port}
        logger.info("listening", extra={**where, "tls": self.settings.tls})

    async def use(self, served: Served) -> None:
        """Serve this engine; ready once it is warm."""
        self._service.served = served
        self.metrics.watch(served.facts, served.engine.stats, lambda: served.engine.heartbeat_age_ms)
        self._tasks.append(asyncio.create_task(self.readiness.watch(served.engine)))

    async def drain(self, lame_duck_s: float, grace_s: float) -> bool:
        """Finish what was accepted and stop; returns whether all of it was finished.  Takes ``LAST_S`` more than told at most."""
        assert self._server is not None
        self._draining = True
        for task in self._tasks:
            task.cancel()
        if self._supervisor is not None:
            self._supervisor.close()
        self.readiness.drain()
        await asyncio.sleep(lame_duck_s)
        self._calls.close()
        self._service.close()
        self._standard.close()
        if self._http is not None:
            self._http.close()
        started = time.monotonic()
        stopped = asyncio.ensure_future(self._server.stop(grace_s))  # takes no more connections; what is open goes on
        finished = await self._calls.ended(grace_s)
        await asyncio.wait({stopped}, timeout=_FAREWELL_S)  # the last statuses are on their way
        if self._http is not None:
            self._http.stop()
        await _within(LAST_S / 2, self._server.stop(0))  # what is left never became a call
        await self._calls.ended(_FAREWELL_S)  # gRPC does not wait for what it cuts off to clean up
        if self._service.served is not None:
            await _within(LAST_S / 2, asyncio.get_running_loop().run_in_executor(None, self._service.served.engine.close))
        self._pool.close()
        self._stop_metrics()
        if self._traced is not None:
            await _within(LAST_S / 2, asyncio.get_running_loop().run_in_executor(None, self._traced.close))
        if self._probed is not None:
            await _within(_FAREWELL_S, self._probed.stop(None))  # the last to go: a probe hears NOT_SERVING until the end
        if not finished:
            await asyncio.sleep(_FAREWELL_S)  # a loop that ends at once sends no status to the calls that were cut off
        logger.info("stopped", extra={"finished": finished, "seconds": round(time.monotonic() - started, 3)})
        return finished

    def _listener(self, target: str) -> tuple[GuardedServer, str]:
        """Return a listener that is bound, and its address."""
        handlers = {**self._calls.handlers(self._service), **self._standard.health()}
        if self.settings.reflection:
            handlers |= self._standard.reflection((SERVICE.full_name, HEALTH))
        limits = options(message_bytes=self.settings.message_bytes, connections=self.settings.connections)
        server = GuardedServer(handlers, self._gates, limits, PACED)
        return server, bind(server, target, self._credentials)

    def _http_listener(self, tokens: Tokens | None) -> HttpListener:
        from f2edge.http.app import Shared
        from f2edge.http.listener import HttpListener

        shared = Shared(self.settings, self._calls, self._service, self._pool, self.metrics, tokens, lambda: self.readiness.ready)
        return HttpListener(shared)

    async def _keep_listening(self) -> None:
        """Replace a listener that ends by itself."""
        while True:
            assert self._server is not None
            with contextlib.suppress(Exception):  # raises what ended it
                await self._server.wait_for_termination()
            if self._draining:
                return
            logger.error("the listener has ended; another takes its place", extra={"address": self.address})
            self.readiness.reached(False)
            await _within(_FAREWELL_S, self._server.stop(None))
            try:
                self._server, _ = self._listener(self.address)
                await self._server.start()
            except Exception:
                logger.exception("no other listener can take its place")
                self.readiness.given_up.set()
                return

    async def _tidy(self) -> None:
        """Give memory back that a burst of callers has left, until cancelled; gRPC frees a connection seconds after its end."""
        while True:
            await asyncio.sleep(_TIDY_S)
            await asyncio.get_running_loop().run_in_executor(None, give_back)

    async def _pulse(self) -> None:
        """Note that the event loop lives, until cancelled."""
        while True:
            self._pulse_at = time.monotonic()
            await asyncio.sleep(_PULSE_S)

    def _supervise(self) -> None:
        loop = asyncio.get_running_loop()

        def in_loop(work: Callable[..., None], *arguments: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(work, *arguments)

        def given_up() -> None:
            in_loop(self.readiness.given_up.set)
            self._unreachable()

        self._supervisor = Supervisor(
            self.address,
            tls=self.settings.tls,
            answered=lambda found: in_loop(self.readiness.reached, found),
            given_up=given_up,
            alive=lambda: self._server is not None and self._server.running and time.monotonic() - self._pulse_at < _HANGS_S,
        )
        self._supervisor.start()


async def _within(seconds: float, work: Awaitable[Any]) -> None:
    """Wait for work for so long, and leave it to itself then."""
    await asyncio.wait({asyncio.ensure_future(work)}, timeout=seconds)


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


async def serve(
    settings: ServerSettings,
    load: Callable[[], Served],
    stop: asyncio.Event,
    started: Callable[[FaceServer], None],
    unreachable: Callable[[], None] = lambda: None,
) -> int:
    """Run until ``stop`` is set; returns the process's exit code: 0, or 1 where the engine gave up.

    Args:
        settings: of the server.
        load: gives the engine; called on a thread, while the server says that it is not ready.
        stop: set by a signal.
        started: told when the server listens.
        unreachable: as of :class:`FaceServer`.

    Raises:
        InputError: an address, certificate or token file that cannot be used.
        F2EdgeError: what ``load`` raises.
    """
    server = FaceServer(settings, unreachable)
    await server.start()
    started(server)
    loading: asyncio.Future[Any] = in_thread(load)
    stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    given_up: asyncio.Future[Any] = asyncio.ensure_future(server.readiness.given_up.wait())
    try:
        await asyncio.wait([stopping, loading, given_up], return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and not given_up.done():
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
        except Exception as raised:  # noqa: BLE001  handed to the waiting task
            error = raised
        with contextlib.suppress(RuntimeError):  # the waiting task is gone
            loop.call_soon_threadsafe(tell, result, error)

    Thread(target=run, name="f2edge-loading", daemon=True).start()
    return future
