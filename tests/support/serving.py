"""Servers for tests: a scripted engine whose every step can be watched and disturbed, and a real one over the model of paper."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from PIL import Image

from f2edge.client.sync import Client
from f2edge.decoding.parallel import StepEvent
from f2edge.decoding.schedule import Schedule
from f2edge.engine.engine import Engine
from f2edge.engine.requests import (
    AnalyzeRequest,
    Done,
    EditRequest,
    EngineState,
    EngineStats,
    Event,
    Failed,
    GenerateRequest,
    Priority,
    ReplyKind,
    Request,
    Timings,
    Token,
)
from f2edge.engine.sequences import RequestHandle
from f2edge.errors import CancelledError, DeadlineExceededError, EngineClosedError
from f2edge.imaging.images import load_image
from f2edge.pipeline import FacePipeline
from f2edge.results import Answer, Check, EditedFace, FaceReport, GeneratedFace
from f2edge.server.engine_protocol import Served
from f2edge.server.lifecycle import FaceServer
from f2edge.server.settings import ServerSettings
from f2edge.spec.attributes import F2EDGE_SCHEMA
from f2edge.spec.lexicon import Wording
from f2edge.spec.sensitive import DRAWN
from f2edge.v1 import face_pb2 as pb
from f2edge.v1 import face_pb2_grpc
from f2edge.wire import ModelFacts
from tests.support.paper_model import PaperBackend, paper_bundle

GRID, CODES, SIDE = 4, 16, 32
FACTS = ModelFacts(
    name="scripted",
    description="says what it is told",
    licence="Apache-2.0",
    f2edge_version="0",
    backend="none",
    image_side=SIDE,
    grid=GRID,
    tokens=GRID * GRID,
    codes=CODES,
    prompt_tokens=96,
    generation=Schedule(steps=8),
    editing=Schedule(steps=8, guidance=3.0),
    regions=("hair", "eyes"),
    schema=F2EDGE_SCHEMA,
    faces=DRAWN,
)
WORDS = ("the ", "hair ", "is ", "red")


class ScriptedEngine:
    """Every request gets a thread and takes ``steps`` steps of ``step_s`` seconds.

    ``full`` is raised before a picture is opened, ``refusal`` and what ``refuse`` gives for a request at submission, ``failure`` ends a
    request at its second step; ``steps_done`` counts all steps; while ``gate`` is closed no step begins; ``submitted`` keeps what came.
    """

    def __init__(self, steps: int = 8, step_s: float = 0.005) -> None:
        self.steps = steps
        self.step_s = step_s
        self.full: Exception | None = None
        self.refusal: Exception | None = None
        self.refuse: Callable[[Request], Exception | None] = lambda _request: None
        self.failure: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.steps_done = 0
        self.submitted: list[tuple[Any, Priority | None, float | None]] = []
        self.open_requests: set[RequestHandle] = set()
        self.state = EngineState.READY
        self.heartbeat_age_ms = 1.0
        self.replies: list[ReplyKind] = []
        self.closed = False
        self._lock = threading.Lock()

    def submit(
        self,
        request: Request,
        *,
        priority: Priority | None = None,
        deadline: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        reply: ReplyKind | None = None,
    ) -> RequestHandle:
        if (refusal := self.refusal or self.refuse(request)) is not None:
            raise refusal
        if self.closed:
            raise EngineClosedError("closed")
        assert on_event is not None
        handle = RequestHandle(len(self.submitted))
        with self._lock:
            self.submitted.append((request, priority, deadline))
            self.open_requests.add(handle)
        threading.Thread(target=self._run, args=(request, deadline, on_event, handle), daemon=True).start()
        return handle

    def _run(self, request: Request, deadline: float | None, emit: Callable[[Event], None], handle: RequestHandle) -> None:
        start = time.monotonic()
        error: Exception | None = None
        for step in range(1, self.steps + 1):
            while not self.gate.wait(0.005) and not handle.cancelled and not self.closed:
                pass
            error = self._trouble(step, deadline, handle)
            if error is not None:
                break
            with self._lock:
                self.steps_done += 1
            time.sleep(self.step_s)
            self._emit_step(request, step, emit)
        with self._lock:
            self.open_requests.discard(handle)
        ms = 1e3 * (time.monotonic() - start)
        timings = Timings(0.0, ms, ms)
        emit(Failed(error, timings) if error is not None else Done(self._result(request), timings, self.steps, self.steps))

    def _trouble(self, step: int, deadline: float | None, handle: RequestHandle) -> Exception | None:
        if self.closed:
            return EngineClosedError("closed")
        if handle.cancelled:
            return CancelledError("cancelled")
        if deadline is not None and time.monotonic() > deadline:
            return DeadlineExceededError("too late")
        return self.failure if step == 2 else None

    def _emit_step(self, request: Request, step: int, emit: Callable[[Event], None]) -> None:
        if isinstance(request, GenerateRequest | EditRequest):
            if request.preview_every and step % request.preview_every == 0 and step < self.steps:
                codes = np.where(np.arange(GRID * GRID) < step * GRID * GRID // self.steps, step_codes(), CODES)
                images = (Image.new("RGB", (SIDE, SIDE), (step, 0, 0)),) if request.preview_images else ()
                emit(StepEvent(step, self.steps, codes[None], step_codes()[None], 1e3 * self.step_s, images))
        elif not isinstance(request, AnalyzeRequest) and step <= len(WORDS):
            emit(Token(WORDS[step - 1]))

    def _result(self, request: Request) -> Any:
        image = Image.new("RGB", (SIDE, SIDE), (200, 100, 50))
        check = Check(0.5, ("hat",), 2, 1) if getattr(request, "check", 0) else None
        if isinstance(request, GenerateRequest):
            schedule, wording = Schedule(steps=self.steps), Wording(("pirate", "eye patch"), {"galsses": "glasses"})
            steps = (1.0,) * self.steps
            return GeneratedFace(image, step_codes(), request.prompt, request.seed, schedule, steps, wording=wording, check=check)
        if isinstance(request, EditRequest):
            options, cells = replace(request.options.resolve(FACTS.editing), steps=self.steps), np.ones((GRID, GRID), dtype=bool)
            return EditedFace(image, step_codes(), step_codes(), cells, seed=request.seed, check=check, options=options)
        if isinstance(request, AnalyzeRequest):
            slots = F2EDGE_SCHEMA.values() if request.attributes is None else F2EDGE_SCHEMA.select(request.attributes).values()
            report = FaceReport({slot.name: {value: 1 / len(slot.values) for value in slot.values} for slot in slots})
            return (report,) * len(request.images)
        return Answer("".join(WORDS), (1, 2, 3, 4), 1.0, 100.0)

    def add_reply(self, kind: ReplyKind, ms: float) -> None:
        self.replies.append(kind)

    def check_room(self, family: str) -> None:
        if self.full is not None and family == "answers":
            raise self.full

    def stats(self) -> EngineStats:
        lanes = {"live": 0, "normal": len(self.open_requests), "background": 0}
        empty: Mapping[str, int] = {}
        return EngineStats(
            queued=dict.fromkeys(lanes, 0), running=lanes, work_ms={}, accepted={"generate": len(self.submitted)}, done=empty, failed=empty,
            cancelled_at=empty, rejected={"queue_full": 0}, turns={"step": self.steps_done}, turn_ms={"step": 5.0 * self.steps_done},
            rows={"step": {1: self.steps_done}}, image_steps=self.steps_done, wasted_steps=0, preemptions=0, faults=0, isolated=0,
            prefix_hits=0, prefix_misses=0, prompt_hits=0, prompt_misses=0, degraded=0,
        )  # fmt: skip

    def drain(self, grace_s: float) -> bool:
        self.close()
        return True

    def close(self) -> None:
        self.closed = True
        self.gate.set()


def step_codes() -> Any:
    return np.arange(GRID * GRID, dtype=np.int64) % CODES


def scripted(engine: ScriptedEngine) -> Served:
    return Served(engine, FACTS)


def paper_pipeline(folder: Path) -> FacePipeline:
    return FacePipeline(paper_bundle(folder), PaperBackend())


def paper_served(pipeline: FacePipeline) -> Served:
    """The real engine over the model of paper."""
    engine = Engine(pipeline, warm_up=False)
    assert engine.wait_ready(10)
    bundle, model = pipeline.bundle, pipeline.bundle.configuration
    facts = replace(
        FACTS,
        name=bundle.name,
        backend="paper",
        image_side=model.tokenizer.image_size,
        grid=model.tokenizer.grid,
        tokens=model.image_tokens,
        codes=model.codes,
        prompt_tokens=model.prompt_tokens,
        generation=bundle.generation,
        editing=bundle.editing,
        regions=bundle.regions,
        schema=bundle.schema,
        faces=bundle.faces,
    )
    return Served(engine, facts)


SETTINGS = ServerSettings(port=0, lame_duck_s=0.0, grace_s=5.0, metrics_port=0)


class ServerThread:
    """A server with a loop and a thread of its own."""

    def __init__(self, settings: ServerSettings = SETTINGS, served: Served | None = None) -> None:
        self._settings = settings
        self._served = served
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self.error: BaseException | None = None
        self.server: FaceServer
        self.loop: asyncio.AbstractEventLoop

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        try:
            self.server = FaceServer(self._settings)
            await self.server.start()
            if self._served is not None:
                await self.server.use(self._served)
        except Exception as error:  # noqa: BLE001
            self.error = error
            return
        finally:
            self._listening.set()
        await self._end.wait()

    def start(self) -> ServerThread:
        self._thread.start()
        assert self._listening.wait(20)
        if self.error is not None:
            raise self.error
        return self

    @property
    def address(self) -> str:
        return self.server.address

    def run(self, work: Any, timeout: float = 20) -> Any:
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def stop(self, grace_s: float = 0.0) -> bool:
        finished: bool = self.run(self.server.drain(0.0, grace_s), grace_s + 20)
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)
        assert not self._thread.is_alive()
        return finished


@contextmanager
def serving(served: Served | None, settings: ServerSettings = SETTINGS) -> Iterator[ServerThread]:
    thread = ServerThread(settings, served).start()
    try:
        yield thread
    finally:
        if not thread.loop.is_closed():
            thread.stop()


@contextmanager
def stub(address: str, *options: tuple[str, Any]) -> Iterator[Any]:
    """A plain client, without this package's."""
    with grpc.insecure_channel(address, list(options)) as channel:
        yield face_pb2_grpc.FaceServiceStub(channel)  # type: ignore[no-untyped-call]


class Asked:
    """What came of asking: answers counted, errors kept."""

    def __init__(self) -> None:
        self.answers = 0
        self.errors: list[Exception] = []

    def more(self, answers: int) -> bool:
        """Whether so many more answers come."""
        before = self.answers
        return eventually(lambda: self.answers >= before + answers, 30)


@contextmanager
def asking(address: str, threads: int = 4) -> Iterator[Asked]:
    """Clients that ask a server of :class:`ScriptedEngine` all the time, each on a thread of its own."""
    picture, asked, end = load_image(photo()), Asked(), threading.Event()

    def work() -> None:
        with Client(address, timeout_s=60) as client:
            while not end.is_set():
                try:
                    assert client.ask(picture, "what?").text == "".join(WORDS)
                    asked.answers += 1
                except Exception as error:  # noqa: BLE001
                    asked.errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield asked
    finally:
        end.set()
        for worker in workers:
            worker.join(30)


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether a condition comes true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def photo(size_wh: tuple[int, int] = (40, 40), kind: str = "PNG", seed: int = 0) -> bytes:
    """A picture of noise in large spots."""
    values = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).resize(size_wh, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


PROMPT = "a smiling woman"
GOOD: dict[str, Any] = {"prompt": PROMPT}
BOX: dict[str, Any] = {"box": pb.Box(width=1, height=1)}


def details(error: grpc.RpcError) -> dict[str, Any]:
    """google.rpc details of a failure by the name of their type."""
    packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(packed)
    found: dict[str, Any] = {"status": status}
    for detail in status.details:
        kind = getattr(error_details_pb2, detail.type_url.rpartition(".")[2])
        found[kind.__name__] = kind.FromString(detail.value)
    return found


def refused(call: Any) -> Any:
    """The error that a call, once read, ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call())
    return caught.value


def requests_of_every_method() -> dict[str, Any]:
    return {
        "Generate": lambda face, **k: face.Generate(pb.GenerateRequest(**GOOD), **k),
        "Edit": lambda face, **k: face.Edit(pb.EditRequest(**GOOD, **BOX, image=photo()), **k),
        "Ask": lambda face, **k: face.Ask(pb.AskRequest(image=photo(), question="what?"), **k),
        "Describe": lambda face, **k: face.Describe(pb.DescribeRequest(image=photo()), **k),
        "Analyze": lambda face, **k: face.Analyze.future(pb.AnalyzeRequest(image=photo()), **k),
        "AnalyzeStream": lambda face, **k: face.AnalyzeStream(iter([pb.AnalyzeStreamRequest(image=photo())]), **k),
    }
