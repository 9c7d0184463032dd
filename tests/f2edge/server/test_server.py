"""The server as callers see it: streams, refusals, cancellation, health, drain, figures."""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from f2edge.engine.requests import Priority, ReplyKind
from f2edge.errors import BackendError, BundleError, DeadlineUnreachableError, InputError, QueueFullError, UnknownRegionError
from f2edge.pipeline import FacePipeline
from f2edge.provenance.label import EDITED, GENERATED, read_label
from f2edge.v1 import face_pb2 as pb
from tests.support.serving import (
    BOX,
    CODES,
    GOOD,
    GRID,
    PROMPT,
    SETTINGS,
    SIDE,
    WORDS,
    ScriptedEngine,
    ServerThread,
    details,
    eventually,
    paper_pipeline,
    paper_served,
    photo,
    refused,
    requests_of_every_method,
    scripted,
    serving,
    step_codes,
    stub,
)

pytestmark = pytest.mark.runtime


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
    assert 10 < deadline - time.monotonic() < 20.5  # gRPC rounds the timeout it sends upwards
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

ANIMATED = io.BytesIO()
Image.new("L", (32, 32)).save(ANIMATED, "PNG", save_all=True, append_images=[Image.new("L", (32, 32), 9)])

BAD: dict[str, tuple[str, Any, str, str]] = {
    "empty prompt": ("Generate", pb.GenerateRequest(), "prompt", "PROMPT"),
    "control character": ("Generate", pb.GenerateRequest(prompt="a\x07b"), "prompt", "PROMPT"),
    "long prompt": ("Generate", pb.GenerateRequest(prompt="a" * 2001), "prompt", "PROMPT"),
    "steps": ("Generate", pb.GenerateRequest(**GOOD, options=pb.DecodingOptions(steps=0)), "options.steps", "ARGUMENT"),
    "preset": ("Generate", pb.GenerateRequest(**GOOD, options=pb.DecodingOptions(quality="great")), "options.quality", "ARGUMENT"),
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


def test_a_full_queue_refuses_before_it_opens_a_picture(face: Any, engine: ScriptedEngine) -> None:
    """A picture that is none would be a bad field; nobody looks."""
    engine.full = QueueFullError("64 answers are queued", 500)
    for call in (
        lambda: face.Ask(pb.AskRequest(image=b"no picture", question="what?")),
        lambda: face.Describe(pb.DescribeRequest(image=b"no picture")),
        lambda: face.Analyze.future(pb.AnalyzeRequest(image=b"no picture")).result(),
    ):
        assert refused(call).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    (answer,) = face.AnalyzeStream(iter([pb.AnalyzeStreamRequest(image=b"no picture")]))
    assert answer.problem.reason == "QUEUE_FULL"
    assert list(face.Generate(pb.GenerateRequest(**GOOD)))


def test_a_deadline_that_cannot_be_met_is_refused(face: Any, engine: ScriptedEngine) -> None:
    engine.refusal = DeadlineUnreachableError("needs 900 ms, the deadline leaves 100")
    error = refused(lambda: face.Generate(pb.GenerateRequest(**GOOD), timeout=20))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "needs 900 ms" in error.details()
    assert details(error)["ErrorInfo"].metadata == {"accepted": "false"}


def test_the_engine_is_told_what_follows_it_and_how_long_that_took(face: Any, engine: ScriptedEngine) -> None:
    list(face.Generate(pb.GenerateRequest(**GOOD, output=pb.OutputOptions(format=pb.IMAGE_FORMAT_JPEG, side=64))))
    list(face.Edit(pb.EditRequest(**GOOD, **BOX, image=photo())))
    list(face.Ask(pb.AskRequest(image=photo(), question="what?")))
    assert engine.replies == [ReplyKind("JPEG", 64 * 64), ReplyKind("PNG", SIDE * SIDE), ReplyKind("words")]


def test_a_check_is_asked_for_and_told_of(face: Any, engine: ScriptedEngine) -> None:
    for call, message in (
        (face.Generate, pb.GenerateRequest(**GOOD, check=2)),
        (face.Edit, pb.EditRequest(**GOOD, **BOX, image=photo(), check=2)),
    ):
        (answer,) = call(message)
        assert engine.submitted[-1][0].check == 2
        assert answer.result.check == pb.Check(score=0.5, missing=["hat"], named=2, repairs=1)
    (unchecked,) = face.Generate(pb.GenerateRequest(**GOOD))
    assert not unchecked.result.HasField("check")
    error = refused(lambda: face.Generate(pb.GenerateRequest(**GOOD, check=9)))
    assert details(error)["BadRequest"].field_violations[0].field == "check"


def test_accepted_deadlines_are_kept_over_the_wire(tmp_path: Path) -> None:
    served = paper_served(paper_pipeline(tmp_path / "paper"))
    options = pb.DecodingOptions(steps=200)
    with serving(served) as server, stub(server.address) as face:
        calls = [face.Generate(pb.GenerateRequest(prompt="a man", seed=n, options=options), timeout=40 + n) for n in range(12)]
        answered = 0
        for call in calls:
            try:
                (last,) = call
                assert 4 <= last.result.decoding.steps <= 200
                answered += 1
            except grpc.RpcError as error:
                assert details(error)["ErrorInfo"].metadata == {"accepted": "false"}  # noqa: PT017
        assert answered
        assert served.engine.stats().failed == {}


def test_a_model_without_a_part_says_so(face: Any, engine: ScriptedEngine) -> None:
    engine.refusal = BundleError("/secret/bundle has no graph 'regions'")
    error = refused(lambda: face.Edit(pb.EditRequest(**GOOD, **BOX, image=photo())))
    assert (error.code(), details(error)["ErrorInfo"].reason) == (grpc.StatusCode.UNIMPLEMENTED, "MODEL")
    assert "secret" not in error.details()


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


@pytest.mark.parametrize("method", requests_of_every_method())
def test_cancelled_work_stops_within_one_step(face: Any, engine: ScriptedEngine, method: str) -> None:
    engine.steps, engine.step_s = 1000, 0.02
    call = requests_of_every_method()[method](face)
    assert eventually(lambda: engine.steps_done >= 2)
    call.cancel()
    assert eventually(lambda: all(handle.cancelled for handle in engine.open_requests))
    done = engine.steps_done
    assert eventually(lambda: not engine.open_requests)
    assert engine.steps_done <= done + 1


@pytest.mark.parametrize("method", requests_of_every_method())
def test_work_stops_at_its_deadline(face: Any, engine: ScriptedEngine, method: str) -> None:
    engine.steps, engine.step_s = 1000, 0.02
    call = requests_of_every_method()[method](face, timeout=0.5)
    with pytest.raises(grpc.RpcError) as caught:
        call.result() if method == "Analyze" else list(call)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert eventually(lambda: not engine.open_requests)
    assert engine.steps_done < 100


def test_no_call_outlives_the_servers_longest(engine: ScriptedEngine) -> None:
    engine.steps, engine.step_s = 1000, 0.02
    with serving(scripted(engine), replace(SETTINGS, deadline_s=0.3)) as server, stub(server.address) as face:
        error = refused(lambda: face.Generate(pb.GenerateRequest(**GOOD)))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert not engine.open_requests or eventually(lambda: not engine.open_requests)


def test_a_stream_of_frames_lasts_as_long_as_its_caller_wants(engine: ScriptedEngine) -> None:
    def frames() -> Iterator[pb.AnalyzeStreamRequest]:
        yield pb.AnalyzeStreamRequest(frame_id=1, image=photo())
        time.sleep(0.6)
        yield pb.AnalyzeStreamRequest(frame_id=2, image=photo())

    with serving(scripted(engine), replace(SETTINGS, deadline_s=0.3)) as server, stub(server.address) as face:
        assert [answer.frame_id for answer in face.AnalyzeStream(frames())] == [1, 2]


def test_a_reader_who_is_slow_gets_fewer_previews_and_no_old_ones(face: Any, engine: ScriptedEngine) -> None:
    engine.steps, engine.step_s = 300, 0.0
    wanted = pb.PreviewOptions(every_steps=1, picture_side=1024, tokens=True)
    call = face.Generate(pb.GenerateRequest(**GOOD, previews=wanted))
    first: Any = next(call)
    assert eventually(lambda: not engine.open_requests)  # the engine did not wait for the reader
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
        yield pb.AnalyzeStreamRequest(frame_id=0, image=photo(), settings=pb.AnalyzeStreamSettings(attributes=["hat"]))
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
    assert all([slot.name for slot in answer.reports[0].slots] == ["hat"] for answer in answers)


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
