"""The workstation's command line: ``python -m export render | train | onnx``.

    python -m export render --split train --count 40000 --out shards/train --workers 2
    python -m export train encoders  --data shards/train --out runs/encoders
    python -m export train tokenizer --data shards/train --out runs/tokenizer --perceptual runs/encoders

A run is resumed by giving the same command again.  Exit codes: 0, 2 for input that the caller can mend, 1 for the rest.  Every command
imports what it needs when it runs, so that none depends on the others' libraries.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from f2edge.errors import F2EdgeError, InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train the face model and turn it into bundles (on a workstation; needs PyTorch).",
)
train_app = typer.Typer(no_args_is_help=True, help="Train one part of the model; a run found in --out is resumed.")
app.add_typer(train_app, name="train")

Out = Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log.jsonl, samples, and the weights at the end.")]
Data = Annotated[Path, typer.Option(help="Folder of shards made by `render`.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps in all, counted from the first start.")]
BatchSize = Annotated[int | None, typer.Option("--batch", help="Rows of one micro batch in one process.")]
Accumulate = Annotated[int | None, typer.Option(help="Micro batches of one step.")]
Rate = Annotated[float | None, typer.Option("--rate", help="Peak learning rate.")]
Optimizer = Annotated[str | None, typer.Option(help="adamw or muon.")]
Schedule = Annotated[str | None, typer.Option(help="wsd, cosine or constant.")]
DecayFraction = Annotated[float | None, typer.Option(help="Share of the steps over which wsd cools down.")]
Ema = Annotated[float | None, typer.Option(help="Decay of the weight average; 0 turns it off.")]
Threads = Annotated[int | None, typer.Option(help="Torch threads; 0 keeps torch's choice.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda …")]
Seed = Annotated[int | None, typer.Option(help="Of initial weights, batches and dropout.")]
Bf16 = Annotated[bool | None, typer.Option("--bf16/--fp32", help="Autocast to bfloat16, or plain fp32.")]
ValidateEvery = Annotated[int | None, typer.Option(help="Steps between validations with sample grids.")]
SaveEvery = Annotated[int | None, typer.Option(help="Steps between checkpoints.")]
LogEvery = Annotated[int | None, typer.Option(help="Steps between log rows.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="A run of at most two minutes that shows that everything works.")]


@app.command()
def render(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the shards; those already there are kept.")],
    count: Annotated[int, typer.Option(help="Faces in all.")] = 4096,
    split: Annotated[str, typer.Option(help="train or heldout.")] = "train",
    first_seed: Annotated[int, typer.Option(help="Seed of the first face.")] = 0,
    size: Annotated[int, typer.Option(help="Pixels along one side.")] = 128,
    grid: Annotated[int, typer.Option(help="Cells along one side of the stored region masks.")] = 8,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    shard_size: Annotated[int, typer.Option(help="Faces of one shard.")] = 4096,
) -> None:
    """Render faces with ground truth: slots, regions and landmarks beside every picture."""
    from tqdm import tqdm

    from export.data.shards import write_shards

    with tqdm(total=count, unit="faces", disable=None, file=sys.stderr) as bar:

        def report(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        write_shards(
            out,
            split=split,
            count=count,
            first_seed=first_seed,
            size=size,
            grid=grid,
            workers=workers,
            shard_size=shard_size,
            progress=report,
        )


@train_app.command("tokenizer")
def train_tokenizer(
    *,
    data: Data,
    out: Out,
    perceptual: Annotated[Path | None, typer.Option(help="Folder of trained encoders; adds their feature maps to the loss.")] = None,
    steps: Steps = None,
    batch: BatchSize = None,
    accumulate: Accumulate = None,
    rate: Rate = None,
    optimizer: Optimizer = None,
    schedule: Schedule = None,
    decay_fraction: DecayFraction = None,
    ema: Ema = None,
    threads: Threads = None,
    device: Device = None,
    seed: Seed = None,
    bf16: Bf16 = None,
    validate_every: ValidateEvery = None,
    save_every: SaveEvery = None,
    log_every: LogEvery = None,
    smoke: Smoke = False,
) -> None:
    """Train the image tokenizer: pixels to a grid of codes and back."""
    from export.training.tokenizer import defaults, run

    options = _with(defaults(out, smoke=smoke), locals())
    typer.echo(run(data, options, perceptual=perceptual))


@train_app.command("encoders")
def train_encoders(
    *,
    data: Data,
    out: Out,
    steps: Steps = None,
    batch: BatchSize = None,
    accumulate: Accumulate = None,
    rate: Rate = None,
    optimizer: Optimizer = None,
    schedule: Schedule = None,
    decay_fraction: DecayFraction = None,
    ema: Ema = None,
    threads: Threads = None,
    device: Device = None,
    seed: Seed = None,
    bf16: Bf16 = None,
    validate_every: ValidateEvery = None,
    save_every: SaveEvery = None,
    log_every: LogEvery = None,
    smoke: Smoke = False,
) -> None:
    """Train the semantic encoder, the identity encoder and the region parser together."""
    from export.training.encoders import run
    from export.training.loop import TrainOptions

    if smoke:
        options = TrainOptions(out=out, steps=40, batch=16, warmup=10, ema=0.9)
    else:
        options = TrainOptions(out=out, steps=4000, batch=32, learning_rate=2e-3, validate_every=1000)
    typer.echo(run(data, _with(options, locals()), validation_rows=64 if smoke else 1000))


_FIELDS = {
    "steps": "steps",
    "batch": "batch",
    "accumulate": "accumulate",
    "rate": "learning_rate",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "decay_fraction": "decay_fraction",
    "ema": "ema",
    "threads": "threads",
    "device": "device",
    "seed": "seed",
    "bf16": "bf16",
    "validate_every": "validate_every",
    "save_every": "save_every",
    "log_every": "log_every",
}


def _with(options: Any, given: dict[str, Any]) -> Any:
    """``options`` (TrainOptions) with the command line's values in place of its own, where one was given."""
    return replace(options, **{field: given[name] for name, field in _FIELDS.items() if given[name] is not None})


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code, errors are printed in one line (``F2EDGE_DEBUG=1`` adds the traceback)."""
    try:
        code = app(args=list(arguments), prog_name="python -m export", standalone_mode=False)
    except F2EdgeError as error:
        return _report(str(error), 2 if isinstance(error, InputError) else 1)
    except typer.Abort:
        return _report("interrupted", 130)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # the parser's own errors: unknown option, missing argument
        if not callable(usage):
            raise
        return _report(usage(), 2)
    return code if isinstance(code, int) else 0


def _report(message: str, code: int) -> int:
    if os.environ.get("F2EDGE_DEBUG") == "1":
        traceback.print_exc()
    print(f"python -m export: {message}", file=sys.stderr)
    return code


def main() -> None:
    sys.exit(run(sys.argv[1:]))
