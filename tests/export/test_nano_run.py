"""Nano as one command: what it would run, what it skips, where it stops."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.nano_run import PLANS, TRAINED, StageError, TrainingStage, _run, plan_named, run_nano, stages
from f2edge.errors import InputError


@pytest.mark.parametrize("name", PLANS)
def test_every_stage_reads_what_an_earlier_one_writes(name: str, tmp_path: Path) -> None:
    known: set[str] = set()
    for stage in stages(tmp_path, PLANS[name]):
        given = {word for word in stage.command if word.startswith(str(tmp_path)) and word != stage.command[-1]}
        own = {stage.command[stage.command.index("--out") + 1]}
        used = {Path(word) for word in given - own}
        assert all(any(path.is_relative_to(done) for done in known) for path in used), stage.name
        known |= own
    assert set(PLANS[name].minutes) == set(PLANS[name].batch) == set(TRAINED)


def test_minutes_stretch_every_stage_alike() -> None:
    plan, short = plan_named("two-cores"), plan_named("two-cores", 25)
    assert sum(short.minutes.values()) == pytest.approx(25)
    shares = {name: short.minutes[name] / plan.minutes[name] for name in plan.minutes}
    assert max(shares.values()) == pytest.approx(min(shares.values()))


def test_the_gpu_plan_fits_into_25_minutes_with_rendering_and_export() -> None:
    assert sum(plan_named("gpu").minutes.values()) <= 21


def test_what_is_done_is_skipped_and_until_ends_early(tmp_path: Path) -> None:
    plan = plan_named("smoke")
    said: list[str] = []
    assert run_nano(tmp_path, plan, until="encoders", dry_run=True, report=said.append) == ["render", "text", "encoders"]
    assert any("train encoders" in line and "--configuration nano-2" in line for line in said)
    (tmp_path / "tokenizer.json").touch()
    assert run_nano(tmp_path, plan, until="encoders", dry_run=True) == ["render", "encoders"]
    with pytest.raises(InputError, match="choose one of: render, text"):
        run_nano(tmp_path, plan, until="lunch", dry_run=True)
    with pytest.raises(InputError, match="choose one of: two-cores"):
        plan_named("moon")


def test_a_stage_that_fails_or_leaves_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="'text' ended with exit code 3"):
        _run(TrainingStage("text", (sys.executable, "-c", "raise SystemExit(3)"), tmp_path / "x"), tmp_path)
    with pytest.raises(StageError, match="was stopped before it was done"):
        _run(TrainingStage("text", (sys.executable, "-c", ""), tmp_path / "x"), tmp_path)


def test_whoever_is_ended_ends_its_stage(tmp_path: Path) -> None:
    child = (
        "import pathlib, signal, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / 'ended')!r}).touch(), exit(0)))\n"
        f"pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "time.sleep(600)\n"
    )
    parent = f"import sys; from export.nano_run import _call; _call((sys.executable, '-c', {child!r}))"
    process = subprocess.Popen([sys.executable, "-c", parent])
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)
    assert (tmp_path / "ended").exists()


def test_a_training_that_was_stopped_is_not_done(tmp_path: Path) -> None:
    plan = plan_named("smoke")
    for name in ("faces.done", "tokenizer.json"):
        (tmp_path / name).touch()
    step = tmp_path / "encoders" / "step-000007"
    step.mkdir(parents=True)
    (tmp_path / "encoders" / "semantic.safetensors").touch()
    for finished, left in ((False, ["encoders"]), (True, [])):
        (step / "state.json").write_text(json.dumps({"task": "encoders", "step": 7, "finished": finished}))
        assert run_nano(tmp_path, plan, until="encoders", dry_run=True) == left


def test_a_cache_that_was_stopped_is_not_done(tmp_path: Path) -> None:
    (tmp_path / "tokens" / "shard-000000").mkdir(parents=True)
    assert "cache" in run_nano(tmp_path, plan_named("smoke"), dry_run=True, report=lambda _: None)
    (tmp_path / "tokens" / "meta.json").touch()
    assert "cache" not in run_nano(tmp_path, plan_named("smoke"), dry_run=True, report=lambda _: None)
