"""gRPC's asyncio server, made to survive what anybody may send it, and the limits that it is run with.

grpc.aio decodes the ``:path`` of every call in its accept loop and ends for good where the bytes are no UTF-8: one request, without a
token, and no request is served again.  Here every method is registered with gRPC's core, which compares bytes; loops of our own take the
calls, and the one for all other names never looks at the name.

A batch of operations (read a message, send a status) holds memory of gRPC's core, which grpc.aio frees when the batch has ended.  Where
the task that waits for it is cancelled, as it is when the caller hangs up, nobody frees it: 80 bytes for every such call, the message if
one arrives meanwhile, and a heap in pieces (grpcio 1.85, ``execute_batch`` in ``callback_common.pyx.pxi``).  Here batches run to their
end whatever becomes of who waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import signature
from typing import Any

import grpc
from grpc._cython import cygrpc
from grpc.aio._server import Server

from f2edge.errors import BackendError, InputError

logger = logging.getLogger(__name__)

# It logs every header that is no UTF-8, whole and with a traceback, to stderr where it is not configured; what fails in a handler is
# logged by this package.
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL + 1)

_execute = cygrpc.execute_batch

Handlers = Mapping[str, Mapping[str, grpc.RpcMethodHandler]]

_KEEPALIVE_MS = 20_000
_SHORTEST_PING_MS = 10_000
#: For TLS, the HTTP/2 preface and the acknowledgement of our settings.
_HANDSHAKE_MS = 5_000
#: Without a call; a client's next call opens a connection anew.
_IDLE_MS = 300_000
_AFTER_FAILURE_S = 0.05
#: Between two calls of a paced method.
_PACE_S = 0.002
_METADATA_BYTES = 16 << 10
_STREAMS_OF_CONNECTION = 128


#: What the guard takes from gRPC.
_NEEDED = ("_make_request_call_future", "_request_call", "_request_registered_call", "add_registered_method_handlers")


async def _execute_to_the_end(call: Any, operations: tuple[Any, ...], loop: asyncio.AbstractEventLoop) -> None:
    batch = loop.create_task(_execute(call, operations, loop))
    batch.add_done_callback(_hear)
    await asyncio.shield(batch)


def _hear(batch: asyncio.Task[None]) -> None:
    """Retrieve a failure that nobody waits for any more."""
    if not batch.cancelled():
        batch.exception()


class _Handlers:
    """A resolver of methods, as gRPC's loop wants one."""

    def __init__(self, handlers: Handlers) -> None:
        self._table = {f"/{service}/{method}": handler for service, methods in handlers.items() for method, handler in methods.items()}

    def resolve_handler(self, details: Any) -> grpc.RpcMethodHandler | None:
        return self._table.get(details.method)


@dataclass(eq=False)
class _Accepted:
    """The task behind one call; gRPC's core gives the call up when the task is gone."""

    task: asyncio.Task[None] | None = None


_accepted: ContextVar[_Accepted] = ContextVar("f2edge_accepted_call")


def drop_call() -> None:
    """Reset the stream of the call whose handler this is.

    For a caller who does not read: a status would wait behind what is written already, for as long as the caller likes.
    """
    accepted = _accepted.get(None)
    if accepted is not None and accepted.task is not None:
        accepted.task.cancel()


class _Core(cygrpc.AioServer):  # type: ignore[misc]  # gRPC is not typed
    """The accept loops: one for each method, and one for the calls of all other names, which it answers with UNIMPLEMENTED, unread."""

    def guard(self, handlers: Handlers, interceptors: tuple[Any, ...], paced: frozenset[str]) -> None:
        """Set what is served, before the start."""
        self._handlers, self._gates, self._paced = _Handlers(handlers), interceptors, paced | {""}

    def _make_request_call_future(self, method: bytes | None) -> Any:
        """GRPC's own loop asks for its next call here, and waits until the server ends."""
        return asyncio.get_running_loop().create_task(self._accept(method))

    async def _accept(self, method: bytes | None) -> None:
        loop, name, tasks = asyncio.get_running_loop(), "" if method is None else method.decode(), set()
        while True:
            try:
                state = await (self._request_call() if method is None else self._request_registered_call(method))
            except Exception:
                if not self.is_running():
                    raise
                logger.exception("a call could not be accepted")
                await asyncio.sleep(_AFTER_FAILURE_S)
                continue
            accepted = _Accepted()
            _accepted.set(accepted)
            work = cygrpc._handle_rpc(name, self._handlers, self._gates, state, loop, False)  # noqa: SLF001  gRPC has no other way
            accepted.task = loop.create_task(cygrpc._schedule_rpc_coro(work, state, loop, name))  # noqa: SLF001
            tasks.add(accepted.task)
            accepted.task.add_done_callback(tasks.discard)
            del state, work
            if name in self._paced:
                await asyncio.sleep(_PACE_S)


class GuardedServer(Server):  # type: ignore[misc]  # gRPC is not typed
    """A ``grpc.aio.Server`` of fixed methods.

    Args:
        handlers: by service and method; no other method can be called.
        interceptors: as of ``grpc.aio.server``; they see calls of unknown methods too, under the name "".
        options: of the server.
        paced: methods ("/service/method") of which a flood may wait, so that it keeps no other method waiting.

    Raises:
        BackendError: a gRPC whose accept loop is built otherwise.
    """

    def __init__(
        self,
        handlers: Handlers,
        interceptors: Sequence[Any],
        options: Sequence[tuple[str, Any]],
        paced: frozenset[str] = frozenset(),
    ) -> None:
        if not all(hasattr(cygrpc.AioServer, name) for name in _NEEDED):
            raise BackendError(f"grpcio {grpc.__version__}: its accept loop cannot be guarded; install the version of constraints.txt")
        cygrpc.execute_batch = _execute_to_the_end
        self._loop = cygrpc.get_working_loop()
        newer = (False,) if "xds" in signature(Server.__init__).parameters else ()
        self._server = _Core(self._loop, None, (), interceptors, tuple(options), None, *newer)
        self._server.guard(handlers, tuple(interceptors), paced)
        for service, methods in handlers.items():
            self.add_registered_method_handlers(service, dict(methods))

    @property
    def running(self) -> bool:
        """Whether the accept loop goes on."""
        return bool(self._server.is_running())


def bind(server: GuardedServer, target: str, credentials: grpc.ServerCredentials | None) -> str:
    """Bind and return the address, with the port where a free one was asked for.

    Raises:
        InputError: the address is in use, or not of this machine.
    """
    if target.startswith("unix:") and _is_live(target.removeprefix("unix:")):
        raise InputError(f"{target}: another server answers there; stop it or choose another path")
    try:
        port = server.add_secure_port(target, credentials) if credentials else server.add_insecure_port(target)
    except RuntimeError as error:
        raise InputError(f"{target}: cannot be bound; it is in use, or not an address of this machine") from error
    return target if target.startswith("unix:") else f"{target.rpartition(':')[0]}:{port}"


def _is_live(path: str) -> bool:
    """Return whether a server accepts connections at a socket's path; gRPC would replace the socket and take its clients."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path.removeprefix("//"))
        except (TimeoutError, BlockingIOError):  # a full backlog: somebody listens
            return True
        except OSError:
            return False
        return True


def options(*, message_bytes: int, connections: int, streams: int = _STREAMS_OF_CONNECTION) -> list[tuple[str, int]]:
    """Return gRPC's options: what a connection may hold, and for how long."""
    return [
        ("grpc.so_reuseport", 0),  # a second server on a port is an error and not a lottery
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_concurrent_streams", streams),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.http2.settings_timeout", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS // 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _SHORTEST_PING_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _SHORTEST_PING_MS),
    ]
