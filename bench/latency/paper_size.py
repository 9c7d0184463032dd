"""Engines beside the lineage's PyTorch at any size, with random weights: how fast, what share of the ceiling, how much memory.

    python -m bench latency --config show-o --random-weights
    python -m bench memory --config 1.8b --random-weights
    python -m bench memory --bundle nano

Ceilings come first, in the same run.  Bundles are written once to ``--work`` and found there again.  Every contender runs each task in a
process of its own (:mod:`bench.latency.baseline`), one after the other.  Ratios are to "lineage": whole sequences, whole vocabulary, no
caches.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.hardware.ceilings import read_rate
from bench.latency import llama_cpp
from bench.latency.baseline import PEER, PROMPT_TOKENS, TORCH, Job
from bench.latency.latency import gemm_peak
from f2edge.backends.onnxruntime import usable_cores
from f2edge.bundle.bundle import MANIFEST, Bundle
from f2edge.errors import InputError
from f2edge.spec.configuration import CONFIGURATIONS, ModelConfiguration
from f2edge.spec.flops import step_flops

RECIPES = ("fp32", "int8", "mixed")
#: Graphs that each task runs.
TASKS: Mapping[str, tuple[str, ...]] = {
    "t2i": ("t2i_prefill", "t2i_step", "image_decode"),
    "mmu": ("image_encode", "semantic", "identity", "mmu_prefill", "mmu_extend"),
}
#: Measured times: what is more of them better, and what the lineage's figure of the same name is divided by.
_TIMES = ("step_ms", "prefill_ms", "token_ms")

Results = dict[str, Any]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """Which model is measured: a known configuration, perhaps with fewer layers, and the seed of its weights."""

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


def size_of(configuration: str | None, layers: int | None, *, random_weights: bool) -> Size:
    """What the command line asked for."""
    if configuration is None or not random_weights:
        raise InputError("--config NAME and --random-weights go together; a bundle with weights of its own is measured by --bundle")
    return Size(configuration, layers)


def ceilings(threads: int) -> dict[str, float]:
    """Best rates of this machine: matrix products in Gop/s, and reading in GB/s."""
    return {
        "fp32_gops": gemm_peak("fp32", threads),
        "int8_gops": gemm_peak("int8", threads),
        "read_gb_per_s": read_rate(threads),
    }


def written(size: Size, recipes: Sequence[str], work: Path, progress: Progress) -> dict[str, Path]:
    """Bundles of random weights by recipe; those that ``work`` lacks are made in a process of their own."""
    bundles = {recipe: size.folder(work) / recipe for recipe in recipes}
    missing = [recipe for recipe, folder in bundles.items() if not (folder / MANIFEST).is_file()]
    if missing:
        progress(f"writing bundles of random weights: {', '.join(missing)}")
        row = {**vars(size), "recipes": missing, "folder": str(size.folder(work))}
        _child("bench.latency.random_bundles", json.dumps(row))
    return bundles


def _child(module: str, argument: str) -> str:
    """The last line that a module prints; raises :class:`RuntimeError` with the last line of its errors."""
    done = subprocess.run([sys.executable, "-m", module, argument], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{module}: {said[-1]}")
    return done.stdout.strip().splitlines()[-1]


def task_bytes(bundle: Bundle, task: str) -> int:
    """Bytes of a bundle that one task needs: its graphs, and each distinct constant of theirs once."""
    folder, ranges, total = bundle.folder, set[tuple[int, int]](), 0
    for graph in TASKS[task]:
        if bundle.has(graph):
            total += bundle.path(graph).stat().st_size
            ranges |= {place for place, _ in _constants(bundle.path(graph))}
    return total + sum(length for _, length in ranges) + (folder / "tokenizer.json").stat().st_size


def token_bytes(bundle: Bundle) -> int:
    """Bytes of weights that one answer token reads: all constants of ``mmu_extend`` but the tables, of which it takes a row."""
    return sum(length for (_, length), table in _constants(bundle.path("mmu_extend")) if not table)


def _constants(path: Path) -> list[tuple[tuple[int, int], bool]]:
    """Place (offset, length) of every large constant of a graph, and whether it is only looked up by rows."""
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


def figures(times: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(times), "low": min(times), "high": max(times)}


def contend(job: Job, tasks: Sequence[str], progress: Progress) -> Results:
    """Measured times and memory of one contender; "failed" says why a task gave nothing."""
    row: Results = {"memory": {}}
    for task in tasks:
        progress(f"{job.kind} {Path(job.bundle).name if job.bundle else ''} {task}".replace("  ", " "))
        try:
            measured = json.loads(_child("bench.latency.baseline", replace(job, task=task).to_json()))
        except RuntimeError as error:
            row.setdefault("failed", {})[task] = str(error)
            continue
        row["memory"][task] = {"loaded": measured.pop("loaded")["resident"], **measured.pop("memory")}
        row |= {name: figures(values) for name, values in measured.items() if values}
    return row


def shares(row: Results, model: ModelConfiguration, limits: Mapping[str, float], precision: str, read_bytes: int | None) -> None:
    """Add what part of the ceiling a step's useful arithmetic and a token's reading reach."""
    if "step_ms" in row:
        flops = step_flops(model, [PROMPT_TOKENS + 3, 3], 1)
        row["step_share"] = flops / (row["step_ms"]["median"] / 1e3) / (limits[f"{precision}_gops"] * 1e9)
    if "token_ms" in row and read_bytes is not None:
        row["token_bytes"] = read_bytes
        row["token_share"] = read_bytes / (row["token_ms"]["median"] / 1e3) / (limits["read_gb_per_s"] * 1e9)


def compare_asked(
    config: str | None,
    layers: int | None,
    work: Path,
    recipes: str,
    baselines: str,
    *,
    random_weights: bool,
    threads: int | None,
    repeats: int,
) -> Results:
    """:func:`compare` with the options of a command line, lists separated by commas; progress goes to stderr."""
    return compare(
        size_of(config, layers, random_weights=random_weights),
        work,
        recipes=[name for name in recipes.split(",") if name],
        baselines=[name for name in baselines.split(",") if name],
        threads=threads,
        repeats=repeats,
        progress=lambda message: print(message, file=sys.stderr, flush=True),
    )


def compare(
    size: Size,
    work: Path,
    *,
    recipes: Sequence[str] = RECIPES,
    baselines: Sequence[str] = (*TORCH, PEER),
    threads: int | None = None,
    repeats: int = 5,
    progress: Progress = print,
) -> Results:
    """Measure everything at one size.

    Args:
        size: of the model.
        work: folder of the bundles.
        recipes: engines, by names of :data:`export.quantize.recipes.RECIPES`.
        baselines: of :data:`bench.latency.baseline.TORCH`, and "llama.cpp", which is left out with a word where it is not installed.
        threads: None takes every usable core.
        repeats: measured calls per figure; the lineage takes two of them.
        progress: told what is measured.

    Raises:
        InputError: an unknown configuration, recipe or baseline.
    """
    unknown = [name for name in baselines if name not in {*TORCH, PEER}]
    if unknown:
        raise InputError(f"unknown baseline {unknown[0]!r}; choose from {', '.join((*TORCH, PEER))}")
    used = threads or usable_cores()
    progress("ceilings")
    limits = ceilings(used)
    progress(", ".join(f"{name} {value:.1f}" for name, value in limits.items()))
    rows: dict[str, Results] = {}
    job = Job("engine", "t2i", size.configuration, size.layers, size.seed, "", used, repeats)
    for recipe, folder in written(size, recipes, work, progress).items():
        bundle = Bundle.load(folder, verify=False)
        row = {
            **contend(replace(job, bundle=str(folder)), tuple(TASKS), progress),
            "bytes": {task: task_bytes(bundle, task) for task in TASKS},
        }
        precision = bundle.manifest.graphs["t2i_step"].precision
        shares(row, bundle.configuration, limits, "fp32" if precision == "fp32" else "int8", token_bytes(bundle))
        rows[recipe] = row
    for kind in (kind for kind in baselines if kind != PEER):
        row = contend(replace(job, kind=kind, repeats=min(repeats, 2) if kind == "lineage" else repeats), tuple(TASKS), progress)
        shares(row, size.model, limits, "fp32", None)
        rows[f"torch {kind}"] = row
    if PEER in baselines:
        reason = llama_cpp.lacking(size.model)
        progress(reason or PEER)
        if not reason:
            rows["llama.cpp Q4_0"] = _peer(size, work, replace(job, kind=PEER), limits, progress)
    base = rows.get("torch lineage", {})
    for row in rows.values():
        row["ratio"] = {name: base[name]["median"] / row[name]["median"] for name in _TIMES if name in base and name in row}
    return {"size": {**vars(size), "layers": size.model.layers}, "threads": used, "ceilings": limits, "contenders": rows}


def _peer(size: Size, work: Path, job: Job, limits: Mapping[str, float], progress: Progress) -> Results:
    """llama.cpp's answers."""
    file = size.folder(work) / "q4_0.gguf"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        llama_cpp.write_gguf(file.with_suffix(".partial"), size.model, size.seed).rename(file)
    row = contend(replace(job, bundle=str(file)), ("mmu",), progress)
    shares(row, size.model, limits, "fp32", llama_cpp.token_bytes(file, size.model))
    return {**row, "bytes": {"mmu": file.stat().st_size}}


def memory_of_bundle(bundle: str, threads: int | None = None) -> Results:
    """Memory of one bundle's tasks."""
    opened = Bundle.load(bundle)
    used = threads or usable_cores()
    row = contend(Job("engine", "t2i", bundle=str(opened.folder), threads=used, repeats=2), tuple(TASKS), lambda _: None)
    row["bytes"] = {task: task_bytes(opened, task) for task in TASKS}
    return {"bundle": opened.name, "threads": used, "contenders": {opened.name: row}}


def _cell(row: Results, name: str, share: str = "") -> str:
    if name not in row:
        return "-"
    parts = [f"{row[name]['median']:.1f}"]
    if share in row:
        parts.append(f"{100 * row[share]:.0f} %")
    if name in row.get("ratio", {}):
        parts.append(f"{row['ratio'][name]:.1f} x")
    return "  ".join(parts)


def print_comparison(results: Results, *, times: bool = True) -> None:
    """Tables for people, then one line of JSON."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if "ceilings" in results:
        limits, size = results["ceilings"], results["size"]
        console.print(
            f"{size['configuration']}, {size['layers']} layers, random weights, {results['threads']} threads; ceilings: "
            f"fp32 {limits['fp32_gops']:.0f} Gop/s, int8 {limits['int8_gops']:.0f} Gop/s, reading {limits['read_gb_per_s']:.1f} GB/s"
        )
    if times:
        table = Table("ms", "guided step", "image + question", "answer token", box=box.SIMPLE)
        table.columns[0].no_wrap = True
        for name, row in results["contenders"].items():
            table.add_row(name, _cell(row, "step_ms", "step_share"), _cell(row, "prefill_ms"), _cell(row, "token_ms", "token_share"))
        console.print(table)
    table = Table("MB", "t2i size", "t2i memory", "mapped", "peak", "mmu size", "mmu memory", "mapped", "peak", box=box.SIMPLE)
    table.columns[0].no_wrap = True
    for name, row in results["contenders"].items():
        cells = []
        for task in TASKS:
            sizes, used = row.get("bytes", {}), row["memory"].get(task, {})
            values = (sizes.get(task), *(used.get(kind) for kind in ("resident", "mapped", "peak")))
            cells += ["-" if value is None else f"{value / 1e6:.0f}" for value in values]
        table.add_row(name, *cells)
        for task, reason in row.get("failed", {}).items():
            console.print(f"{name}, {task}: {reason}")
    console.print(table)
    print(json.dumps(results))
