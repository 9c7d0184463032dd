"""HTTP/2 by hand: frames and headers as bytes, so that an attacker can send what no client library would.

Headers are written as literals without indexing and without Huffman coding (RFC 7541, section 6.2.2), so any byte can be in them.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
#: Identifier of a setting: SETTINGS_INITIAL_WINDOW_SIZE.
INITIAL_WINDOW = 4

Header = tuple[bytes, bytes]


def frame(kind: int, flags: int, stream: int, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a frame; ``length`` lies about the size of its body."""
    size = len(body) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def integer(value: int, prefix_bits: int) -> bytes:
    """Return an HPACK integer whose first byte has no other bits set."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([value])
    value -= most
    rest = b""
    while value >= 128:
        rest += bytes([value % 128 + 128])
        value //= 128
    return bytes([most]) + rest + bytes([value])


def literal(name: bytes, value: bytes) -> bytes:
    """Return one header as a literal that enters no table."""
    return b"\x00" + integer(len(name), 7) + name + integer(len(value), 7) + value


def block(headers: Sequence[Header]) -> bytes:
    """Return a header block."""
    return b"".join(literal(name, value) for name, value in headers)


def request_headers(path: bytes, extra: Sequence[Header] = (), *, scheme: bytes = b"http", authority: bytes = b"localhost") -> list[Header]:
    """Return the headers of a gRPC call to ``path``."""
    return [
        (b":method", b"POST"),
        (b":scheme", scheme),
        (b":path", path),
        (b":authority", authority),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *extra,
    ]


def grpc_message(body: bytes, *, length: int | None = None, compressed: bool = False) -> bytes:
    """Return a message behind its five bytes; ``length`` promises more than ``body`` holds."""
    return struct.pack(">BI", compressed, len(body) if length is None else length) + body


class Connection:
    """A client's side of a connection over a raw socket; use it in a ``with`` block.

    Args:
        address: "host:port" of the server.
        tls: context of a TLS client, None for plaintext.
        settings: pairs of identifier and value to send at the start.
        hello: False sends nothing at all.
        receive_bytes: of the kernel's receive buffer; small for a peer that never reads.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: ssl.SSLContext | None = None,
        settings: Sequence[tuple[int, int]] = (),
        hello: bool = True,
        receive_bytes: int | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        host, _, port = address.rpartition(":")
        raw = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.settimeout(timeout_s)
        try:
            raw.connect((host.strip("[]"), int(port)))
            self.socket = tls.wrap_socket(raw, server_hostname="localhost") if tls else raw
            self._scheme = b"https" if tls else b"http"
            self._next = 1
            self._received = b""
            if hello:
                self.send(PREFACE + frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in settings)))
        except BaseException:
            raw.close()
            raise

    def __enter__(self) -> Connection:  # noqa: PYI034  Self is younger than Python 3.10
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket without a farewell."""
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def call(self, path: bytes, messages: bytes = b"", extra: Sequence[Header] = (), *, end: bool = True) -> int:
        """Start a call and return its stream's number.

        Args:
            path: of the method, any bytes.
            messages: body of the call, as much of it as shall be sent.
            extra: headers beside the usual ones.
            end: close the caller's side; False leaves the call half open.
        """
        stream, self._next = self._next, self._next + 2
        data = frame(HEADERS, END_HEADERS, stream, block(request_headers(path, extra, scheme=self._scheme)))
        pieces = [messages[at : at + 16384] for at in range(0, len(messages), 16384)]
        data += b"".join(frame(DATA, 0, stream, piece) for piece in pieces)
        if end:
            data += frame(DATA, END_STREAM, stream)
        self.send(data)
        return stream

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield what comes: kind, flags, stream, body; ends with the connection, raises TimeoutError where nothing comes."""
        while True:
            while len(self._received) >= 9:
                length = int.from_bytes(self._received[:3], "big")
                if len(self._received) < 9 + length:
                    break
                head, body = self._received[:9], self._received[9 : 9 + length]
                self._received = self._received[9 + length :]
                yield head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, body
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionError:
                return
            if not data:
                return
            self._received += data
