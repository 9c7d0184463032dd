"""Quality against time: what is tried, what is kept of an interrupted run, the front, and a small run with its plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.cli import main
from bench.pareto.pareto import interval, methods
from bench.pareto.plot import draw, front
from f2edge.bundle.bundle import Bundle, write_manifest
from tests.support.bundle_document import document, write_folder


def row(ms: float, share: float, steps: int = 4, bundle: str = "nano") -> dict[str, Any]:
    schedule = {"steps": steps, "guidance": 0.0, "order": "maskgit"}
    return {
        "method": {"bundle": bundle, "preset": "", "schedule": schedule}, "attributes": [share, share - 0.1, share + 0.1],
        "unlike_eyes": 0.1, "eyes_seen": 20, "kernel": [2.0, 1.0, 3.0], "ms": {"median": ms}, "forwards": steps,
    }  # fmt: skip


def ended(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["bench", "pareto", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_student_keeps_its_guidance_and_presets_have_names(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "cup")
    tried = list(methods("cup", Bundle.load(folder), [2, 12], [0.0, 1.5], ["maskgit", "halton"]))
    assert tried[0].schedule == Bundle.load(folder).generation
    assert len({method.schedule for method in tried}) == len(tried) == 9
    presets = {"fast": {"steps": 2, "guidance": 0.0}, "balanced": {}, "best": {"steps": 30}}
    row = {"guidance": 0.0, "steps": [6], "teacher_guidance": 3.0}
    write_manifest(folder, {**document(), "presets": presets, "trained_for": row})
    tried = list(methods("cup", Bundle.load(folder), [2, 12], [0.0, 1.5], ["maskgit"]))
    assert [(method.preset, method.schedule.steps) for method in tried if method.preset] == [("balanced", 12), ("fast", 2), ("best", 30)]
    assert {method.schedule.guidance for method in tried if not method.preset} == {0.0}


def test_the_front_is_what_nothing_beats() -> None:
    rows = [row(30, 0.9), row(10, 0.7), row(20, 0.65), row(40, 0.9), row(10, 0.6)]
    assert [(r["ms"]["median"], r["attributes"][0]) for r in front(rows)] == [(10, 0.7), (30, 0.9)]


def test_an_interval_is_that_of_the_prompts() -> None:
    right, asked = np.array([5, 10, 0, 10] * 16), np.full(64, 10)
    share, low, high = interval(right, asked, 0)
    assert share == 0.625
    assert low == pytest.approx(0.625 - 1.96 * 0.4146 / 8, abs=0.02)  # the deviation of a prompt's share, by the root of their number
    assert high == pytest.approx(0.625 + 1.96 * 0.4146 / 8, abs=0.02)


def test_the_plot_has_a_line_for_each_way_and_text_as_text(tmp_path: Path) -> None:
    rows = [row(10, 0.7, 2), row(20, 0.8, 4), row(15, 0.9, 4, "student")]
    renders = {"attributes": 0.97, "unlike_eyes": 0.01, "kernel": [0.1, 0.0, 0.2]}
    svg, png = draw({"settings": {"images": 8}, "renders": renders, "rows": rows}, tmp_path)
    text = svg.read_text()
    assert all(words in text for words in ("nano, guidance 0, maskgit", "student, guidance 0, maskgit", "ms per face"))
    assert png.stat().st_size > 10_000


def test_bad_input_is_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path))
    (tmp_path / "pareto.json").write_text(json.dumps({"settings": {"images": 7}, "rows": []}))
    for words, message in (
        ((*out, "--seed", "7001"), "searched"),
        ((*out, "--orders", "spiral"), "--orders 'spiral'"),
        ((*out, "--steps", "0"), "--steps"),
        (out, "other settings"),
    ):
        assert ended(monkeypatch, *words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.long
def test_a_small_run_of_nano_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--images", "4", "--guidance", "0", "--orders", "maskgit", "--repeats", "1", "--out", str(tmp_path), "--json"]
    assert ended(monkeypatch, "--steps", "1", *words) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert ended(monkeypatch, "--steps", "1,2", *words) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert rows[: len(first)] == first
    assert [r["forwards"] for r in rows] == [24, 1, 2], "the default guided, then one and two steps without guidance"
    assert (tmp_path / "pareto.svg").is_file()
