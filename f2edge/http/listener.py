"""The listening socket: HTTP/1.1 by uvicorn's protocol, with bounds of number and time for connections, and TLS that is renewed.

uvicorn's own server is not used: it takes over signals, waits a minute for TLS handshakes, and lets a connection wait for ever that has
never sent a whole head.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from f2edge.errors import InputError
from f2edge.http.app import App, Shared
from f2edge.server.security import Certificates
from f2edge.server.settings import ServerSettings

logger = logging.getLogger(__name__)

# It logs what clients send; what fails in the application is logged there.
logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)

_HEAD_BYTES = 16 << 10
_HANDSHAKE_S = 5.0
#: Connections without a request in progress are looked at so often; one with nothing new since the look before is closed.
_LOOK_S = 10.0
_KEEP_ALIVE_S = 30
_RENEW_S = 1.0


class _Connection(H11Protocol):
    """One connection: of those that are too many, or stand still, none stays."""

    def __init__(self, config: Config, state: ServerState, most: int) -> None:
        super().__init__(config, state, {})
        self._most = most
        self._timer: asyncio.TimerHandle | None = None
        self._seen: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.abort()
            return
        # asyncio does this for sockets whose protocol it knows; without it every small answer waits 40 ms for an acknowledgement
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._timer = self.loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        state = (id(self.cycle), self.transport.get_write_buffer_size()) if idle else None
        if state is not None and state == self._seen:
            self.transport.abort()
            return
        self._seen = state
        self._look_later()


class HttpListener:
    """HTTP beside gRPC, in the same event loop.

    Args:
        shared: what both share.
    """

    def __init__(self, shared: Shared) -> None:
        self._settings = shared.settings
        self._app = App(shared)
        self._tls = _Tls(shared.settings) if shared.settings.tls else None
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._renewal: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Bind and return the address as a URL.

        Raises:
            InputError: the address cannot be bound.
        """
        host, port = self._settings.http_host.strip("[]"), self._settings.http_port
        assert port is not None
        self._bound = bind(host, port)
        config = Config(
            self._app, http="h11", ws="none", lifespan="off", interface="asgi3", log_config=None, access_log=False, proxy_headers=False,
            server_header=False, date_header=False, timeout_keep_alive=_KEEP_ALIVE_S, h11_max_incomplete_event_size=_HEAD_BYTES,
        )  # fmt: skip
        config.load()
        self._config = config
        await self._listen()
        if self._tls is not None:
            self._renewal = asyncio.create_task(self._tls.renew(self._listen))
        shown = f"[{host}]" if ":" in host else host
        return f"{'http' if self._tls is None else 'https'}://{shown}:{self._bound.getsockname()[1]}"

    async def _listen(self) -> None:
        """Accept connections with the current certificates; an earlier listener on the same socket stops, its connections go on."""
        before = self._server
        secure: dict[str, Any] = {} if self._tls is None else {"ssl": self._tls.context, "ssl_handshake_timeout": _HANDSHAKE_S}
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self._config, self._state, self._settings.connections), sock=self._bound.dup(), backlog=128, **secure
        )
        if before is not None:
            before.close()

    def close(self) -> None:
        """Take no more connections; those without a request in progress are closed, the others after their response."""
        if self._server is None:
            return
        self._server.close()
        self._bound.close()
        if self._renewal is not None:
            self._renewal.cancel()
        for connection in list(self._state.connections):
            with contextlib.suppress(Exception):  # one that has just gone
                connection.shutdown()

    def stop(self) -> None:
        """Cut off what is left."""
        for connection in list(self._state.connections):
            connection.transport.abort()


class _Tls:
    """The server's side of TLS, with the files that gRPC uses, looked at once a second.

    Raises:
        InputError: as of :class:`~f2edge.server.security.Certificates`, or files that do not belong together.
    """

    def __init__(self, settings: ServerSettings) -> None:
        assert settings.tls_cert is not None
        assert settings.tls_key is not None
        Certificates(settings)  # its checks and its messages
        self._files = (settings.tls_cert, settings.tls_key)
        self._authority = settings.client_ca
        self._stamps = self._look()
        self.context = self._read()

    async def renew(self, listen: Callable[[], Awaitable[None]]) -> None:
        """Take renewed files into use for new connections, until cancelled; ``listen`` accepts them with the new :attr:`context`."""
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                stamps = self._look()
                if stamps == self._stamps:
                    continue
                self.context = self._read()  # the files belong together, or what is in use stays
                await listen()
                self._stamps = stamps
            except (InputError, OSError):  # half written, perhaps
                logger.exception("the certificates cannot be used any more; those in use stay")
                continue
            logger.info("certificates read again for HTTP")

    def _look(self) -> tuple[tuple[int, int], ...]:
        files = [file for file in (*self._files, self._authority) if file is not None]
        return tuple((seen.st_mtime_ns, seen.st_ino) for seen in (file.stat() for file in files))

    def _read(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        _load(context, *self._files)
        if self._authority is not None:
            try:
                context.load_verify_locations(self._authority)
            except ssl.SSLError as error:
                raise InputError(f"{self._authority}: holds no certificate of an authority; give a PEM file") from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise InputError(f"{certificate}: cannot be used; check that the key belongs to the certificate and has no password") from error


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; raises :class:`InputError` where that cannot be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        message = f"--http {host}:{port}: cannot be bound ({error.strerror}); it is in use, or not an address of this machine"
        raise InputError(message) from error
