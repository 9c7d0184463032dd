"""Requests of a load: a fixed set of distinct ones of each method, mixed by weights, and their calls.

Messages are built before the measurement.  There are more distinct pictures and prompts than a server caches.  Equal options send equal
bytes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from PIL import Image

from f2edge.client.connection import Connection
from f2edge.client.messages import analyze_message, ask_message, describe_message, edit_message, generate_message
from f2edge.engine.requests import EditRequest, GenerateRequest
from f2edge.errors import InputError
from f2edge.results import GenerateOptions
from f2edge.v1 import face_pb2 as pb
from f2edge.v1 import face_pb2_grpc
from f2edge.wire import PUSHBACK_KEY, STATUS_DETAILS_KEY, ModelFacts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

METHODS = ("generate", "edit", "ask", "describe", "analyze")
DEFAULT_MIX = "generate=1,ask=4,describe=1,analyze=4"
#: Generated pictures that questions and edits are about.
_FACES = 12
_PEOPLE = ("man", "woman", "old man", "old woman", "young man", "young woman")
_HAIR = ("black", "brown", "blond", "red", "gray", "white")
_MORE = ("", " and eyeglasses", " and a beard", " and a hat", " and earrings")
_QUESTIONS = ("what color is the hair?", "does the person wear glasses?", "is the person smiling?", "how old is the person?")


@dataclass(frozen=True)
class Query:
    """One of the distinct requests of a method."""

    method: str
    number: int
    message: Any


@dataclass(frozen=True)
class Reply:
    """End of a call; times on ``time.perf_counter``.

    Attributes:
        code: status code, "OK" …
        sent, done: start and end.
        first: arrival of the first message, or None.
        content: tokens of the picture or answer, or the whole report: equal bytes are equal replies.  Empty unless OK.
        pushback_s: retry delay of a refusal.
        degraded: the picture has fewer steps than requested.
        steps: done for a picture.
        refused: the server took no work, and said so at once.
    """

    code: str
    sent: float
    done: float
    first: float | None = None
    content: bytes = b""
    pushback_s: float = 0.0
    degraded: bool = False
    steps: int = 0
    refused: bool = False


def parse_mix(text: str) -> dict[str, float]:
    """Return weights from "generate=1,ask=4"; a name alone weighs 1.

    Raises:
        InputError: an unknown method, or a weight that is not a number above 0.
    """
    mix: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = part.partition("=")
        try:
            value = float(weight or 1)
        except ValueError:
            value = 0.0
        if name not in METHODS or not 0 < value < float("inf"):
            raise InputError(f"--mix {part!r}: write METHOD=WEIGHT with one of {', '.join(METHODS)} and a weight above 0")
        mix[name] = value
    if not mix:
        raise InputError(f"--mix: names no method; choose from {', '.join(METHODS)}")
    return mix


def make_queries(
    facts: ModelFacts, faces: Sequence[Image.Image], methods: Sequence[str], distinct: int, steps: int | None
) -> dict[str, list[Query]]:
    """Return ``distinct`` requests of each method, about variants of ``faces``."""
    options = GenerateOptions(steps=steps)
    prompts = [f"a photo of a {who} with {color} hair{more}" for who in _PEOPLE for color in _HAIR for more in _MORE]
    random.Random(0).shuffle(prompts)  # noqa: S311  neighbours in the list should differ

    def message(method: str, number: int) -> Any:
        prompt = prompts[number % len(prompts)]
        if method == "generate":
            return generate_message(facts, GenerateRequest(prompt, number, options))
        picture = _variant(faces[number % len(faces)], number)
        if method == "edit":
            region = (0.2, 0.05, 0.6, 0.35)
            return edit_message(facts, EditRequest(picture, prompt, region, number, options))
        if method == "ask":
            return ask_message(facts, picture, _QUESTIONS[number % len(_QUESTIONS)], 32, None)
        return describe_message(facts, picture, 96, None) if method == "describe" else analyze_message(facts, picture, None, None)

    return {method: [Query(method, number, message(method, number)) for number in range(distinct)] for method in methods}


def mixed(queries: Mapping[str, Sequence[Query]], mix: Mapping[str, float], seed: int) -> Iterator[Query]:
    """Yield requests without end: methods drawn by weight, each method's requests in turn from a random start."""
    rng = random.Random(seed)  # noqa: S311
    turns = {method: rng.randrange(len(queries[method])) for method in mix}
    names, weights = list(mix), list(mix.values())
    while True:
        (method,) = rng.choices(names, weights)
        turns[method] += 1
        yield queries[method][turns[method] % len(queries[method])]


class Caller:
    """Client with its own connection."""

    def __init__(self, channel: grpc.aio.Channel, connection: Connection, timeout_s: float) -> None:
        stub = face_pb2_grpc.FaceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        self._methods = {name: getattr(stub, name.capitalize()) for name in METHODS}
        self._connection = connection
        self._timeout_s = timeout_s

    async def __call__(self, query: Query, *, timeout_s: float | None = None) -> Reply:
        """Send a request and read its reply to the end; a task that is cancelled meanwhile cancels the call."""
        arguments = self._connection.call(self._timeout_s if timeout_s is None else timeout_s)
        sent, first, message = time.perf_counter(), None, None
        call = self._methods[query.method](query.message, **arguments)
        try:
            if query.method == "analyze":
                message = await call
                first = time.perf_counter()
            else:
                async for event in call:
                    message = event
                    first = time.perf_counter() if first is None else first
        except grpc.aio.AioRpcError as error:
            trailer = dict(error.trailing_metadata() or ())
            pushback_s, refused = int(trailer.get(PUSHBACK_KEY, "0")) / 1e3, _refused(error.code(), trailer)
            return Reply(error.code().name, sent, time.perf_counter(), first, pushback_s=pushback_s, refused=refused)
        finally:
            call.cancel()
        content, degraded, steps = content_of(message)
        return Reply("OK", sent, time.perf_counter(), first, content, degraded=degraded, steps=steps)


def content_of(message: Any) -> tuple[bytes, bool, int]:
    """What a reply's last message says, as bytes that can be compared, whether it has fewer steps than asked for, and how many."""
    if isinstance(message, pb.AnalyzeResponse):
        return message.report.SerializeToString(deterministic=True), False, 0
    if isinstance(message, pb.AskResponse | pb.DescribeResponse):
        return np.asarray(message.answer.tokens, dtype="<u4").tobytes(), False, 0
    decoding = message.result.decoding
    return np.asarray(message.result.picture.tokens, dtype="<u4").tobytes(), decoding.degraded, decoding.steps


def _refused(code: grpc.StatusCode, trailer: Mapping[str, Any]) -> bool:
    """Return whether a failed call was refused before any work; a call that the client itself gave up has no details."""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return True
    info = error_details_pb2.ErrorInfo()
    status = status_pb2.Status.FromString(trailer.get(STATUS_DETAILS_KEY, b""))
    return any(detail.Unpack(info) and info.metadata.get("accepted") == "false" for detail in status.details)


@asynccontextmanager
async def callers(connection: Connection, count: int, timeout_s: float) -> AsyncIterator[list[Caller]]:
    """Open ``count`` callers, each with its own connection."""
    credentials = connection.credentials()
    options = [*connection.options, ("grpc.use_local_subchannel_pool", 1)]
    aio = grpc.aio
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            target = connection.target
            channel = aio.secure_channel(target, credentials, options) if credentials else aio.insecure_channel(target, options)
            made.append(Caller(await stack.enter_async_context(channel), connection, timeout_s))
        yield made


def faces_of(connection: Connection, steps: int | None) -> tuple[ModelFacts, list[Image.Image]]:
    """Return the server's model facts and a few generated faces.

    Raises:
        ServerUnavailableError: the server does not answer.
    """
    from f2edge.client.sync import Client

    with Client(connection) as client:
        faces = client.generate(["a photo of a person"] * _FACES, seeds=list(range(_FACES)), options=GenerateOptions(steps=steps))
        return client.bundle, [face.image for face in faces]


def _variant(face: Image.Image, number: int) -> Image.Image:
    """Return the face with another corner, so that the server has not cached it."""
    pixels = np.array(face.convert("RGB"))
    pixels[:4, :4] = np.random.default_rng(number).integers(0, 256, size=(4, 4, 3))
    return Image.fromarray(pixels)
