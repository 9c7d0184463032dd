"""The verbs of ``python -m export train``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from export.training.options import trainer
from f2edge.spec.configuration import SHIPPED

train_app = typer.Typer(no_args_is_help=True, help="Train one part of the model; a run found in --out is resumed.")

Run = Annotated[Path, typer.Option(help="Folder of the run: checkpoints, log.jsonl, samples, and the weights at the end.")]
Data = Annotated[Path, typer.Option(help="Folder of shards made by `render`.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Short test run of at most two minutes.")]
Configuration = Annotated[str, typer.Option(help="nano-2, nano, small …")]


def to_stderr(message: str) -> None:
    """Print progress."""
    print(message, file=sys.stderr, flush=True)


@train_app.command("tokenizer")
@trainer
def train_tokenizer(
    *,
    data: Data,
    out: Run,
    configuration: Configuration = SHIPPED.name,
    perceptual: Annotated[
        Path | None, typer.Option(help="Run folder of the encoders; adds a perceptual loss and an attribute loss.")
    ] = None,
    start_from: Annotated[Path | None, typer.Option(help="Finished tokenizer run to initialize the weights from.")] = None,
    decoder_of: Annotated[
        Path | None,
        typer.Option(help="Finished tokenizer run whose decoder is trained further, with its encoder frozen."),
    ] = None,
    smoke: Smoke = False,
    changes: dict[str, Any],
) -> None:
    """Train the image tokenizer: pixels to a grid of codes and back."""
    from export.training.tokenizer import defaults, run
    from f2edge.spec.configuration import configuration_named

    typer.echo(
        run(
            data,
            replace(defaults(out, smoke=smoke), **changes),
            configuration=configuration_named(configuration).tokenizer,
            perceptual=perceptual,
            start_from=start_from,
            decoder_of=decoder_of,
        )
    )


@train_app.command("encoders")
@trainer
def train_encoders(
    *, data: Data, out: Run, configuration: Configuration = SHIPPED.name, smoke: Smoke = False, changes: dict[str, Any]
) -> None:
    """Train the semantic encoder, the identity encoder and the region parser together."""
    from export.training.encoders import run
    from export.training.loop import TrainOptions
    from f2edge.spec.configuration import configuration_named

    if smoke:
        options = TrainOptions(out=out, steps=40, batch=16, warmup=10, ema=0.9)
    else:
        options = TrainOptions(out=out, steps=1800, batch=64, learning_rate=2e-3, validate_every=600)
    shape, rows = configuration_named(configuration), 64 if smoke else 1000
    typer.echo(run(data, replace(options, **changes), configuration=shape, validation_rows=rows))


@train_app.command("unified")
@trainer
def train_unified(
    *,
    tokens: Annotated[Path, typer.Option(help="Folder made by `cache`.")],
    text: Annotated[Path | None, typer.Option(help="tokenizer.json.  [default: the one in the cache]")] = None,
    out: Run,
    configuration: Configuration = SHIPPED.name,
    image_tokenizer: Annotated[Path | None, typer.Option(help="Run folder of the image tokenizer, for sample grids.")] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(
            help="Run folder, weights file or bundle (of any image tokenizer) to initialize the weights from; "
            "a dense transformer (Show-o) is upcycled."
        ),
    ] = None,
    validation_rows: Annotated[int, typer.Option(help="Faces held out for validation.")] = 512,
    experts: Annotated[str, typer.Option(help="Levels of experts: none, token, sequence or both.  [default: the configuration's]")] = "",
    masked: Annotated[float, typer.Option(help="Weight of the masked cross entropy.")] = 1.0,
    score: Annotated[float, typer.Option(help="Weight of the score entropy, the paper's alpha.")] = 0.01,
    attention: Annotated[str, typer.Option(help="auto, fused (PyTorch's kernel) or plain.")] = "auto",
    expert_kernel: Annotated[str, typer.Option(help="auto, grouped (each expert on its own tokens) or dense.")] = "auto",
    recompute: Annotated[bool, typer.Option(help="Compute activations again in the backward pass instead of keeping them.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print memory, cache, steps, tokens/s and hours on named GPUs, and end.")] = False,
    plan_processes: Annotated[int, typer.Option(min=1, help="--plan: number of GPUs.")] = 8,
    plan_faces: Annotated[int, typer.Option(min=1, help="--plan: faces in the cache, if it is not there yet.")] = 130_000,
    smoke: Smoke = False,
    changes: dict[str, Any],
) -> None:
    """Train the transformer on generation and understanding."""
    from export.model.variants import with_experts
    from export.training.compute import Compute
    from export.training.unified import Mixture, defaults, run
    from f2edge.spec.configuration import configuration_named

    options, shape = replace(defaults(out, smoke=smoke), **changes), configuration_named(configuration)
    shape = with_experts(shape, experts) if experts else shape
    mixture, compute = Mixture(masked=masked, score=score), Compute(attention, recompute, expert_kernel)
    if plan:
        from export.training.plan import planned

        typer.echo(planned(shape, options, mixture, compute, processes=plan_processes, tokens=tokens, faces=plan_faces))
        return
    typer.echo(
        run(
            tokens,
            text or tokens / "tokenizer.json",
            options,
            configuration=shape,
            image_tokenizer=image_tokenizer,
            start_from=start_from,
            validation_rows=validation_rows,
            mixture=mixture,
            compute=compute,
            report=to_stderr,
        )
    )


@train_app.command("student")
@trainer
def train_student(
    *,
    teacher: Annotated[str, typer.Option(help="Bundle, run folder or weights file to learn from and to begin with.")],
    tokens: Annotated[Path, typer.Option(help="Folder made by `cache`.")],
    text: Annotated[Path | None, typer.Option(help="tokenizer.json.  [default: the one in the cache]")] = None,
    out: Run,
    configuration: Annotated[str, typer.Option(help="That of a teacher whose weights file does not say its own.")] = SHIPPED.name,
    guidance: Annotated[float | None, typer.Option(min=0, max=100, help="Guidance of the teacher.  [default: its own]")] = None,
    halve: Annotated[int | None, typer.Option(help="Learn from pictures that the teacher draws in this many steps to take half.")] = None,
    data_weight: Annotated[float, typer.Option(help="Weight of the losses on the data beside the teacher's.")] = 0.1,
    image_tokenizer: Annotated[Path | None, typer.Option(help="Run folder of the image tokenizer, for sample grids.")] = None,
    validation_rows: Annotated[int, typer.Option(help="Faces held out for validation.")] = 512,
    recompute: Annotated[bool, typer.Option(help="Compute activations again in the backward pass instead of keeping them.")] = False,
    smoke: Smoke = False,
    changes: dict[str, Any],
) -> None:
    """Distill a student that draws without guidance, or in half the steps, what its teacher draws."""
    from export.training.compute import Compute
    from export.training.student import defaults, run
    from f2edge.spec.configuration import configuration_named

    typer.echo(
        run(
            teacher, tokens, text or tokens / "tokenizer.json", replace(defaults(out, smoke=smoke), **changes),
            configuration=configuration_named(configuration), guidance=guidance, halve=halve, data_weight=data_weight,
            image_tokenizer=image_tokenizer, validation_rows=validation_rows, compute=Compute(recompute=recompute), report=to_stderr,
        )
    )  # fmt: skip
