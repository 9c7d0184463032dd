"""Complete training and export of nano: render → text → encoders → judge → tokenizer → cache → unified → bundle → packed weights.

    python -m export nano --out runs/nano --plan two-cores          # about ten hours
    python -m export nano --out runs/nano --plan gpu --minutes 25   # one large GPU that renders its own data
    python -m export nano --out runs/nano --plan smoke              # minutes; shows that every stage works

Every stage is a separate command, printed before it runs; ``--dry-run`` prints them all.  A stage that is done is skipped and one that
was stopped resumes, so the same command given again goes on; with ``--until`` it ends early.  The stages that train do so by the clock.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from export.training.checkpoint import is_finished
from f2edge.errors import F2EdgeError, InputError
from f2edge.spec.configuration import SHIPPED

TRAINED = ("encoders", "judge", "tokenizer", "unified")


class StageError(F2EdgeError, RuntimeError):
    """A stage's command failed; what it printed says why."""


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how wide.

    Attributes:
        faces: to be rendered, by ``workers`` processes.
        workers: 0: as many as the machine has cores.
        processes: of each training stage, joined by torchrun.
        minutes: of each training stage, of all starts.
        batch: rows of one process, by stage.
        steps: most steps, by stage; the clock ends most runs.
        options: further options of every training stage.
        export_options: of the last stage.
    """

    faces: int
    minutes: Mapping[str, float]
    batch: Mapping[str, int]
    steps: int
    workers: int = 0
    processes: int = 1
    options: tuple[str, ...] = ()
    export_options: tuple[str, ...] = ()
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def within(self, minutes: float) -> TrainingPlan:
        """The same plan with its training stretched or cut so that all of it takes so many minutes."""
        own = sum(self.minutes.values())
        return replace(self, minutes={name: value * minutes / own for name, value in self.minutes.items()})


PLANS: Mapping[str, TrainingPlan] = {
    "two-cores": TrainingPlan(
        faces=98304,
        workers=2,
        processes=2,
        minutes={"encoders": 90, "judge": 40, "tokenizer": 280, "unified": 190},
        batch={"encoders": 24, "judge": 32, "tokenizer": 8, "unified": 40},
        steps=60000,
        options=("--threads", "1", "--save-every", "250", "--validate-every", "1000"),
    ),
    "gpu": TrainingPlan(
        faces=131072,
        minutes={"encoders": 3.5, "judge": 1.5, "tokenizer": 9, "unified": 7},
        batch={"encoders": 512, "judge": 256, "tokenizer": 128, "unified": 512},
        steps=20000,
        options=("--loaders", "14", "--save-every", "1000", "--validate-every", "1000", "--log-every", "100"),
    ),
    "smoke": TrainingPlan(
        faces=192,
        workers=1,
        minutes={"encoders": 0.3, "judge": 0.2, "tokenizer": 0.4, "unified": 0.4},
        batch={"encoders": 16, "judge": 16, "tokenizer": 4, "unified": 10},
        steps=6,
        options=("--threads", "1", "--log-every", "2"),
        export_options=("--prompts", "2", "--faces", "1", "--reading", "16"),
        only={"encoders": ("--smoke",), "judge": ("--held-out", "32"), "unified": ("--validation-rows", "32")},
    ),
}


@dataclass(frozen=True)
class TrainingStage:
    """One command, and the file or folder that is there when it is done."""

    name: str
    command: tuple[str, ...]
    result: Path


def stages(out: Path, plan: TrainingPlan) -> list[TrainingStage]:
    """The stages of a whole run in their order."""
    data, text, tokens = out / "faces", out / "tokenizer.json", out / "tokens"
    runs = {name: out / name for name in TRAINED}
    shape = ("--configuration", SHIPPED.name)
    workers = plan.workers or os.cpu_count() or 1

    def train(name: str, *arguments: object, module: str = "export", verb: tuple[str, ...] = ()) -> tuple[str, ...]:
        program: tuple[str, ...] = (sys.executable, "-m", module)
        if plan.processes > 1:
            program = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(plan.processes), "-m", module)
        clock = ("--minutes", f"{plan.minutes[name]:g}", "--batch", str(plan.batch[name]), "--steps", str(plan.steps))
        own = plan.options if module == "export" else tuple(_judge_options(plan.options))
        return (*program, *(verb or ("train", name)), *map(str, arguments), *clock, *own, *plan.only.get(name, ()))

    def export(*arguments: object) -> tuple[str, ...]:
        return (sys.executable, "-m", "export", *map(str, arguments))

    render = export("render", "--split", "train", "--count", plan.faces, "--out", data, "--size", 256, "--grid", 16, "--workers", workers)
    encoders = train("encoders", "--data", data, "--out", runs["encoders"], "--optimizer", "muon", *shape)
    judge = train("judge", "--data", data, "--out", runs["judge"], module="bench", verb=("judge",))
    tokenizer = train("tokenizer", "--data", data, "--out", runs["tokenizer"], "--perceptual", runs["encoders"], *shape)
    parts = ("--tokenizer", runs["tokenizer"], "--encoders", runs["encoders"])
    cache = export("cache", "--data", data, *parts, "--out", tokens, *shape)
    unified = train("unified", "--tokens", tokens, "--text", text, "--out", runs["unified"], "--image-tokenizer", runs["tokenizer"], *shape)
    form = ("--recipe", "int8-step", *shape, *plan.export_options)
    bundle = export("onnx", "--unified", runs["unified"], *parts, "--text", text, "--out", out / "bundle" / "nano", *form)
    files = [runs["encoders"] / f"{part}.safetensors" for part in ("semantic", "readout", "identity", "regions")]
    files += [stage / f"{name}.safetensors" for name, stage in runs.items() if name != "encoders"]
    packed = export("pack", *(word for file in files for word in ("--weights", file)), "--out", out / "packed")
    return [
        TrainingStage("render", (*render, "--shard-size", str(min(2048, plan.faces))), out / "faces.done"),
        TrainingStage("text", export("text-tokenizer", "--out", text), text),
        TrainingStage("encoders", encoders, runs["encoders"] / "semantic.safetensors"),
        TrainingStage("judge", judge, runs["judge"] / "judge.safetensors"),
        TrainingStage("tokenizer", tokenizer, runs["tokenizer"] / "tokenizer.safetensors"),
        TrainingStage("cache", cache, tokens / "meta.json"),
        TrainingStage("unified", unified, runs["unified"] / "unified.safetensors"),
        TrainingStage("bundle", bundle, out / "bundle" / "nano" / "manifest.json"),
        TrainingStage("pack", packed, out / "packed"),
    ]


def _judge_options(options: Sequence[str]) -> list[str]:
    """Those that ``python -m bench judge`` has too."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return [word for flag, value in pairs if flag in ("--threads", "--loaders") for word in (flag, value)]


def plan_named(name: str, minutes: float | None = None) -> TrainingPlan:
    """One of :data:`PLANS`, its training fitted into ``minutes``; raises :class:`InputError` for another name or no time."""
    if name not in PLANS:
        raise InputError(f"unknown plan {name!r}; choose one of: {', '.join(PLANS)}")
    if minutes is None:
        return PLANS[name]
    if not minutes > 0:
        raise InputError(f"minutes {minutes:g}: must be above 0")
    return PLANS[name].within(minutes)


def run_nano(
    out: Path, plan: TrainingPlan, *, until: str | None = None, dry_run: bool = False, report: Callable[[str], None] = print
) -> list[str]:
    """Run what is not done yet; returns the names of the stages that ran (or, with ``dry_run``, would have).

    ``out/stages.jsonl`` gets a row for each stage: its command, seconds and the machine's cores.

    Raises:
        InputError: ``until`` is not a stage.
        StageError: a command failed.
    """
    every = stages(out, plan)
    names = [stage.name for stage in every]
    if until is not None and until not in names:
        raise InputError(f"no stage {until!r}; choose one of: {', '.join(names)}")
    wanted = every if until is None else every[: names.index(until) + 1]
    ran = []
    for stage in wanted:
        if _is_done(stage):
            report(f"{stage.name}: done")
            continue
        report(f"{stage.name}: {shlex.join(stage.command)}")
        ran.append(stage.name)
        if not dry_run:
            _run(stage, out)
    return ran


def _is_done(stage: TrainingStage) -> bool:
    """Whether a stage's result is there, and not that of a training that was stopped."""
    return stage.result.exists() and (stage.name not in TRAINED or is_finished(stage.result.parent))


def _call(command: Sequence[str]) -> int:
    """Run a command to its end; when this process is ended, also by SIGTERM, the command is ended first and saves its state."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with subprocess.Popen(command) as child:  # noqa: S603 (our own commands)
            try:
                return child.wait()
            except KeyboardInterrupt:
                child.send_signal(signal.SIGTERM)
                child.wait()
                raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(stage: TrainingStage, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    begun = time.time()
    code = _call(stage.command)
    if code:
        raise StageError(f"stage {stage.name!r} ended with exit code {code}; its last lines report why; give the same command to go on")
    if stage.name == "render":
        stage.result.touch()
    if not _is_done(stage):
        raise StageError(f"stage {stage.name!r} was stopped before it was done; give the same command to go on")
    row = {"stage": stage.name, "command": list(stage.command), "seconds": round(time.time() - begun, 1), "cores": os.cpu_count()}
    with (out / "stages.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
