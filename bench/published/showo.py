"""The command ``python -m bench showo``: import-showo held against a checkout of the published code."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def showo(
    *,
    source: Annotated[Path, typer.Option(help="Checkout of github.com/showlab/Show-o; what its code imports must be installed.")],
    layers: Annotated[int | None, typer.Option(min=1, help="Fewer layers than the published 24: minutes instead of an hour.")] = None,
    small: Annotated[bool, typer.Option("--small", help="Two layers of width 256: minutes; without CLIP.")] = False,
    images: Annotated[Path | None, typer.Option(help="Folder of pictures instead of the checkout's own.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for 12 GB of random checkpoints; by default a temporary one.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Longest answer that is compared.")] = 8,
) -> None:
    """Compare the import with the published classes: tensors, logits, tokens, answers and pictures, with seeded random weights."""
    from bench.published.table import SMALL, compare
    from export.checkpoints.random_weights import shortened

    rows, model = [], SMALL if small else shortened("show-o", layers)
    for row in compare(source, model, images or source, work, seed=seed, answer_tokens=answer_tokens):
        rows.append(row)
        print(f"{'ok  ' if row.agrees else 'DIFF'}  {row.what:<66} {row.found}", flush=True)
    print(json.dumps([asdict(row) for row in rows]))
    if not all(row.agrees for row in rows):
        raise typer.Exit(1)
