"""Asyncio client with the methods and results of :class:`f2edge.client.sync.Client`.

>>> async with AsyncClient("127.0.0.1:8033") as client:                                     # doctest: +SKIP
...     face = await client.generate("a smiling woman with red hair", seed=7)
...     async for event in client.stream_ask(face.image, "what color is the hair?"):
...         print(event)
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc

from f2edge.client.connection import Connection, no_answer, translated_errors, unreachable
from f2edge.client.messages import (
    FrameAnswer,
    FrameRequest,
    ImageReader,
    ImageSource,
    analyze_message,
    ask_message,
    describe_message,
    edit_message,
    frame_answer,
    frame_message,
    generate_message,
    read_words,
)
from f2edge.decoding.parallel import StepEvent
from f2edge.engine.requests import Done, EditRequest, GenerateRequest, Priority, Result, Token
from f2edge.errors import DeadlineExceededError
from f2edge.imaging.images import load_image
from f2edge.imaging.regions import Region
from f2edge.results import Answer, EditedFace, FaceReport, GeneratedFace, GenerateOptions
from f2edge.v1 import face_pb2 as pb
from f2edge.v1 import face_pb2_grpc
from f2edge.wire import ModelFacts, model_of, report_of

EventT = TypeVar("EventT", StepEvent | Done, Token | Done)


class AsyncClient:
    """Client of a server, bound to one event loop; use it in an ``async with`` block.

    Args:
        server: an address ("host:port", "grpcs://host:port", "unix:/path") or a whole :class:`~f2edge.client.connection.Connection`.
        timeout_s: deadline of each call in seconds; a method's ``timeout_s`` overrides it.
        connect_s: maximum time for the first call, in seconds.
    """

    def __init__(self, server: str | Connection, *, timeout_s: float = 120.0, connect_s: float = 10.0) -> None:
        self.connection = server if isinstance(server, Connection) else Connection(server)
        self._timeout_s = timeout_s
        self._connect_s = connect_s
        self._facts: ModelFacts | None = None

    async def __aenter__(self) -> AsyncClient:  # noqa: PYI034  Self is younger than Python 3.10
        credentials, target, options = self.connection.credentials(), self.connection.target, self.connection.options
        aio = grpc.aio
        self._channel = aio.secure_channel(target, credentials, options) if credentials else aio.insecure_channel(target, options)
        self._stub = face_pb2_grpc.FaceServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self._channel.close()

    async def model(self) -> ModelFacts:
        """Return the server's model description, cached after the first call.

        Raises:
            ServerUnavailableError: no answer within ``connect_s``.
            AccessError: missing or wrong token.
        """
        if self._facts is None:
            try:
                with translated_errors(self.connection.address):
                    self._facts = model_of(await self._stub.GetModel(pb.GetModelRequest(), **self._call(self._connect_s)))
            except DeadlineExceededError as error:
                raise unreachable(self.connection.address, self._connect_s) from error
        return self._facts

    async def generate(
        self, prompt: str, *, seed: int = 0, options: GenerateOptions | None = None, timeout_s: float | None = None
    ) -> GeneratedFace:
        """Generate a face; the server batches concurrent calls."""
        face = await _result(self.stream_generate(GenerateRequest(prompt, seed, options or GenerateOptions()), timeout_s=timeout_s))
        assert isinstance(face, GeneratedFace)
        return face

    def stream_generate(
        self, request: GenerateRequest, *, priority: Priority | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[StepEvent | Done]:
        """Generate a face and yield the events that the request wants; leaving the iterator cancels the call."""

        def start(facts: ModelFacts) -> tuple[Any, Callable[[Any], StepEvent | Done]]:
            message = generate_message(facts, request, priority)
            return self._stub.Generate(message, **self._call(timeout_s)), ImageReader(facts, request.prompt).read

        return self._events(start)

    async def edit(
        self,
        image: ImageSource,
        prompt: str,
        region: Region,
        *,
        seed: int = 0,
        options: GenerateOptions | None = None,
        keep_outside: bool = True,
        timeout_s: float | None = None,
    ) -> EditedFace:
        """Redraw a region, as :meth:`FacePipeline.edit`."""
        request = EditRequest(load_image(image), prompt, region, seed, options or GenerateOptions(), keep_outside)
        face = await _result(self.stream_edit(request, timeout_s=timeout_s))
        assert isinstance(face, EditedFace)
        return face

    def stream_edit(
        self, request: EditRequest, *, priority: Priority | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[StepEvent | Done]:
        """Redraw a region and yield the events that the request wants; leaving the iterator cancels the call."""

        def start(facts: ModelFacts) -> tuple[Any, Callable[[Any], StepEvent | Done]]:
            message = edit_message(facts, request, priority)
            return self._stub.Edit(message, **self._call(timeout_s)), ImageReader(facts, request.prompt).read

        return self._events(start)

    async def describe(self, image: ImageSource, *, max_tokens: int = 128, timeout_s: float | None = None) -> Answer:
        """Return a description of the face."""
        answer = await _result(self.stream_describe(image, max_tokens=max_tokens, timeout_s=timeout_s))
        assert isinstance(answer, Answer)
        return answer

    def stream_describe(self, image: ImageSource, *, max_tokens: int = 128, timeout_s: float | None = None) -> AsyncIterator[Token | Done]:
        """Yield a description of the face piece by piece."""

        def start(facts: ModelFacts) -> tuple[Any, Callable[[Any], Token | Done]]:
            return self._stub.Describe(describe_message(facts, image, max_tokens, None), **self._call(timeout_s)), read_words

        return self._events(start)

    async def ask(self, image: ImageSource, question: str, *, max_tokens: int = 64, timeout_s: float | None = None) -> Answer:
        """Return the answer to a question about a face."""
        answer = await _result(self.stream_ask(image, question, max_tokens=max_tokens, timeout_s=timeout_s))
        assert isinstance(answer, Answer)
        return answer

    def stream_ask(
        self, image: ImageSource, question: str, *, max_tokens: int = 64, timeout_s: float | None = None
    ) -> AsyncIterator[Token | Done]:
        """Yield an answer piece by piece."""

        def start(facts: ModelFacts) -> tuple[Any, Callable[[Any], Token | Done]]:
            return self._stub.Ask(ask_message(facts, image, question, max_tokens, None), **self._call(timeout_s)), read_words

        return self._events(start)

    async def analyze(self, image: ImageSource, *, attributes: Sequence[str] | None = None, timeout_s: float | None = None) -> FaceReport:
        """Return the attribute probabilities of a face; without names for the whole schema, sensitive slots included."""
        message = analyze_message(await self.model(), image, attributes, None)
        with translated_errors(self.connection.address):
            return report_of((await self._stub.Analyze(message, **self._call(timeout_s))).report)

    async def analyze_frames(
        self, frames: AsyncIterable[FrameRequest], *, attributes: Sequence[str] | None = None, include_sensitive: bool = False
    ) -> AsyncIterator[FrameAnswer]:
        """Yield reports of frames, as :meth:`Client.analyze_frames`."""
        facts = await self.model()
        settings = pb.AnalyzeStreamSettings(attributes=attributes or (), include_sensitive=include_sensitive)

        async def messages() -> AsyncIterator[pb.AnalyzeStreamRequest]:
            first = True
            async for frame in frames:
                yield frame_message(facts, frame, settings if first else None)
                first = False

        call = self._stub.AnalyzeStream(messages(), metadata=self.connection.metadata)
        try:
            with translated_errors(self.connection.address):
                async for message in call:
                    yield frame_answer(message)
        finally:
            call.cancel()

    async def _events(self, start: Callable[[ModelFacts], tuple[Any, Callable[[Any], EventT]]]) -> AsyncIterator[EventT]:
        """Yield a call's events until its end; leaving early cancels it."""
        call, read = start(await self.model())
        try:
            with translated_errors(self.connection.address):
                async for message in call:
                    event = read(message)
                    yield event
                    if isinstance(event, Done):
                        return
            raise no_answer(self.connection.address)
        finally:
            call.cancel()

    def _call(self, timeout_s: float | None) -> dict[str, Any]:
        return self.connection.call(self._timeout_s if timeout_s is None else timeout_s)


async def _result(events: AsyncIterator[Any]) -> Result:
    """Return the result at the end of a stream."""
    async for event in events:
        if isinstance(event, Done):
            return event.result
    raise AssertionError("events end with Done or raise")
