"""Servers that mean their clients ill: mute, garbled, endless, lying.  Each answers every connection in its own way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from bench.load.wire.http2 import ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, SETTINGS, Header, block, frame, grpc_message

ESCAPE = b"\x1b]0;owned\x07\x1b[2J\r\nforged line"
_GREETING = frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)
_OPENING: tuple[Header, ...] = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_CHUNK = 1 << 16

#: Bytes to send, piece after piece, once a call has come; an endless iterator sends until the client leaves.
Script = Callable[[], Iterator[bytes]]


def _headers(*extra: Header, flags: int = 0) -> bytes:
    return frame(HEADERS, END_HEADERS | flags, 1, block((*_OPENING, *extra)))


def _mute() -> Iterator[bytes]:
    return iter(())


def _garbage() -> Iterator[bytes]:
    yield bytes(range(256)) * 10


def _goaway() -> Iterator[bytes]:
    yield frame(GOAWAY, 0, 0, bytes(4) + (11).to_bytes(4, "big") + ESCAPE)


def _status_of_bytes() -> Iterator[bytes]:
    details = b"".join(b"%%%02X" % byte for byte in ESCAPE + b"\xff\xfe")
    yield _headers((b"grpc-status", b"3"), (b"grpc-message", details), (b"grpc-status-details-bin", b"////"), flags=END_STREAM)


def _unknown_status() -> Iterator[bytes]:
    yield _headers((b"grpc-status", b"99999999999999999999"), (b"grpc-message", ESCAPE.replace(b"\r\n", b"")), flags=END_STREAM)


def _long_headers() -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1, block(_OPENING))
    while True:
        yield frame(9, 0, 1, block([(b"x-more", b"y" * 8000)]))


def _lying_length() -> Iterator[bytes]:
    yield _headers() + frame(DATA, 0, 1, grpc_message(b"x", length=0xFFFFFFFF))


def _wrong_message() -> Iterator[bytes]:
    yield _headers() + frame(DATA, 0, 1, grpc_message(b"\xff" * 100))
    yield frame(HEADERS, END_HEADERS | END_STREAM, 1, block([(b"grpc-status", b"0")]))


def _endless() -> Iterator[bytes]:
    yield _headers()
    while True:
        yield frame(DATA, 0, 1, grpc_message(b"")) * 100


def _no_result() -> Iterator[bytes]:
    yield _headers()
    yield frame(HEADERS, END_HEADERS | END_STREAM, 1, block([(b"grpc-status", b"0")]))


SERVERS: Mapping[str, Script] = {
    "says nothing": _mute,
    "sends garbage": _garbage,
    "says goodbye with escape sequences": _goaway,
    "fails with escape sequences and broken details": _status_of_bytes,
    "fails with an unknown status": _unknown_status,
    "sends headers without end": _long_headers,
    "promises four gigabytes": _lying_length,
    "answers with another message": _wrong_message,
    "answers without end": _endless,
    "ends without a result": _no_result,
}


@contextmanager
def hostile(script: Script) -> Iterator[str]:
    """Run a hostile server on 127.0.0.1; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        end = threading.Event()
        threads: list[threading.Thread] = []

        def accept() -> None:
            while not end.is_set():
                try:
                    raw, _ = listener.accept()
                except TimeoutError:
                    continue
                threads.append(threading.Thread(target=_serve, args=(raw, script, end), daemon=True))
                threads[-1].start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            end.set()
            for thread in (accepting, *threads):
                thread.join(5)


def _serve(raw: socket.socket, script: Script, end: threading.Event) -> None:
    with raw:
        raw.settimeout(0.2)
        try:
            if script not in (_mute, _garbage):
                raw.sendall(_GREETING)
                if not _called(raw, end):
                    return
            for piece in script():
                if end.is_set():
                    return
                raw.sendall(piece)
            while not end.is_set() and _still_there(raw):
                pass
        except OSError:
            return


def _called(raw: socket.socket, end: threading.Event) -> bool:
    """Wait for the headers of a call; False where the client leaves before."""
    received = b""
    while not end.is_set():
        rest = received.removeprefix(PREFACE)
        while len(rest) >= 9 and len(rest) >= 9 + (length := int.from_bytes(rest[:3], "big")):
            if rest[3] == HEADERS:
                return True
            rest = rest[9 + length :]
        try:
            data = raw.recv(_CHUNK)
        except TimeoutError:
            continue
        if not data:
            return False
        received += data
    return False


def _still_there(raw: socket.socket) -> bool:
    try:
        return bool(raw.recv(_CHUNK))
    except TimeoutError:
        return True
