"""Engines, steps and batches beside each other in one run: who is faster, by how much, and whether that is more than noise.

    python -m bench latency --bundle runs/fp32/nano,nano --steps 6,12 --batch 1,8 --out runs/latency

Every engine (bundle x backend x threads) is a process of its own.  All rows take turns, one call each per round, forth and then back, so
that a machine that gets slower or faster meanwhile does so for everybody.  A ratio is formed within each round and its median is told, with
the quarters on both sides of it: where they lie around 1, the two are as fast as each other as far as this run can tell.

Energy is measured afterwards, one row at a time for some seconds, because meters are slower than calls (:mod:`bench.hardware.power`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from time import sleep
from typing import Any

from bench.hardware.machine import machine
from bench.hardware.power import Power, PowerError
from bench.latency.calls import CALLS, Turn, analyze_flops, generate_flops
from bench.latency.engine_process import Engine, Setting
from bench.latency.latency import gemm_peak
from f2edge.backends.onnxruntime import usable_cores
from f2edge.backends.registry import BACKENDS
from f2edge.bundle.bundle import Bundle
from f2edge.errors import BackendError, F2EdgeError, InputError
from f2edge.results import GenerateOptions
from f2edge.text import TextTokenizer

Results = dict[str, Any]
Progress = Callable[[str], None]
#: All backends; those that this machine cannot run are listed with the reason.
ALL = "all"
_WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Axes:
    """What is compared: every combination of these.

    Attributes:
        bundles: names or folders.
        backends: names in the registry, "auto", or only "all".
        threads: CPU threads; None is every usable core.
        steps: of ``generate``.
        batches: faces in one call of ``generate`` and ``analyze``; questions are asked one by one.
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
            raise InputError("--backend all stands alone; leave out the others")
        if any(count is not None and count < 1 for count in self.threads):
            raise InputError("--threads must be at least 1")

    def settings(self) -> list[Setting]:
        """The engines, the first bundle on the first backend first."""
        backends = tuple(BACKENDS) if self.backends == (ALL,) else self.backends
        return [Setting(*chosen) for chosen in product(self.bundles, backends, self.threads)]

    def turns(self) -> list[Turn]:
        """What each engine does."""
        made = {
            "generate": [Turn("generate", batch, steps, self.guidance) for steps, batch in product(self.steps, self.batches)],
            "analyze": [Turn("analyze", batch) for batch in self.batches],
            "ask": [Turn("ask")],
        }
        return [turn for call in self.calls for turn in (made.get(call) or [Turn(call)])]


@dataclass
class Contender:
    """An engine that runs, its bundle, and the label that tells it from the others' bundles."""

    label: str
    bundle: Bundle
    engine: Engine

    @property
    def threads(self) -> int:
        return self.engine.setting.threads or usable_cores()

    @property
    def precision(self) -> str:
        return self.bundle.manifest.graphs["t2i_step"].precision


def labels(bundles: Sequence[Bundle]) -> list[str]:
    """Names that differ: the bundle's own; with its recipe, where several are compared; with its place, where that is not enough."""
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


def start(axes: Axes, stack: ExitStack, progress: Progress) -> tuple[list[Contender], list[Results]]:
    """Every engine, ready, and those that are not available; one that was asked for by name must be.

    Raises:
        InputError: a bundle or an option that cannot be used.
        BackendError: a backend asked for by name cannot run here, or of "all" none can.
    """
    bundles = {name: Bundle.load(name) for name in axes.bundles}
    folders = {bundle.folder.resolve(): name for name, bundle in bundles.items()}
    if len(folders) < len(bundles):
        twice = next(name for name, bundle in bundles.items() if folders[bundle.folder.resolve()] != name)
        raise InputError(f"--bundle {twice} is given twice under different names; to see the noise, compare a bundle with a copy of it")
    for bundle, steps in product(bundles.values(), axes.steps):
        GenerateOptions(steps=steps, guidance=axes.guidance).resolve(bundle.generation)
    named = dict(zip(bundles, labels(list(bundles.values())), strict=True))
    contenders, missing = list[Contender](), list[Results]()
    for setting in axes.settings():
        progress(f"starting {named[setting.bundle]} on {setting.backend}")
        try:
            engine = stack.enter_context(closing(Engine(setting)))
        except F2EdgeError as error:
            if axes.backends != (ALL,):
                raise
            missing.append({"bundle": named[setting.bundle], "backend": setting.backend, "reason": str(error)})
            continue
        contenders.append(Contender(named[setting.bundle], bundles[setting.bundle], engine))
    if not contenders:
        raise BackendError("no backend can run here: " + "; ".join(f"{row['backend']}: {row['reason']}" for row in missing))
    return contenders, missing


def rounds(count: int, rows: int) -> Iterator[tuple[int, list[int]]]:
    """Number and order of each round: forth, back, forth …, so that nobody always follows the same neighbour."""
    for number in range(count):
        yield number, list(range(rows)) if number % 2 == 0 else list(reversed(range(rows)))


def spread(values: Sequence[float]) -> Results:
    """Median, extremes, and the quarters on both sides of the median."""
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "quarters": [quarters[0], quarters[2]]}


def figures_of(
    rows: Sequence[tuple[Contender, Turn]], times: Sequence[Sequence[float]], ceilings: Mapping[int, Mapping[str, float]]
) -> list[Results]:
    """Of each row: milliseconds, a face's part of them, share of the ceiling, ratio to the first row of the same call."""
    made, references = list[Results](), dict[str, Sequence[float]]()
    tokenizers = {contender.label: TextTokenizer(contender.bundle.tokenizer_path) for contender, _ in rows}
    for (contender, turn), values in zip(rows, times, strict=True):
        per_face = [value / turn.batch for value in values]
        reference = references.setdefault(turn.call, per_face)
        median = statistics.median(per_face)
        row: Results = {
            "call": turn.call,
            "bundle": contender.label,
            "backend": contender.engine.backend,
            "threads": contender.threads,
            "steps": turn.steps,
            "batch": turn.batch,
            "ms": spread(values),
            "ms_per_face": median,
            "faces_per_second": 1e3 / median,
            "ratio": spread([theirs / ours for theirs, ours in zip(reference, per_face, strict=True)]),
            "share": None,
        }
        if turn.call != "ask" and contender.engine.backend == "onnxruntime":
            peak = ceilings[contender.threads]["fp32_gops" if contender.precision == "fp32" else "int8_gops"]
            row["share"] = _flops(contender.bundle, tokenizers[contender.label], turn) / (median * 1e6 * peak)
        made.append(row)
    return made


def _flops(bundle: Bundle, tokenizer: TextTokenizer, turn: Turn) -> int:
    if turn.call == "analyze":
        return analyze_flops(bundle, tokenizer)
    return generate_flops(bundle, tokenizer, GenerateOptions(steps=turn.steps, guidance=turn.guidance).resolve(bundle.generation))


def measure_energy(
    rows: Sequence[tuple[Contender, Turn]], made: Sequence[Results], power: Power, seconds: float, progress: Progress
) -> Results:
    """Joules per face and watts into every row; returns what the meters cover, the power at rest, and what went wrong."""
    told: Results = {"meters": [meter.name for meter in power.meters], "covers": power.covers, "missing": power.missing}
    if not power.meters:
        return told
    try:
        progress("power at rest")
        _, rest = power.drawn(lambda: sleep(seconds))
        told["watts_at_rest"] = rest.watts
        for (contender, turn), row in zip(rows, made, strict=True):
            progress(f"energy of {turn.call}, {contender.label} on {contender.engine.backend}")
            calls, drawn = power.drawn(partial(contender.engine.keep_calling, turn, seconds))
            row |= {"joules_per_face": drawn.total / (calls * turn.batch), "watts": drawn.watts}
            row["joules_by_meter"] = {name: joules / (calls * turn.batch) for name, joules in drawn.joules.items()}
    except PowerError as error:
        told["lost"] = str(error)
    return told


def peaks(counts: Sequence[int]) -> dict[int, dict[str, float]]:
    """Ceilings of matrix products by number of threads, in Gop/s; measured before and after, of which the better counts."""
    return {threads: {f"{precision}_gops": gemm_peak(precision, threads) for precision in ("fp32", "int8")} for threads in counts}


def compare(axes: Axes, power: Power, *, repeats: int = 9, energy_seconds: float = 5.0, progress: Progress = print) -> Results:
    """Measure every combination.

    Args:
        axes: what is compared.
        power: open meters; the caller closes them.
        repeats: rounds that count, after two that do not.
        energy_seconds: for how long each row runs while its energy is measured.
        progress: told what happens.

    Returns:
        ``{"axes", "machine", "ceilings": {threads: {"fp32_gops", "int8_gops"}}, "engines", "not_available", "rows", "power"}``; a row has
        "ms" (median, low, high, quarters), "ms_per_face", "faces_per_second", "ratio" (as "ms"; above 1 is faster than the first row of its
        call), "share" (None where no ceiling applies), and where there is a meter "joules_per_face", "joules_by_meter" and "watts".

    Raises:
        InputError: options out of range.
        BackendError: see :func:`start`.
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    before, turns = machine(), axes.turns()
    with ExitStack() as stack:
        contenders, missing = start(axes, stack, progress)
        counts = sorted({contender.threads for contender in contenders})
        progress("ceilings")
        ceilings = peaks(counts)
        rows = [(contender, turn) for call in axes.calls for contender in contenders for turn in turns if turn.call == call]
        times: list[list[float]] = [[] for _ in rows]
        for number, order in rounds(_WARM_UP_ROUNDS + repeats, len(rows)):
            progress(f"round {number + 1} of {_WARM_UP_ROUNDS + repeats}")
            for place in order:
                contender, turn = rows[place]
                milliseconds = contender.engine.milliseconds(turn, number)
                if number >= _WARM_UP_ROUNDS:
                    times[place].append(milliseconds)
        progress("ceilings again")
        again = peaks(counts)
        ceilings = {threads: {name: max(value, again[threads][name]) for name, value in ceilings[threads].items()} for threads in counts}
        engines = [
            {
                "bundle": contender.label,
                "backend": contender.engine.backend,
                "threads": contender.threads,
                "precision": contender.precision,
                "bytes": contender.bundle.total_bytes,
                "ready_ms": contender.engine.ready_ms,
                "memory": contender.engine.memory(),
            }
            for contender in contenders
        ]
        made = figures_of(rows, times, ceilings)
        told = measure_energy(rows, made, power, energy_seconds, progress)
    return {
        "axes": asdict(axes),
        "machine": before,
        "ceilings": {str(threads): values for threads, values in ceilings.items()},
        "engines": engines,
        "not_available": missing,
        "rows": made,
        "power": told,
    }
