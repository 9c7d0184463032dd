"""The training loop: exact resumption, signals, accumulation, EMA, two processes, checkpoints that cannot be half written."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from export.training.checkpoint import checkpoints, is_finished, latest_checkpoint, load_weights, save_weights, weights_metadata
from export.training.loop import Batch, DivergedError, StepMetrics, TrainOptions, train
from export.training.optimization import Averages, FlatGradients, Optimization, hidden_matrices, orthogonalised, rate_factor
from f2edge.errors import InputError

ROOT = Path(__file__).resolve().parents[3]


class ToyTask:
    """A regression with dropout (global randomness) and a critic that starts at step 5."""

    def __init__(self, *, pause_s: float = 0.0, scale: float = 1.0, rows: int = 8) -> None:
        torch.manual_seed(1)
        self.name = "toy"
        self.model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
        self.critic = nn.Linear(1, 1)
        self.modules: Mapping[str, nn.Module] = {"model": self.model, "critic": self.critic}
        self.pause_s, self.scale, self.rows = pause_s, scale, rows

    def batch(self, step: int, micro: int) -> Batch:
        time.sleep(self.pause_s)
        generator = torch.Generator().manual_seed(1000 * step + 10 * micro)
        x = torch.randn(self.rows, 4, generator=generator)
        return {"x": x, "y": x.sum(1, keepdim=True)}

    def losses(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], StepMetrics]:
        guess = self.model(batch["x"])
        error = (guess - batch["y"]).square().mean() * self.scale
        if step < 5:
            return {"model": error}, {"error": error}
        real, fake = self.critic(batch["y"]), self.critic(guess.detach())
        losses = {"model": error - 0.01 * self.critic(guess).mean(), "critic": (fake - real).mean() + real.square().mean()}
        return losses, {"error": error}

    def validate(self, model: Mapping[str, nn.Module], step: int, directory: Path) -> dict[str, float]:
        (directory / f"{step}.txt").write_text("seen", encoding="utf-8")
        return {"weight": float(model["model"].state_dict()["0.bias"][0]), "training": float(model["model"].training)}


class Wide(ToyTask):
    """With one matrix that Muon takes."""

    def __init__(self) -> None:
        super().__init__()
        self.model.insert(3, nn.Linear(16, 16))


def options(out: Path, steps: int = 12, **changes: object) -> TrainOptions:
    values: dict[str, object] = {"batch": 8, "accumulate": 2, "warmup": 3, "bf16": False, "save_every": 5, "log_every": 1, "device": "cpu"}
    return TrainOptions(out=out, steps=steps, **{**values, **changes})  # type: ignore[arg-type]


def rows(out: Path) -> dict[int, dict[str, float]]:
    """The training rows of a run's log by step, without rates."""
    found = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["step"]: {k: v for k, v in row.items() if k != "rows_per_s"} for row in found if "loss/model" in row}


def weights(path: Path, name: str = "model", kind: type[ToyTask] = ToyTask, *, ema: bool = False) -> dict[str, Tensor]:
    task = kind()
    load_weights(path, task.modules[name], ema=ema, name=name)
    return dict(task.modules[name].state_dict())


def assert_same_weights(one: Path, other: Path, kind: type[ToyTask] = ToyTask) -> None:
    for name in ("model", "critic"):
        for ema in (False, True):
            for key, tensor in weights(one, name, kind, ema=ema).items():
                assert torch.equal(tensor, weights(other, name, kind, ema=ema)[key]), (name, ema, key)


def test_training_learns_and_keeps_two_checkpoints(tmp_path: Path) -> None:
    last = train(ToyTask(rows=32), options(tmp_path, 150, learning_rate=0.02, ema=0.9, save_every=40))
    log = rows(tmp_path)
    assert log[150]["error"] < 0.3 * log[1]["error"]
    assert last == latest_checkpoint(tmp_path) == tmp_path / "step-000150"
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000120", "step-000150"]
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".pt", ".pkl", ".bin")]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, optimizer: str) -> None:
    # The law of the rate depends on the number of steps, so all are run with a constant one.
    train(Wide(), options(tmp_path / "halves", 7, schedule="constant", optimizer=optimizer))
    assert sorted(rows(tmp_path / "halves")) == list(range(1, 8))
    train(Wide(), options(tmp_path / "halves", 12, schedule="constant", optimizer=optimizer))
    train(Wide(), options(tmp_path / "whole", 12, schedule="constant", optimizer=optimizer))
    train(Wide(), options(tmp_path / "other", 12, schedule="constant", optimizer="adamw", seed=optimizer == "adamw"))
    assert rows(tmp_path / "halves") == rows(tmp_path / "whole")
    assert rows(tmp_path / "other") != rows(tmp_path / "whole")
    assert_same_weights(tmp_path / "halves", tmp_path / "whole", Wide)


@pytest.mark.slow
def test_killed_run_resumes_exactly(tmp_path: Path) -> None:
    train(ToyTask(), options(tmp_path / "whole"))
    killed = tmp_path / "killed"
    with subprocess.Popen(worker(killed, pause_s=0.05), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: len(logged(killed)) >= 8)  # beyond the checkpoint of step 5: those rows are lost and done again
        process.send_signal(signal.SIGKILL)
    assert latest_checkpoint(killed) == killed / "step-000005"
    train(ToyTask(), options(killed))
    assert rows(killed) == rows(tmp_path / "whole")
    assert_same_weights(killed, tmp_path / "whole")


@pytest.mark.slow
def test_terminated_run_saves_and_stops(tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    with subprocess.Popen(worker(out, pause_s=0.05, steps=2000), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: len(logged(out)) >= 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    found = latest_checkpoint(out)
    assert found is not None
    assert found.name == f"step-{max(rows(out)):06d}"
    assert max(rows(out)) < 2000


@pytest.mark.slow
def test_two_processes_stay_in_step_and_average_gradients(tmp_path: Path) -> None:
    port = free_port()
    common = {**environment(), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    out = tmp_path / "pair"
    processes = [
        subprocess.Popen(worker(out, ranks=tmp_path), cwd=ROOT, env={**common, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)
    ]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    both = [dict(torch.load(tmp_path / f"rank{r}.pt")) for r in range(2)]
    assert all(torch.equal(both[0][key], both[1][key]) for key in both[0])
    assert sorted(rows(out)) == list(range(1, 13))  # one process writes
    # Without dropout, two processes of one micro batch each are one process of both micro batches.
    single = NoDropout()
    train(single, options(tmp_path / "single", accumulate=4))
    for key, tensor in single.model.state_dict().items():
        torch.testing.assert_close(tensor, both[0][key], rtol=1e-5, atol=1e-6)


class NoDropout(ToyTask):
    def __init__(self, *, pause_s: float = 0.0) -> None:
        super().__init__(pause_s=pause_s)
        self.model[2] = nn.Identity()


class Joined(NoDropout):
    """Two micro batches as one."""

    def batch(self, step: int, micro: int) -> Batch:
        parts = [super(Joined, self).batch(step, m) for m in range(2)]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    small, large = NoDropout(), Joined()
    train(small, options(tmp_path / "small", 5))
    train(large, options(tmp_path / "large", 5, accumulate=1))
    for key, tensor in small.model.state_dict().items():
        torch.testing.assert_close(tensor, large.model.state_dict()[key], rtol=1e-5, atol=1e-6)


def test_a_loss_reaches_its_own_module_only_and_late_critic_waits(tmp_path: Path) -> None:
    task = ToyTask()
    before = {key: tensor.clone() for key, tensor in task.critic.state_dict().items()}
    train(task, options(tmp_path, 5))
    assert all(torch.equal(before[key], tensor) for key, tensor in task.critic.state_dict().items())
    task.losses({"x": torch.randn(8, 4), "y": torch.randn(8, 1)}, 9)
    optimization = Optimization(task.model, "adamw", 1e-3, betas=(0.9, 0.99), weight_decay=0.0, clip=1.0)
    optimization.backward(task.critic(task.model(torch.randn(8, 4))).mean())
    assert optimization.gradients.norm() > 0
    assert task.critic.weight.grad is None or not task.critic.weight.grad.any()


def test_validation_sees_averaged_weights_in_eval_mode(tmp_path: Path) -> None:
    task = ToyTask()
    train(task, options(tmp_path, 10, validate_every=10, ema=0.99, learning_rate=0.05))
    last = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()][-1]
    assert last["validate/training"] == 0.0
    assert last["validate/weight"] == float(weights(tmp_path, ema=True)["0.bias"][0])
    assert last["validate/weight"] != float(task.model.state_dict()["0.bias"][0])  # swapped back afterwards
    assert float(task.model.state_dict()["0.bias"][0]) == float(weights(tmp_path, ema=False)["0.bias"][0])
    assert (tmp_path / "samples" / "10.txt").exists()


def test_the_norm_of_many_gradients_is_exact() -> None:
    weight = nn.Parameter(torch.zeros(1 << 24))
    gradients = FlatGradients([weight])
    gradients.flat.normal_(std=1e-3, generator=torch.Generator().manual_seed(0))
    assert gradients.norm() == pytest.approx(float(gradients.flat.double().norm()), rel=1e-5)


def test_averages_follow_the_written_law() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    averages, expected = Averages(module, 0.9), module.weight.detach().clone()
    for step in range(40):
        with torch.no_grad():
            module.weight.normal_()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
        averages.update(step)
    torch.testing.assert_close(averages.state()["weight"], expected)


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(0, 300), st.sampled_from(["cosine", "constant", "wsd"]), st.floats(0.05, 0.9))
def test_rate_law(steps: int, warmup: int, schedule: str, fraction: float) -> None:
    factors = [rate_factor(step, steps, warmup, schedule, fraction) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert all(a < b for a, b in itertools.pairwise(factors[:warmup]))
    after = factors[warmup:]
    assert all(a >= b for a, b in itertools.pairwise(after))
    if schedule == "constant":
        assert set(after) <= {1.0}
    if schedule == "wsd" and warmup < (stable := int(steps * (1 - fraction))):
        assert factors[warmup:stable] == [1.0] * (stable - warmup)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (3, 32, 48)])
def test_muon_orthogonalises(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    nearest = u @ v
    cosine = torch.nn.functional.cosine_similarity(orthogonalised(matrix).flatten(), nearest.flatten(), dim=0)
    assert cosine > 0.97


def test_muon_takes_hidden_matrices_only() -> None:
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(64, 32),
            "inner": nn.Linear(32, 48),
            "window": nn.Conv2d(16, 16, 3),
            "entry": nn.Conv2d(3, 8, 3),
            "head": nn.Linear(32, 64),
        }
    )
    model.experts = nn.Parameter(torch.zeros(4, 32, 32))
    found = {id(p) for p in hidden_matrices(model)}
    assert {name for name, p in model.named_parameters() if id(p) in found} == {"inner.weight", "window.weight", "experts"}


def test_divergence_is_told(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="lower the learning rate"):
        train(ToyTask(scale=float("inf")), options(tmp_path, 50))


def test_foreign_and_unfitting_folders_are_refused(tmp_path: Path) -> None:
    train(ToyTask(), options(tmp_path, 3))
    other = ToyTask()
    other.name = "other"
    with pytest.raises(InputError, match="'toy', not of 'other'"):
        train(other, options(tmp_path, 3))
    with pytest.raises(InputError, match="has shape"):
        load_weights(tmp_path, nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 1)))
    with pytest.raises(InputError, match="lacks"):
        load_weights(tmp_path, nn.Linear(4, 16))
    with pytest.raises(InputError, match="no weights named"):
        load_weights(tmp_path / "nowhere", nn.Linear(4, 16))


def test_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, nn.Linear(4, 4), {"note": "kept"})
    assert weights_metadata(path) == {"note": "kept"}
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"w\.safetensors"):
        load_weights(path, nn.Linear(4, 4))


def test_failing_batch_reaches_the_caller(tmp_path: Path) -> None:
    class Failing(ToyTask):
        def batch(self, step: int, micro: int) -> Batch:
            if step == 4:
                raise OSError("shard vanished")
            return super().batch(step, micro)

    with pytest.raises(OSError, match="shard vanished"):
        train(Failing(), options(tmp_path))


def worker(out: Path, *, pause_s: float = 0.0, steps: int = 12, ranks: Path | None = None) -> list[str]:
    return [sys.executable, str(Path(__file__)), str(out), str(pause_s), str(steps), str(ranks or "")]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def logged(out: Path) -> list[str]:
    path = out / "log.jsonl"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the training process did not get there in a minute"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _work(arguments: list[str]) -> None:
    out, pause_s, steps, ranks = arguments
    torch.set_num_threads(1)
    task = NoDropout() if ranks else ToyTask(pause_s=float(pause_s))
    train(task, options(Path(out), int(steps)))
    if ranks:
        torch.save(task.model.state_dict(), Path(ranks) / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    _work(sys.argv[1:])


def test_batches_made_by_other_processes_are_the_same(tmp_path: Path) -> None:
    train(ToyTask(), options(tmp_path / "thread", steps=7))
    train(ToyTask(), options(tmp_path / "loaders", steps=7, loaders=2))
    assert rows(tmp_path / "thread") == rows(tmp_path / "loaders")


def test_the_clock_cools_a_run_down_and_ends_it(tmp_path: Path) -> None:
    slow = options(tmp_path, steps=100_000, accumulate=1, minutes=1.5 / 60, save_every=0, schedule="cosine")
    last = train(ToyTask(pause_s=0.02), slow)
    found = rows(tmp_path)
    assert 3 <= len(found) < 1000
    assert found[max(found)]["rate_factor"] < 0.1
    assert (tmp_path / "samples").is_dir()  # it validated at its end
    assert train(ToyTask(), slow) == last  # the time is over: nothing is left to do
    assert is_finished(tmp_path)
    longer = train(ToyTask(pause_s=0.02), options(tmp_path, steps=100_000, accumulate=1, minutes=3 / 60, save_every=0))
    assert longer != last
