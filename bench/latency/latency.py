"""How long a call takes on this machine, beside what the machine could do at best.

    python -m bench latency [--bundle nano] [--steps 12] [--json]
    python -m bench latency --steps 6,12 --batch 1,4,8 --out runs/latency           # beside each other (bench.latency.comparison)
    python -m bench latency --config show-o --random-weights        # engines beside PyTorch at paper size (bench.latency.paper_size)

The ceilings come first: the fp32 and int8 rate of large matrix products in ONNX Runtime, in the same process, with the same threads.  Then
medians after a warm-up.  "Share" is the transformer's arithmetic (``f2edge.spec.flops``) over the time of the whole call, as part of the
ceiling of the bundle's precision.  Faces are new to the pipeline unless a row says "again", so no cached prefix flatters a figure.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from bench.latency.calls import CALLS, PROMPT, QUESTION, analyze_flops, generate_flops, new_faces
from bench.options import listed, whole_numbers
from f2edge.backends.onnxruntime import usable_cores
from f2edge.errors import InputError
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions

if TYPE_CHECKING:
    from bench.latency.comparison import Axes

#: Rows, depth and columns of the products that measure the ceilings.
PEAK_SHAPE = (512, 2048, 2048)


@dataclass(frozen=True)
class Row:
    """One figure: its median over the calls, the fastest and the slowest; ``share`` of the ceiling where its arithmetic is known."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    share: float | None = None


def gemm_peak(precision: str, threads: int, repeats: int = 7) -> float:
    """Rate of ``PEAK_SHAPE`` products in ONNX Runtime, in Gop/s: "fp32" ``MatMul``, or "int8" ``MatMulIntegerToFloat``; the best call."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    M, K, N = PEAK_SHAPE
    rng = np.random.default_rng(0)
    x: NDArray[Any]
    if precision == "fp32":
        x = rng.normal(size=(M, K)).astype(np.float32)
        constants = [numpy_helper.from_array(rng.normal(size=(K, N)).astype(np.float32), "w")]
        node, kind = helper.make_node("MatMul", ["x", "w"], ["y"]), TensorProto.FLOAT
    else:
        x = rng.integers(0, 255, size=(M, K), dtype=np.uint8)
        constants = [
            numpy_helper.from_array(rng.integers(-127, 127, size=(K, N), dtype=np.int8), "w"),
            numpy_helper.from_array(np.float32(0.01), "x_scale"),
            numpy_helper.from_array(np.full(N, 0.01, dtype=np.float32), "w_scale"),
            numpy_helper.from_array(np.uint8(128), "x_zero"),
        ]
        inputs = ["x", "w", "x_scale", "w_scale", "x_zero"]
        node, kind = helper.make_node("MatMulIntegerToFloat", inputs, ["y"], domain="com.microsoft"), TensorProto.UINT8
    graph = helper.make_graph(
        [node],
        "peak",
        [helper.make_tensor_value_info("x", kind, [M, K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [M, N])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)])
    model.ir_version = 9
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    times = _times(lambda: session.run(None, {"x": x}), repeats)
    return 2 * M * K * N / min(times) / 1e9


def _times(call: Callable[[], object], repeats: int, warm_up: int = 2) -> list[float]:
    """Seconds of each of ``repeats`` calls after ``warm_up`` unheard ones."""
    times = []
    for number in range(warm_up + repeats):
        start = time.perf_counter()
        call()
        if number >= warm_up:
            times.append(time.perf_counter() - start)
    return times


def _row(name: str, unit: str, values: list[float], flops: float = 0.0, peak: float = 0.0) -> Row:
    median = statistics.median(values)
    share = flops / (median / 1e3) / (peak * 1e9) if flops else None
    return Row(name, unit, median, min(values), max(values), share)


def _milliseconds(call: Callable[[], object], repeats: int) -> list[float]:
    return [1e3 * seconds for seconds in _times(call, repeats)]


def _shell_milliseconds(bundle: str, steps: int, repeats: int = 3) -> list[float]:
    """A whole ``f2edge generate`` from the shell: interpreter, imports, loading, decoding, saving."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-c",
            "import sys; from f2edge.cli.main import main; sys.exit(main())",
            "generate",
            PROMPT,
            "--bundle",
            bundle,
        ]
        call = [*command, "--steps", str(steps), "--seed", "7", "-o", str(Path(folder) / "face.png")]
        return _milliseconds(lambda: subprocess.run(call, check=True, capture_output=True), repeats)  # noqa: S603


def generation_rows(pipeline: FacePipeline, options: GenerateOptions, peak: float, repeats: int) -> list[Row]:
    """Text to face: a whole call, one step of it, and a batch of eight."""
    schedule = options.resolve(pipeline.bundle.generation)
    flops = generate_flops(pipeline.bundle, pipeline.tokenizer, schedule)
    seeds = iter(range(10_000))
    steps_ms: list[float] = []

    def one() -> None:
        face = pipeline.generate(PROMPT, seeds=next(seeds), options=options)[0]
        steps_ms.extend(face.step_ms)

    whole = _milliseconds(one, repeats)
    eight = [
        t / 8
        for t in _milliseconds(
            lambda: pipeline.generate(PROMPT, seeds=[next(seeds) for _ in range(8)], options=options), max(2, repeats // 3)
        )
    ]
    return [
        _row(f"generate, {schedule.steps} steps", "ms", whole, flops, peak),
        _row("one step", "ms", steps_ms, flops / schedule.steps, peak),
        _row("generate, per face of 8", "ms", eight, flops, peak),
    ]


def understanding_rows(pipeline: FacePipeline, face: Image.Image, peak: float, repeats: int) -> list[Row]:
    """Face to attributes and words."""
    faces = new_faces(face)
    analyzed = _milliseconds(lambda: pipeline.analyze(next(faces)), repeats)
    new = [pipeline.ask(next(faces), QUESTION, max_tokens=4).first_token_ms for _ in range(repeats + 2)][2:]
    again = [pipeline.ask(face, QUESTION, max_tokens=4).first_token_ms for _ in range(repeats + 2)][2:]
    rates = [answer.tokens_per_second for answer in (pipeline.describe(next(faces)) for _ in range(repeats)) if len(answer.tokens) > 1]
    rows = [
        _row("analyze, per face", "ms", analyzed, analyze_flops(pipeline.bundle, pipeline.tokenizer), peak),
        _row("ask, first token", "ms", new),
        _row("ask, first token, face again", "ms", again),
    ]
    return rows + ([_row("describe", "tokens/s", rates)] if rates else [])


def run(
    bundle: str = "nano",
    *,
    steps: int = 12,
    guidance: float | None = None,
    backend: str = "auto",
    threads: int | None = None,
    repeats: int = 9,
    shell: bool = True,
) -> dict[str, Any]:
    """Measure one bundle.

    Args:
        bundle: name or folder.
        steps: of ``generate``.
        guidance: None takes the bundle's own.
        backend: as :meth:`f2edge.pipeline.FacePipeline.load`.
        threads: None takes every usable core.
        repeats: measured calls per figure, at least 1.
        shell: also time whole ``f2edge generate`` processes.

    Returns:
        ``{"bundle", "backend", "threads", "precision", "ceilings": {"fp32_gops", "int8_gops"}, "rows": [Row as dict, …]}``.
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    used = threads or usable_cores()
    ceilings = {f"{precision}_gops": gemm_peak(precision, used) for precision in ("fp32", "int8")}
    start = time.perf_counter()
    pipeline = FacePipeline.load(bundle, backend=backend, threads=threads)
    options = GenerateOptions(steps=steps, guidance=guidance)
    face = pipeline.generate(PROMPT, seeds=7, options=options)[0]
    first = 1e3 * (time.perf_counter() - start)
    precision = pipeline.bundle.manifest.graphs["t2i_step"].precision
    peak = ceilings["int8_gops" if precision == "int8" else "fp32_gops"]
    rows = [
        *generation_rows(pipeline, options, peak, repeats),
        *understanding_rows(pipeline, face.image, peak, repeats),
        _row("image to tokens", "ms", _milliseconds(lambda: pipeline.encode(face.image), repeats)),
        _row("tokens to image", "ms", _milliseconds(lambda: pipeline.decode(face.codes[None]), repeats)),
        _row("load and first face", "ms", [first]),
    ]
    if shell:
        rows.append(_row("f2edge generate, from the shell", "ms", _shell_milliseconds(bundle, steps)))
    return {
        "bundle": pipeline.bundle.name,
        "backend": pipeline.backend.name,
        "threads": used,
        "precision": precision,
        "ceilings": ceilings,
        "rows": [asdict(row) for row in rows],
    }


def print_results(results: dict[str, Any]) -> None:
    """Ceilings, then a table, then one line of JSON."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    ceilings = results["ceilings"]
    console = Console()
    console.print(
        f"{results['bundle']} ({results['precision']}) on {results['backend']}, {results['threads']} threads; "
        f"ceilings of matrix products: fp32 {ceilings['fp32_gops']:.0f} Gop/s, int8 {ceilings['int8_gops']:.0f} Gop/s"
    )
    table = Table("", "median", "fastest", "slowest", "unit", "share", box=box.SIMPLE)
    table.columns[0].no_wrap = True
    for row in results["rows"]:
        low, high = sorted((row["low"], row["high"]), reverse=row["unit"] != "ms")
        share = "" if row["share"] is None else f"{100 * row['share']:.0f} %"
        table.add_row(row["name"], *(f"{value:.1f}" for value in (row["median"], low, high)), row["unit"], share)
    console.print(table)
    print(json.dumps(results))


def latency(
    *,
    bundle: Annotated[list[str] | None, typer.Option(help="Name or folder of a bundle; nano by default.", show_default=False)] = None,
    steps: Annotated[list[str] | None, typer.Option(help="Decoding steps; 12 by default.", show_default=False)] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance; the bundle's own by default.")] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Backend of the runtime; all: whatever runs here; auto by default.", show_default=False)
    ] = None,
    threads: Annotated[list[str] | None, typer.Option(help="CPU threads; every usable core by default.", show_default=False)] = None,
    batch: Annotated[list[str] | None, typer.Option(help="Compare: faces in one call; 1 by default.", show_default=False)] = None,
    only: Annotated[list[str] | None, typer.Option(help="Compare: some of generate, analyze, ask.", show_default=False)] = None,
    power: Annotated[
        str | None, typer.Option(help="Compare: auto (the default), none, tegrastats, rapl or nvml.", show_default=False)
    ] = None,
    power_seconds: Annotated[float, typer.Option(min=0.1, help="Compare: for how long energy is measured, per row.")] = 5.0,
    out: Annotated[Path | None, typer.Option(help="Compare: folder for latency.json, latency.svg and latency.png.")] = None,
    repeats: Annotated[int, typer.Option(help="Measured calls per figure.")] = 9,
    config: Annotated[str | None, typer.Option(help="nano, show-o or 1.8b: engines beside PyTorch at that size.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="With --config: seeded random weights.")] = False,
    layers: Annotated[int | None, typer.Option(help="With --config: a shortened model.")] = None,
    recipes: Annotated[str, typer.Option(help="With --config: comma-separated recipes of the engines.")] = "fp32,int8,mixed",
    baselines: Annotated[str, typer.Option(help="With --config: PyTorch's ways, and a peer.")] = "lineage,cached,compiled,llama.cpp",
    work: Annotated[Path, typer.Option(help="With --config: folder of the bundles, which are kept.")] = Path("runs/bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")] = False,
) -> None:
    """Measure how long calls take, beside the machine's ceiling.

    Several values of --bundle, --steps, --backend or --threads (repeated, or with commas) and every option that begins with "Compare" give
    one table and one plot of all combinations instead of the details of one.
    """
    counts = whole_numbers("--threads", threads, "1") if threads else (None,)
    chosen_steps, bundles, backends = (
        whole_numbers("--steps", steps or (), "12"),
        listed(bundle or (), "nano"),
        listed(backend or (), "auto"),
    )
    if config is not None or random_weights:
        if len(counts) > 1:
            raise InputError("--config takes one number of threads; run it once for each")
        asked = {"random_weights": random_weights, "as_json": as_json}
        _paper_size(config, layers, work, recipes, baselines, threads=counts[0], repeats=repeats, **asked)
        return
    several = max(map(len, (counts, chosen_steps, bundles, backends))) > 1 or backends == ("all",)
    if several or any(option is not None for option in (batch, only, power, out)):
        from bench.latency.comparison import Axes

        axes = Axes(
            bundles=bundles,
            backends=backends,
            threads=counts,
            steps=chosen_steps,
            batches=whole_numbers("--batch", batch or (), "1"),
            calls=listed(only or (), ",".join(CALLS)) if only else CALLS,
            guidance=guidance,
        )
        _compared(axes, power or "auto", power_seconds, out, repeats, as_json=as_json)
        return
    results = run(bundles[0], steps=chosen_steps[0], guidance=guidance, backend=backends[0], threads=counts[0], repeats=repeats)
    if as_json:
        print(json.dumps(results))
    else:
        print_results(results)


def _progress(message: str) -> None:
    print(f"latency: {message} …", file=sys.stderr, flush=True)


def _compared(axes: Axes, power: str, power_seconds: float, out: Path | None, repeats: int, *, as_json: bool) -> None:
    """Everything beside everything; see :mod:`bench.latency.comparison`."""
    from bench.hardware.power import Power
    from bench.latency.comparison import compare
    from bench.latency.comparison_report import check_folder, document, show, write
    from f2edge.cli.console import Output

    speak = Output(json=as_json)
    if out is not None:
        check_folder(out)
    with closing(Power.open(power)) as meters:
        results = compare(axes, meters, repeats=repeats, energy_seconds=power_seconds, progress=_progress)
    show(results, speak)
    try:
        if out is not None:
            speak.line("written: " + ", ".join(str(path) for path in write(results, out)))
    finally:
        print(document(results))  # minutes of work are not lost to a full disk


def _paper_size(
    config: str | None,
    layers: int | None,
    work: Path,
    recipes: str,
    baselines: str,
    *,
    threads: int | None,
    repeats: int,
    random_weights: bool,
    as_json: bool,
) -> None:
    """Engines beside PyTorch; see :mod:`bench.latency.paper_size`."""
    from bench.latency.paper_size import compare_asked, print_comparison

    compared = compare_asked(config, layers, work, recipes, baselines, random_weights=random_weights, threads=threads, repeats=repeats)
    print(json.dumps(compared)) if as_json else print_comparison(compared)
