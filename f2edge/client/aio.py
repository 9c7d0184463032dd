"""Asyncio client with the methods and results of :class:`f2edge.client.sync.Client`.

>>> async with AsyncClient("127.0.0.1:8033") as client:                                     # doctest: +SKIP
...     (face,) = await client.generate("a smiling woman with red hair", seeds=7)
...     async for event in client.stream_ask(face.image, "what color is the hair?"):
...         print(event)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc

from f2edge.client.connection import Connection, no_answer, translated_errors, unreachable
from f2edge.client.messages import (
    FrameAnswer,
    FrameRequest,
    ImageReader,
    StepMerger,
    analyze_message,
    ask_message,
    describe_message,
    edit_message,
    frame_answer,
    frame_message,
    generate_message,
    generate_requests,
    read_words,
)
from f2edge.client.sync import FACES_AT_ONCE, RemoteBackend
from f2edge.decoding.parallel import StepEvent
from f2edge.decoding.repair import checked_rounds
from f2edge.engine.requests import Done, EditRequest, GenerateRequest, Priority, Result, Token
from f2edge.errors import DeadlineExceededError, InputError
from f2edge.imaging.images import ImageSource, listed, open_image
from f2edge.imaging.map_pictures import LayoutSource
from f2edge.imaging.region_map import STRENGTH
from f2edge.imaging.regions import Region
from f2edge.results import Answer, EditedFace, FaceReport, GeneratedFace, GenerateOptions
from f2edge.spec.attributes import AttributeSchema
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
        await self.close()

    async def close(self) -> None:
        """Cancel all calls and close the connection."""
        await self._channel.close()

    async def model(self) -> ModelFacts:
        """Return the server's model description, requested once.

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

    @property
    def bundle(self) -> ModelFacts:
        """Model description of the server, after :meth:`model` or any other call was awaited."""
        if self._facts is None:
            raise InputError("the server has not been asked for its model yet; await model() first")
        return self._facts

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.bundle.name

    @property
    def regions(self) -> tuple[str, ...]:
        """Region names accepted by :meth:`edit`."""
        return self.bundle.regions

    @property
    def schema(self) -> AttributeSchema:
        """Attribute schema of :meth:`analyze`."""
        return self.bundle.schema

    @property
    def faces(self) -> str:
        """Which faces the model knows, one of :data:`f2edge.spec.sensitive.FACES`."""
        return self.bundle.faces

    @property
    def backend(self) -> RemoteBackend:
        """Backend that runs the model, with its address."""
        return RemoteBackend(f"{self.bundle.backend} at {self.connection.target}")

    async def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seeds: int | Sequence[int] = 0,
        options: GenerateOptions | None = None,
        check: bool | int = False,
        layout: LayoutSource | Sequence[LayoutSource] | None = None,
        layout_from: ImageSource | Sequence[ImageSource] | None = None,
        layout_strength: float = STRENGTH,
        on_step: Callable[[StepEvent], None] | None = None,
        preview_images: bool = False,
        timeout_s: float | None = None,
    ) -> list[GeneratedFace]:
        """Generate faces, as :meth:`FacePipeline.generate`; the server batches them."""
        faces: list[GeneratedFace] = []
        every, wanted, rounds = (1 if on_step else 0), options or GenerateOptions(), checked_rounds(check)
        common = GenerateRequest("", 0, wanted, every, preview_images, None, rounds, layout_strength=layout_strength)
        requests = generate_requests(common, prompts, seeds, layout, layout_from)
        for first in range(0, len(requests), FACES_AT_ONCE):
            streams = [self.stream_generate(request, timeout_s=timeout_s) for request in requests[first : first + FACES_AT_ONCE]]
            for face in await _together(streams, on_step):
                assert isinstance(face, GeneratedFace)
                faces.append(face)
        return faces

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
        check: bool | int = False,
        on_step: Callable[[StepEvent], None] | None = None,
        timeout_s: float | None = None,
    ) -> EditedFace:
        """Redraw a region, as :meth:`FacePipeline.edit`."""
        wanted, every = options or GenerateOptions(), 1 if on_step else 0
        request = EditRequest(
            open_image(image), prompt, region, seed, wanted, keep_outside, preview_every=every, check=checked_rounds(check)
        )
        (face,) = await _together([self.stream_edit(request, timeout_s=timeout_s)], on_step)
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

    async def describe(
        self,
        image: ImageSource,
        *,
        max_tokens: int = 128,
        include_sensitive: bool = False,
        on_token: Callable[[str], None] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Return a description of the face, as :meth:`FacePipeline.describe`."""
        events = self.stream_describe(image, max_tokens=max_tokens, include_sensitive=include_sensitive, timeout_s=timeout_s)
        return await _answer(events, on_token)

    def stream_describe(
        self, image: ImageSource, *, max_tokens: int = 128, include_sensitive: bool = False, timeout_s: float | None = None
    ) -> AsyncIterator[Token | Done]:
        """Yield a description of the face piece by piece."""

        def start(facts: ModelFacts) -> tuple[Any, Callable[[Any], Token | Done]]:
            message = describe_message(facts, image, max_tokens, None, include_sensitive=include_sensitive)
            return self._stub.Describe(message, **self._call(timeout_s)), read_words

        return self._events(start)

    async def ask(
        self,
        image: ImageSource,
        question: str,
        *,
        max_tokens: int = 64,
        include_sensitive: bool = False,
        on_token: Callable[[str], None] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Return the answer to a question, as :meth:`FacePipeline.ask`."""
        events = self.stream_ask(image, question, max_tokens=max_tokens, include_sensitive=include_sensitive, timeout_s=timeout_s)
        return await _answer(events, on_token)

    def stream_ask(
        self,
        image: ImageSource,
        question: str,
        *,
        max_tokens: int = 64,
        include_sensitive: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Token | Done]:
        """Yield an answer piece by piece."""

        def start(facts: ModelFacts) -> tuple[Any, Callable[[Any], Token | Done]]:
            message = ask_message(facts, image, question, max_tokens, None, include_sensitive=include_sensitive)
            return self._stub.Ask(message, **self._call(timeout_s)), read_words

        return self._events(start)

    async def analyze(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        attributes: Sequence[str] | None = None,
        include_sensitive: bool = False,
        timeout_s: float | None = None,
    ) -> list[FaceReport]:
        """Return the attributes of each face, as :meth:`FacePipeline.analyze`."""
        facts, pictures, reports = await self.model(), listed(images), []
        for first in range(0, len(pictures), FACES_AT_ONCE):
            group = pictures[first : first + FACES_AT_ONCE]
            messages = [analyze_message(facts, p, attributes, None, include_sensitive=include_sensitive) for p in group]
            calls = [self._stub.Analyze(message, **self._call(timeout_s)) for message in messages]
            try:
                with translated_errors(self.connection.address):
                    reports += [report_of((await call).report) for call in calls]
            finally:
                for call in calls:  # one failure cancels all
                    call.cancel()
        return reports

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


async def _together(streams: Sequence[AsyncIterator[StepEvent | Done]], on_step: Callable[[StepEvent], None] | None) -> list[Result]:
    """Read several calls concurrently; one failure cancels all."""
    merger = StepMerger(len(streams))

    async def follow(row: int, events: AsyncIterator[StepEvent | Done]) -> Result:
        async for event in events:
            for step in merger.add(row, event) if on_step else ():
                on_step(step)  # type: ignore[misc]  # not None here
            if isinstance(event, Done):
                return event.result
        raise AssertionError("events end with Done or raise")

    tasks = [asyncio.ensure_future(follow(row, events)) for row, events in enumerate(streams)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(events: AsyncIterator[Token | Done], on_token: Callable[[str], None] | None) -> Answer:
    async for event in events:
        if isinstance(event, Token):
            if on_token:
                on_token(event.text)
        else:
            assert isinstance(event.result, Answer)
            return event.result
    raise AssertionError("events end with Done or raise")
