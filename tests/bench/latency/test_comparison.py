"""The comparison of engines: rounds, ratios that are independent of drift, refusals, report, plot and files."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from bench.cli import app
from bench.hardware.machine import busy_share, machine
from bench.latency import comparison, latency
from bench.latency.calls import ModelCall
from bench.latency.comparison import Axes, RunningEngine, compare, labels, measure_energy, results_of, rounds
from bench.latency.engine import EngineOptions, EngineProcess
from bench.latency.plot import write
from bench.latency.report import number, ratio, show, varying
from bench.options import listed, whole_numbers
from bench.results import Results, check_folder, document
from engines.power.meter import PowerError
from engines.power.power import Power
from f2edge.bundle.bundle import Bundle
from f2edge.cli.console import Output
from f2edge.errors import BackendError, InputError

pytestmark = pytest.mark.slow

EMBEDDED = Bundle.load("nano", verify=False)


class Meter:
    """Meter that counts three joules per reading and fails after ``readings``."""

    name, covers = "rapl", "simulated CPU"

    def __init__(self, readings: int = 10**6) -> None:
        self.value, self.left = 0.0, readings

    def joules(self) -> float:
        self.left -= 1
        if self.left < 0:
            raise PowerError("unplugged")
        self.value += 3.0
        return self.value

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture(scope="module")
def compared(tiny_bundle: Path, tiny_int8_bundle: Path) -> Results:
    """Two recipes, two numbers of steps, two batches."""
    axes = Axes(bundles=(str(tiny_bundle), str(tiny_int8_bundle)), threads=(1,), steps=(2, 3), batches=(1, 2))
    return compare(axes, Power([Meter()]), repeats=3, energy_seconds=0.05, progress=lambda _: None)


def test_every_combination_is_measured(compared: Results) -> None:
    keys = [(row["call"], row["bundle"], row["steps"], row["batch"]) for row in compared["rows"]]
    bundles = ("tiny fp32", "tiny int8")
    assert keys == (
        [("generate", bundle, steps, batch) for bundle in bundles for steps in (2, 3) for batch in (1, 2)]
        + [("analyze", bundle, None, batch) for bundle in bundles for batch in (1, 2)]
        + [("ask", bundle, None, 1) for bundle in bundles]
    )
    for row in compared["rows"]:
        assert 0 < row["ms"]["low"] <= row["ms"]["median"] <= row["ms"]["high"]
        assert row["ms_per_face"] == pytest.approx(row["ms"]["median"] / row["batch"])
        assert row["faces_per_second"] == pytest.approx(1e3 / row["ms_per_face"])
        assert (row["share"] is None) == (row["call"] == "ask")
        assert row["joules_per_face"] == pytest.approx(row["joules_by_meter"]["rapl"])
        assert row["watts"] > 0
    first = [row for row in compared["rows"] if row["bundle"] == "tiny fp32" and row["batch"] == 1 and row["steps"] in {2, None}]
    assert [row["ratio"]["median"] for row in first] == [1.0, 1.0, 1.0]
    for engine in compared["engines"]:
        assert engine["memory"]["resident"] <= engine["memory"]["peak"]
        assert engine["ready_ms"] > 0
    assert [engine["precision"] for engine in compared["engines"]] == ["fp32", "int8"]
    assert compared["power"]["watts_at_rest"] > 0


def test_it_is_one_table_one_plot_and_one_document(compared: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(compared, Output())
    print(document(compared))
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == json.loads(json.dumps(compared))
    heading = next(place for place, line in enumerate(lines) if "fastest" in line)
    assert " ".join(lines[heading].split()) == "bundle steps batch ms fastest slowest ms/face faces/s share ratio J/face"
    table = lines[heading : heading + 1 + len(compared["rows"]) + 2]
    assert max(map(len, table)) <= 102
    assert [line.split()[0] for line in table if line[:1].strip()] == ["generate", "analyze", "first"]
    paths = write(compared, tmp_path / "out")
    assert [path.name for path in paths] == ["latency.json", "latency.svg", "latency.png"]
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(compared))
    words = " ".join(ET.fromstring(paths[1].read_text()).itertext())
    for said in ("tiny int8, 3 steps, 2 at once", "tiny fp32, 1 at once", "generate: ms per face", "ask: ms to the first token"):
        assert said in words
    assert Image.open(paths[2]).size[0] == 1200


class FakeProcess:
    """Engine process that answers without a model."""

    backend = "tensorrt"

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    def call_for(self, _call: ModelCall, _seconds: float) -> int:
        return 4


def fake_rows(folder: Path, calls: Sequence[ModelCall]) -> list[tuple[RunningEngine, ModelCall]]:
    bundle, process = Bundle.load(folder, verify=False), FakeProcess(EngineOptions(str(folder), "tensorrt", 1))
    return [(RunningEngine("tiny", bundle, process), call) for call in calls]  # type: ignore[arg-type]


@given(
    st.lists(st.floats(0.5, 2), min_size=1, max_size=12),
    st.floats(0.1, 10),
    st.integers(1, 8),
)
def test_ratios_are_independent_of_drift(drift: list[float], faster: float, batch: int) -> None:
    bundle = SimpleNamespace(tokenizer_path=EMBEDDED.tokenizer_path)
    process = SimpleNamespace(backend="tensorrt", options=EngineOptions("nano", "tensorrt", 1))
    engine: Any = RunningEngine("nano", bundle, process)  # type: ignore[arg-type]
    rows = [(engine, ModelCall("analyze", 1)), (engine, ModelCall("analyze", batch))]
    made = results_of(rows, [[100 * d for d in drift], [100 * d * batch / faster for d in drift]], {})
    assert made[0]["ratio"]["median"] == 1
    assert [*made[1]["ratio"]["quarters"], made[1]["ratio"]["median"]] == pytest.approx([faster] * 3)
    assert made[1]["share"] is None  # the CPU's ceiling says nothing about a GPU


def test_rounds_alternate_their_order() -> None:
    assert list(rounds(3, 3)) == [(0, [0, 1, 2]), (1, [2, 1, 0]), (2, [0, 1, 2])]


def test_bundles_of_one_name_get_unique_labels(tiny_bundle: Path, tiny_int8_bundle: Path) -> None:
    exact, coarse = Bundle.load(tiny_bundle), Bundle.load(tiny_int8_bundle)
    assert labels([exact]) == ["tiny"]
    assert labels([exact, coarse]) == ["tiny fp32", "tiny int8"]
    assert labels([exact, coarse, exact]) == ["tiny fp32 (fp32/tiny)", "tiny int8", "tiny fp32 (fp32/tiny)"]


def test_a_meter_that_stops_loses_only_its_results(tiny_bundle: Path) -> None:
    rows = fake_rows(tiny_bundle, [ModelCall("analyze", 2), ModelCall("ask")])
    made: list[Results] = [{}, {}]
    energy = measure_energy(rows, made, Power([Meter(readings=5)]), 0.01, lambda _: None)
    assert energy["lost"] == "unplugged"
    assert made[0]["joules_per_face"] == 3.0 / (4 * 2)
    assert made[1] == {}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"backends": ("cuda",)}, "unknown backend 'cuda'"),
        ({"backends": ("all", "auto")}, "all includes every backend"),
        ({"threads": (0,)}, "threads must be at least 1"),
    ],
)
def test_axes_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Axes(**wrong)


@pytest.mark.parametrize(
    "axes",
    [
        Axes(calls=("draw",)),
        Axes(batches=(0,)),
        Axes(steps=(-1,)),
        Axes(bundles=("no such bundle",)),
        Axes(bundles=("nano", str(EMBEDDED.folder))),
    ],
)
def test_options_are_checked_before_an_engine_starts(axes: Axes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "EngineProcess", lambda _: pytest.fail("an engine was started"))
    with pytest.raises(InputError):
        compare(axes, Power([]), progress=lambda _: None)


def refusing(*names: str) -> Callable[[EngineOptions], Any]:
    """Return a constructor of engine processes that refuses the named backends."""

    def process(options: EngineOptions) -> Any:
        if options.backend in names:
            raise BackendError(f"{options.backend} is not for this machine")
        return SimpleNamespace(options=options, backend=options.backend, close=lambda: None)

    return process


def test_what_cannot_run_is_refused_by_name_and_listed_among_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "EngineProcess", refusing("tensorrt", "onnxruntime-cuda"))
    with ExitStack() as stack, pytest.raises(BackendError, match="tensorrt is not for this machine"):
        comparison.start(Axes(backends=("onnxruntime", "tensorrt")), stack, lambda _: None)
    with ExitStack() as stack:
        engines, missing = comparison.start(Axes(backends=("all",)), stack, lambda _: None)
    assert [engine.process.backend for engine in engines] == ["onnxruntime"]
    assert [row["backend"] for row in missing] == ["onnxruntime-cuda", "tensorrt"]
    monkeypatch.setattr(comparison, "EngineProcess", refusing("onnxruntime", "tensorrt", "onnxruntime-cuda"))
    with ExitStack() as stack, pytest.raises(BackendError, match="no backend can run here"):
        comparison.start(Axes(backends=("all",)), stack, lambda _: None)
    shown: Results = {
        "machine": {"processor": "p", "cores": 2, "busy_share": 0.8, "busy": True},
        "ceilings": {},
        "engines": [],
        "not_available": missing,
        "rows": [],
        "power": {"meters": [], "missing": {"nvml": "no driver"}},
    }
    show(shown, Output())
    said = capsys.readouterr().out
    assert "not available: nano on tensorrt: tensorrt is not for this machine" in said
    assert "no power from nvml: no driver" in said
    assert "other programs used 80 % of the machine" in said


def test_an_engine_reports_why_it_ended(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="no bundle 'nowhere'"):
        EngineProcess(EngineOptions("nowhere"))
    with closing(EngineProcess(EngineOptions(str(tiny_bundle), threads=1))) as engine:
        assert engine.backend == "onnxruntime"
        os.kill(engine._process.pid, signal.SIGKILL)
        with pytest.raises(BackendError, match=r"its process ended: exit code -9"):
            engine.milliseconds(ModelCall("ask"), 0)


def test_ratios_mark_noise() -> None:
    def shown(median: float, low: float, high: float) -> str:
        return ratio({"ratio": {"median": median, "quarters": [low, high]}})

    assert [shown(1, 1, 1), shown(1.02, 0.98, 1.1), shown(1.5, 1.4, 1.6), shown(0.5, 0.4, 0.6)] == ["1", "≈ 1.02", "1.50", "0.50"]
    assert [number(value) for value in (0.123, 9.876, 12.34, 123.4)] == ["0.12", "9.88", "12.3", "123"]
    rows = [{"bundle": "a", "backend": "b", "threads": 1, "batch": 1, "steps": steps} for steps in (12, None)]
    assert varying(rows) == []


def test_busy_share_excludes_idle_time() -> None:
    before = "cpu  100 0 50 1000 20 0 0 5 0 0\ncpu0 1 2"
    assert busy_share(before, "cpu  120 0 60 1050 30 0 5 10 0 0\n") == pytest.approx(0.4)
    assert busy_share(before, before) is None
    assert busy_share("", "") is None
    seen = machine(0.05)
    assert seen["processor"]
    assert seen["cores"] >= 1


def test_options_take_lists(tmp_path: Path) -> None:
    odd = tmp_path / "a,b"
    odd.mkdir()
    assert listed(["nano, other", str(odd), "nano"], "x") == ("nano", "other", str(odd))
    assert listed([], "nano") == listed([","], "nano") == ("nano",)
    assert whole_numbers("--steps", ["6,12", "6"], "12") == (6, 12)
    for wrong in ("0", "-1", "1.5", "x", "1e3"):
        with pytest.raises(InputError, match="--steps"):
            whole_numbers("--steps", [wrong], "12")


def test_each_verb_measures_what_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measure(bundle: str, **options: Any) -> Results:
        asked.append((bundle, options))
        return {"detailed": True}

    def compare_axes(axes: Axes, *_: Any, **__: Any) -> Results:
        asked.append(axes)
        return {"compared": True}

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(comparison, "compare", compare_axes)
    runner = CliRunner()
    done = runner.invoke(app, ["latency", "--bundle", "nano", "--steps", "6", "--threads", "1", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout) == {"detailed": True}
    assert asked.pop() == ("nano", {"steps": 6, "guidance": None, "backend": "auto", "threads": 1, "repeats": 9})
    options = ["--batch", "1,8", "--only", "analyze", "--threads", "1", "--threads", "2", "--power", "none"]
    done = runner.invoke(app, ["compare", *options], catch_exceptions=False)
    assert json.loads(done.stdout.splitlines()[-1]) == {"compared": True}
    axes = asked.pop()
    assert (axes.batches, axes.calls, axes.steps, axes.threads) == ((1, 8), ("analyze",), (12,), (1, 2))


@pytest.mark.parametrize(
    ("options", "verb"),
    [
        (["--config", "show-o", "--random-weights"], "bench paper-size --config show-o"),
        (["--layers=2"], "bench paper-size"),
        (["--steps", "6,12"], "bench compare --steps"),
        (["--bundle", "nano", "--bundle", "other"], "bench compare --bundle"),
        (["--backend", "all"], "bench compare --backend"),
        (["--batch", "1"], "bench compare --batch"),
        (["--out", "somewhere"], "bench compare --out"),
    ],
)
def test_former_options_of_latency_name_the_new_verb(options: list[str], verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "measure", lambda *_, **__: pytest.fail("the bench ran"))
    done = CliRunner().invoke(app, ["latency", *options])
    assert isinstance(done.exception, InputError)
    assert f"python -m {verb}" in str(done.exception)


def test_an_unwritable_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/deeper"):
        with pytest.raises(InputError, match="cannot be written"):
            check_folder(tmp_path / place)
    check_folder(tmp_path / "new" / "er")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_loses_no_results(compared: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: Path, *_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comparison, "compare", lambda *_, **__: compared)
    monkeypatch.setattr(Path, "write_text", full)
    done = CliRunner().invoke(app, ["compare", "--out", str(tmp_path), "--power", "none", "--json"])
    assert isinstance(done.exception, InputError)
    assert "No space left on device" in str(done.exception)
    assert json.loads(done.stdout) == json.loads(json.dumps(compared))
