"""Command line of the benches; each command imports what it needs when it runs.

python -m bench judge --data shards/faces --out runs/judge
python -m bench quality --bundle nano --out runs/quality
python -m bench latency --bundle nano
python -m bench latency --steps 6,12 --batch 1,4,8 --out runs/latency
python -m bench roofline --device orin-nano
python -m bench memory --config show-o --random-weights
python -m bench camera
python -m bench load --scenario closed --clients 8
python -m bench provenance
python -m bench recipes --bundle runs/fp32/nano
python -m bench forms --config 1.8b
python -m bench fuzz --duration 600
python -m bench showo --source Show-o
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.camera.camera import camera
from bench.hardware.expert_kernels import forms
from bench.hardware.kernels import kernels
from bench.hardware.roofline import roofline
from bench.latency.latency import latency
from bench.latency.memory import memory
from bench.load.fuzz import fuzz
from bench.load.load import load
from bench.published.showo import showo
from bench.quality.provenance import provenance
from bench.quality.recipes import recipes
from f2edge.errors import F2EdgeError, InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Measure the model.")

DEFAULT_JUDGE = Path(__file__).parent / "weights" / "judge.safetensors"


def main() -> None:
    """Run the command line: bad input gives one line and exit code 2, other failures exit code 1."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except F2EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


@app.callback()
def _group() -> None:
    """Measure the model."""


app.command()(latency)
app.command()(kernels)
app.command()(roofline)
app.command()(memory)
app.command()(camera)
app.command()(load)
app.command()(provenance)
app.command()(recipes)
app.command()(forms)
app.command()(fuzz)
app.command()(showo)


@app.command()
def judge(
    *,
    data: Annotated[Path, typer.Option(help="Folder of rendered shards.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; resumed if there is one.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 4000,
    batch: Annotated[int, typer.Option(help="Pictures per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Peak of the rate.")] = 2e-3,
    threads: Annotated[int, typer.Option(help="torch threads; 0 keeps torch's choice.")] = 0,
    minutes: Annotated[float, typer.Option(help="Time in all; the schedule runs by steps or time, whichever is further on.")] = 0.0,
    loaders: Annotated[int, typer.Option(help="Processes that make batches; 0: a thread, enough on two cores.")] = 0,
    held_out: Annotated[int, typer.Option(help="Held-out renders that the finished judge is measured on.")] = 2000,
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda" …')] = "auto",
) -> None:
    """Train the attribute judge and measure it."""
    from bench.quality.judge_training import run
    from export.training.loop import TrainOptions

    options = TrainOptions(
        out=out,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        optimizer="muon",
        warmup=30,
        schedule="wsd",
        decay_fraction=0.4,
        weight_decay=0.05,
        ema=0.995,
        validate_every=max(steps // 8, 1),
        save_every=max(steps // 8, 1),
        threads=threads,
        minutes=minutes,
        loaders=loaders,
        device=device,
    )
    report = run(data, options, held_out)
    print(f"mean slot accuracy on {report['faces']} held-out renders: {100 * report['mean_slot_accuracy']:.2f} %  ({out / 'judge.json'})")


@app.command()
def quality(
    *,
    bundle: Annotated[str, typer.Option(help="Name or folder of a bundle.")] = "nano",
    backend: Annotated[str, typer.Option(help="Backend of the runtime.")] = "auto",
    judge_file: Annotated[Path, typer.Option("--judge", help="Weights of the judge.")] = DEFAULT_JUDGE,
    images: Annotated[int, typer.Option(min=2, help="Faces to generate; the other sections take a share or a multiple of it.")] = 500,
    steps: Annotated[int | None, typer.Option(help="Decoding steps; the bundle's own by default.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance; the bundle's own by default.")] = None,
    only: Annotated[str, typer.Option(help="Comma-separated sections: tokenizer, generate, analyze, ask, describe, edit.")] = "",
    seed: Annotated[int, typer.Option(help="Of faces, prompts and pictures.")] = 1,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the backend.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for quality.json and contact sheets.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")] = False,
) -> None:
    """Measure a bundle on held-out renders and prompts."""
    from rich.console import Console

    from bench.quality.judge import Judge
    from bench.quality.quality import Bench
    from bench.quality.report import chosen_sections, print_results, run_sections
    from f2edge.pipeline import FacePipeline
    from f2edge.results import GenerateOptions

    sections = chosen_sections(only)
    options = GenerateOptions(steps=steps, guidance=guidance)
    pipeline = FacePipeline.load(bundle, backend=backend, threads=threads, watermark=None)  # the model's own pixels are judged
    options.resolve(pipeline.bundle.generation)
    settings: dict[str, Any] = {"bundle": bundle, "backend": backend, "images": images, "seed": seed, "steps": steps, "guidance": guidance}
    measured = run_sections(Bench(pipeline, Judge.load(judge_file), images, options, seed, out), sections, settings)
    if as_json:
        print(json.dumps({"settings": settings, **measured}))
    else:
        print_results(measured, Console())
