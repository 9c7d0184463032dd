"""Command line of the TensorRT side; each command imports what it needs when it runs.

python -m engines profiles
python -m engines profiles orin-nano --json
python -m engines build BUNDLE --profile orin-nano
python -m engines inspect BUNDLE
python -m engines verify BUNDLE
python -m engines kernels
python -m engines aot-nodes GRAPH.onnx --tokens 258
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from f2edge.cli.command import end_as_interrupted, run_command
from f2edge.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn bundles into TensorRT engines.",
)


@app.callback()
def _group() -> None:
    """Turn bundles into TensorRT engines."""


@app.command()
def profiles(
    names: Annotated[list[str] | None, typer.Argument(help="Devices; all by default.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")] = False,
) -> None:
    """List the devices that engines are built for: memory, rates, TensorRT versions, recipe of each graph."""
    from engines.profile import load_profiles, print_profiles

    print_profiles(load_profiles(names or ()), as_json=as_json)


@app.command()
def build(
    bundle: Annotated[str, typer.Argument(metavar="NAME|DIR", help='A bundle of the "tensorrt" flavour (python -m export onnx).')],
    profile: Annotated[str, typer.Option("--profile", metavar="NAME|TOML", help="The device (python -m engines profiles).")],
    *,
    graph: Annotated[list[str] | None, typer.Option("--graph", help="Build this graph only; may be given again.  [default: all]")] = None,
    image_rows: Annotated[int | None, typer.Option("--image-rows", min=1, help="At most so many pictures in one step.")] = None,
    answer_rows: Annotated[int | None, typer.Option("--answer-rows", min=1, help="At most so many answers together.")] = None,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", min=1, help="Longest answer.")] = 128,
    workspace_mib: Annotated[int | None, typer.Option("--workspace-mib", min=16, help="Instead of the profile's.")] = None,
    level: Annotated[int | None, typer.Option("--level", min=0, max=5, help="How long kernels are searched for; the profile's.")] = None,
    hardware: Annotated[str, typer.Option("--hardware", help="none, same-compute-capability (TensorRT 10.9) or ampere-plus.")] = "none",
    version_compatible: Annotated[bool, typer.Option("--version-compatible", help="Let other TensorRT versions load the plans.")] = False,
    detailed: Annotated[bool, typer.Option("--detailed", help="Keep layers' descriptions for `inspect --layers`.")] = False,
    timing_cache: Annotated[Path | None, typer.Option("--timing-cache", metavar="FILE", help="Timings to start from and add to.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build what is up to date, too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build although memory looks short.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")] = False,
) -> None:
    """Build a bundle's plans for the GPU of this machine."""
    from engines.builder import BuildRequest, print_report
    from engines.builder import build as build_plans
    from f2edge.backends.tensorrt.plans import HARDWARE

    if hardware not in HARDWARE:
        raise InputError(f"--hardware {hardware!r}: unknown; choose one of: {', '.join(HARDWARE)}")
    request = BuildRequest(
        profile=profile,
        graphs=tuple(graph or ()),
        image_rows=image_rows,
        answer_rows=answer_rows,
        answer_tokens=answer_tokens,
        workspace_mib=workspace_mib,
        level=level,
        hardware=hardware,
        version_compatible=version_compatible,
        detailed=detailed,
        timing_cache=timing_cache,
        rebuild=rebuild,
        force=force,
    )
    print_report(build_plans(bundle, request, quiet=as_json), as_json=as_json)


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(metavar="BUNDLE|PLANS", help="A bundle, or a folder with plans.json.")],
    *,
    layers: Annotated[str | None, typer.Option("--layers", metavar="GRAPH", help="Every layer of this graph's plan, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")] = False,
) -> None:
    """Say what plans there are, what for, and how they were built; TensorRT is needed for --layers only."""
    from engines.inspection import print_layers, print_plans

    if layers is not None:
        print_layers(source, layers)
    else:
        print_plans(source, as_json=as_json)


@app.command()
def verify(
    source: Annotated[str, typer.Argument(metavar="BUNDLE|PLANS", help="A bundle, or a folder with plans.json.")],
) -> None:
    """Check plans: sums, bundle, this GPU and TensorRT, and that every engine loads and has the tensors that it should."""
    from engines.inspection import verify_plans

    for line in verify_plans(source):
        print(line)


@app.command()
def kernels(
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of kernels.  [default: engines/plugins/compiled]")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Configuration whose experts they are for.")] = "1.8b",
    target: Annotated[
        list[int] | None, typer.Option("--target", help="Compute capability, as 87; may be given again.  [default: all]")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", metavar="FILE", help="Write registers, shared memory and spills as Markdown.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")] = False,
) -> None:
    """Compile the kernels of the fused experts for GPUs, none of which need be here; the device then needs no compiler."""
    from engines.plugins.kernel_report import make_kernels

    make_kernels(out, model, target or (), table, as_json=as_json)


@app.command("aot-nodes")
def aot_nodes(
    graph: Annotated[Path, typer.Argument(metavar="ONNX", help="A graph with F2FusedMoE nodes.")],
    *,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Rows that the kernels' tile is chosen for.")],
) -> None:
    """Rewrite the fused experts for TensorRT 10.9 and later, so that plans load without Python.

    Writes NAME.aot.onnx beside the graph. `build` takes only what the bundle's manifest names: see docs/fused-experts.md.
    """
    from engines.plugins.aot_graph import rewrite_file

    target, count = rewrite_file(graph, tokens)
    print(f"{target}: {count} layers")


def run(arguments: Sequence[str]) -> int:
    """Run one command; see :func:`f2edge.cli.command.run_command`."""
    return run_command(app, "python -m engines", arguments)


def main() -> None:
    end_as_interrupted()
    sys.exit(run(sys.argv[1:]))
