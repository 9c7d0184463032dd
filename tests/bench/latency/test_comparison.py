"""The comparison of engines: turns, ratios that a drifting machine does not move, refusals, and what is printed, drawn and written."""

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
from bench.hardware.power import Power, PowerError
from bench.latency import comparison, latency
from bench.latency.calls import Turn
from bench.latency.comparison import Axes, Contender, Results, compare, figures_of, labels, measure_energy, rounds
from bench.latency.comparison_report import check_folder, document, number, ratio, show, varying, write
from bench.latency.engine_process import Engine, Setting
from bench.options import listed, whole_numbers
from f2edge.bundle.bundle import Bundle
from f2edge.cli.console import Output
from f2edge.errors import BackendError, InputError

EMBEDDED = Bundle.load("nano", verify=False)


class Meter:
    """A meter whose every reading is so many joules more; it may stop after some."""

    name, covers = "rapl", "CPU of paper"

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


class Paper:
    """An engine that is none."""

    backend = "tensorrt"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def keep_calling(self, _turn: Turn, _seconds: float) -> int:
        return 4


def paper_rows(folder: Path, turns: Sequence[Turn]) -> list[tuple[Contender, Turn]]:
    bundle, engine = Bundle.load(folder, verify=False), Paper(Setting(str(folder), "tensorrt", 1))
    return [(Contender("tiny", bundle, engine), turn) for turn in turns]  # type: ignore[arg-type]


@given(
    st.lists(st.floats(0.5, 2), min_size=1, max_size=12),
    st.floats(0.1, 10),
    st.integers(1, 8),
)
def test_a_machine_that_drifts_moves_no_ratio(drift: list[float], faster: float, batch: int) -> None:
    bundle = SimpleNamespace(tokenizer_path=EMBEDDED.tokenizer_path)
    engine = SimpleNamespace(backend="tensorrt", setting=Setting("nano", "tensorrt", 1))
    contender: Any = Contender("nano", bundle, engine)  # type: ignore[arg-type]
    rows = [(contender, Turn("analyze", 1)), (contender, Turn("analyze", batch))]
    made = figures_of(rows, [[100 * d for d in drift], [100 * d * batch / faster for d in drift]], {})
    assert made[0]["ratio"]["median"] == 1
    assert [*made[1]["ratio"]["quarters"], made[1]["ratio"]["median"]] == pytest.approx([faster] * 3)
    assert made[1]["share"] is None  # the CPU's ceiling says nothing about a GPU


def test_turns_go_forth_and_back() -> None:
    assert list(rounds(3, 3)) == [(0, [0, 1, 2]), (1, [2, 1, 0]), (2, [0, 1, 2])]


def test_bundles_of_one_name_are_told_apart(tiny_bundle: Path, tiny_int8_bundle: Path) -> None:
    exact, coarse = Bundle.load(tiny_bundle), Bundle.load(tiny_int8_bundle)
    assert labels([exact]) == ["tiny"]
    assert labels([exact, coarse]) == ["tiny fp32", "tiny int8"]
    assert labels([exact, coarse, exact]) == ["tiny fp32 (fp32/tiny)", "tiny int8", "tiny fp32 (fp32/tiny)"]


def test_a_meter_that_stops_costs_its_figures_only(tiny_bundle: Path) -> None:
    rows = paper_rows(tiny_bundle, [Turn("analyze", 2), Turn("ask")])
    made: list[Results] = [{}, {}]
    told = measure_energy(rows, made, Power([Meter(readings=5)]), 0.01, lambda _: None)
    assert told["lost"] == "unplugged"
    assert made[0]["joules_per_face"] == 3.0 / (4 * 2)
    assert made[1] == {}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"backends": ("cuda",)}, "unknown backend 'cuda'"),
        ({"backends": ("all", "auto")}, "all stands alone"),
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
def test_nothing_starts_before_everything_is_known(axes: Axes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "Engine", lambda _: pytest.fail("an engine was started"))
    with pytest.raises(InputError):
        compare(axes, Power([]), progress=lambda _: None)


def refusing(*names: str) -> Callable[[Setting], Any]:
    """Engines of which the named backends cannot run."""

    def engine(setting: Setting) -> Any:
        if setting.backend in names:
            raise BackendError(f"{setting.backend} is not for this machine")
        return SimpleNamespace(setting=setting, backend=setting.backend, close=lambda: None)

    return engine


def test_what_cannot_run_is_refused_by_name_and_listed_among_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "Engine", refusing("tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt"))
    with ExitStack() as stack, pytest.raises(BackendError, match="tensorrt is not for this machine"):
        comparison.start(Axes(backends=("onnxruntime", "tensorrt")), stack, lambda _: None)
    with ExitStack() as stack:
        contenders, missing = comparison.start(Axes(backends=("all",)), stack, lambda _: None)
    assert [contender.engine.backend for contender in contenders] == ["onnxruntime"]
    assert [row["backend"] for row in missing] == ["onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"]
    monkeypatch.setattr(comparison, "Engine", refusing("onnxruntime", "tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt"))
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
    assert "other work took 80 % of the machine" in said


def test_an_engine_says_why_it_is_none(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="no bundle 'nowhere'"):
        Engine(Setting("nowhere"))
    with closing(Engine(Setting(str(tiny_bundle), threads=1))) as engine:
        assert engine.backend == "onnxruntime"
        os.kill(engine._process.pid, signal.SIGKILL)
        with pytest.raises(BackendError, match=r"its process ended: exit code -9"):
            engine.milliseconds(Turn("ask"), 0)


def test_ratios_say_where_they_may_be_noise() -> None:
    def shown(median: float, low: float, high: float) -> str:
        return ratio({"ratio": {"median": median, "quarters": [low, high]}})

    assert [shown(1, 1, 1), shown(1.02, 0.98, 1.1), shown(1.5, 1.4, 1.6), shown(0.5, 0.4, 0.6)] == ["1", "≈ 1.02", "1.50", "0.50"]
    assert [number(value) for value in (0.123, 9.876, 12.34, 123.4)] == ["0.12", "9.88", "12.3", "123"]
    rows = [{"bundle": "a", "backend": "b", "threads": 1, "batch": 1, "steps": steps} for steps in (12, None)]
    assert varying(rows) == []


def test_busy_is_what_is_not_idle() -> None:
    before = "cpu  100 0 50 1000 20 0 0 5 0 0\ncpu0 1 2"
    assert busy_share(before, "cpu  120 0 60 1050 30 0 5 10 0 0\n") == pytest.approx(0.4)
    assert busy_share(before, before) is None
    assert busy_share("", "") is None
    told = machine(0.05)
    assert told["processor"]
    assert told["cores"] >= 1


def test_options_take_lists(tmp_path: Path) -> None:
    odd = tmp_path / "a,b"
    odd.mkdir()
    assert listed(["nano, other", str(odd), "nano"], "x") == ("nano", "other", str(odd))
    assert listed([], "nano") == listed([","], "nano") == ("nano",)
    assert whole_numbers("--steps", ["6,12", "6"], "12") == (6, 12)
    for wrong in ("0", "-1", "1.5", "x", "1e3"):
        with pytest.raises(InputError, match="--steps"):
            whole_numbers("--steps", [wrong], "12")


def test_one_of_each_keeps_the_details(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, Any]] = []

    def run(bundle: str, **options: Any) -> Results:
        asked.append((bundle, options))
        return {"detailed": True}

    monkeypatch.setattr(latency, "run", run)
    monkeypatch.setattr(latency, "_compared", lambda axes, *_, **__: asked.append(("compared", axes)))
    runner = CliRunner()
    done = runner.invoke(app, ["latency", "--bundle", "nano", "--steps", "6", "--threads", "1", "--json"])
    assert json.loads(done.stdout) == {"detailed": True}
    assert asked.pop() == ("nano", {"steps": 6, "guidance": None, "backend": "auto", "threads": 1, "repeats": 9})
    for words in (
        ["--steps", "6,12"],
        ["--batch", "1"],
        ["--threads", "1", "--threads", "2"],
        ["--backend", "all"],
        ["--out", str(tmp_path)],
    ):
        runner.invoke(app, ["latency", *words], catch_exceptions=False)
        assert asked.pop()[0] == "compared", words
    runner.invoke(app, ["latency", "--batch", "1,8", "--only", "analyze"], catch_exceptions=False)
    axes = asked.pop()[1]
    assert (axes.batches, axes.calls, axes.steps) == ((1, 8), ("analyze",), (12,))


def test_a_place_that_cannot_be_written_is_refused_before_minutes_of_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/deeper"):
        with pytest.raises(InputError, match="cannot be written"):
            check_folder(tmp_path / place)
    check_folder(tmp_path / "new" / "er")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_loses_no_figures(compared: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: Path, *_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comparison, "compare", lambda *_, **__: compared)
    monkeypatch.setattr(Path, "write_text", full)
    done = CliRunner().invoke(app, ["latency", "--out", str(tmp_path), "--power", "none", "--json"])
    assert isinstance(done.exception, InputError)
    assert "No space left on device" in str(done.exception)
    assert json.loads(done.stdout) == json.loads(json.dumps(compared))
