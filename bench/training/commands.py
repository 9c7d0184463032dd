"""The verb ``bench ablation``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.options import DEFAULT_JUDGE, AsJson, BundleName


def ablation(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the faces, the runs, the table and the plot; what is done there is kept.")],
    variants: Annotated[str, typer.Option(help='Comma-separated names, or "all".')] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each variant.")] = 3,
    faces: Annotated[int, typer.Option(help="Faces to render; 128 of them are kept back.")] = 3072,
    steps: Annotated[int, typer.Option(help="Training steps of each run.")] = 160,
    batch: Annotated[int, typer.Option(help="Rows per step.")] = 32,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 4e-3,
    pictures: Annotated[int, typer.Option(help="Pictures of each run that the judge sees.")] = 96,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    bundle: BundleName = "nano",
    judge_file: Annotated[Path, typer.Option("--judge", help="Weights of the judge.")] = DEFAULT_JUDGE,
    as_json: AsJson = False,
) -> None:
    """Train small models with parts of the loss and of the experts left out, and compare them."""
    from bench.quality.judge import Judge
    from bench.results import check_folder
    from bench.training.ablation import Ablation, Budget, run_ablation
    from bench.training.report import table, write
    from bench.training.variants import chosen
    from f2edge.pipeline import FacePipeline

    wanted = chosen(variants)
    check_folder(out)
    pipeline = FacePipeline.load(bundle, backend="onnxruntime", threads=threads, watermark=None)
    budget = Budget(faces, steps, batch, rate, pictures, threads)
    prepared = Ablation.prepare(pipeline, Judge.load(judge_file), budget, out)
    results = run_ablation(prepared, wanted, seeds, out, lambda line: print(line, file=sys.stderr, flush=True))
    write(results, out)
    print(json.dumps(results) if as_json else table(results), end="\n" if as_json else "")
