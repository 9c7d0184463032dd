"""Synchronous client of ``f2edge serve`` with the methods and results of :class:`~f2edge.pipeline.FacePipeline`.

>>> with Client("127.0.0.1:8033") as client:                                                # doctest: +SKIP
...     client.generate("a smiling woman with red hair", seeds=7)[0].save("face.png")
...     for event in client.stream_ask("face.png", "what color is the hair?"):
...         print(event)

Calls wait and retry while the server starts or restarts; a full server raises :class:`~f2edge.errors.QueueFullError` with the time to
retry.  :mod:`f2edge.client.aio` is the asyncio counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from threading import Lock
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
from f2edge.decoding.parallel import StepEvent
from f2edge.decoding.repair import checked_rounds
from f2edge.engine.requests import Done, EditRequest, GenerateRequest, Priority, Token
from f2edge.errors import DeadlineExceededError
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

#: Concurrent calls of :meth:`Client.generate`; the server batches them.
FACES_AT_ONCE = 8


@dataclass(frozen=True)
class RemoteBackend:
    """Backend of a server, with its address in ``name``."""

    name: str


class Client:
    """Thread-safe client of a server; close it or use it in a ``with`` block.

    Args:
        server: an address ("host:port", "grpcs://host:port", "unix:/path") or a whole :class:`~f2edge.client.connection.Connection`.
        timeout_s: deadline of each call in seconds; a method's ``timeout_s`` overrides it.
        connect_s: maximum time for the first call, in seconds.
    """

    def __init__(self, server: str | Connection, *, timeout_s: float = 120.0, connect_s: float = 10.0) -> None:
        self.connection = server if isinstance(server, Connection) else Connection(server)
        credentials, target, options = self.connection.credentials(), self.connection.target, self.connection.options
        self._channel = grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
        self._stub = face_pb2_grpc.FaceServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._timeout_s = timeout_s
        self._connect_s = connect_s
        self._facts: ModelFacts | None = None

    def __enter__(self) -> Client:  # noqa: PYI034  Self is younger than Python 3.10
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cancel all calls and close the connection."""
        self._channel.close()

    def model(self) -> ModelFacts:
        """Return the server's model description, requested once.

        Raises:
            ServerUnavailableError: no answer within ``connect_s``.
            AccessError: missing or wrong token.
        """
        if self._facts is None:
            try:
                with translated_errors(self.connection.address):
                    self._facts = model_of(self._stub.GetModel(pb.GetModelRequest(), **self._call(self._connect_s)))
            except DeadlineExceededError as error:
                raise unreachable(self.connection.address, self._connect_s) from error
        return self._facts

    @property
    def bundle(self) -> ModelFacts:
        """Model description of the server; see :meth:`model`."""
        return self.model()

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

    def generate(
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
        """Generate faces, as :meth:`FacePipeline.generate`; ``on_step`` is called on other threads, one call at a time."""
        faces: list[GeneratedFace] = []
        every, wanted, rounds = (1 if on_step else 0), options or GenerateOptions(), checked_rounds(check)
        common = GenerateRequest("", 0, wanted, every, preview_images, None, rounds, layout_strength=layout_strength)
        requests = generate_requests(common, prompts, seeds, layout, layout_from)
        rows = [(request.prompt, generate_message(self.bundle, request)) for request in requests]
        for first in range(0, len(rows), FACES_AT_ONCE):
            group = rows[first : first + FACES_AT_ONCE]
            calls = [self._stub.Generate(message, **self._call(timeout_s)) for _, message in group]
            readers = [ImageReader(self.bundle, prompt) for prompt, _ in group]
            for done in self._together(calls, readers, on_step):
                assert isinstance(done.result, GeneratedFace)
                faces.append(done.result)
        return faces

    def stream_generate(
        self, request: GenerateRequest, *, priority: Priority | None = None, timeout_s: float | None = None
    ) -> Iterator[StepEvent | Done]:
        """Generate a face and yield the events that the request wants; leaving the iterator cancels the call."""
        message = generate_message(self.bundle, request, priority)
        return self._events(self._stub.Generate(message, **self._call(timeout_s)), ImageReader(self.bundle, request.prompt).read)

    def edit(
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
        call = self._stub.Edit(edit_message(self.bundle, request), **self._call(timeout_s))
        (done,) = self._together([call], [ImageReader(self.bundle, prompt)], on_step)
        assert isinstance(done.result, EditedFace)
        return done.result

    def stream_edit(
        self, request: EditRequest, *, priority: Priority | None = None, timeout_s: float | None = None
    ) -> Iterator[StepEvent | Done]:
        """Redraw a region and yield the events that the request wants; leaving the iterator cancels the call."""
        message = edit_message(self.bundle, request, priority)
        return self._events(self._stub.Edit(message, **self._call(timeout_s)), ImageReader(self.bundle, request.prompt).read)

    def describe(
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
        return _answer(events, on_token)

    def stream_describe(
        self, image: ImageSource, *, max_tokens: int = 128, include_sensitive: bool = False, timeout_s: float | None = None
    ) -> Iterator[Token | Done]:
        """Yield a description of the face piece by piece."""
        message = describe_message(self.bundle, image, max_tokens, None, include_sensitive=include_sensitive)
        return self._events(self._stub.Describe(message, **self._call(timeout_s)), read_words)

    def ask(
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
        return _answer(events, on_token)

    def stream_ask(
        self,
        image: ImageSource,
        question: str,
        *,
        max_tokens: int = 64,
        include_sensitive: bool = False,
        timeout_s: float | None = None,
    ) -> Iterator[Token | Done]:
        """Yield an answer piece by piece."""
        message = ask_message(self.bundle, image, question, max_tokens, None, include_sensitive=include_sensitive)
        return self._events(self._stub.Ask(message, **self._call(timeout_s)), read_words)

    def analyze(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        attributes: Sequence[str] | None = None,
        include_sensitive: bool = False,
        timeout_s: float | None = None,
    ) -> list[FaceReport]:
        """Return the attributes of each face, as :meth:`FacePipeline.analyze`."""
        pictures, reports = listed(images), []
        for first in range(0, len(pictures), FACES_AT_ONCE):
            group = pictures[first : first + FACES_AT_ONCE]
            messages = [analyze_message(self.bundle, p, attributes, None, include_sensitive=include_sensitive) for p in group]
            calls = [self._stub.Analyze.future(message, **self._call(timeout_s)) for message in messages]
            try:
                with translated_errors(self.connection.address):
                    reports += [report_of(call.result().report) for call in calls]
            finally:
                for call in calls:  # one failure cancels all
                    call.cancel()
        return reports

    def analyze_frames(
        self, frames: Iterable[FrameRequest], *, attributes: Sequence[str] | None = None, include_sensitive: bool = False
    ) -> Iterator[FrameAnswer]:
        """Yield reports of frames in real time; a frame still waiting when a later one arrives is dropped and counted.

        Args:
            frames: iterated on another thread.
            attributes: names of slots; None for all that are permitted.
            include_sensitive: report sensitive slots too; frames come from a camera, so they need it whatever faces the model knows.
        """
        facts = self.bundle
        settings = pb.AnalyzeStreamSettings(attributes=attributes or (), include_sensitive=include_sensitive)

        def messages() -> Iterator[pb.AnalyzeStreamRequest]:
            for index, frame in enumerate(frames):
                yield frame_message(facts, frame, settings if index == 0 else None)

        call = self._stub.AnalyzeStream(messages(), metadata=self.connection.metadata)
        try:
            with translated_errors(self.connection.address):
                for message in call:
                    yield frame_answer(message)
        finally:
            call.cancel()

    def _together(self, calls: Sequence[Any], readers: Sequence[ImageReader], on_step: Callable[[StepEvent], None] | None) -> list[Done]:
        """Read several calls concurrently; one failure cancels all."""
        merger, lock = StepMerger(len(calls)), Lock()

        def follow(row: int) -> Done:
            with closing(self._events(calls[row], readers[row].read)) as events:
                for event in events:
                    with lock:
                        for step in merger.add(row, event) if on_step else ():
                            on_step(step)  # type: ignore[misc]  # not None here
                    if isinstance(event, Done):
                        return event
            raise no_answer(self.connection.address)

        with ThreadPoolExecutor(len(calls), thread_name_prefix="f2edge-client") as threads:
            futures = [threads.submit(follow, row) for row in range(len(calls))]
            try:
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                return [future.result() for future in futures]
            finally:
                for call in calls:
                    call.cancel()

    def _events(self, call: Any, read: Callable[[Any], EventT]) -> Generator[EventT, None, None]:
        """Yield a call's events until its end; leaving early cancels it."""
        try:
            with translated_errors(self.connection.address):
                for message in call:
                    event = read(message)
                    yield event
                    if isinstance(event, Done):
                        return
            raise no_answer(self.connection.address)
        finally:
            call.cancel()

    def _call(self, timeout_s: float | None) -> dict[str, Any]:
        return self.connection.call(self._timeout_s if timeout_s is None else timeout_s)


def _answer(events: Iterator[Token | Done], on_token: Callable[[str], None] | None) -> Answer:
    for event in events:
        if isinstance(event, Token):
            if on_token:
                on_token(event.text)
        else:
            assert isinstance(event.result, Answer)
            return event.result
    raise AssertionError("events end with Done or raise")
