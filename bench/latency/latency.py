"""Times of one bundle's calls on this machine, with their share of the machine's ceiling.

    python -m bench latency [--bundle nano] [--steps 12] [--json]

The ceilings come first: the fp32 and int8 rate of large matrix products in ONNX Runtime, in the same process, with the same threads.  Then
medians after a warm-up.  "Share" is the transformer's arithmetic (``f2edge.spec.flops``) over the time of the whole call, relative to the
ceiling of the bundle's precision.  Faces are new to the pipeline unless a row says "again", so no cached prefix shortens a call.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from bench.hardware.ceilings import gemm_peaks
from bench.hardware.machine import machine
from bench.hardware.memory import memory_or_none
from bench.latency.calls import PROMPT, QUESTION, analyze_flops, generate_flops, new_faces
from bench.results import Results, spread
from f2edge.backends.onnxruntime import usable_cores
from f2edge.errors import InputError
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions

_WARM_UP = 2


def _milliseconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Return the duration of each of ``repeats`` calls after a warm-up."""
    times = []
    for _ in range(_WARM_UP + repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times[_WARM_UP:]


def _row(call: str, values: Sequence[float], flops: float = 0.0, peak: float = 0.0) -> Results:
    """Return the spread of milliseconds; with ``flops`` also the share of ``peak`` (Gop/s)."""
    ms = spread(values)
    return {"call": call, "ms": ms, "share": flops / (ms["median"] * 1e6 * peak) if flops else None}


def _shell_milliseconds(bundle: str, steps: int, repeats: int = 3) -> list[float]:
    """Time whole ``f2edge generate`` processes: interpreter, imports, loading, decoding, saving."""
    with tempfile.TemporaryDirectory() as folder:
        program = "import sys; from f2edge.cli.main import main; sys.exit(main())"
        options = ["--bundle", bundle, "--steps", str(steps), "--seed", "7", "-o", str(Path(folder) / "face.png")]
        command = [sys.executable, "-c", program, "generate", PROMPT, *options]
        return _milliseconds(lambda: subprocess.run(command, check=True, capture_output=True), repeats)  # noqa: S603


def generation_rows(pipeline: FacePipeline, options: GenerateOptions, peak: float, repeats: int) -> list[Results]:
    """Measure text to face: a whole call, one step of it, and a batch of eight."""
    schedule = options.resolve(pipeline.bundle.generation)
    flops = generate_flops(pipeline.bundle, pipeline.tokenizer, schedule)
    seeds = iter(range(10_000))
    steps_ms: list[float] = []

    def one() -> None:
        face = pipeline.generate(PROMPT, seeds=next(seeds), options=options)[0]
        steps_ms.extend(face.step_ms)

    def eight() -> None:
        pipeline.generate(PROMPT, seeds=[next(seeds) for _ in range(8)], options=options)

    whole = _milliseconds(one, repeats)
    per_face = [ms / 8 for ms in _milliseconds(eight, max(2, repeats // 3))]
    return [
        _row(f"generate, {schedule.steps} steps", whole, flops, peak),
        _row("one step", steps_ms, flops / schedule.steps, peak),
        _row("generate, per face of 8", per_face, flops, peak),
    ]


def understanding_rows(pipeline: FacePipeline, face: Image.Image, peak: float, repeats: int) -> list[Results]:
    """Measure face to attributes and words."""
    faces = new_faces(face)
    analyzed = _milliseconds(lambda: pipeline.analyze(next(faces)), repeats)
    new = [pipeline.ask(next(faces), QUESTION, max_tokens=4).first_token_ms for _ in range(repeats + _WARM_UP)][_WARM_UP:]
    again = [pipeline.ask(face, QUESTION, max_tokens=4).first_token_ms for _ in range(repeats + _WARM_UP)][_WARM_UP:]
    rates = [answer.tokens_per_second for answer in (pipeline.describe(next(faces)) for _ in range(repeats)) if len(answer.tokens) > 1]
    rows = [
        _row("analyze, per face", analyzed, analyze_flops(pipeline.bundle, pipeline.tokenizer), peak),
        _row("ask, first token", new),
        _row("ask, first token, face again", again),
    ]
    if rates:
        rows.append(_row("describe, per token", [1e3 / rate for rate in rates]) | {"tokens_per_second": statistics.median(rates)})
    return rows


def measure(
    bundle: str = "nano",
    *,
    steps: int = 12,
    guidance: float | None = None,
    backend: str = "auto",
    threads: int | None = None,
    repeats: int = 9,
    shell: bool = True,
) -> Results:
    """Measure one bundle.

    Args:
        bundle: name or folder.
        steps: of ``generate``.
        guidance: None takes the bundle's default.
        backend: as :meth:`f2edge.pipeline.FacePipeline.load`.
        threads: None takes every usable core.
        repeats: measured calls per row, at least 1.
        shell: also time whole ``f2edge generate`` processes.

    Returns:
        ``{"machine", "ceilings": {threads: {"fp32_gops", "int8_gops"}}, "engines": [one], "rows"}``; a row has "call", "ms" (median, low,
        high, quarters), "share" (None where no ceiling applies), and that of ``describe`` "tokens_per_second".
    """
    if repeats < 1:
        raise InputError(f"--repeats must be at least 1, got {repeats}")
    used, before = threads or usable_cores(), machine()
    ceilings = gemm_peaks(used)
    start = time.perf_counter()
    pipeline = FacePipeline.load(bundle, backend=backend, threads=threads)
    options = GenerateOptions(steps=steps, guidance=guidance)
    face = pipeline.generate(PROMPT, seeds=7, options=options)[0]
    ready_ms = 1e3 * (time.perf_counter() - start)
    precision = pipeline.bundle.manifest.graphs["t2i_step"].precision
    peak = ceilings["int8_gops" if precision == "int8" else "fp32_gops"]
    rows = [
        *generation_rows(pipeline, options, peak, repeats),
        *understanding_rows(pipeline, face.image, peak, repeats),
        _row("image to tokens", _milliseconds(lambda: pipeline.encode(face.image), repeats)),
        _row("tokens to image", _milliseconds(lambda: pipeline.decode(face.codes[None]), repeats)),
    ]
    engine = {
        "bundle": pipeline.bundle.name,
        "backend": pipeline.backend.name,
        "threads": used,
        "precision": precision,
        "bytes": pipeline.bundle.total_bytes,
        "ready_ms": ready_ms,
        "memory": memory_or_none(),
    }
    if shell:
        rows.append(_row("f2edge generate, from the shell", _shell_milliseconds(bundle, steps)))
    return {"machine": before, "ceilings": {str(used): ceilings}, "engines": [engine], "rows": rows}
