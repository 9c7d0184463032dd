"""The methods of ``f2edge.v1.FaceService``: validate, hand to the engine, pass its events on.

A call that ends, however it ends, leaves nothing in the engine: its request is cancelled before its next step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message

from f2edge.decoding.parallel import StepEvent
from f2edge.engine.requests import AnalyzeRequest, Done, EditRequest, EngineState, GenerateRequest, Priority, ReplyKind, Request, Token
from f2edge.errors import InputError, PromptError
from f2edge.provenance.label import label as new_label
from f2edge.results import Answer, EditedFace, FaceReport, GeneratedFace
from f2edge.server import validation
from f2edge.server.engine_protocol import Served
from f2edge.server.events import Events
from f2edge.server.frames import FrameStream, Streams
from f2edge.server.metrics import Metrics
from f2edge.server.pictures import PicturePool, picture_message, preview_picture, reply_kind
from f2edge.server.rpc import Call
from f2edge.server.settings import ServerSettings
from f2edge.server.status import draining, starting
from f2edge.spec.layout import Ids
from f2edge.v1 import face_pb2 as pb
from f2edge.wire import (
    ModelFacts,
    answer_message,
    cells_message,
    check_message,
    model_message,
    options_message,
    report_message,
    timings_message,
    wording_message,
)

Response = TypeVar("Response", bound=Message)

#: Calls that may wait for an engine that starts, and how often they look.
_MOST_EARLY, _LOOK_S = 64, 0.05
_WORDS = ReplyKind("words")
#: Longest time of a write that is the server's own and not its reader's.
_LONGEST_READ_S = 0.03


class FaceService:
    """Answers calls on one engine, once :attr:`served` is set."""

    def __init__(self, settings: ServerSettings, pool: PicturePool, metrics: Metrics) -> None:
        self.served: Served | None = None
        self._settings = settings
        self._pool = pool
        self._metrics = metrics
        self._streams = Streams(settings.streams)
        self._early = 0
        self._closed = False

    def close(self) -> None:
        """Let streams end; other calls end by themselves, those that wait for the engine at once."""
        self._closed = True
        self._streams.close()

    async def facts(self) -> ModelFacts:
        """Return the model's facts; while the engine starts, waits for it as a call does."""
        return (await self._ready()).facts

    async def generate(self, message: pb.GenerateRequest, call: Call) -> None:
        served = await self._ready()
        validation.check_output(message.output)
        priority = validation.priority(message.priority, image=True)
        kept: list[GenerateRequest] = []

        def build() -> Request:
            kept.append(validation.generate_request(message, self._settings.images))
            return kept[0]

        with self._events() as events:
            kind, place = reply_kind(message.output, served), message.WhichOneof("placement")
            submit = partial(self._submit, served, events, call, build, priority, kind)
            if place is None:
                submit()  # no picture in it, so it costs no thread
            else:
                call.fields = {InputError: place}
                served.engine.check_room("images")
                await self._pool.open(message.ByteSize(), submit)
            request = kept[0]
            done = await self._follow(events, call, request, message.previews, lambda preview: pb.GenerateResponse(preview=preview))
        face = done.result
        assert isinstance(face, GeneratedFace)
        self._metrics.engine_finished(call.method, done.timings)
        label = new_label(prompt=face.prompt, seed=face.seed, bundle=served.facts.name)
        with self._timed(served, call, done, kind):
            picture = await self._pool.write(lambda: picture_message(face, message.output, label, served.signer))
            decoding = _decoding(done, face, options_message(face.options), face.step_ms)
            result = pb.GenerateResult(picture=picture, decoding=decoding, timings=timings_message(done.timings))
            result.wording.CopyFrom(wording_message(face.wording))
            if face.check is not None:
                result.check.CopyFrom(check_message(face.check))
            if face.layout_agreement is not None:
                result.layout_agreement = face.layout_agreement
            await call.send(pb.GenerateResponse(result=result))

    async def edit(self, message: pb.EditRequest, call: Call) -> None:
        served = await self._ready()
        validation.check_output(message.output)
        priority = validation.priority(message.priority, image=True)
        call.fields = {InputError: "region"}
        kept: list[EditRequest] = []

        def build() -> Request:
            kept.append(validation.edit_request(message, served, self._settings.images))
            return kept[0]

        served.engine.check_room("images")
        with self._events() as events:
            kind = reply_kind(message.output, served)
            await self._pool.open(message.ByteSize(), partial(self._submit, served, events, call, build, priority, kind))
            request = kept[0]
            done = await self._follow(events, call, request, message.previews, lambda preview: pb.EditResponse(preview=preview))
        face = done.result
        assert isinstance(face, EditedFace)
        assert face.options is not None
        self._metrics.engine_finished(call.method, done.timings)
        label = new_label(prompt=request.prompt, seed=request.seed, bundle=served.facts.name, edited=True)
        with self._timed(served, call, done, kind):
            picture = await self._pool.write(lambda: picture_message(face, message.output, label, served.signer))
            options = options_message(face.options)
            result = pb.EditResult(
                picture=picture,
                decoding=_decoding(done, face, options, ()),
                timings=timings_message(done.timings),
                original_tokens=face.original_codes.tolist(),
                region=cells_message(face.region),
                wording=wording_message(face.wording),
                check=None if face.check is None else check_message(face.check),
            )
            await call.send(pb.EditResponse(result=result))

    async def describe(self, message: pb.DescribeRequest, call: Call) -> None:
        limits = self._settings.images

        def build() -> Request:
            return validation.describe_request(message, self._facts.faces, limits)

        await self._answer(message, call, build, lambda piece: pb.DescribeResponse(piece=piece), lambda a: pb.DescribeResponse(answer=a))

    async def ask(self, message: pb.AskRequest, call: Call) -> None:
        call.fields = {PromptError: "question"}
        limits = self._settings.images

        def build() -> Request:
            return validation.ask_request(message, self._facts.faces, limits)

        await self._answer(message, call, build, lambda piece: pb.AskResponse(piece=piece), lambda a: pb.AskResponse(answer=a))

    async def analyze(self, message: pb.AnalyzeRequest, call: Call) -> pb.AnalyzeResponse:
        served = await self._ready()
        priority = validation.priority(message.priority, image=False)
        call.fields = {InputError: "attributes"}
        build = partial(validation.analyze_request, message, served.facts, self._settings.images)
        done, (report,) = await self._reports(served, message.ByteSize(), call, build, priority)
        report = replace(report, include_sensitive=message.include_sensitive)
        return pb.AnalyzeResponse(report=report_message(report), timings=timings_message(done.timings))

    async def analyze_stream(self, messages: AsyncIterator[pb.AnalyzeStreamRequest], call: Call) -> None:
        served = await self._ready()

        async def analyze(message: pb.AnalyzeStreamRequest, names: tuple[str, ...]) -> tuple[Done, tuple[FaceReport, ...]]:
            build = partial(validation.frame_request, message, names, served, self._settings.images)
            return await self._reports(served, message.ByteSize(), call, build, Priority.LIVE)

        with self._streams.one(FrameStream(served.facts.schema, analyze, self._metrics.frame_answered)) as stream:
            await stream.run(messages, call)

    async def get_model(self, _message: pb.GetModelRequest, _call: Call) -> pb.GetModelResponse:
        served, images = await self._ready(), self._settings.images
        limits = pb.RequestLimits(
            image_bytes=images.largest_bytes,
            smallest_side=images.smallest_side,
            largest_side=images.largest_side,
            image_pixels=images.largest_pixels,
            side_ratio=images.largest_ratio,
            deadline_s=self._settings.deadline_s,
        )
        return model_message(served.facts, limits)

    async def _answer(
        self,
        message: pb.AskRequest | pb.DescribeRequest,
        call: Call,
        build: Callable[[], Request],
        piece: Callable[[str], Response],
        whole: Callable[[pb.Answer], Response],
    ) -> None:
        served = await self._ready()
        priority = validation.priority(message.priority, image=False)
        served.engine.check_room("answers")
        with self._events() as events:
            await self._pool.open(message.ByteSize(), partial(self._submit, served, events, call, build, priority))
            while not isinstance(event := await events.next(), Done):
                assert isinstance(event, Token)
                await call.send(piece(event.text))
        assert isinstance(event.result, Answer)
        self._metrics.engine_finished(call.method, event.timings)
        answer = replace(event.result, include_sensitive=message.include_sensitive)
        with self._timed(served, call, event):
            await call.send(whole(answer_message(answer, event.timings)))

    async def _reports(
        self, served: Served, size: int, call: Call, build: Callable[[], AnalyzeRequest], priority: Priority | None
    ) -> tuple[Done, tuple[FaceReport, ...]]:
        served.engine.check_room("answers")
        with self._events() as events:
            await self._pool.open(size, partial(self._submit, served, events, call, build, priority))
            while not isinstance(event := await events.next(), Done):
                pass  # the single reports come together in the end
        self._metrics.engine_finished(call.method, event.timings)
        assert isinstance(event.result, tuple)
        return event, event.result

    async def _follow(
        self,
        events: Events,
        call: Call,
        request: GenerateRequest | EditRequest,
        wanted: pb.PreviewOptions,
        wrap: Callable[[pb.Preview], Response],
    ) -> Done:
        """Send previews until the image is done."""
        edited = isinstance(request, EditRequest)
        label = new_label(prompt=request.prompt, seed=request.seed, bundle=self._facts.name, edited=edited)
        known: Ids | None = None
        while not isinstance(event := await events.next(), Done):
            assert isinstance(event, StepEvent)
            preview, codes = pb.Preview(step=event.step, steps=event.steps), event.codes[0]
            if wanted.tokens:
                fixed = np.flatnonzero(codes < self._facts.codes) if known is None else np.flatnonzero(codes != known)
                known = codes
                preview.positions.extend(fixed.tolist())
                preview.codes.extend(codes[fixed].tolist())
            if wanted.proposal:
                preview.proposal.extend(event.proposal[0].tolist())
            if event.images:
                preview.picture = await self._pool.write(partial(preview_picture, event.images[0], wanted.picture_side, label))
            await call.send(wrap(preview))
        return event

    def _submit(  # noqa: PLR0917 - bound by partial
        self,
        served: Served,
        events: Events,
        call: Call,
        build: Callable[[], Request],
        priority: Priority | None,
        reply: ReplyKind = _WORDS,
    ) -> None:
        request, submit = build(), partial(served.engine.submit, priority=priority, deadline=call.deadline, reply=reply)
        events.submit(lambda emit: submit(request, on_event=emit))

    @contextmanager
    def _timed(self, served: Served, call: Call, done: Done, kind: ReplyKind = _WORDS) -> Iterator[None]:
        """Tell the engine how long a reply takes from the engine's end of the request, or until the call is cut off.

        A caller who reads slowly slows down nobody else, so his delay does not count.
        """
        try:
            yield
        finally:
            seconds = time.monotonic() - done.ended - max(0.0, call.last_write_s - _LONGEST_READ_S)
            served.engine.add_reply(kind, 1e3 * seconds)

    async def _ready(self) -> Served:
        """The engine; while it starts, calls wait for it a little, for a client that is refused at once has soon tried often enough."""
        until = time.monotonic() + self._settings.start_wait_s
        self._early += 1
        try:
            while self.served is None or self.served.engine.state is EngineState.STARTING:
                if self._closed:
                    raise draining()
                if self._early > _MOST_EARLY or time.monotonic() >= until:
                    raise starting()
                await asyncio.sleep(_LOOK_S)
        finally:
            self._early -= 1
        return self.served

    @property
    def _facts(self) -> ModelFacts:
        assert self.served is not None
        return self.served.facts

    @contextmanager
    def _events(self) -> Iterator[Events]:
        events = Events()
        try:
            yield events
        finally:
            events.close()


def _decoding(done: Done, face: GeneratedFace | EditedFace, options: pb.DecodingOptions, step_ms: tuple[float, ...]) -> pb.Decoding:
    return pb.Decoding(
        seed=face.seed,
        options=options,
        steps=done.steps,
        steps_planned=done.steps_planned,
        degraded=done.degraded,
        step_ms=step_ms,
        preset=face.preset,
    )
