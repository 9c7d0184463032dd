"""Whole conversations of a gRPC client with something wrong in them: flipped bits, wrong lengths, flags, streams, orders, headers."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence

from bench.load.wire.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Header,
    block,
    frame,
    grpc_message,
    request_headers,
)

_SERVICE = b"/f2edge.v1.FaceService/"
_PATHS = (
    *(_SERVICE + name for name in (b"Generate", b"Edit", b"Ask", b"Describe", b"Analyze", b"AnalyzeStream", b"GetModel", b"Nothing")),
    b"/grpc.health.v1.Health/Check",
    b"/grpc.health.v1.Health/Watch",
    b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    b"/",
    b"*",
    b"",
)
_NAMES = (b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"authorization", b"x-request-id", b"traceparent", b"x-bin", b":path",
          b"content-length", b"host", b"Te", b"grpc-status", b"grpc-tags-bin", b"connection", b"\x00", b"")  # fmt: skip
_VALUES = (
    b"",
    b"1S",
    b"99999999999H",
    b"-1m",
    b"gzip",
    b"identity,\xff",
    b"Bearer \xff\xfe",
    b"\r\nx: y",
    b"a" * 5000,
    b"\x00",
    b"%FF%",
    b"====",
)

Frame = tuple[int, int, int, bytes]


class Conversations:
    """An endless supply; equal seeds give equal bytes."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self._next()

    def _next(self) -> bytes:
        rng = self._rng
        frames = self._frames()
        for _ in range(rng.randrange(1, 4)):
            rng.choice((self._reorder, self._retag, self._flip_body, self._insert))(frames)
        data = bytearray(PREFACE + b"".join(self._written(*each) for each in frames))
        if rng.random() < 0.3:
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(24, len(data))] ^= 1 << rng.randrange(8)
        return bytes(data if rng.random() < 0.9 else data[: rng.randrange(len(data))])

    def _frames(self) -> list[Frame]:
        """Return a valid conversation, or one whose headers are not."""
        rng = self._rng
        frames: list[Frame] = [(SETTINGS, 0, 0, b""), (SETTINGS, ACK, 0, b"")]
        for number in range(rng.randrange(1, 4)):
            stream = 2 * number + 1
            headers = self._headers()
            body = grpc_message(rng.randbytes(rng.choice((0, 0, 2, 40, 3000))), compressed=rng.random() < 0.1)
            frames += [(HEADERS, END_HEADERS, stream, block(headers)), (DATA, END_STREAM * (rng.random() < 0.8), stream, body)]
        return frames

    def _headers(self) -> Sequence[Header]:
        rng = self._rng
        path = bytearray(rng.choice(_PATHS))
        if path and rng.random() < 0.5:
            path[rng.randrange(len(path))] = rng.randrange(256)
        extra = [(rng.choice(_NAMES), rng.choice(_VALUES)) for _ in range(rng.randrange(4))]
        headers = request_headers(bytes(path), extra)
        if rng.random() < 0.3:
            del headers[rng.randrange(len(headers))]
        if rng.random() < 0.2:
            rng.shuffle(headers)
        return headers

    def _reorder(self, frames: list[Frame]) -> None:
        frames.insert(self._rng.randrange(len(frames) + 1), frames.pop(self._rng.randrange(len(frames))))

    def _retag(self, frames: list[Frame]) -> None:
        rng, at = self._rng, self._rng.randrange(len(frames))
        kind, flags, stream, body = frames[at]
        which = rng.randrange(3)
        frames[at] = (
            rng.randrange(12) if which == 0 else kind,
            flags ^ (1 << rng.randrange(8)) if which == 1 else flags,
            rng.choice((0, 1, 2, 3, 5, 0x7FFFFFFF, 0xFFFFFFFF)) if which == 2 else stream,
            body,
        )

    def _flip_body(self, frames: list[Frame]) -> None:
        at = self._rng.randrange(len(frames))
        kind, flags, stream, body = frames[at]
        changed = bytearray(body or self._rng.randbytes(6))
        for _ in range(self._rng.randrange(1, 9)):
            changed[self._rng.randrange(len(changed))] ^= 1 << self._rng.randrange(8)
        frames[at] = kind, flags, stream, bytes(changed)

    def _insert(self, frames: list[Frame]) -> None:
        rng = self._rng
        word = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 65535)).to_bytes(4, "big")
        choices: tuple[Frame, ...] = (
            (RST_STREAM, 0, rng.choice((0, 1, 3)), word),
            (WINDOW_UPDATE, 0, rng.choice((0, 1, 9)), word),
            (SETTINGS, 0, 0, rng.randrange(12).to_bytes(2, "big") + word),
            (PING, rng.randrange(2), 0, rng.randbytes(8)),
            (GOAWAY, 0, 0, word + word + b"\x1b]0;owned\x07\r\n" * 3),
            (PRIORITY, 0, 1, word + b"\x10"),
            (PUSH_PROMISE, 4, 1, word),
            (CONTINUATION, rng.choice((0, 4)), 1, rng.randbytes(20)),
            (HEADERS, 0, 1, rng.randbytes(50)),
        )
        frames.insert(rng.randrange(len(frames) + 1), rng.choice(choices))

    def _written(self, kind: int, flags: int, stream: int, body: bytes) -> bytes:
        lies = self._rng.random() < 0.03
        return frame(kind, flags, stream, body, length=self._rng.choice((0, 1, 16385, (1 << 24) - 1)) if lies else None)


def say(address: str, data: bytes, *, listen_s: float = 0.0, timeout_s: float = 5.0) -> None:
    """Open a connection, send bytes, listen for ``listen_s`` at most, and close it.

    Raises:
        OSError: the connection is not accepted.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=timeout_s) as raw:
        try:
            raw.sendall(data)
            if listen_s:
                raw.settimeout(listen_s)
                while raw.recv(1 << 16):
                    pass
        except (TimeoutError, ConnectionError):
            pass
