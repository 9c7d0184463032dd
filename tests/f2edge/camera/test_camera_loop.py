"""The loop end to end with real threads and OpenCV, and a model that follows a script."""

from __future__ import annotations

import inspect
import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest

from f2edge.camera.answers import AnswerBook, Freshness
from f2edge.camera.crops import Cutter
from f2edge.camera.describe import CameraModel, DescribeOptions, Describer
from f2edge.camera.detect import GivenDetector
from f2edge.camera.loop import Loop, RunStats
from f2edge.camera.output import events
from f2edge.camera.output.events import LineWriter, NewFile, schema
from f2edge.camera.quality import Gate
from f2edge.camera.reports import Seen
from f2edge.camera.run import ModelInput, Request, run
from f2edge.camera.source.errors import FrameError, SourceLostError
from f2edge.camera.source.reader import Reader, ReaderSettings
from f2edge.camera.source.sources import Capture, Source
from f2edge.camera.source.url import parse_source
from f2edge.camera.stats import AgeHistogram, Rate
from f2edge.camera.track import Tracker
from f2edge.camera.watch import Watcher
from f2edge.cli.main import run as cli
from f2edge.errors import InputError, OutputError, ServerUnavailableError
from f2edge.pipeline import FacePipeline
from f2edge.spec.attributes import F2EDGE_SCHEMA
from tests.support.camera_fake import NAMES, RememberingSink, ScriptedModel, ScriptedSource, SteadySource, picture

FACES = ModelInput(F2EDGE_SCHEMA, None, 128)


def loop_with(
    model: CameraModel,
    sink: RememberingSink,
    *,
    questions: tuple[str, ...] = (),
    refresh_s: float = 0.3,
    budget_ms: float = 150.0,
    duration_s: float | None = None,
) -> tuple[Loop, Describer]:
    book = AnswerBook(Freshness(refresh_s=refresh_s))
    describer = Describer(model, Cutter(None, 128), book, DescribeOptions(NAMES, questions, budget_ms), time.monotonic)
    watcher = Watcher(GivenDetector(), Tracker(), Gate(), book)
    return Loop(watcher, describer, book, sink, duration_s), describer


def live(loop: Loop, source: Source, *, reconnects: bool = False) -> None:
    loop.live(lambda slot, notify: Reader(lambda: source, slot, notify, ReaderSettings(give_up_s=0.5), reconnects=reconnects))


def test_answers_are_remembered_and_cut_the_calls_at_least_five_times() -> None:
    model, sink = ScriptedModel(), RememberingSink()
    loop, describer = loop_with(model, sink, refresh_s=0.4)
    loop.every(SteadySource(faces=2, period_s=0, frames=100))
    stats = loop.stats.document(describer)
    assert stats["frames"] == 100
    good = stats["good_faces"]
    assert good is not None
    assert good >= 190
    assert describer.faces == sum(model.batches)
    assert describer.faces * 5 <= good
    described = [face for seen in sink.seen[5:] for face in seen.faces]
    assert {face.shown["hair_color"].value for face in described} == {"red"}
    assert max(face.answer_age_ms for face in described if face.answer_age_ms is not None) <= 400 + 40
    assert sink.events == [("ended", "")]


def test_several_faces_share_one_call_and_the_budget_splits_them() -> None:
    model = ScriptedModel()
    loop, _ = loop_with(model, RememberingSink())
    loop.every(SteadySource(faces=4, period_s=0, frames=4))
    assert model.batches == [4]
    slow = ScriptedModel(seconds=0.05)
    loop, _ = loop_with(slow, RememberingSink(), budget_ms=20, refresh_s=0.04)
    loop.every(SteadySource(faces=4, period_s=0, frames=20))
    assert slow.batches[0] == 4
    assert 1 in slow.batches
    assert all(batch <= 4 for batch in slow.batches)


def test_a_slow_model_delays_no_frame_and_its_answers_say_how_old_they_are() -> None:
    model, sink = ScriptedModel(seconds=0.25), RememberingSink()
    loop, _ = loop_with(model, sink, duration_s=2.0)
    live(loop, SteadySource(period_s=0.02))
    assert len(sink.seen) >= 3 * len(model.batches)
    ages = [face.answer_age_ms for seen in sink.seen for face in seen.faces if face.answer_age_ms is not None]
    assert min(ages) >= 240
    numbers = [seen.frame.number for seen in sink.seen]
    assert numbers == sorted(set(numbers))


def test_a_slow_output_drops_frames_and_never_falls_behind() -> None:
    class SlowSink(RememberingSink):
        def show(self, seen: Seen, stats: RunStats) -> bool:
            time.sleep(0.2)
            return super().show(seen, stats)

    sink = SlowSink()
    loop, _ = loop_with(ScriptedModel(), sink, duration_s=2.0)
    live(loop, SteadySource(period_s=0.01))
    assert sink.seen[-1].dropped > len(sink.seen)
    assert sink.seen[-1].frame.number > 3 * len(sink.seen)


def test_questions_run_between_and_are_answered_for_every_face() -> None:
    model, sink = ScriptedModel(), RememberingSink()
    loop, _ = loop_with(model, sink, questions=("is the person smiling?", "is there a hat?"))
    loop.every(SteadySource(faces=2, period_s=0, frames=30))
    assert sorted(model.questions) == ["is the person smiling?"] * 2 + ["is there a hat?"] * 2
    assert all(len(face.words) == 2 for face in sink.seen[-1].faces)


def test_questions_wait_for_a_crowd_but_not_for_ever() -> None:
    model = ScriptedModel(seconds=0.01)
    loop, _ = loop_with(model, RememberingSink(), questions=("is there a hat?",), budget_ms=1, refresh_s=0.001)
    loop.every(SteadySource(faces=4, period_s=0, frames=30))
    assert model.batches[:5] == [4, 1, 1, 1, 1]
    assert len(model.questions) == 4


def test_a_model_that_fails_for_a_while_is_told_of_and_forgiven() -> None:
    model, sink = ScriptedModel(failures=[ServerUnavailableError("no server at rtsp://a:b@c")] * 2), RememberingSink()
    loop, _ = loop_with(model, sink)
    loop.every(SteadySource(period_s=0, frames=12))
    assert sink.events == [("model", "no server at rtsp://***@c")] * 2 + [("ended", "")]
    assert sink.seen[-1].faces[0].described


def test_an_error_of_the_program_ends_the_loop_and_is_raised() -> None:
    sink = RememberingSink()
    loop, _ = loop_with(ScriptedModel(failures=[ZeroDivisionError("a bug")]), sink, duration_s=10)
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        live(loop, SteadySource())
    assert time.monotonic() - start < 5


def test_a_source_that_cannot_be_opened_is_raised_with_its_reason() -> None:
    class Nothing:
        def read(self) -> Capture | None:
            raise SourceLostError("webcam 7: cannot be opened")

        def close(self) -> None:
            pass

    loop, _ = loop_with(ScriptedModel(), RememberingSink())
    with pytest.raises(SourceLostError, match="webcam 7"):
        live(loop, Nothing(), reconnects=True)


def test_damaged_frames_of_a_recording_are_passed_over_and_its_truth_is_compared() -> None:
    sink = RememberingSink()
    loop, describer = loop_with(ScriptedModel(), sink)
    loop.every(ScriptedSource([FrameError("bad one"), picture(), FrameError("bad two"), picture()], 0))
    assert [kind for kind, _ in sink.events] == ["corrupt", "corrupt", "ended"]
    assert len(sink.seen) == 2
    loop, describer = loop_with(ScriptedModel(), RememberingSink())
    loop.every(SteadySource(period_s=0, frames=20, slots={"hair_color": "red", "eyewear": "none", "hat": "cap"}))
    assert loop.stats.document(describer)["accuracy"] == 0.5


def test_a_run_of_the_demo_writes_lines_that_fit_their_schema_a_recording_and_stats(tmp_path: Path) -> None:
    lines = io.StringIO()
    heard: list[tuple[str, str]] = []
    request = Request(
        url=parse_source("demo"),
        detector="given",
        attributes=NAMES,
        questions=("is the person smiling?",),
        size_wh=(320, 180),
        max_fps=10,
        duration_s=4.0,
        record=tmp_path / "out.mp4",
        stats=tmp_path / "camera.prom",
        blur_others=True,
    )
    stats = run(request, ScriptedModel(), FACES, lines, lambda kind, reason: heard.append((kind, reason)))
    documents = [json.loads(line) for line in lines.getvalue().splitlines()]
    validator = jsonschema.Draft202012Validator(schema())
    assert len(documents) > 2
    for document in documents:
        validator.validate(document)
    kinds = [document["type"] for document in documents]
    assert kinds[-1] == "summary"
    assert kinds.count("frame") == stats["frames"]
    assert kinds.count("frame") >= 3
    assert heard[0] == ("connected", "320x180")
    assert any(face["attributes"] and face["truth"] for document in documents if document["type"] == "frame" for face in document["faces"])
    video = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    good, image = video.read()
    assert good
    assert image.shape == (180, 320, 3)
    exposed = (tmp_path / "camera.prom").read_text(encoding="utf-8")
    assert f'f2edge_camera_frames_total{{camera="demo"}} {float(stats["frames"] or 0)}\n' in exposed
    assert "# TYPE f2edge_camera_answer_age_ms_p99 gauge" in exposed


def test_the_schema_refuses_what_is_no_line() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    jsonschema.Draft202012Validator.check_schema(schema())
    good = events.event_line("demo", "lost", "gone")
    assert validator.is_valid(good)
    for kind in events.KINDS:
        assert validator.is_valid(good | {"kind": kind})
    assert not validator.is_valid(good | {"kind": "other"})
    assert not validator.is_valid(good | {"extra": 1})
    assert not validator.is_valid({"type": "frame"})


def test_lines_end_with_one_error_when_the_disk_is_full() -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    writer = LineWriter(Full(), "--jsonl")
    with pytest.raises(OutputError, match="No space left"):
        writer.write({"a": 1})
    writer.write({"a": 2})
    assert writer.broken


def test_quantiles_are_right_to_their_class_and_rates_forget() -> None:
    ages, values = AgeHistogram(), np.random.default_rng(0).lognormal(4, 1, 5000)
    for value in values:
        ages.add(float(value))
    for share in (0.01, 0.5, 0.99):
        assert ages.quantile(share) == pytest.approx(np.quantile(values, share), rel=0.08)
    assert AgeHistogram().quantile(0.5) is None
    rate = Rate()
    for index in range(100):
        rate.add(index * 0.1)
    assert rate.per_second(9.9) == pytest.approx(10, rel=0.05)
    assert rate.per_second(100) == 0


def test_the_pipeline_is_a_model_of_the_camera() -> None:
    """The type checker compares them in ``cli_camera``; this compares what a robot without one would call."""
    for method, keyword in ((FacePipeline.analyze, "attributes"), (FacePipeline.ask, "max_tokens")):
        wanted = inspect.signature(getattr(CameraModel, method.__name__)).parameters
        given = inspect.signature(method).parameters
        assert list(given)[: len(wanted)] == list(wanted)
        assert given[keyword].kind is wanted[keyword].kind


@pytest.mark.parametrize(
    "arguments",
    [
        ["--source", "no-such-file.mp4"],
        ["--size", "big"],
        ["--record", "x.gif"],
        ["--duration", "0"],
        ["--ask", "how old is this person?"],
        ["--bundle", "no-such-bundle"],
    ],
)
def test_the_command_refuses_bad_input_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["camera", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("f2edge: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--source", "x" * 5000],
        ["--source", "no-video.mp4"],
        ["--source", "empty"],
        ["--detector", "psychic"],
        ["--record", "empty.mp4"],
        ["--record", "x" * 300 + ".mp4"],
        ["--still", "nowhere/still.png"],
        ["--stats", "empty"],
        ["--figures", "nowhere/x.prom"],
        ["--jsonl", "empty"],
        ["--jsonl", "nowhere/x.jsonl"],
        ["--duration", "1e12"],
    ],
)
def test_what_cannot_be_read_or_written_is_refused_before_anything_is(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.mp4").mkdir()
    (tmp_path / "no-video.mp4").write_bytes(b"no video")
    (tmp_path / "old.jsonl").write_text("of another day\n")
    kept = [] if "--jsonl" in arguments else ["--jsonl", "old.jsonl"]
    before = sorted(tmp_path.iterdir())
    assert cli(["camera", *arguments, *kept]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "unexpected" not in captured.err
    assert (tmp_path / "old.jsonl").read_text() == "of another day\n"
    assert sorted(tmp_path.iterdir()) == before


def test_a_closed_standard_input_is_no_source(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli(["camera", "--source", "-"]) == 2
    assert "standard input is closed" in capsys.readouterr().err


def test_lines_replace_those_of_another_day(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("of another day\n" * 9)
    file = NewFile(path)
    writer = LineWriter(file, "--jsonl")
    writer.write({"a": 1})
    writer.write({"a": 2})
    file.close()
    assert path.read_text() == '{"a":1}\n{"a":2}\n'


def test_work_out_of_range_is_refused() -> None:
    with pytest.raises(InputError):
        DescribeOptions(NAMES, budget_ms=0)


def test_without_outputs_it_speaks_and_with_broken_ones_it_ends() -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    said: list[str] = []
    heard: list[tuple[str, str]] = []
    request = Request(url=parse_source("demo"), detector="given", attributes=NAMES, size_wh=(320, 180), max_fps=10, duration_s=3.0)
    run(request, ScriptedModel(), FACES, None, lambda *_: None, print_line=said.append)
    assert said
    assert all(line.endswith(": hair color red, eyewear eyeglasses") for line in said)
    endless = replace(request, duration_s=None)
    with pytest.raises(OutputError, match="none of its outputs"):
        run(endless, ScriptedModel(), FACES, Gone(), lambda kind, reason: heard.append((kind, reason)))
    assert [kind for kind, _ in heard].count("output") == 1
