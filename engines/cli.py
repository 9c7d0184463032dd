"""Command line ``python -m engines``; each command imports its dependencies when it runs.

python -m engines profiles
python -m engines profiles orin-nano --json
python -m engines build BUNDLE
python -m engines inspect BUNDLE
python -m engines verify BUNDLE
python -m engines selftest BUNDLE
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

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]
Source = Annotated[str, typer.Argument(metavar="BUNDLE|PLANS", help="Bundle, or folder that holds plans.json.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Build TensorRT engines from bundles.",
)


@app.command()
def profiles(
    names: Annotated[list[str] | None, typer.Argument(help="Device names; all by default.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the device profiles: memory, throughput, TensorRT versions, recipe of each graph."""
    from engines.profile import load_profiles, print_profiles

    print_profiles(load_profiles(names or ()), as_json=as_json)


@app.command()
def build(
    bundle: Annotated[str, typer.Argument(metavar="NAME|DIR", help='Bundle of the "tensorrt" flavour (python -m export onnx).')],
    *,
    profile: Annotated[
        str, typer.Option("--profile", metavar="auto|NAME|TOML", help="Device profile (python -m engines profiles); auto: of this GPU.")
    ] = "auto",
    graph: Annotated[list[str] | None, typer.Option("--graph", help="Build only this graph; repeatable.  [default: all]")] = None,
    image_rows: Annotated[int | None, typer.Option("--image-rows", min=1, help="Maximum pictures in one step.")] = None,
    answer_rows: Annotated[int | None, typer.Option("--answer-rows", min=1, help="Maximum answers in one batch.")] = None,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", min=1, help="Maximum tokens of an answer.")] = 128,
    workspace_mib: Annotated[int | None, typer.Option("--workspace-mib", min=16, help="Overrides the profile's workspace.")] = None,
    level: Annotated[int | None, typer.Option("--level", min=0, max=5, help="Overrides the profile's optimization level.")] = None,
    tactic_dram_mib: Annotated[
        int | None, typer.Option("--tactic-dram-mib", min=16, help="Overrides the profile's limit of memory for timing kernels.")
    ] = None,
    hardware: Annotated[
        str, typer.Option("--hardware", help="none, same-compute-capability (TensorRT 10.9) or ampere-plus; unproven on a Jetson.")
    ] = "none",
    version_compatible: Annotated[bool, typer.Option("--version-compatible", help="Let other TensorRT versions load the plans.")] = False,
    detailed: Annotated[bool, typer.Option("--detailed", help="Keep layer descriptions for `inspect --layers`.")] = False,
    timing_cache: Annotated[Path | None, typer.Option("--timing-cache", metavar="FILE", help="Timing cache to read and extend.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Rebuild plans that are up to date.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Skip the checks of free memory and disk space.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build the plans of a bundle for the GPU of this machine."""
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
        tactic_dram_mib=tactic_dram_mib,
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
    source: Source,
    *,
    layers: Annotated[str | None, typer.Option("--layers", metavar="GRAPH", help="Print every layer of this graph's plan as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the plans, their devices and their build settings; only --layers needs TensorRT."""
    from engines.inspection import print_layers, print_plans

    if layers is not None:
        print_layers(source, layers)
    else:
        print_plans(source, as_json=as_json)


@app.command()
def verify(source: Source) -> None:
    """Check plans: checksums, bundle, GPU and TensorRT version, and that every engine loads and has the expected tensors."""
    from engines.inspection import verify_plans

    for line in verify_plans(source):
        print(line)


@app.command()
def selftest(
    bundle: Annotated[str, typer.Argument(metavar="NAME|DIR", help="Bundle; with plans for --backend tensorrt.")],
    *,
    backend: Annotated[str, typer.Option("--backend", help="auto, onnxruntime, tensorrt, …")] = "auto",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of selftest.md and selftest.json.")] = Path("selftest"),
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="Seconds of timed runs for each case.")] = 0.25,
    power: Annotated[str, typer.Option("--power", help="auto, none, tegrastats, rapl or nvml.")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of ONNX Runtime.")] = None,
    layers: Annotated[int, typer.Option("--layers", min=1, help="Layers of a group; the state behind each group is compared.")] = 1,
    forms: Annotated[
        Path | None, typer.Option("--forms", metavar="DIR", help="Write the bundle with these states as outputs instead, for TensorRT.")
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the reference into the bundle instead, before plans are built.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run every graph of a bundle here, compare it with a reference, time it and write a report."""
    from engines.selftest.command import Request, run_selftest

    request = Request(backend=backend, out=out, seconds=seconds, power=power, threads=threads, layers=layers)
    run_selftest(bundle, request, only_record=record, forms=forms, as_json=as_json)


@app.command()
def kernels(
    *,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Output folder.  [default: engines/plugins/compiled]")] = None,
    model: Annotated[str, typer.Option("--model", help="Model configuration that gives the expert shapes.")] = "1.8b",
    target: Annotated[list[int] | None, typer.Option("--target", help="Compute capability such as 87; repeatable.  [default: all]")] = None,
    table: Annotated[
        Path | None, typer.Option("--table", metavar="FILE", help="Write registers, shared memory and spills as Markdown.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compile the fused-expert kernels ahead of time; needs neither a GPU here nor a compiler on the device."""
    from engines.plugins.kernel_report import make_kernels

    make_kernels(out, model, target or (), table, as_json=as_json)


@app.command("aot-nodes")
def aot_nodes(
    graph: Annotated[Path, typer.Argument(metavar="ONNX", help="Graph with F2FusedMoE nodes.")],
    *,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Number of rows to tune the kernel tile for.")],
) -> None:
    """Rewrite the fused experts for TensorRT 10.9 and later, so that plans load without Python.

    Writes NAME.aot.onnx beside the graph. `build` reads only graphs named in the bundle's manifest: see docs/fused-experts.md.
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
