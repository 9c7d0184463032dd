"""A decoding step's time by cause, in ONNX Runtime on the CPU.

    python -m bench step [--bundle nano,runs/int8-step/nano] [--threads 1] [--json]

One guided face is decoded by each bundle; then all its steps run again with ONNX Runtime's profiler, the bundles in turns.  A step's time
is the least of its repeats, the table's the mean over the steps.  Operators run one after the other, so causes add up; the profiler itself
makes small ones slower.  "Share of ceiling" is the step's useful arithmetic (``f2edge.spec.flops``) over its time without the profiler,
relative to the int8 rate of large products in the same process.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import onnx
import typer

from bench.hardware.ceilings import gemm_peak
from bench.latency.causes import HELD, causes_of
from bench.latency.decoders import GraphDecoder
from bench.latency.stages import PROMPT_TOKENS
from bench.options import AsJson, Threads, listed
from bench.results import Results, document
from f2edge.backends.base import Backend, Value, host
from f2edge.backends.onnxruntime import DISABLED, OnnxRuntimeBackend, usable_cores
from f2edge.backends.ports import Ports
from f2edge.bundle.bundle import Bundle
from f2edge.cli.console import Output
from f2edge.decoding.parallel import decode
from f2edge.decoding.schedule import plan
from f2edge.errors import InputError
from f2edge.spec.flops import step_flops
from f2edge.spec.graphs import T2I_STEP

_SEED = 7


class _Recorder:
    """A backend that keeps what the decoding steps are fed with."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.steps = backend, list[Mapping[str, Value]]()

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        if graph == T2I_STEP.name:
            self.steps.append(feeds)
        return self.backend.run(graph, feeds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


@dataclass
class _Profiled:
    """One bundle's step, opened with and without the profiler, and what its steps are fed with."""

    name: str
    nodes: Mapping[str, str]
    plain: Any
    profiled: Any
    feeds: Sequence[dict[str, Any]]
    flops: int
    graph_nodes: int
    ms: list[list[float]] = field(default_factory=list)


def _session(graph: bytes, weights: Path, threads: int, folder: Path | None) -> Any:
    """Open a graph whose weights lie in a folder; with ``folder``, profiled to a file there."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    options.log_severity_level = 4
    if folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED))


def _opened(name: str, threads: int, folder: Path) -> _Profiled:
    """Decode one face and open the step; its nodes are named by their causes."""
    bundle = Bundle.load(name, verify=False)
    found = bundle.manifest.graphs[T2I_STEP.name].precision
    if found in ("fp32", "fp16"):
        raise InputError(f"bundle {name!r}: its decoding step is {found}; the table is for quantized ones")
    layout, model = bundle.layout, bundle.configuration
    recorder = _Recorder(OnnxRuntimeBackend(bundle.path, threads))
    words = np.random.default_rng(0).integers(2, model.text_vocabulary // 2, PROMPT_TOKENS).tolist()
    step = GraphDecoder(recorder, layout).step([words])
    everything = np.ones(layout.image_tokens, dtype=bool)
    schedule = replace(bundle.manifest.generation, guidance_interval=(0.0, 1.0))
    decode(step, np.full((1, layout.image_tokens), layout.mask_code), [plan(schedule, everything, _SEED, layout.block)], [_SEED])
    source = bundle.path(T2I_STEP.name)
    graph = onnx.load(str(source), load_external_data=False)
    causes = causes_of(graph.graph)
    for place, node in enumerate(graph.graph.node):
        node.name = f"n{place}"
    content = graph.SerializeToString()
    plain, profiled = (_session(content, source.parent, threads, scratch) for scratch in (None, folder))
    ports = Ports.of(plain)
    feeds = [{key: host(value) for key, value in ports.feeds(given).items()} for given in recorder.steps]
    prompt = feeds[0]["prefix_key.0"].shape[2] if "prefix_key.0" in feeds[0] else feeds[0]["prefix_key"].shape[3]
    flops = step_flops(model, [prompt, prompt], 1)
    return _Profiled(name, {f"n{i}": cause for i, cause in enumerate(causes)}, plain, profiled, feeds, flops, len(causes))


def _measured(part: _Profiled, repeats: int) -> Results:
    """Return the mean over the steps of the least times by cause."""
    events = json.loads(Path(part.profiled.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = f"{event['name']} {event['args'].get('node_index')}"
            times.setdefault(key, []).append(event["dur"] / 1e3)
            kinds[key] = part.nodes.get(event["name"].removesuffix("_kernel_time"), "") or HELD.get(event["args"]["op_name"], "rest")
    steps = len(part.feeds)
    runs = {key: np.array(values).reshape(repeats, steps).min(axis=0).mean() for key, values in times.items()}
    rows: list[Results] = []
    for cause in dict.fromkeys(kinds.values()):
        own = [key for key, kind in kinds.items() if kind == cause]
        rows.append({"cause": cause, "nodes": len(own), "ms": float(sum(runs[key] for key in own))})
    rows.sort(key=lambda row: -row["ms"])
    step = float(np.array(part.ms).min(axis=0).mean())
    return {"bundle": part.name, "nodes": part.graph_nodes, "steps": steps, "step_ms": step, "gflops": part.flops / 1e9, "causes": rows}


def profile(bundles: Sequence[str], threads: int, repeats: int) -> Results:
    """Profile the steps of some bundles in turns."""
    ceiling = gemm_peak("int8", threads)
    with tempfile.TemporaryDirectory(prefix="f2edge-step-") as scratch:
        parts = []
        for place, name in enumerate(bundles):
            folder = Path(scratch) / str(place)
            folder.mkdir()
            parts.append(_opened(name, threads, folder))
        for _ in range(repeats):
            for part in parts:
                part.ms.append([_timed(part.plain, feeds) for feeds in part.feeds])
                for feeds in part.feeds:
                    part.profiled.run(None, feeds)
        rows = [_measured(part, repeats) for part in parts]
    for row in rows:
        row["share"] = row["gflops"] / (row["step_ms"] * 1e-3) / ceiling
    return {"threads": threads, "int8_gops": ceiling, "rows": rows}


def _timed(session: Any, feeds: dict[str, Any]) -> float:
    start = perf_counter()
    session.run(None, feeds)
    return 1e3 * (perf_counter() - start)


def show(results: Results, output: Output) -> None:
    """Print one table: causes, and each bundle's nodes, milliseconds and shares."""
    rows = results["rows"]
    output.line(f"{results['threads']} threads, ceiling of int8 products {results['int8_gops']:.0f} Gop/s")
    for row in rows:
        output.line(
            f"  {row['bundle']}: {row['nodes']} nodes, a step {row['step_ms']:.2f} ms, {100 * row['share']:.1f} % of the ceiling "
            f"({row['gflops']:.2f} Gop; the least of its repeats, the mean of {row['steps']} steps)"
        )
    for row in rows:
        total = sum(cause["ms"] for cause in row["causes"])
        cells = [[c["cause"], str(c["nodes"]), f"{c['ms']:.2f}", f"{100 * c['ms'] / total:.0f} %"] for c in row["causes"]]
        output.line("")
        output.table((row["bundle"], ">nodes", ">ms", ">share"), [*cells, ["", "", f"{total:.2f}", ""]])


def step(
    *,
    bundle: Annotated[list[str] | None, typer.Option(help="Names or folders of bundles; nano by default.", show_default=False)] = None,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of every step.")] = 9,
    as_json: AsJson = False,
) -> None:
    """Profile a decoding step by cause: products, row scales, attention, routers, sampling."""
    results = profile(listed(bundle or (), "nano"), threads or usable_cores(), repeats)
    show(results, Output(json=as_json))
    print(document(results))
