"""The server as callers see it: streams, refusals, cancellation, health, drain, figures."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image

from f2edge.attributes import F2EDGE_SCHEMA
from f2edge.cli_top import Figures, look, render, summary
from f2edge.errors import BackendError, DeadlineUnreachableError, InputError, QueueFullError, UnknownRegionError
from f2edge.pipeline import FacePipeline
from f2edge.provenance import EDITED, GENERATED, read_label
from f2edge.requests import EngineState, Priority
from f2edge.server.settings import ServerSettings
from f2edge.v1 import face_pb2 as pb
from tests.serving import (
    CODES,
    GRID,
    SETTINGS,
    SIDE,
    WORDS,
    ScriptedEngine,
    ServerThread,
    eventually,
    paper_pipeline,
    paper_served,
    photo,
    scripted,
    serving,
    step_codes,
    stub,
)

pytestmark = pytest.mark.runtime
PROMPT = "a smiling woman"


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def server(engine: ScriptedEngine) -> Iterator[ServerThread]:
    with serving(scripted(engine)) as running:
        yield running


@pytest.fixture
def face(server: ServerThread) -> Iterator[Any]:
    with stub(server.address) as made:
        yield made


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


# What comes back -------------------------------------------------------------------------------------------------------------------------


def test_generate_sends_previews_and_a_labelled_face(face: Any) -> None:
    wanted = pb.PreviewOptions(every_steps=2, tokens=True, proposal=True, picture_side=16)
    *previews, last = face.Generate(pb.GenerateRequest(prompt=PROMPT, seed=7, previews=wanted))
    assert [p.preview.step for p in previews] == sorted({p.preview.step for p in previews})
    codes = np.full(GRID * GRID, CODES)
    for message in previews:
        preview = message.preview
        assert preview.steps == 8
        assert list(preview.proposal) == step_codes().tolist()
        assert Image.open(io.BytesIO(preview.picture)).size == (16, 16)
        assert read_label(preview.picture) is not None
        codes[list(preview.positions)] = list(preview.codes)
        fixed = np.arange(GRID * GRID) < preview.step * GRID * GRID // 8
        np.testing.assert_array_equal(codes, np.where(fixed, step_codes(), CODES))
    result = last.result
    label = read_label(result.picture.image)
    assert label is not None
    assert (label.source_type, label.seed, label.prompt, label.bundle) == (GENERATED, 7, PROMPT, "scripted")
    assert result.picture.provenance.synthetic
    assert list(result.picture.provenance.marks) == ["xmp"]
    assert (result.decoding.seed, result.decoding.steps, result.decoding.degraded) == (7, 8, False)
    assert list(result.picture.tokens) == step_codes().tolist()


@pytest.mark.parametrize(("form", "kind"), [(pb.IMAGE_FORMAT_JPEG, "JPEG"), (pb.IMAGE_FORMAT_WEBP, "WEBP"), (0, "PNG")])
def test_pictures_come_as_asked(face: Any, form: Any, kind: str) -> None:
    (message,) = face.Generate(pb.GenerateRequest(prompt=PROMPT, output=pb.OutputOptions(format=form, side=48, quality=70)))
    picture = message.result.picture
    opened = Image.open(io.BytesIO(picture.image))
    assert (opened.format, opened.size, picture.width, picture.height) == (kind, (48, 48), 48, 48)
    assert message.result.decoding.seed < 1 << 53


def test_words_stream_and_join_to_the_answer(face: Any) -> None:
    for call in (face.Ask(pb.AskRequest(image=photo(), question="hair?")), face.Describe(pb.DescribeRequest(image=photo()))):
        *pieces, last = call
        assert "".join(message.piece for message in pieces) == "".join(WORDS) == last.answer.text


def test_sensitive_attributes_are_reported_only_where_asked_for(face: Any) -> None:
    def names(**asked: Any) -> list[str]:
        return [slot.name for slot in face.Analyze(pb.AnalyzeRequest(image=photo(), **asked)).report.slots]

    plain = [slot.name for slot in F2EDGE_SCHEMA.values() if not slot.sensitive]
    assert names() == plain
    assert names(include_sensitive=True) == list(F2EDGE_SCHEMA)
    assert names(attributes=["age", "hair_color"]) == ["age", "hair_color"]


def test_what_a_caller_asks_for_reaches_the_engine(face: Any, engine: ScriptedEngine) -> None:
    options = pb.DecodingOptions(steps=5, guidance=0.1, order="halton", guidance_low=0.25, guidance_high=0.75, guidance_ramp=True)
    message = pb.GenerateRequest(prompt="  a face ", seed=2**64 - 1, options=options, min_steps=3, priority=pb.PRIORITY_BACKGROUND)
    list(face.Generate(message, timeout=20))
    request, lane, deadline = engine.submitted[0]
    assert request.prompt == "a face"
    assert request.seed == 2**64 - 1
    assert (request.options.steps, request.options.guidance, request.options.order) == (5, 0.1, "halton")
    assert (request.options.guidance_interval, request.options.guidance_ramp, request.options.temperature) == ((0.25, 0.75), True, None)
    assert (request.min_steps, lane) == (3, Priority.BACKGROUND)
    assert deadline is not None
    assert 10 < deadline - time.monotonic() < 20
    list(face.Generate(pb.GenerateRequest(prompt=PROMPT)))
    assert engine.submitted[1][1:] == (None, None)


def test_an_edit_takes_a_name_a_box_a_mask_or_cells(face: Any, engine: ScriptedEngine) -> None:
    for region in (
        {"name": "hair+eyes"},
        {"box": pb.Box(x=0, y=0, width=1, height=0.5)},
        {"mask": photo()},
        {"cells": pb.Cells(inside=[True] * 16)},
    ):
        (message,) = face.Edit(pb.EditRequest(image=photo(), prompt=PROMPT, seed=3, **region))
        label = read_label(message.result.picture.image)
        assert label is not None
        assert label.source_type == EDITED
        assert list(message.result.original_tokens) == step_codes().tolist()
        assert message.result.decoding.seed == 3
    regions = [request.region for request, *_ in engine.submitted]
    assert regions[:2] == ["hair+eyes", (0, 0, 1, 0.5)]
    assert regions[2].size == (40, 40)
    assert regions[3].shape == (GRID, GRID)


def test_the_request_id_comes_back(face: Any) -> None:
    given = face.GetModel.with_call(pb.GetModelRequest(), metadata=[("x-request-id", "abc-1")])[1]
    assert dict(given.trailing_metadata())["x-request-id"] == "abc-1"
    drawn = face.GetModel.with_call(pb.GetModelRequest(), metadata=[("x-request-id", "no/such id")])[1]
    assert re.fullmatch(r"[0-9a-f]{16}", dict(drawn.trailing_metadata())["x-request-id"])


# The real engine -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> FacePipeline:
    return paper_pipeline(tmp_path_factory.mktemp("paper"))


def test_replies_are_those_of_the_model_alone_whatever_the_company(pipeline: FacePipeline, tmp_path: Path) -> None:
    seeds = range(6)
    alone = [pipeline.generate(PROMPT, seeds=seed)[0].codes.tolist() for seed in seeds]
    picture = pipeline.generate(PROMPT, seeds=0)[0].image
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    answer = pipeline.ask(picture, "what?", max_tokens=8).text
    with serving(paper_served(paper_pipeline(tmp_path))) as server, stub(server.address) as face:
        calls = [face.Generate(pb.GenerateRequest(prompt=PROMPT, seed=seed)) for seed in seeds]
        asked = [face.Ask(pb.AskRequest(image=buffer.getvalue(), question="what?", max_tokens=8)) for _ in range(3)]
        assert [list(list(call)[-1].result.picture.tokens) for call in calls] == alone
        assert [list(call)[-1].answer.text for call in asked] == [answer] * 3


# Refusals --------------------------------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"prompt": PROMPT}
ANIMATED = io.BytesIO()
Image.new("L", (32, 32)).save(ANIMATED, "PNG", save_all=True, append_images=[Image.new("L", (32, 32), 9)])
BOX: dict[str, Any] = {"box": pb.Box(width=1, height=1)}

BAD: dict[str, tuple[str, Any, str, str]] = {
    "empty prompt": ("Generate", pb.GenerateRequest(), "prompt", "PROMPT"),
    "control character": ("Generate", pb.GenerateRequest(prompt="a\x07b"), "prompt", "PROMPT"),
    "long prompt": ("Generate", pb.GenerateRequest(prompt="a" * 2001), "prompt", "PROMPT"),
    "steps": ("Generate", pb.GenerateRequest(**GOOD, options=pb.DecodingOptions(steps=0)), "options.steps", "ARGUMENT"),
    "many steps": ("Generate", pb.GenerateRequest(**GOOD, options=pb.DecodingOptions(steps=2**31)), "options.steps", "ARGUMENT"),
    "nan": ("Generate", pb.GenerateRequest(**GOOD, options=pb.DecodingOptions(guidance=float("nan"))), "options.guidance", "ARGUMENT"),
    "inf": (
        "Generate",
        pb.GenerateRequest(**GOOD, options=pb.DecodingOptions(temperature=float("inf"))),
        "options.temperature",
        "ARGUMENT",
    ),
    "order": ("Generate", pb.GenerateRequest(**GOOD, options=pb.DecodingOptions(order="spiral")), "options.order", "ARGUMENT"),
    "long order": ("Generate", pb.GenerateRequest(**GOOD, options=pb.DecodingOptions(order="x" * 10**6)), "options.order", "ARGUMENT"),
    "half an interval": (
        "Generate",
        pb.GenerateRequest(**GOOD, options=pb.DecodingOptions(guidance_low=0.5)),
        "options.guidance_low",
        "ARGUMENT",
    ),
    "min steps": ("Generate", pb.GenerateRequest(**GOOD, min_steps=0), "min_steps", "ARGUMENT"),
    "previews": ("Generate", pb.GenerateRequest(**GOOD, previews=pb.PreviewOptions(every_steps=9999)), "previews.every_steps", "ARGUMENT"),
    "preview side": (
        "Generate",
        pb.GenerateRequest(**GOOD, previews=pb.PreviewOptions(picture_side=9)),
        "previews.picture_side",
        "ARGUMENT",
    ),
    "format": ("Generate", pb.GenerateRequest(**GOOD, output=pb.OutputOptions(format=77)), "output.format", "ARGUMENT"),  # type: ignore[arg-type]
    "side": ("Generate", pb.GenerateRequest(**GOOD, output=pb.OutputOptions(side=5000)), "output.side", "ARGUMENT"),
    "quality": ("Generate", pb.GenerateRequest(**GOOD, output=pb.OutputOptions(quality=101)), "output.quality", "ARGUMENT"),
    "live picture": ("Generate", pb.GenerateRequest(**GOOD, priority=pb.PRIORITY_LIVE), "priority", "ARGUMENT"),
    "unknown lane": ("Analyze", pb.AnalyzeRequest(image=photo(), priority=9), "priority", "ARGUMENT"),  # type: ignore[arg-type]
    "no region": ("Edit", pb.EditRequest(**GOOD, image=photo()), "region", "ARGUMENT"),
    "bad mask": ("Edit", pb.EditRequest(**GOOD, image=photo(), mask=b"no"), "mask", "IMAGE"),
    "few cells": ("Edit", pb.EditRequest(**GOOD, image=photo(), cells=pb.Cells(inside=[True])), "cells", "ARGUMENT"),
    "no cell": ("Edit", pb.EditRequest(**GOOD, image=photo(), cells=pb.Cells(inside=[False] * 16)), "cells", "ARGUMENT"),
    "edit of nothing": ("Edit", pb.EditRequest(**GOOD, **BOX), "image", "IMAGE"),
    "not a picture": ("Analyze", pb.AnalyzeRequest(image=b"hello"), "image", "IMAGE"),
    "cut picture": ("Describe", pb.DescribeRequest(image=photo()[:-20]), "image", "IMAGE"),
    "small picture": ("Analyze", pb.AnalyzeRequest(image=photo((8, 8))), "image", "IMAGE"),
    "animation": ("Analyze", pb.AnalyzeRequest(image=ANIMATED.getvalue()), "image", "IMAGE"),
    "empty question": ("Ask", pb.AskRequest(image=photo()), "question", "PROMPT"),
    "tokens": ("Ask", pb.AskRequest(image=photo(), question="what?", max_tokens=5000), "max_tokens", "ARGUMENT"),
    "attribute": ("Analyze", pb.AnalyzeRequest(image=photo(), attributes=["shoe_size"]), "attributes", "ATTRIBUTE"),
    "attribute twice": ("Analyze", pb.AnalyzeRequest(image=photo(), attributes=["age", "age"]), "attributes", "ARGUMENT"),
    "many attributes": ("Analyze", pb.AnalyzeRequest(image=photo(), attributes=["age"] * 300), "attributes", "ARGUMENT"),
}


@pytest.fixture(scope="module")
def calm() -> Iterator[tuple[ScriptedEngine, Any]]:
    """A server that no test disturbs."""
    engine = ScriptedEngine()
    with serving(scripted(engine)) as running, stub(running.address) as made:
        yield engine, made


@pytest.mark.parametrize("case", BAD)
def test_a_bad_field_is_named_with_its_rule(calm: tuple[ScriptedEngine, Any], case: str) -> None:
    engine, face = calm
    method, message, field, reason = BAD[case]
    before = len(engine.submitted)

    def call() -> Any:
        answer = getattr(face, method)(message)
        return answer if method != "Analyze" else [answer]

    error = refused(call)
    found = details(error)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in found["BadRequest"].field_violations] == [field]
    assert found["ErrorInfo"].reason == reason
    assert found["status"].code == 3
    assert 10 < len(error.details()) <= 600
    assert error.details().isprintable()
    assert len(engine.submitted) == before


def test_a_region_that_the_engine_refuses_is_a_bad_field(face: Any, engine: ScriptedEngine) -> None:
    engine.refusal = UnknownRegionError("unknown region 'ears'")
    error = refused(lambda: face.Edit(pb.EditRequest(**GOOD, image=photo(), name="ears")))
    assert details(error)["BadRequest"].field_violations[0].field == "region"
    engine.refusal = InputError("region (9, 9, 1, 1) has no part in the centred square")
    error = refused(lambda: face.Edit(pb.EditRequest(**GOOD, image=photo(), box=pb.Box(x=9, y=9, width=1, height=1))))
    assert details(error)["BadRequest"].field_violations[0].field == "region"


def test_a_full_queue_says_at_once_when_to_come_back(face: Any, engine: ScriptedEngine) -> None:
    engine.refusal = QueueFullError("8 requests wait; try again in 1250 ms", 1250)
    error, fastest = None, 9.0
    for _ in range(5):
        start = time.perf_counter()
        error = refused(lambda: face.Generate(pb.GenerateRequest(**GOOD)))
        fastest = min(fastest, time.perf_counter() - start)
    assert error is not None
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1250"
    assert details(error)["RetryInfo"].retry_delay.ToMilliseconds() == 1250
    assert fastest < 0.05


def test_a_deadline_that_cannot_be_met_is_refused(face: Any, engine: ScriptedEngine) -> None:
    engine.refusal = DeadlineUnreachableError("needs 900 ms, the deadline leaves 100")
    error = refused(lambda: face.Generate(pb.GenerateRequest(**GOOD), timeout=20))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "needs 900 ms" in error.details()


@pytest.mark.parametrize("where", ["refusal", "failure"])
@pytest.mark.parametrize("error", [BackendError("/secret/model.onnx: node 7"), RuntimeError("/secret/path"), MemoryError()])
def test_nothing_of_the_inside_gets_out(
    face: Any, engine: ScriptedEngine, where: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    setattr(engine, where, error)
    with caplog.at_level(logging.ERROR, "f2edge"):
        failed = refused(lambda: face.Ask(pb.AskRequest(image=photo(), question="what?")))
    assert failed.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in failed.details() + str(failed.trailing_metadata())
    request_id = details(failed)["RequestInfo"].request_id
    assert [record.request_id for record in caplog.records if record.exc_info] == [request_id]  # type: ignore[attr-defined]
    setattr(engine, where, None)
    assert list(face.Ask(pb.AskRequest(image=photo(), question="what?")))[-1].answer.text == "".join(WORDS)


def test_messages_of_another_kind_and_size_are_refused(server: ServerThread, face: Any) -> None:
    with grpc.insecure_channel(server.address) as channel:
        raw = channel.unary_stream("/f2edge.v1.FaceService/Generate")
        error = refused(lambda: raw(b"\xff\xff\xff\xff"))
        assert (error.code(), details(error)["ErrorInfo"].reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE")
        assert refused(lambda: raw(b"\x00" * (5 << 20))).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        bomb = channel.unary_stream("/f2edge.v1.FaceService/Generate")
        error = refused(lambda: bomb(b"\x00" * (32 << 20), compression=grpc.Compression.Gzip))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        none = channel.unary_unary("/f2edge.v1.FaceService/Paint")
        with pytest.raises(grpc.RpcError) as caught:
            none(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert face.GetModel(pb.GetModelRequest()).name == "scripted"


# Cancellation and deadlines ---------------------------------------------------------------------------------------------------------------


def requests_of_every_method() -> dict[str, Any]:
    return {
        "Generate": lambda face, **k: face.Generate(pb.GenerateRequest(**GOOD), **k),
        "Edit": lambda face, **k: face.Edit(pb.EditRequest(**GOOD, **BOX, image=photo()), **k),
        "Ask": lambda face, **k: face.Ask(pb.AskRequest(image=photo(), question="what?"), **k),
        "Describe": lambda face, **k: face.Describe(pb.DescribeRequest(image=photo()), **k),
        "Analyze": lambda face, **k: face.Analyze.future(pb.AnalyzeRequest(image=photo()), **k),
        "AnalyzeStream": lambda face, **k: face.AnalyzeStream(iter([pb.AnalyzeStreamRequest(image=photo())]), **k),
    }


@pytest.mark.parametrize("method", requests_of_every_method())
def test_cancelled_work_stops_within_one_step(face: Any, engine: ScriptedEngine, method: str) -> None:
    engine.steps, engine.step_s = 1000, 0.02
    call = requests_of_every_method()[method](face)
    assert eventually(lambda: engine.steps_done >= 2)
    call.cancel()
    assert eventually(lambda: all(ticket.cancelled.is_set() for ticket in engine.open_tickets))
    done = engine.steps_done
    assert eventually(lambda: not engine.open_tickets)
    assert engine.steps_done <= done + 1


@pytest.mark.parametrize("method", requests_of_every_method())
def test_work_stops_at_its_deadline(face: Any, engine: ScriptedEngine, method: str) -> None:
    engine.steps, engine.step_s = 1000, 0.02
    call = requests_of_every_method()[method](face, timeout=0.5)
    with pytest.raises(grpc.RpcError) as caught:
        call.result() if method == "Analyze" else list(call)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert eventually(lambda: not engine.open_tickets)
    assert engine.steps_done < 100


def test_no_call_outlives_the_servers_longest(engine: ScriptedEngine) -> None:
    engine.steps, engine.step_s = 1000, 0.02
    with serving(scripted(engine), replace(SETTINGS, deadline_s=0.3)) as server, stub(server.address) as face:
        error = refused(lambda: face.Generate(pb.GenerateRequest(**GOOD)))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert not engine.open_tickets or eventually(lambda: not engine.open_tickets)


def test_a_reader_who_is_slow_gets_fewer_previews_and_no_old_ones(face: Any, engine: ScriptedEngine) -> None:
    engine.steps, engine.step_s = 300, 0.0
    wanted = pb.PreviewOptions(every_steps=1, picture_side=1024, tokens=True)
    call = face.Generate(pb.GenerateRequest(**GOOD, previews=wanted))
    first: Any = next(call)
    assert eventually(lambda: not engine.open_tickets)  # the engine did not wait for the reader
    previews = [first, *call]
    last = previews.pop()
    steps = [message.preview.step for message in previews]
    assert steps == sorted(set(steps))
    assert len(steps) < 299
    assert last.WhichOneof("event") == "result"


# Frames ----------------------------------------------------------------------------------------------------------------------------------


def test_the_latest_frame_wins(face: Any, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    sent = threading.Event()

    def frames() -> Iterator[pb.AnalyzeStreamRequest]:
        yield pb.AnalyzeStreamRequest(frame_id=0, image=photo(), settings=pb.AnalyzeStreamSettings(attributes=["age"]))
        assert eventually(lambda: len(engine.submitted) == 1)
        for number in range(1, 20):
            yield pb.AnalyzeStreamRequest(frame_id=number, image=photo())
        sent.set()
        engine.gate.set()

    answers = list(face.AnalyzeStream(frames()))
    assert sent.is_set()
    assert (answers[0].frame_id, answers[-1].frame_id) == (0, 19)
    assert len(answers) < 20
    assert sum(answer.dropped for answer in answers) + len(answers) == 20
    assert all([slot.name for slot in answer.reports[0].slots] == ["age"] for answer in answers)


def test_one_bad_frame_does_not_end_a_stream(face: Any, engine: ScriptedEngine) -> None:
    frames = [
        pb.AnalyzeStreamRequest(frame_id=1, image=b"nothing"),
        pb.AnalyzeStreamRequest(frame_id=2, image=photo(), settings=pb.AnalyzeStreamSettings(attributes=["shoe_size"])),
        pb.AnalyzeStreamRequest(frame_id=3, image=photo(), faces=[pb.Box(x=0, y=0, width=20, height=20), pb.Box(width=0.5, height=0.5)]),
        pb.AnalyzeStreamRequest(frame_id=4, image=photo(), faces=[pb.Box(x=30, y=0, width=20, height=20)]),
        pb.AnalyzeStreamRequest(frame_id=5, image=photo(), faces=[pb.Box(width=1, height=1)] * 9),
        pb.AnalyzeStreamRequest(frame_id=6, image=photo()),
    ]
    answered: dict[int, Any] = {}
    turn = threading.Semaphore(1)

    def one_by_one() -> Iterator[Any]:
        for frame in frames:
            turn.acquire()
            yield frame

    for answer in face.AnalyzeStream(one_by_one()):
        answered[answer.frame_id] = answer
        turn.release()
    problems = [(number, answered[number].problem.reason, answered[number].problem.field) for number in answered]
    assert problems == [
        (1, "IMAGE", "image"),
        (2, "ATTRIBUTE", "attributes"),
        (3, "", ""),
        (4, "ARGUMENT", "faces"),
        (5, "ARGUMENT", "faces"),
        (6, "", ""),
    ]
    assert [len(answered[number].reports) for number in answered] == [0, 0, 2, 0, 0, 1]
    assert [picture.size for picture in engine.submitted[0][0].images] == [(SIDE, SIDE), (SIDE, SIDE)]
    assert {lane for _, lane, _ in engine.submitted} == {Priority.LIVE}


def test_streams_are_counted(engine: ScriptedEngine) -> None:
    engine.gate.clear()
    with serving(scripted(engine), replace(SETTINGS, streams=1)) as server, stub(server.address) as face:
        first = requests_of_every_method()["AnalyzeStream"](face)
        assert eventually(lambda: len(engine.submitted) == 1)
        error = refused(lambda: requests_of_every_method()["AnalyzeStream"](face))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        engine.gate.set()
        assert len(list(first)) == 1
        assert len(list(requests_of_every_method()["AnalyzeStream"](face))) == 1


# Health, drain ----------------------------------------------------------------------------------------------------------------------------

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def health(address: str, service: str = "") -> Any:
    with grpc.insecure_channel(address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def test_health_follows_the_engine(engine: ScriptedEngine) -> None:
    with serving(None) as server, stub(server.address) as face:
        assert health(server.address) == NOT_SERVING
        error = refused(lambda: face.Generate(pb.GenerateRequest(**GOOD)))
        assert (error.code(), details(error)["ErrorInfo"].reason) == (grpc.StatusCode.UNAVAILABLE, "STARTING")
        engine.state = EngineState.STARTING
        server.run(server.server.use(scripted(engine)))
        time.sleep(0.3)
        assert health(server.address) == NOT_SERVING
        for state, age_ms, expected in (
            (EngineState.READY, 1.0, SERVING),
            (EngineState.READY, 60_000.0, NOT_SERVING),
            (EngineState.READY, 1.0, SERVING),
            (EngineState.FAULTY, 1.0, NOT_SERVING),
        ):
            engine.state, engine.heartbeat_age_ms = state, age_ms
            for name in ("", "f2edge.v1.FaceService"):
                assert eventually(lambda name=name, expected=expected: health(server.address, name) == expected)  # type: ignore[misc]
        with pytest.raises(grpc.RpcError) as caught:
            health(server.address, "another.Service")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_health_answers_while_everything_is_busy(server: ServerThread, face: Any, engine: ScriptedEngine) -> None:
    engine.steps, engine.step_s = 1000, 0.01
    calls = [face.Generate(pb.GenerateRequest(**GOOD)) for _ in range(20)]
    large = photo((1500, 1500), "JPEG")
    calls += [face.Ask(pb.AskRequest(image=large, question="what?")) for _ in range(10)]
    assert eventually(lambda: len(engine.submitted) == 30)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        assert health(server.address) == SERVING
        took.append(time.perf_counter() - start)
    assert min(took) < 0.05
    for call in calls:
        call.cancel()


def test_a_drain_finishes_what_was_accepted_and_takes_no_more(engine: ScriptedEngine) -> None:
    engine.gate.clear()
    thread = ServerThread(SETTINGS, scripted(engine)).start()
    with stub(thread.address) as face:
        calls = [face.Generate(pb.GenerateRequest(prompt=PROMPT, seed=seed)) for seed in range(4)]
        stream = requests_of_every_method()["AnalyzeStream"](face)
        assert eventually(lambda: len(engine.submitted) == 5)
        drained: list[bool] = []
        stopper = threading.Thread(target=lambda: drained.append(thread.stop(10.0)))
        stopper.start()
        assert eventually(lambda: thread.server._calls.closed)
        error = refused(lambda: face.Generate(pb.GenerateRequest(**GOOD)))
        assert error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}  # gRPC's, for one that came as it stopped
        engine.gate.set()
        assert [list(call)[-1].result.decoding.seed for call in calls] == [0, 1, 2, 3]
        assert [answer.frame_id for answer in _read(stream)] == [0]
        stopper.join(20)
    assert drained == [True]
    assert engine.closed


def _read(call: Any) -> list[Any]:
    """What a stream sends before the server asks its caller to go elsewhere."""
    answers: list[Any] = []
    with pytest.raises(grpc.RpcError) as caught:
        answers.extend(iter(call))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    return answers


def test_the_grace_period_ends(engine: ScriptedEngine) -> None:
    engine.gate.clear()
    thread = ServerThread(SETTINGS, scripted(engine)).start()
    with stub(thread.address) as face:
        call = face.Generate(pb.GenerateRequest(**GOOD))
        assert eventually(lambda: len(engine.submitted) == 1)
        start = time.monotonic()
        assert thread.stop(0.3) is False
        assert time.monotonic() - start < 8
        assert refused(lambda: call).code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


PROCESS = """
import asyncio, sys, threading
from f2edge.cli_serve import _serve
from f2edge.server.logs import log_as_json
from f2edge.server.settings import ServerSettings
from tests.serving import ScriptedEngine, scripted
log_as_json()
engine = ScriptedEngine(steps=int(sys.argv[1]), step_s=0.02)
if len(sys.argv) > 2:
    threading.Timer(0.5, lambda: setattr(engine, "heartbeat_age_ms", 1e9)).start()
settings = ServerSettings(port=0, lame_duck_s=0.1, grace_s=20, hang_exit_s=30)
raise SystemExit(asyncio.run(_serve(settings, lambda: scripted(engine))))
"""


class Process:
    def __init__(self, *arguments: str) -> None:
        folder = Path(__file__).parent.parent
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().rpartition(" ")[2].strip()

    def end(self) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and log."""
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, [json.loads(line) for line in err.splitlines() if line.startswith("{")]


def test_the_first_signal_drains_and_the_log_is_json() -> None:
    server = Process("20")
    with stub(server.address) as face:
        assert eventually(lambda: health(server.address) == SERVING, 20)
        call = face.Generate(pb.GenerateRequest(**GOOD), metadata=[("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")])
        time.sleep(0.1)
        os.kill(server.process.pid, signal.SIGTERM)
        assert list(call)[-1].WhichOneof("event") == "result"
    code, log = server.end()
    assert code == 0
    (line,) = [line for line in log if line["message"] == "call"]
    assert (line["method"], line["code"], line["trace_id"]) == ("Generate", "OK", "a" * 32)
    assert line["ms"] > 0
    assert PROMPT not in json.dumps(log)
    assert log[-1]["message"] == "stopped"


def test_a_second_signal_ends_at_once() -> None:
    server = Process("100000")
    with stub(server.address) as face:
        assert eventually(lambda: health(server.address) == SERVING, 20)
        call = face.Generate(pb.GenerateRequest(**GOOD))
        os.kill(server.process.pid, signal.SIGTERM)
        assert eventually(lambda: server.process.poll() is not None or health_fails(server.address), 10)
        start = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        code, _ = server.end()
        assert refused(lambda: call).code() == grpc.StatusCode.UNAVAILABLE
    assert code == 130
    assert time.monotonic() - start < 5


def health_fails(address: str) -> bool:
    try:
        return bool(health(address) != SERVING)
    except grpc.RpcError:
        return True


def test_a_hanging_engine_ends_the_process_with_an_error() -> None:
    server = Process("20", "hang")
    code, log = server.end()
    assert code == 1
    assert "the engine is given up" in [line["message"] for line in log]


# Figures --------------------------------------------------------------------------------------------------------------------------------


def test_figures_count_what_happened(server: ServerThread, face: Any, engine: ScriptedEngine) -> None:
    for _ in range(3):
        list(face.Generate(pb.GenerateRequest(**GOOD)))
    refused(lambda: face.Generate(pb.GenerateRequest()))
    list(face.AnalyzeStream(iter([pb.AnalyzeStreamRequest(image=photo())])))
    engine.gate.clear()
    waiting = face.Generate(pb.GenerateRequest(**GOOD))
    assert eventually(lambda: len(engine.submitted) == 5)
    figures = look(f"127.0.0.1:{server.server.metrics_port}")
    assert figures.value("f2edge_requests_total", method="Generate", code="OK") == 3
    assert figures.value("f2edge_requests_total", method="Generate", code="INVALID_ARGUMENT") == 1
    assert figures.value("f2edge_requests_total", method="Ask", code="OK") == 0
    assert figures.value("f2edge_open_calls", method="Generate") == 1
    assert figures.value("f2edge_request_seconds_count", method="Generate") == 4
    assert figures.value("f2edge_first_token_seconds_count", method="Generate") == 3
    assert figures.value("f2edge_frames_total") == 1
    assert figures.value("f2edge_running", priority="normal") == 1
    assert figures.value("f2edge_steps_total") == engine.steps_done == 32
    assert figures.value("f2edge_batch_size_bucket", task="step", le="1.0") == 32
    assert figures.value("f2edge_model_info", model="scripted", version="0", backend="none") == 1
    engine.gate.set()
    list(waiting)


def test_top_shows_what_the_server_does(server: ServerThread, face: Any) -> None:
    from rich.console import Console

    before = look(f"127.0.0.1:{server.server.metrics_port}")
    list(face.Generate(pb.GenerateRequest(**GOOD)))
    after = look(f"127.0.0.1:{server.server.metrics_port}")
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(render(before, after))
    shown = console.export_text()
    assert shown.startswith("scripted · heartbeat 1 ms ago")
    assert re.search(r"Generate +0 +\d+\.\d +1 +0 +≤ \d", shown)
    table = summary(after)
    assert table["calls"]["Generate"]["ended"] == {"OK": 1}  # type: ignore[index]
    assert table["steps"] == 8


def test_a_quantile_is_the_edge_of_its_bucket() -> None:
    buckets = {"0.1": 50.0, "0.5": 99.0, "+Inf": 100.0}
    figures = Figures({("f2edge_x_bucket", (("le", edge),)): count for edge, count in buckets.items()}, 0.0)
    assert figures.quantile_ms("f2edge_x", 0.5) == 100
    assert figures.quantile_ms("f2edge_x", 0.6) == 500
    assert figures.quantile_ms("f2edge_x", 1.0) == float("inf")
    assert figures.quantile_ms("f2edge_y", 0.5) is None


# The contract alone ----------------------------------------------------------------------------------------------------------------------


def test_a_client_from_reflection_alone_can_generate_and_ask(server: ServerThread) -> None:
    """No stub and no code of this package: everything comes over the wire."""
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "f2edge.v1.FaceService" in database.get_services()
        file = database.FindFileContainingSymbol("f2edge.v1.FaceService")
        assert isinstance(file, descriptor_pb2.FileDescriptorProto)
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        methods = pool.FindServiceByName("f2edge.v1.FaceService").methods_by_name

        def call(name: str, **fields: Any) -> list[Any]:
            answer = GetMessageClass(methods[name].output_type)
            remote = channel.unary_stream(f"/f2edge.v1.FaceService/{name}", response_deserializer=answer.FromString)
            return list(remote(GetMessageClass(methods[name].input_type)(**fields).SerializeToString()))

        picture = call("Generate", prompt=PROMPT)[-1].result.picture.image
        assert call("Ask", image=picture, question="what color is the hair?")[-1].answer.text == "the hair is red"


def test_help_does_not_load_grpc() -> None:
    program = (
        "import sys\nfrom f2edge.cli import run\nrun(['serve', '--help'])\n"
        "print(sorted({'grpc', 'google'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == "[]\n"
    assert "--token-file" in done.stdout


@pytest.mark.parametrize("change", [{"deadline_s": 0}, {"port": 70000}, {"streams": 0}, {"decode_threads": 9}, {"grace_s": -1.0}])
def test_settings_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ServerSettings(**change)
