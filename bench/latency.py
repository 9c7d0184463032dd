"""How long a call takes on this machine, beside what the machine could do at best.

    python -m bench latency [--bundle nano] [--steps 12] [--json]
    python -m bench latency --config show-o --random-weights        # engines beside PyTorch at paper size (bench.paper_size)

The ceilings come first: the fp32 and int8 rate of large matrix products in ONNX Runtime, in the same process, with the same threads.  Then
medians after a warm-up.  "Share" is the transformer's arithmetic (``f2edge.costs``) over the time of the whole call, as part of the ceiling
of the bundle's precision.  Faces are new to the pipeline unless a row says "again", so no cached prefix flatters a figure.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from f2edge import costs
from f2edge.backends.onnxruntime import usable_cores
from f2edge.errors import InputError
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions

PROMPT = "a young woman with long curly red hair and eyeglasses"
QUESTION = "what color is the hair?"
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


def _new_faces(face: Image.Image) -> Iterator[Image.Image]:
    """The face again and again, each time with another corner, so that no prefix is remembered."""
    rng = np.random.default_rng(0)
    while True:
        pixels = np.array(face)
        pixels[:4, :4] = rng.integers(0, 256, size=(4, 4, 3))
        yield Image.fromarray(pixels)


def _milliseconds(call: Callable[[], object], repeats: int) -> list[float]:
    return [1e3 * seconds for seconds in _times(call, repeats)]


def _shell_milliseconds(bundle: str, steps: int, repeats: int = 3) -> list[float]:
    """A whole ``f2edge generate`` from the shell: interpreter, imports, loading, decoding, saving."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-c",
            "import sys; from f2edge.cli import main; sys.exit(main())",
            "generate",
            PROMPT,
            "--bundle",
            bundle,
        ]
        call = [*command, "--steps", str(steps), "--seed", "7", "-o", str(Path(folder) / "face.png")]
        return _milliseconds(lambda: subprocess.run(call, check=True, capture_output=True), repeats)  # noqa: S603


def generation_rows(pipeline: FacePipeline, options: GenerateOptions, peak: float, repeats: int) -> list[Row]:
    """Text to face: a whole call, one step of it, and a batch of eight."""
    model, schedule = pipeline.bundle.configuration, options.resolve(pipeline.bundle.generation)
    prompt = len(pipeline.bundle.layout.prompt(pipeline.tokenizer.encode(PROMPT)))
    prompts = [prompt] + ([len(pipeline.bundle.layout.unconditional)] if schedule.guidance else [])
    step = costs.step_flops(model, prompts, 1)
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
        _row(f"generate, {schedule.steps} steps", "ms", whole, schedule.steps * step, peak),
        _row("one step", "ms", steps_ms, step, peak),
        _row("generate, per face of 8", "ms", eight, schedule.steps * step, peak),
    ]


def understanding_rows(pipeline: FacePipeline, face: Image.Image, peak: float, repeats: int) -> list[Row]:
    """Face to attributes and words."""
    model, faces = pipeline.bundle.configuration, _new_faces(face)
    questions = [len(pipeline.tokenizer.encode(slot.question)) + 2 for slot in pipeline.bundle.schema.values()]
    analyze = costs.image_flops(model) + costs.text_flops(model, questions)
    analyzed = _milliseconds(lambda: pipeline.analyze(next(faces)), repeats)
    new = [pipeline.ask(next(faces), QUESTION, max_tokens=4).first_token_ms for _ in range(repeats + 2)][2:]
    again = [pipeline.ask(face, QUESTION, max_tokens=4).first_token_ms for _ in range(repeats + 2)][2:]
    rates = [answer.tokens_per_second for answer in (pipeline.describe(next(faces)) for _ in range(repeats)) if len(answer.tokens) > 1]
    rows = [
        _row("analyze, per face", "ms", analyzed, analyze, peak),
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
    bundle: Annotated[str, typer.Option(help="Name or folder of a bundle.")] = "nano",
    steps: Annotated[int, typer.Option(help="Decoding steps.")] = 12,
    guidance: Annotated[float | None, typer.Option(help="Guidance; the bundle's own by default.")] = None,
    backend: Annotated[str, typer.Option(help="Backend of the runtime.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; every usable core by default.")] = None,
    repeats: Annotated[int, typer.Option(help="Measured calls per figure.")] = 9,
    config: Annotated[str | None, typer.Option(help="nano, show-o or 1.8b: engines beside PyTorch at that size.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="With --config: seeded random weights.")] = False,
    layers: Annotated[int | None, typer.Option(help="With --config: a shortened model.")] = None,
    recipes: Annotated[str, typer.Option(help="With --config: comma-separated recipes of the engines.")] = "fp32,int8,mixed",
    baselines: Annotated[str, typer.Option(help="With --config: PyTorch's ways, and a peer.")] = "lineage,cached,compiled,llama.cpp",
    work: Annotated[Path, typer.Option(help="With --config: folder of the bundles, which are kept.")] = Path("runs/bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")] = False,
) -> None:
    """Measure how long calls take, beside the machine's ceiling."""
    if config is not None or random_weights:
        from bench.paper_size import compare, print_comparison, size_of

        compared = compare(
            size_of(config, layers, random_weights=random_weights),
            work,
            recipes=[name for name in recipes.split(",") if name],
            baselines=[name for name in baselines.split(",") if name],
            threads=threads,
            repeats=repeats,
            progress=lambda message: print(message, file=sys.stderr, flush=True),
        )
        print(json.dumps(compared)) if as_json else print_comparison(compared)
        return
    results = run(bundle, steps=steps, guidance=guidance, backend=backend, threads=threads, repeats=repeats)
    if as_json:
        print(json.dumps(results))
    else:
        print_results(results)
