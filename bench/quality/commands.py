"""The verbs ``bench judge`` and ``bench quality``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bench.options import DEFAULT_JUDGE, AsJson, BackendName, BundleName, Guidance, Steps, Threads
from bench.results import Results


def judge(
    *,
    data: Annotated[Path, typer.Option(help="Folder of rendered shards.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an existing run is resumed.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 4000,
    batch: Annotated[int, typer.Option(help="Pictures per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    threads: Annotated[int, typer.Option(help="torch threads; 0 keeps torch's choice.")] = 0,
    minutes: Annotated[float, typer.Option(help="Time in all; the schedule runs by steps or time, whichever is further on.")] = 0.0,
    loaders: Annotated[int, typer.Option(help="Processes that make batches; 0: a thread, enough on two cores.")] = 0,
    held_out: Annotated[int, typer.Option(help="Held-out renders on which the trained judge is measured.")] = 2000,
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


def quality(
    *,
    bundle: BundleName = "nano",
    backend: BackendName = "auto",
    judge_file: Annotated[Path, typer.Option("--judge", help="Weights of the judge.")] = DEFAULT_JUDGE,
    images: Annotated[int, typer.Option(min=2, help="Faces to generate; other sections use a fraction or a multiple.")] = 500,
    steps: Steps = None,
    guidance: Guidance = None,
    preset: Annotated[str | None, typer.Option(help="Draw by a preset of the bundle: fast, balanced or best.")] = None,
    only: Annotated[str, typer.Option(help="Comma-separated sections, such as generate,edit; all of them if not given.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of faces, prompts and pictures.")] = 1,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option(help="Folder for quality.json and contact sheets.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a bundle on held-out renders and prompts."""
    from rich.console import Console

    from bench.quality.faces import held_out_faces
    from bench.quality.judge import Judge
    from bench.quality.quality import Bench
    from bench.quality.report import chosen_sections, print_results, run_sections
    from f2edge.pipeline import FacePipeline
    from f2edge.results import GenerateOptions

    sections = chosen_sections(only)
    options = GenerateOptions(steps=steps, guidance=guidance, quality=preset)
    pipeline = FacePipeline.load(bundle, backend=backend, threads=threads, watermark=None)  # the model's pixels, without a mark
    options.resolve(pipeline.bundle.generation, pipeline.bundle.presets)
    settings: Results = {"bundle": bundle, "backend": backend, "images": images, "seed": seed}
    settings |= {"steps": steps, "guidance": guidance, "preset": preset}
    render = partial(held_out_faces, size=pipeline.bundle.configuration.tokenizer.image_size)
    bench = Bench(pipeline, Judge.load(judge_file), images, options, seed, out, render=render)
    measured = run_sections(bench, sections, settings)
    if as_json:
        print(json.dumps({"settings": settings, **measured}))
    else:
        print_results(measured, Console())
