"""``AnalyzeStream``: a reader that always takes the newest frame, a worker that answers one frame at a time.

The slot between them holds one frame, so a slow engine costs frames and never seconds of delay, and memory stays that of two frames.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc

from f2edge.engine.requests import Done
from f2edge.errors import EngineClosedError
from f2edge.results import FaceReport
from f2edge.server import validation
from f2edge.server.rpc import Call
from f2edge.server.status import RefusedError, draining, refusal_of, shown
from f2edge.spec.attributes import AttributeSchema
from f2edge.spec.sensitive import SensitivePolicy
from f2edge.v1 import face_pb2 as pb
from f2edge.wire import report_message, timings_message

logger = logging.getLogger(__name__)

_BUSY_RETRY_MS = 1000.0
#: Without a frame: a stream that never had one makes room for another after the first, any other after the second; the third ends it.
_FIRST_FRAME_S, _PATIENCE_S, _LONGEST_SILENCE_S = 0.5, 5.0, 120.0
#: Of a problem that is a busy moment and not the frame's fault.
_PAUSE_S = 0.05

Analyze = Callable[[pb.AnalyzeStreamRequest, tuple[str, ...]], Awaitable[tuple[Done, tuple[FaceReport, ...]]]]


class Streams:
    """The streams that are open."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[FrameStream] = set()

    @contextmanager
    def one(self, stream: FrameStream) -> Iterator[FrameStream]:
        """Room for one more, made by the stream that has been silent for longest; refuses with RESOURCE_EXHAUSTED where none is silent."""
        if len(self._open) >= self._most and not self._make_room():
            message = "as many frame streams are open as this server takes; close one or try again"
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, "QUEUE_FULL", retry_after_ms=_BUSY_RETRY_MS)
        self._open.add(stream)
        try:
            yield stream
        finally:
            self._open.discard(stream)

    def _make_room(self) -> bool:
        silent = max(self._open, key=lambda stream: stream.overdue_s)
        if silent.overdue_s < 0:
            return False
        silent.leave()
        self._open.discard(silent)
        return True

    def close(self) -> None:
        """Let every stream end after the frame in hand; their callers come again elsewhere."""
        for stream in self._open:
            stream.close()


class FrameStream:
    """One stream of frames.

    Args:
        schema: of the model.
        analyze: answers one frame.
        answered: hears how many frames were dropped before each answer.
    """

    def __init__(self, schema: AttributeSchema, analyze: Analyze, answered: Callable[[int], None]) -> None:
        self._schema = schema
        self._analyze = analyze
        self._answered = answered
        self._policy = SensitivePolicy(protected=True)  # what streams comes from a camera
        self._names = self._policy.attributes(schema, None)
        self._slot: pb.AnalyzeStreamRequest | None = None
        self._dropped = 0
        self._filled = asyncio.Event()
        self._finished = False
        self._closed = False
        self._left = False
        self._working = self._used = False
        self._heard = time.monotonic()

    @property
    def overdue_s(self) -> float:
        """Seconds that the next frame is late, below 0 where there is time."""
        patience_s = _PATIENCE_S if self._used else _FIRST_FRAME_S
        return -patience_s if self._working or self._slot is not None else time.monotonic() - self._heard - patience_s

    def close(self) -> None:
        """Take no more frames."""
        self._closed = True
        self._filled.set()

    def leave(self) -> None:
        """End for want of frames."""
        self._left = True
        self._filled.set()

    async def run(self, messages: AsyncIterator[pb.AnalyzeStreamRequest], call: Call) -> None:
        """Answer frames until the caller has sent the last one."""
        reader = asyncio.ensure_future(self._read(messages))
        try:
            while (frame := await self._newest()) is not None:
                self._working = True
                await call.send(await self._response(frame, call))
                self._working, self._heard = False, time.monotonic()
            if self._left:
                message = "the stream had no frame for so long that it had to make room; open another"
                raise RefusedError(grpc.StatusCode.UNAVAILABLE, message, "SILENT", retry_after_ms=_BUSY_RETRY_MS)
            if self._closed:
                raise draining()
            await reader
        finally:
            reader.cancel()

    async def _read(self, messages: AsyncIterator[pb.AnalyzeStreamRequest]) -> None:
        try:
            async for message in messages:
                if self._slot is not None:
                    self._dropped += 1
                    if self._slot.HasField("settings") and not message.HasField("settings"):
                        message.settings.CopyFrom(self._slot.settings)  # settings outlive the frame that brought them
                self._slot, self._used, self._heard = message, True, time.monotonic()
                self._filled.set()
        finally:
            self._finished = True
            self._filled.set()

    async def _newest(self) -> pb.AnalyzeStreamRequest | None:
        timer = asyncio.get_running_loop().call_later(_LONGEST_SILENCE_S, self.leave)
        try:
            while self._slot is None and not (self._finished or self._closed or self._left):
                self._filled.clear()
                await self._filled.wait()
        finally:
            timer.cancel()
        if self._closed or self._left:
            return None
        frame, self._slot = self._slot, None
        return frame

    async def _response(self, frame: pb.AnalyzeStreamRequest, call: Call) -> pb.AnalyzeStreamResponse:
        dropped, self._dropped = self._dropped, 0
        self._answered(dropped)
        response = pb.AnalyzeStreamResponse(frame_id=frame.frame_id, dropped=dropped)
        try:
            if frame.HasField("settings"):
                policy = SensitivePolicy(protected=True, include=frame.settings.include_sensitive)
                self._names = validation.attributes(frame.settings.attributes, policy, self._schema)
                self._policy = policy
            done, reports = await self._analyze(frame, self._names)
        except EngineClosedError:
            raise  # no later frame will do better
        except Exception as error:  # noqa: BLE001  the frame's failure, not the stream's
            response.problem.CopyFrom(self._problem(error, call))
            await asyncio.sleep(_PAUSE_S if response.problem.reason == "QUEUE_FULL" else 0)
            return response
        response.timings.CopyFrom(timings_message(done.timings))
        response.reports.extend(report_message(replace(report, include_sensitive=self._policy.include)) for report in reports)
        return response

    def _problem(self, error: Exception, call: Call) -> pb.Problem:
        refusal = refusal_of(error)
        if refusal.code == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise refusal
        if refusal.code == grpc.StatusCode.INTERNAL:
            logger.error("a frame failed", exc_info=error, extra={"method": call.method, "request_id": call.request_id})
        return pb.Problem(reason=refusal.reason, field=refusal.field, description=shown(str(refusal)))
