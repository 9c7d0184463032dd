"""A thread that calls the server as a client would, over the real port, and says whether it answers.

It shares nothing with what it watches: no event loop, no gRPC.  A health check is written to a socket of its own as HTTP/2 by hand, in TLS
where the server speaks it.  Where clients must show a certificate, which the supervisor does not have, an answered handshake counts.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable
from threading import Event, Thread

logger = logging.getLogger(__name__)

_EVERY_S = 0.5
_TIMEOUT_S = 1.0
#: Without an answer for so long, and at least so often, the server is given up; with the wait for the last of them it is below 5 s.  One
#: that is alive and slow, as on a machine that is overloaded, has more time.
_PATIENCE_S, _PATIENCE_WITH_LIFE_S, _FEWEST_FAILURES = 2.5, 30.0, 3
_OUR_OWN_WANT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0, 1, 4, 7
_PATH = b"/grpc.health.v1.Health/Check"


class Supervisor:
    """Watches one address until it is closed.

    Args:
        target: the address as gRPC writes it: "host:port" or "unix:/path".
        tls: whether the server speaks TLS.
        answered: told after every look whether the server answered; called from the supervisor's thread.
        given_up: told once where it has not answered for three looks, which is below 5 s.
        alive: whether the server shows life in another way; one that does is given up after 30 s.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: bool,
        answered: Callable[[bool], None],
        given_up: Callable[[], None],
        alive: Callable[[], bool] = lambda: False,
    ) -> None:
        self._target = target
        self._tls = tls
        self._answered = answered
        self._given_up = given_up
        self._alive = alive
        self._end = Event()
        self._thread = Thread(target=self._run, name="f2edge-supervisor", daemon=True)

    def start(self) -> None:
        """Begin to look, twice a second."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._end.set()

    def _run(self) -> None:
        failures, last = 0, time.monotonic()
        while not self._end.wait(_EVERY_S):
            found = answers(self._target, tls=self._tls)
            if self._end.is_set():
                return
            failures = 0 if found else failures + 1
            last = time.monotonic() if found else last
            self._answered(found)
            patience_s = _PATIENCE_WITH_LIFE_S if self._alive() else _PATIENCE_S
            if failures >= _FEWEST_FAILURES and time.monotonic() - last >= patience_s:
                logger.error("the server does not answer its own calls", extra={"address": self._target, "looks": failures})
                self._given_up()
                return


def answers(target: str, *, tls: bool, timeout_s: float = _TIMEOUT_S) -> bool:
    """Return whether a health check over a connection of its own is answered, whatever the answer says."""
    try:
        with _connect(target, timeout_s) as raw:
            if not tls:
                return _asked(raw)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it calls itself and sends no secret
            context.set_alpn_protocols(["h2"])
            with context.wrap_socket(raw) as wrapped:
                try:
                    return _asked(wrapped)
                except ssl.SSLError as error:
                    return "ALERT" in (error.reason or "")  # a certificate is wanted of us: the listener is well
    except OSError as error:
        if error.errno in _OUR_OWN_WANT:
            logger.warning("no socket for a look at the server", extra={"error": error.strerror})
            return True  # says nothing about the listener
        return False


def _connect(target: str, timeout_s: float) -> socket.socket:
    if target.startswith("unix:"):
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(timeout_s)
        raw.connect(target.removeprefix("unix:").removeprefix("//"))
        return raw
    host, _, port = target.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}.get(host.strip("[]"), host.strip("[]"))  # noqa: S104
    return socket.create_connection((host, int(port)), timeout_s)


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _asked(connection: socket.socket) -> bool:
    """Send a health check and wait for anything on its stream."""
    headers = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", _PATH), (b":authority", b"supervisor"), (b"te", b"trailers"))
    block = b"".join(_literal(*header) for header in (*headers, (b"content-type", b"application/grpc")))
    connection.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b"") + _frame(_SETTINGS, 1, 0, b"")
        + _frame(_HEADERS, 4, 1, block) + _frame(_DATA, 1, 1, bytes(5))
    )  # fmt: skip
    received, until = b"", time.monotonic() + _TIMEOUT_S
    while time.monotonic() < until:
        data = connection.recv(1 << 14)
        if not data:
            return not received  # taken and closed at once: as many connections are open as may be
        received += data
        while len(received) >= 9 and len(received) >= 9 + (length := int.from_bytes(received[:3], "big")):
            kind, stream = received[3], int.from_bytes(received[5:9], "big")
            if stream == 1 and kind in (_DATA, _HEADERS):
                return True
            if kind == _GOAWAY:
                return False
            received = received[9 + length :]
    return False
