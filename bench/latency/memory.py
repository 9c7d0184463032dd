"""How much memory a bundle takes while it works: ``python -m bench memory``.

    python -m bench memory --bundle nano
    python -m bench memory --config 1.8b --random-weights --recipes int8,mixed

Each task runs in a process of its own without PyTorch.  "mapped" are pages of files, which the system may take back at any time.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from bench.latency.paper_size import compare_asked, memory_of_bundle, print_comparison
from f2edge.backends.onnxruntime import LEAN


def memory(
    *,
    bundle: Annotated[str, typer.Option(help="Name or folder of a bundle.")] = "nano",
    threads: Annotated[int | None, typer.Option(help="CPU threads; every usable core by default.")] = None,
    config: Annotated[str | None, typer.Option(help="Instead of a bundle: nano, show-o or 1.8b with random weights.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="With --config.")] = False,
    layers: Annotated[int | None, typer.Option(help="With --config: a shortened model.")] = None,
    recipes: Annotated[str, typer.Option(help="With --config: comma-separated recipes of the engines.")] = "int8,mixed,int4",
    baselines: Annotated[str, typer.Option(help="With --config: also lineage, cached, compiled, llama.cpp.")] = "",
    work: Annotated[Path, typer.Option(help="With --config: folder of the bundles, which are kept.")] = Path("runs/bench"),
    lean: Annotated[bool, typer.Option("--lean/--roomy", help="Large models: graphs that run once are closed again, or stay open.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")] = False,
) -> None:
    """Measure the memory of drawing and of reading, each in a process of its own."""
    os.environ[LEAN] = "1" if lean else "0"  # of the processes that are measured
    if config is None and not random_weights:
        measured = memory_of_bundle(bundle, threads)
    else:
        measured = compare_asked(config, layers, work, recipes, baselines, random_weights=random_weights, threads=threads, repeats=2)
    print(json.dumps(measured)) if as_json else print_comparison(measured, times=False)
