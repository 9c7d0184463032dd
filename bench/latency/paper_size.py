"""Engines beside PyTorch baselines and llama.cpp at any size, with random weights: times, shares of the ceiling, memory.

    python -m bench paper-size --config show-o
    python -m bench memory --config 1.8b
    python -m bench memory --bundle nano

Ceilings are measured first, in the same run.  Bundles are written once to ``--work`` and reused.  Every system runs each task in its own
process (:mod:`bench.latency.stages`), one after the other.  Ratios are to "torch lineage": whole sequences, whole vocabulary, no caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.hardware.ceilings import gemm_peaks, read_rate
from bench.hardware.machine import machine
from bench.latency import llama_cpp
from bench.latency.stages import BASELINES, LLAMA_CPP, PROMPT_TOKENS, System
from bench.latency.worker import Worker
from bench.results import Progress, Results, spread
from f2edge.backends.onnxruntime import usable_cores
from f2edge.bundle.bundle import MANIFEST, Bundle
from f2edge.errors import F2EdgeError, InputError
from f2edge.spec.configuration import CONFIGURATIONS, ModelConfiguration
from f2edge.spec.flops import step_flops

RECIPES = ("fp32", "int8", "mixed", "int4-128")
#: Graphs that each task runs.
TASKS: Mapping[str, tuple[str, ...]] = {
    "t2i": ("t2i_prefill", "t2i_step", "image_decode"),
    "mmu": ("image_encode", "semantic", "identity", "mmu_prefill", "mmu_extend"),
}
#: Timed stages in the order of the table.
CALLS = {
    "step_ms": "guided step",
    "unguided_step_ms": "step without guidance",
    "prefill_ms": "image + question",
    "token_ms": "answer token",
    "image_encode_ms": "image encode",
    "image_decode_ms": "image decode",
    "first_token_ms": "image in, first token out",
}
REFERENCE = "torch lineage"


@dataclass(frozen=True)
class Size:
    """A known configuration, optionally with fewer layers, and the seed of its random weights."""

    configuration: str
    layers: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.configuration not in CONFIGURATIONS:
            raise InputError(f"unknown configuration {self.configuration!r}; choose one of: {', '.join(CONFIGURATIONS)}")

    @property
    def model(self) -> ModelConfiguration:
        whole = CONFIGURATIONS[self.configuration]
        return whole if self.layers is None else replace(whole, layers=self.layers)

    def folder(self, work: Path) -> Path:
        return work / f"{self.configuration}-{self.model.layers}-layers-seed-{self.seed}"


def ceilings(threads: int) -> dict[str, float]:
    """Return the best rates of this machine: "fp32_gops", "int8_gops" and "read_gb_per_s"."""
    return {**gemm_peaks(threads), "read_gb_per_s": read_rate(threads)}


def written(size: Size, recipes: Sequence[str], work: Path, progress: Progress) -> dict[str, Path]:
    """Return bundles of random weights by recipe; write those that are missing from ``work``."""
    bundles = {recipe: size.folder(work) / recipe for recipe in recipes}
    missing = [recipe for recipe, folder in bundles.items() if not (folder / MANIFEST).is_file()]
    if missing:
        progress(f"writing bundles of random weights: {', '.join(missing)}")
        arguments = {**vars(size), "recipes": missing, "folder": str(size.folder(work))}
        Worker("bench.latency.random_bundles", arguments, "bundles of random weights").close()
    return bundles


def task_bytes(bundle: Bundle, task: str) -> int:
    """Return the bytes of a bundle that one task needs: its graphs, and each distinct constant once."""
    folder, ranges, total = bundle.folder, set[tuple[int, int]](), 0
    for graph in TASKS[task]:
        if bundle.has(graph):
            total += bundle.path(graph).stat().st_size
            ranges |= {place for place, _ in _constants(bundle.path(graph))}
    return total + sum(length for _, length in ranges) + (folder / "tokenizer.json").stat().st_size


def token_bytes(bundle: Bundle) -> int:
    """Return the bytes of weights that one answer token reads: all constants of ``mmu_extend`` except tables, of which it reads a row."""
    return sum(length for (_, length), table in _constants(bundle.path("mmu_extend")) if not table)


def _constants(path: Path) -> list[tuple[tuple[int, int], bool]]:
    """Return (offset, length) of every large constant of a graph, and whether it is only gathered by rows."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    tables = {node.input[0] for node in graph.node if node.op_type.startswith("Gather")}
    others = {name for node in graph.node for place, name in enumerate(node.input) if place or not node.op_type.startswith("Gather")}
    rows = []
    for tensor in graph.initializer:
        places = {entry.key: entry.value for entry in tensor.external_data}
        if "length" in places:
            rows.append(((int(places.get("offset", 0)), int(places["length"])), tensor.name in tables - others))
    return rows


class Measured:
    """Collects the results of systems: rows of times, rows of memory, failed tasks."""

    def __init__(self, progress: Progress) -> None:
        self.rows: list[Results] = []
        self.memory: list[Results] = []
        self.failed: list[Results] = []
        self._progress = progress

    def run(self, name: str, system: System, tasks: Mapping[str, int | None]) -> None:
        """Measure a system at ``tasks`` (with the bytes of their files, or None), each in its own process; a failure ends only its task."""
        for task, size in tasks.items():
            self._progress(f"{name}, {task}")
            try:
                arguments = asdict(replace(system, task=task))
                with closing(Worker("bench.latency.stages", arguments, name)) as worker:
                    answer = worker.ask({})
            except F2EdgeError as error:
                self.failed.append({"system": name, "task": task, "reason": str(error)})
                continue
            self.memory.append({"system": name, "task": task, "files": size, **answer["memory"]})
            times = {CALLS[stage]: values for stage, values in answer["times"].items() if stage in CALLS}
            self.rows += [{"call": call, "system": name, "ms": spread(values)} for call, values in times.items()]

    def add_shares(self, name: str, model: ModelConfiguration, limits: Mapping[str, float], rate: str, read: int | None) -> None:
        """Add the share of the ceiling: a step's arithmetic over ``rate`` (Gop/s), a token's ``read`` bytes over the read rate."""
        for row in (row for row in self.rows if row["system"] == name):
            seconds = row["ms"]["median"] / 1e3
            if row["call"] == CALLS["step_ms"]:
                row["share"] = step_flops(model, [PROMPT_TOKENS + 3, 3], 1) / seconds / (limits[rate] * 1e9)
            elif row["call"] == CALLS["token_ms"] and read is not None:
                row |= {"token_bytes": read, "share": read / seconds / (limits["read_gb_per_s"] * 1e9)}

    def table(self) -> list[Results]:
        """Return the rows grouped by call, with ratios to :data:`REFERENCE` if that was measured."""
        reference = {row["call"]: row["ms"]["median"] for row in self.rows if row["system"] == REFERENCE}
        for row in self.rows:
            if row["call"] in reference:
                row["ratio"] = {"median": reference[row["call"]] / row["ms"]["median"]}
        return [row for call in CALLS.values() for row in self.rows if row["call"] == call]


def compare(
    size: Size,
    work: Path,
    *,
    recipes: Sequence[str] = RECIPES,
    baselines: Sequence[str] = BASELINES,
    threads: int | None = None,
    repeats: int = 5,
    progress: Progress = print,
) -> Results:
    """Measure engines and baselines at one size.

    Args:
        size: of the model.
        work: folder of the bundles.
        recipes: engines, by names of :data:`export.quantize.recipes.RECIPES`.
        baselines: of :data:`bench.latency.stages.BASELINES`; "llama.cpp" is skipped where it is not installed.
        threads: None takes every usable core.
        repeats: measured calls per stage; "lineage" takes at most two.
        progress: called with a message before each part.

    Returns:
        ``{"size", "machine", "ceilings": {threads: …}, "rows", "memory", "failed"}``; bytes and milliseconds.

    Raises:
        InputError: an unknown configuration, recipe or baseline.
    """
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise InputError(f"unknown baseline {unknown[0]!r}; choose from {', '.join(BASELINES)}")
    used, before = threads or usable_cores(), machine()
    progress("ceilings")
    limits, measured = ceilings(used), Measured(progress)
    system = System("engine", "t2i", size.configuration, size.layers, size.seed, "", used, repeats)
    for recipe, folder in written(size, recipes, work, progress).items():
        bundle = Bundle.load(folder, verify=False)
        measured.run(recipe, replace(system, bundle=str(folder)), {task: task_bytes(bundle, task) for task in TASKS})
        precision = bundle.manifest.graphs["t2i_step"].precision
        rate = "fp32_gops" if precision == "fp32" else "int8_gops"
        measured.add_shares(recipe, bundle.configuration, limits, rate, token_bytes(bundle))
    for kind in baselines:
        if kind == LLAMA_CPP:
            reason = llama_cpp.unavailable(size.model)
            if reason:
                progress(reason)
            else:
                _run_llama_cpp(measured, size, work, replace(system, kind=kind, task="mmu"), limits)
            continue
        name = f"torch {kind}"
        measured.run(name, replace(system, kind=kind, repeats=min(repeats, 2) if name == REFERENCE else repeats), dict.fromkeys(TASKS))
        measured.add_shares(name, size.model, limits, "fp32_gops", None)
    return {
        "size": {**vars(size), "layers": size.model.layers},
        "machine": before,
        "ceilings": {str(used): limits},
        "note": f"ratio: to {REFERENCE}",
        "rows": measured.table(),
        "memory": measured.memory,
        "failed": measured.failed,
    }


def _run_llama_cpp(measured: Measured, size: Size, work: Path, system: System, limits: Mapping[str, float]) -> None:
    """Measure llama.cpp's answers."""
    file = size.folder(work) / "q4_0.gguf"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        llama_cpp.write_gguf(file.with_suffix(".partial"), size.model, size.seed).rename(file)
    name = "llama.cpp Q4_0"
    measured.run(name, replace(system, bundle=str(file)), {"mmu": file.stat().st_size})
    measured.add_shares(name, size.model, limits, "fp32_gops", llama_cpp.token_bytes(file, size.model))


def memory_of_bundle(name: str, threads: int | None = None) -> Results:
    """Measure the memory of one bundle's tasks; ``{"bundle", "threads", "memory", "failed"}``."""
    bundle, used, measured = Bundle.load(name), threads or usable_cores(), Measured(lambda _: None)
    system = System("engine", "t2i", bundle=str(bundle.folder), threads=used, repeats=2)
    measured.run(bundle.name, system, {task: task_bytes(bundle, task) for task in TASKS})
    return {"bundle": bundle.name, "threads": used, "memory": measured.memory, "failed": measured.failed}
