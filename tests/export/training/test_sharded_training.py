"""Sharded training: two processes hold halves of the state, train as one process does, and either resumes the other's checkpoints."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from export.model.transformer import UnifiedTransformer
from export.training.checkpoint import load_weights
from export.training.compute import Compute
from export.training.loop import TrainOptions, train
from export.training.plan import activation_bytes
from f2edge.errors import InputError
from tests.export.training.sharded_worker import CONFIGURATIONS, MIXTURE, prepare, task
from tests.export.training.test_training_loop import ToyTask, environment, free_port, rows, wait_for
from tests.export.training.test_training_loop import options as toy_options
from tests.export.training.test_unified_training import TINY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
LOSSES = ("loss/model", "t2i", "mmu", "gradient/model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data")
    prepare(made, TINY)
    return made


def started(
    folder: Path, out: Path, *, world: int = 1, name: str = "tiny", compute: dict[str, Any] | None = None, **changes: Any
) -> list[Any]:
    """Processes of a training; two with one micro batch each train as one with two."""
    own: dict[str, Any] = {
        "out": str(out), "steps": 8, "batch": 6, "accumulate": 2 // world, "learning_rate": 2e-3, "warmup": 2, "schedule": "constant",
        "ema": 0.9, "bf16": False, "save_every": 4, "log_every": 1, "device": "cpu", "shard": world > 1, **changes,
    }  # fmt: skip
    given = json.dumps({"folder": str(folder), "name": name, "options": own, "compute": compute or {}})
    common = {**environment(), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "tests.export.training.sharded_worker", given]
    return [
        subprocess.Popen(command, cwd=ROOT, env={**common, "RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.DEVNULL)
        for r in range(world)
    ]


def ran(*given: Any, **named: Any) -> None:
    assert all(process.wait(timeout=1200) == 0 for process in started(*given, **named))


def apart(one: Path, other: Path, steps: range) -> float:
    """The largest difference of losses and gradients between two runs."""
    first, second = rows(one), rows(other)
    return max(abs(first[step][key] - second[step][key]) / max(1.0, abs(first[step][key])) for step in steps for key in LOSSES)


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in one process and sharded over two, as folders ``one`` and ``two``."""
    out = tmp_path_factory.mktemp("runs")
    for name, world in (("one", 1), ("two", 2)):
        ran(folder, out / name, world=world, validate_every=8)
    return out


def test_two_sharded_processes_train_as_one(runs: Path) -> None:
    assert apart(runs / "one", runs / "two", range(1, 9)) < 1e-4
    whole = json.loads((runs / "one" / "bytes-0.json").read_text())["state"]
    for rank in range(2):  # parameters, moments and average; a tensor's odd row is in the first process
        assert json.loads((runs / "two" / f"bytes-{rank}.json").read_text())["state"] == pytest.approx(whole / 2, rel=0.05)
    models = [UnifiedTransformer(TINY) for _ in range(2)]
    for model, name in zip(models, ("one", "two"), strict=True):
        load_weights(runs / name, model)  # averaged weights, from either kind of checkpoint
    for (key, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=key)


def test_validation_is_shared_by_the_processes(runs: Path) -> None:
    found = [json.loads((runs / name / "log.jsonl").read_text().splitlines()[-1]) for name in ("one", "two")]
    keys = {key for row in found for key in row if key.startswith("validate/")}
    assert len(keys) > 8
    for key in keys:
        assert found[0][key] == pytest.approx(found[1][key], abs=2e-3), key


@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.long)])
def test_another_number_of_processes_resumes(folder: Path, runs: Path, tmp_path: Path, first: int, then: int) -> None:
    ran(folder, tmp_path, world=first, steps=4)
    ran(folder, tmp_path, world=then)
    assert sorted(rows(tmp_path)) == list(range(1, 9))
    assert apart(runs / "one", tmp_path, range(1, 9)) < 1e-4


@pytest.mark.parametrize("last", [3, pytest.param(4, marks=pytest.mark.long), pytest.param(7, marks=pytest.mark.long)])
def test_a_sharded_run_killed_at_any_time_resumes(folder: Path, runs: Path, tmp_path: Path, last: int) -> None:
    processes = started(folder, tmp_path, world=2, save_every=2)
    wait_for(lambda: (tmp_path / "log.jsonl").exists() and len((tmp_path / "log.jsonl").read_text().splitlines()) >= last)
    for process in processes:  # behind a checkpoint, within a step, or while one is written
        process.send_signal(signal.SIGKILL)
        process.wait()
    ran(folder, tmp_path, world=2, save_every=2)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))  # none lost, none twice
    assert apart(runs / "two", tmp_path, range(1, 9)) == 0.0
    assert not list(tmp_path.glob(".partial-*"))


@pytest.mark.long
def test_muon_gathers_its_matrices(folder: Path, tmp_path: Path) -> None:
    ran(folder, tmp_path / "one", optimizer="muon")
    ran(folder, tmp_path / "two", optimizer="muon", world=2)
    assert apart(tmp_path / "one", tmp_path / "two", range(1, 9)) < 1e-4


@pytest.mark.parametrize("compute", [{"attention": "fused"}, {"recompute": True}, {"experts": "grouped"}])
def test_kernels_change_no_losses(folder: Path, tmp_path: Path, compute: dict[str, Any]) -> None:
    for name, own in (
        ("plain", Compute("plain", experts="dense")),
        ("other", Compute(**{"attention": "plain", "experts": "dense", **compute})),
    ):
        made = task(folder, "tiny", 6, own)
        made.validate = lambda *_: {}  # type: ignore[method-assign]
        train(made, TrainOptions(out=tmp_path / name, steps=6, batch=6, warmup=2, bf16=False, log_every=1, device="cpu"))
    assert apart(tmp_path / "plain", tmp_path / "other", range(1, 7)) < 1e-4


def test_a_small_module_is_not_sharded(tmp_path: Path) -> None:
    from export.training.sharding import shard

    with pytest.raises(InputError, match="--shard: Sequential is small"):
        shard(ToyTask().model, torch.device("cpu"), 2)
    train(ToyTask(), toy_options(tmp_path, 2, shard=True))  # nothing changes for one process


def test_steps_without_finite_gradients_are_skipped_and_counted(tmp_path: Path) -> None:
    class Rough(ToyTask):
        def losses(self, batch: Any, step: int) -> Any:
            losses, metrics = super().losses(batch, step)
            return ({name: loss * float("nan") for name, loss in losses.items()}, metrics) if step in (2, 3) else (losses, metrics)

    made = Rough()
    train(made, toy_options(tmp_path, 4))
    assert rows(tmp_path)[4]["skipped"] == 2.0
    assert all(bool(p.isfinite().all()) for p in made.model.parameters())
    train(Rough(), toy_options(tmp_path, 6))
    assert rows(tmp_path)[6]["skipped"] == 2.0  # counted over all starts


def test_metrics_are_also_written_for_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import event_accumulator as events

    train(ToyTask(), toy_options(tmp_path, 3, tensorboard=True))
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("loss/model")] == [1, 2, 3]
    assert found.Scalars("loss/model")[-1].value == pytest.approx(rows(tmp_path)[3]["loss/model"], rel=1e-5)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_full_width_two_layers(tmp_path: Path) -> None:
    """Two layers of "1.8b": sharded over two processes as unsharded for 20 steps; resumed by one; half of the state in each."""
    prepare(tmp_path, CONFIGURATIONS["wide"])
    own = {"name": "wide", "ema": 0.0, "batch": 3, "optimizer": "adamw", "learning_rate": 1e-4, "steps": 20, "save_every": 10}
    ran(tmp_path, tmp_path / "two", world=2, **own)
    ran(tmp_path, tmp_path / "one", **own)
    print("largest difference", apart(tmp_path / "one", tmp_path / "two", range(1, 21)))
    assert apart(tmp_path / "one", tmp_path / "two", range(1, 21)) < 1e-4
    whole = json.loads((tmp_path / "one" / "bytes-0.json").read_text())
    halves = [json.loads((tmp_path / "two" / f"bytes-{rank}.json").read_text()) for rank in range(2)]
    print("state GB", whole["state"] / 1e9, [half["state"] / 1e9 for half in halves])
    assert all(half["state"] == pytest.approx(whole["state"] / 2, rel=0.02) for half in halves)
    (tmp_path / "two" / "step-000020").rename(tmp_path / "elsewhere")
    ran(tmp_path, tmp_path / "two", **own)  # from step 10, in one process
    assert apart(tmp_path / "one", tmp_path / "two", range(1, 21)) < 1e-4


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "compute",
    [{"attention": "plain"}, {"attention": "fused"}, {"attention": "plain", "recompute": True}, {"attention": "fused", "recompute": True}],
)
def test_full_width_memory_is_as_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute: dict[str, Any]) -> None:
    """What a step needs beside the state, at full width."""
    prepare(tmp_path, CONFIGURATIONS["full"])
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")  # what is freed goes back to the system, as tensors that exist are planned
    own = {"name": "full", "ema": 0.0, "batch": 3, "optimizer": "adamw", "steps": 2, "save_every": 0, "accumulate": 1}
    ran(tmp_path, tmp_path / "run", compute=compute, **own)
    step = json.loads((tmp_path / "run" / "step.json").read_text())
    kernels = Compute(**compute)
    plan = activation_bytes(CONFIGURATIONS["full"], MIXTURE.split(3), MIXTURE, kernels, device="cpu", bf16=False)
    print(asdict(kernels), "measured", step / 1e9, "planned", plan / 1e9)
    assert step == pytest.approx(plan, rel=0.15)
