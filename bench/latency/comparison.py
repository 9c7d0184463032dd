"""Comparison of engines, steps and batches in one run: which is faster, by how much, and whether that is more than noise.

    python -m bench compare --bundle runs/fp32/nano,nano --steps 6,12 --batch 1,8 --out runs/latency

Every engine (bundle x backend x threads) runs in its own process.  Each round makes one call of every row, alternately in forward and
backward order, so that a change in the machine's speed affects all rows.  Ratios are formed within each round; the report has their median
and quartiles.  Where the quartiles enclose 1, this run cannot tell the two rows apart.

Energy is measured afterwards, one row at a time for some seconds, because meters update more slowly than calls
take (:mod:`engines.power.power`).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from time import sleep

from bench.hardware.ceilings import gemm_peaks
from bench.hardware.machine import machine
from bench.latency.calls import CALLS, ModelCall
from bench.latency.engine import EngineOptions, EngineProcess
from bench.results import Progress, Results, spread
from engines.power.meter import PowerError
from engines.power.power import Power
from f2edge.backends.onnxruntime import usable_cores
from f2edge.backends.registry import BACKENDS
from f2edge.bundle.bundle import Bundle
from f2edge.errors import BackendError, F2EdgeError, InputError
from f2edge.results import GenerateOptions
from f2edge.text import TextTokenizer

#: "fp32_gops" and "int8_gops" by number of threads.
Ceilings = Mapping[int, Mapping[str, float]]
#: Every backend that this machine can run; the others are listed with the reason.
ALL = "all"
_WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Axes:
    """Compared values; every combination is measured.

    Attributes:
        bundles: names or folders.
        backends: names in the registry, "auto", or only "all".
        threads: CPU threads; None is every usable core.
        steps: of ``generate``.
        batches: faces in one call of ``generate`` and ``analyze``; "ask" takes one question per call.
        calls: of :data:`bench.latency.calls.CALLS`.
        guidance: of ``generate``; None takes each bundle's own.
    """

    bundles: tuple[str, ...] = ("nano",)
    backends: tuple[str, ...] = ("auto",)
    threads: tuple[int | None, ...] = (None,)
    steps: tuple[int, ...] = (12,)
    batches: tuple[int, ...] = (1,)
    calls: tuple[str, ...] = CALLS
    guidance: float | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.backends if name not in {"auto", ALL, *BACKENDS}]
        if unknown:
            raise InputError(f"unknown backend {unknown[0]!r}; choose from {ALL}, auto, {', '.join(BACKENDS)}")
        if ALL in self.backends and len(self.backends) > 1:
            raise InputError("--backend all includes every backend; leave out the others")
        if any(count is not None and count < 1 for count in self.threads):
            raise InputError("--threads must be at least 1")

    def engines(self) -> list[EngineOptions]:
        """Return the engines in order of bundle, backend, threads."""
        backends = tuple(BACKENDS) if self.backends == (ALL,) else self.backends
        return [EngineOptions(*chosen) for chosen in product(self.bundles, backends, self.threads)]

    def calls_of_engine(self) -> list[ModelCall]:
        """Return the calls that each engine makes."""
        calls = {
            "generate": [ModelCall("generate", batch, steps, self.guidance) for steps, batch in product(self.steps, self.batches)],
            "analyze": [ModelCall("analyze", batch) for batch in self.batches],
            "ask": [ModelCall("ask")],
        }
        return [one for call in self.calls for one in (calls.get(call) or [ModelCall(call)])]


@dataclass
class RunningEngine:
    """An engine process, its bundle, and a label that is unique among the compared bundles."""

    label: str
    bundle: Bundle
    process: EngineProcess

    @property
    def threads(self) -> int:
        return self.process.options.threads or usable_cores()

    @property
    def precision(self) -> str:
        return self.bundle.manifest.graphs["t2i_step"].precision


EngineCall = tuple[RunningEngine, ModelCall]


def labels(bundles: Sequence[Bundle]) -> list[str]:
    """Return unique names: the bundle's; with its recipe, if there are several bundles; with its folder, if that is not unique."""
    if len(bundles) == 1:
        return [bundles[0].name]
    named = [f"{bundle.name} {_recipe(bundle)}" for bundle in bundles]
    return [
        name if named.count(name) == 1 else f"{name} ({bundle.folder.parent.name}/{bundle.folder.name})"
        for name, bundle in zip(named, bundles, strict=True)
    ]


def _recipe(bundle: Bundle) -> str:
    graph = bundle.manifest.graphs["t2i_step"]
    return str(graph.recipe["name"]) if isinstance(graph.recipe, dict) and "name" in graph.recipe else graph.precision


def start(axes: Axes, stack: ExitStack, progress: Progress) -> tuple[list[RunningEngine], list[Results]]:
    """Return the running engines and, of backend "all", those that cannot run here.

    Raises:
        InputError: a bundle or an option that cannot be used.
        BackendError: a backend asked for by name cannot run here, or of "all" none can.
    """
    bundles = {name: Bundle.load(name) for name in axes.bundles}
    folders = {bundle.folder.resolve(): name for name, bundle in bundles.items()}
    if len(folders) < len(bundles):
        twice = next(name for name, bundle in bundles.items() if folders[bundle.folder.resolve()] != name)
        raise InputError(f"--bundle {twice} is given twice under different names; to measure noise, compare a bundle with a copy of it")
    for bundle, steps in product(bundles.values(), axes.steps):
        GenerateOptions(steps=steps, guidance=axes.guidance).resolve(bundle.generation)
    named = dict(zip(bundles, labels(list(bundles.values())), strict=True))
    engines, missing = list[RunningEngine](), list[Results]()
    for options in axes.engines():
        progress(f"starting {named[options.bundle]} on {options.backend}")
        try:
            process = stack.enter_context(closing(EngineProcess(options)))
        except F2EdgeError as error:
            if axes.backends != (ALL,):
                raise
            missing.append({"bundle": named[options.bundle], "backend": options.backend, "reason": str(error)})
            continue
        engines.append(RunningEngine(named[options.bundle], bundles[options.bundle], process))
    if not engines:
        raise BackendError("no backend can run here: " + "; ".join(f"{row['backend']}: {row['reason']}" for row in missing))
    return engines, missing


def rounds(count: int, rows: int) -> Iterator[tuple[int, list[int]]]:
    """Yield number and order of each round, alternately forward and backward, so that no row always follows the same one."""
    for number in range(count):
        yield number, list(range(rows)) if number % 2 == 0 else list(reversed(range(rows)))


def measure_rounds(rows: Sequence[EngineCall], repeats: int, progress: Progress) -> list[list[float]]:
    """Return the milliseconds of ``repeats`` calls of every row, one call per row and round, after warm-up rounds."""
    times: list[list[float]] = [[] for _ in rows]
    for number, order in rounds(_WARM_UP_ROUNDS + repeats, len(rows)):
        progress(f"round {number + 1} of {_WARM_UP_ROUNDS + repeats}")
        for place in order:
            engine, call = rows[place]
            milliseconds = engine.process.milliseconds(call, number)
            if number >= _WARM_UP_ROUNDS:
                times[place].append(milliseconds)
    return times


def results_of(rows: Sequence[EngineCall], times: Sequence[Sequence[float]], ceilings: Ceilings) -> list[Results]:
    """Return for each row: milliseconds, time per face, share of the ceiling, ratio to the first row of the same call."""
    results, references = list[Results](), dict[str, Sequence[float]]()
    tokenizers = {engine.label: TextTokenizer(engine.bundle.tokenizer_path) for engine, _ in rows}
    for (engine, call), values in zip(rows, times, strict=True):
        per_face = [value / call.batch for value in values]
        reference = references.setdefault(call.call, per_face)
        median = statistics.median(per_face)
        flops = call.flops(engine.bundle, tokenizers[engine.label]) if engine.process.backend == "onnxruntime" else None
        peak = ceilings[engine.threads]["fp32_gops" if engine.precision == "fp32" else "int8_gops"] if flops else 1.0
        results.append(
            {
                "call": call.call,
                "bundle": engine.label,
                "backend": engine.process.backend,
                "threads": engine.threads,
                "steps": call.steps,
                "batch": call.batch,
                "ms": spread(values),
                "ms_per_face": median,
                "faces_per_second": 1e3 / median,
                "ratio": spread([theirs / ours for theirs, ours in zip(reference, per_face, strict=True)]),
                "share": flops / (median * 1e6 * peak) if flops else None,
            }
        )
    return results


def measure_energy(rows: Sequence[EngineCall], results: Sequence[Results], power: Power, seconds: float, progress: Progress) -> Results:
    """Add joules per face and watts to every row; return what the meters cover, the power at rest, and why measuring stopped."""
    summary: Results = {"meters": [meter.name for meter in power.meters], "covers": power.covers, "missing": power.missing}
    if not power.meters:
        return summary
    try:
        progress("power at rest")
        _, rest = power.measure(lambda: sleep(seconds))
        summary["watts_at_rest"] = rest.watts
        for (engine, call), row in zip(rows, results, strict=True):
            progress(f"energy of {call.call}, {engine.label} on {engine.process.backend}")
            calls, energy = power.measure(partial(engine.process.call_for, call, seconds))
            row |= {"joules_per_face": energy.total / (calls * call.batch), "watts": energy.watts}
            row["joules_by_meter"] = {name: joules / (calls * call.batch) for name, joules in energy.joules.items()}
    except PowerError as error:
        summary["lost"] = str(error)
    return summary


def describe_engine(engine: RunningEngine) -> Results:
    """Return the properties of an engine for the report."""
    return {
        "bundle": engine.label,
        "backend": engine.process.backend,
        "threads": engine.threads,
        "precision": engine.precision,
        "bytes": engine.bundle.total_bytes,
        "ready_ms": engine.process.ready_ms,
        "memory": engine.process.memory(),
    }


def compare(axes: Axes, power: Power, *, repeats: int = 9, energy_seconds: float = 5.0, progress: Progress = print) -> Results:
    """Measure every combination.

    Args:
        axes: what is compared.
        power: open meters; the caller closes them.
        repeats: measured rounds, after two of warm-up.
        energy_seconds: duration of the energy measurement of each row.
        progress: called with a message before each part.

    Returns:
        ``{"axes", "machine", "ceilings": {threads: {"fp32_gops", "int8_gops"}}, "engines", "not_available", "rows", "power"}``; a row has
        "ms" (median, low, high, quarters), "ms_per_face", "faces_per_second", "ratio" (as "ms"; above 1 is faster than the first row of its
        call), "share" (None where no ceiling applies), and with a meter "joules_per_face", "joules_by_meter" and "watts".

    Raises:
        InputError: options out of range.
        BackendError: see :func:`start`.
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    before, calls = machine(), axes.calls_of_engine()
    with ExitStack() as stack:
        engines, missing = start(axes, stack, progress)
        counts = sorted({engine.threads for engine in engines})
        progress("ceilings")
        ceilings = {threads: gemm_peaks(threads) for threads in counts}
        rows = [(engine, call) for kind in axes.calls for engine in engines for call in calls if call.call == kind]
        times = measure_rounds(rows, repeats, progress)
        progress("ceilings again")
        for threads in counts:
            again = gemm_peaks(threads)
            ceilings[threads] = {name: max(value, again[name]) for name, value in ceilings[threads].items()}
        described = [describe_engine(engine) for engine in engines]
        results = results_of(rows, times, ceilings)
        energy = measure_energy(rows, results, power, energy_seconds, progress)
    return {
        "axes": asdict(axes),
        "machine": before,
        "ceilings": {str(threads): values for threads, values in ceilings.items()},
        "engines": described,
        "not_available": missing,
        "note": "rows were measured in turn; ratio: to the first row of the call, per face",
        "rows": results,
        "power": energy,
    }
