"""Hostile calls for the fuzzing bench: bytes, messages with wrong bytes, pictures with wrong bytes, compression, arity, metadata.

The seed determines all calls.  Valid messages ask for as little work as possible, so that the model's time is small.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from f2edge.server.rpc import SERVICE
from f2edge.v1 import face_pb2 as pb

METHODS: Mapping[str, Any] = {method.name: method for method in SERVICE.methods}
_LARGEST = 4 << 20
_SIDES = (1, 15, 16, 64, 128, 700, 4096)


@dataclass(frozen=True)
class Attempt:
    """One hostile call.

    Attributes:
        kind: for the report.
        messages: sent to ``method``; for unary methods their number may be wrong.
        gzip: compress them on the wire.
    """

    kind: str
    method: str
    messages: tuple[bytes, ...]
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    gzip: bool = False


class HostileCalls:
    """Generator of attempts."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311
        self._pictures = [_picture(side, kind) for side in (64, 128) for kind in ("PNG", "JPEG", "WEBP")]
        self._kinds: tuple[Callable[[], Attempt], ...] = (
            self._bytes,
            self._changed,
            self._changed,
            self._spliced,
            self._changed_picture,
            self._changed_picture,
            self._large_picture,
            self._compressed,
            self._wrong_count,
            self._metadata,
            self._swarm,
        )

    def next(self) -> Attempt:
        return self._rng.choice(self._kinds)()

    def frames(self) -> bytes:
        """Return bytes for a raw connection: HTTP/2 with a few random frames, or random bytes."""
        if self._rng.random() < 0.3:
            return self._rng.randbytes(self._rng.randrange(1, 2000))
        frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        for _ in range(self._rng.randrange(1, 12)):
            body = self._rng.randbytes(self._rng.choice((0, 4, 8, 30, 300)))
            length = len(body) if self._rng.random() < 0.8 else self._rng.randrange(1 << 24)
            head = length.to_bytes(3, "big") + bytes([self._rng.randrange(12), self._rng.randrange(256)])
            frames += head + self._rng.randrange(1 << 32).to_bytes(4, "big") + body
        return frames

    def _method(self) -> str:
        return self._rng.choice(sorted(METHODS))

    def _valid(self, method: str) -> bytes:
        """Return a valid message that needs little work."""
        image, options = self._rng.choice(self._pictures), pb.DecodingOptions(steps=1, guidance=0.0)
        messages: dict[str, Any] = {
            "Generate": pb.GenerateRequest(prompt="a face", seed=1, options=options),
            "Edit": pb.EditRequest(image=image, prompt="a face", box=pb.Box(width=1, height=1), options=options),
            "Describe": pb.DescribeRequest(image=image, max_tokens=1),
            "Ask": pb.AskRequest(image=image, question="what?", max_tokens=1),
            "Analyze": pb.AnalyzeRequest(image=image, attributes=["hair_color"]),
            "AnalyzeStream": pb.AnalyzeStreamRequest(image=image, faces=[pb.Box(width=60, height=60)]),
            "GetModel": pb.GetModelRequest(),
        }
        return bytes(messages[method].SerializeToString())

    def _bytes(self) -> Attempt:
        size = self._rng.choice((0, 1, 7, 200, 5000, _LARGEST))
        return Attempt("random bytes", self._method(), (self._rng.randbytes(size),))

    def _changed(self) -> Attempt:
        method = self._method()
        return Attempt("valid messages, changed", method, (self._change(self._valid(method)),))

    def _spliced(self) -> Attempt:
        one, other = self._valid(self._method()), self._valid(self._method())
        return Attempt("two messages spliced", self._method(), (one[: self._rng.randrange(len(one) + 1)] + other,))

    def _changed_picture(self) -> Attempt:
        return self._with_picture("pictures, changed", self._change(self._rng.choice(self._pictures)))

    def _large_picture(self) -> Attempt:
        """Return a picture of few bytes and many pixels, up to sizes beyond the limits."""
        width, height = self._rng.choice(_SIDES), self._rng.choice(_SIDES)
        return self._with_picture("pictures of any size", _picture(width, self._rng.choice(("PNG", "JPEG", "WEBP")), height))

    def _with_picture(self, kind: str, data: bytes) -> Attempt:
        method = self._rng.choice(("Analyze", "Ask", "Describe", "Edit", "Generate", "AnalyzeStream"))
        if method == "Generate":
            placed = pb.GenerateRequest(prompt="a face", seed=1, options=pb.DecodingOptions(steps=1))
            setattr(placed, self._rng.choice(("layout", "layout_from")), data)
            return Attempt(kind, method, (placed.SerializeToString(),))
        if method == "Edit":
            message = pb.EditRequest(image=self._pictures[0], mask=data, prompt="a face", options=pb.DecodingOptions(steps=1))
            return Attempt(kind, method, (message.SerializeToString(),))
        more: dict[str, Any] = {"Ask": {"question": "what?", "max_tokens": 1}, "Describe": {"max_tokens": 1}}
        types: dict[str, Any] = {
            "Analyze": pb.AnalyzeRequest,
            "Ask": pb.AskRequest,
            "Describe": pb.DescribeRequest,
            "AnalyzeStream": pb.AnalyzeStreamRequest,
        }
        return Attempt(kind, method, (types[method](image=data, **more.get(method, {})).SerializeToString(),))

    def _compressed(self) -> Attempt:
        """Return up to 64 MB of zeros, compressed to a few kilobytes."""
        return Attempt("compressed zeros", self._method(), (bytes(self._rng.choice((1 << 10, _LARGEST, 64 << 20))),), gzip=True)

    def _wrong_count(self) -> Attempt:
        method = self._method()
        return Attempt("too many or no messages", method, (self._valid(method),) * self._rng.choice((0, 2, 50)))

    def _metadata(self) -> Attempt:
        names = ("x-request-id", "traceparent", "authorization", "grpc-timeout-x", "x-bin", "accept-language")
        pairs: list[tuple[str, str | bytes]] = []
        for _ in range(self._rng.randrange(1, 20)):
            name, size = self._rng.choice(names), self._rng.choice((0, 10, 700))
            text = "".join(chr(self._rng.randrange(32, 127)) for _ in range(size)).strip()
            pairs.append((name, self._rng.randbytes(size) if name.endswith("-bin") else text))
        return Attempt("metadata", "GetModel", (b"",), tuple(pairs))

    def _swarm(self) -> Attempt:
        """Repeat a field of a few bytes up to the largest message."""
        method, field = (
            self._method(),
            self._rng.choice((b"\x12\x00", b"\x1a\x00", b"\x22\x00", b"\xf8\x7f\x01", b"\x0a\x00", b"\x32\x01\x01")),
        )
        return Attempt("swarms of small fields", method, (field * (_LARGEST // len(field)),))

    def _change(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self._rng.randrange(1, 9)):
            at = self._rng.randrange(len(changed) + 1)
            how = self._rng.randrange(4)
            if how == 0:
                changed[at : at + self._rng.randrange(4)] = self._rng.randbytes(self._rng.randrange(5))
            elif how == 1 and at < len(changed):
                changed[at] ^= 1 << self._rng.randrange(8)
            elif how == 2:
                changed[at:at] = changed[: self._rng.randrange(40)]
            elif self._rng.random() < 0.2:
                del changed[at:]
        return bytes(changed)


def _picture(width: int, kind: str, height: int | None = None) -> bytes:
    """Return a smooth picture, small in bytes."""
    rows = np.linspace(0, 255, width, dtype=np.uint8)
    pixels = np.broadcast_to(rows[None, :, None], (height or width, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind)
    return buffer.getvalue()
