"""Command-line options that every `train` command has: the fields of TrainOptions that people change."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

#: Field of TrainOptions → (flag, type, help). Defaults are those of the command.
TRAIN_OPTIONS: dict[str, tuple[str, type, str]] = {
    "steps": ("--steps", int, "Total optimizer steps, including those before a resume."),
    "minutes": ("--minutes", float, "Total time, including that before a resume; the schedule follows steps or time, whichever is ahead."),
    "batch": ("--batch", int, "Rows per micro batch and process."),
    "accumulate": ("--accumulate", int, "Micro batches per step."),
    "learning_rate": ("--rate", float, "Peak learning rate."),
    "warmup": ("--warmup", int, "Steps of linear warm-up."),
    "optimizer": ("--optimizer", str, "adamw or muon."),
    "schedule": ("--schedule", str, "wsd, cosine or constant."),
    "decay_fraction": ("--decay-fraction", float, "Fraction of the steps in the decay phase of wsd."),
    "ema": ("--ema", float, "Decay of the weight average; 0 disables it."),
    "bf16": ("--bf16/--fp32", bool, "Autocast to bfloat16, or fp32."),
    "threads": ("--threads", int, "Torch threads; 0 for torch's default."),
    "loaders": ("--loaders", int, "Processes that prepare batches; 0 for a thread, enough on two cores."),
    "device": ("--device", str, "auto, cpu, cuda …"),
    "shard": ("--shard/--replicate", bool, "Shard the model's state over all processes (FSDP2), or repeat it in each."),
    "tensorboard": ("--tensorboard/--no-tensorboard", bool, "Also write metrics for TensorBoard (pip install tensorboard)."),
    "seed": ("--seed", int, "Seed of initial weights, batches and dropout."),
    "validate_every": ("--validate-every", int, "Steps between validations with sample grids."),
    "save_every": ("--save-every", int, "Steps between checkpoints."),
    "log_every": ("--log-every", int, "Steps between log rows."),
}


def trainer(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flags of ``TRAIN_OPTIONS`` to a command, which receives those given as one dictionary, ``changes``."""

    def with_options(**values: Any) -> None:
        changes = {field: values.pop(field) for field in TRAIN_OPTIONS}
        command(**values, changes={field: value for field, value in changes.items() if value is not None})

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "changes"]
    shared = [
        inspect.Parameter(
            field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, typer.Option(flag, help=text)]
        )
        for field, (flag, kind, text) in TRAIN_OPTIONS.items()
    ]
    with_options.__doc__ = command.__doc__
    with_options.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
    with_options.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return with_options
