"""The verbs ``bench latency``, ``bench compare``, ``bench paper-size`` and ``bench memory``."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from bench.latency.calls import CALLS
from bench.latency.report import show
from bench.options import AsJson, BackendName, BundleName, Guidance, Threads, listed, whole_numbers
from bench.results import Results, check_folder, document
from f2edge.backends.onnxruntime import LEAN
from f2edge.cli.console import Output
from f2edge.errors import InputError

#: Options that ``bench latency`` had before it was split into verbs.
_PAPER_SIZE = ("--config", "--random-weights", "--layers", "--recipes", "--baselines", "--work")
_COMPARE = ("--batch", "--only", "--power", "--power-seconds", "--out")
_SINGLE = ("--bundle", "--steps", "--backend", "--threads")

Config = Annotated[str, typer.Option(help="Configuration with random weights: nano, show-o or 1.8b.")]
Layers = Annotated[int | None, typer.Option(min=1, help="Number of layers of a shortened model.", show_default=False)]
Work = Annotated[Path, typer.Option(help="Folder of the bundles of random weights, which are kept and reused.")]
Repeats = Annotated[int, typer.Option(min=1, help="Measured calls per row.")]


class LatencyCommand(TyperCommand):
    """``bench latency``: options that moved to another verb are refused with the name of that verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for place, option in enumerate(args):
            name, _, value = option.partition("=")
            value = value or " ".join(args[place + 1 : place + 2])
            if name in _PAPER_SIZE:
                raise InputError(f"bench latency has no {name} any more; use `python -m bench paper-size --config show-o`")
            several = name in _SINGLE and (value == "all" or (args.count(name) > 1 or ("," in value and not Path(value).is_dir())))
            if name in _COMPARE or several:
                raise InputError(f"bench latency takes one bundle and one value of each option; use `python -m bench compare {name} …`")
        return super().parse_args(ctx, args)


def _progress(message: str) -> None:
    print(f"{message} …", file=sys.stderr, flush=True)


def _print(results: Results, *, as_json: bool) -> None:
    show(results, Output(json=as_json))
    print(document(results))


def latency(
    *,
    bundle: BundleName = "nano",
    steps: Annotated[int, typer.Option(min=1, help="Decoding steps.")] = 12,
    guidance: Guidance = None,
    backend: BackendName = "auto",
    threads: Threads = None,
    repeats: Repeats = 9,
    as_json: AsJson = False,
) -> None:
    """Measure the calls of one bundle, with their share of this machine's ceiling."""
    from bench.latency.latency import measure

    _print(measure(bundle, steps=steps, guidance=guidance, backend=backend, threads=threads, repeats=repeats), as_json=as_json)


def compare(
    *,
    bundle: Annotated[list[str] | None, typer.Option(help="Names or folders of bundles; nano by default.", show_default=False)] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Backends; all: every one that runs here; auto by default.", show_default=False)
    ] = None,
    threads: Annotated[list[str] | None, typer.Option(help="CPU threads; every usable core by default.", show_default=False)] = None,
    steps: Annotated[list[str] | None, typer.Option(help="Decoding steps; 12 by default.", show_default=False)] = None,
    batch: Annotated[list[str] | None, typer.Option(help="Faces per call; 1 by default.", show_default=False)] = None,
    only: Annotated[list[str] | None, typer.Option(help="Calls: generate, analyze, ask; all by default.", show_default=False)] = None,
    guidance: Guidance = None,
    power: Annotated[str, typer.Option(help="Power meter: auto, none, tegrastats, rapl or nvml.")] = "auto",
    power_seconds: Annotated[float, typer.Option(min=0.1, help="Duration of the energy measurement of each row.")] = 5.0,
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 9,
    out: Annotated[Path | None, typer.Option(help="Folder for latency.json, latency.svg and latency.png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare bundles, backends, threads, steps and batches in one run: one table, one plot.

    Options take several values, with commas or repeated; all combinations are measured.
    """
    from bench.latency import comparison, plot
    from engines.power.power import Power

    axes = comparison.Axes(
        bundles=listed(bundle or (), "nano"),
        backends=listed(backend or (), "auto"),
        threads=whole_numbers("--threads", threads, "1") if threads else (None,),
        steps=whole_numbers("--steps", steps or (), "12"),
        batches=whole_numbers("--batch", batch or (), "1"),
        calls=listed(only or (), ",".join(CALLS)) if only else CALLS,
        guidance=guidance,
    )
    output = Output(json=as_json)
    if out is not None:
        check_folder(out)
    with closing(Power.open(power)) as meters:
        results = comparison.compare(axes, meters, repeats=repeats, energy_seconds=power_seconds, progress=_progress)
    show(results, output)
    try:
        if out is not None:
            output.line("written: " + ", ".join(str(path) for path in plot.write(results, out)))
    finally:
        print(document(results))  # results of minutes of work survive a full disk


def _at_size(  # one argument for each option of the two verbs
    config: str, layers: int | None, work: Path, *, recipes: str, baselines: str, threads: int | None, repeats: int
) -> Results:
    from bench.latency import paper_size

    return paper_size.compare(
        paper_size.Size(config, layers),
        work,
        recipes=[name.strip() for name in recipes.split(",") if name.strip()],
        baselines=[name.strip() for name in baselines.split(",") if name.strip()],
        threads=threads,
        repeats=repeats,
        progress=_progress,
    )


def paper_size(
    *,
    config: Config,
    layers: Layers = None,
    recipes: Annotated[str, typer.Option(help="Comma-separated recipes of the engines.")] = "fp32,int8,mixed,int4-128",
    baselines: Annotated[str, typer.Option(help="Comma-separated baselines.")] = "lineage,cached,compiled,llama.cpp",
    work: Work = Path("runs/bench"),
    threads: Threads = None,
    repeats: Repeats = 9,
    as_json: AsJson = False,
) -> None:
    """Compare engines with PyTorch baselines and llama.cpp at a published size, with random weights."""
    results = _at_size(config, layers, work, recipes=recipes, baselines=baselines, threads=threads, repeats=repeats)
    _print(results, as_json=as_json)


def memory(
    *,
    bundle: BundleName = "nano",
    threads: Threads = None,
    config: Annotated[str | None, typer.Option(help="Instead of a bundle: nano, show-o or 1.8b with random weights.")] = None,
    layers: Layers = None,
    recipes: Annotated[str, typer.Option(help="With --config: comma-separated recipes of the engines.")] = "int8,mixed,int4-128",
    baselines: Annotated[str, typer.Option(help="With --config: also lineage, cached, compiled, llama.cpp.")] = "",
    work: Work = Path("runs/bench"),
    lean: Annotated[bool, typer.Option("--lean/--roomy", help="Large models: close graphs that run once, or keep them open.")] = True,
    random_weights: Annotated[bool, typer.Option("--random-weights", hidden=True)] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the memory of generating and of reading, each in its own process."""
    from bench.latency.paper_size import memory_of_bundle

    if random_weights and config is None:
        raise InputError("--random-weights needs --config NAME; without it, --bundle is measured")
    os.environ[LEAN] = "1" if lean else "0"  # for the measured processes
    if config is None:
        results = memory_of_bundle(bundle, threads)
    else:
        results = _at_size(config, layers, work, recipes=recipes, baselines=baselines, threads=threads, repeats=2)
        results["rows"] = []
    _print(results, as_json=as_json)
