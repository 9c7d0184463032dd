"""One contender at one task, in a process of its own: its memory is its own, and goes when it ends.

    python -m bench.latency.baseline '{"kind": "engine", "task": "t2i", "configuration": "show-o", "bundle": "runs/show-o/int8"}'

The last line of its output is JSON: milliseconds of every measured call, and the memory of the process.  Inputs are random numbers; times
do not depend on what is drawn or said.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.latency.decoders import Graphs, Way
from export.defaults import manner_of
from f2edge.backends.base import Backend
from f2edge.backends.onnxruntime import OnnxRuntimeBackend, usable_cores
from f2edge.bundle.bundle import Bundle
from f2edge.decoding.parallel import GridRow, advance
from f2edge.decoding.schedule import Schedule, plan
from f2edge.errors import InputError
from f2edge.spec.configuration import CONFIGURATIONS, ModelConfiguration
from f2edge.spec.layout import TokenLayout, left_pad

TORCH = ("lineage", "cached", "compiled")
PEER = "llama.cpp"
KINDS = ("engine", *TORCH, PEER)
TASKS = ("t2i", "mmu")
PROMPT_TOKENS, QUESTION_TOKENS = 16, 20
#: Ends of text of the random models, whose tokenizer is the embedded model's.
_START, _END = 0, 1


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        kind: "engine" (a bundle in ONNX Runtime), "lineage", "cached" or "compiled" (:mod:`bench.latency.reference`), or "llama.cpp"
            (:mod:`bench.latency.llama_cpp`, task "mmu" only).
        task: "t2i" or "mmu".
        configuration: of the model; an engine takes its bundle's.
        layers: of a shortened model, or None.
        seed: of the random weights.
        bundle: folder of the engine's bundle, or llama.cpp's file.
        threads: CPU threads; 0 takes every usable core.
        repeats: measured steps, prefills and answer tokens.
    """

    kind: str
    task: str
    configuration: str = "nano"
    layers: int | None = None
    seed: int = 0
    bundle: str = ""
    threads: int = 0
    repeats: int = 5

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, KINDS), ("task", self.task, TASKS)):
            if value not in known:
                raise InputError(f"contender: {name} {value!r} is none of {', '.join(known)}")
        if self.repeats < 1:
            raise InputError(f"repeats must be at least 1, got {self.repeats}")

    @property
    def model(self) -> ModelConfiguration:
        whole = CONFIGURATIONS[self.configuration]
        return whole if self.layers is None else replace(whole, layers=self.layers)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def memory() -> dict[str, int]:
    """Resident bytes of this process, of these its own and those mapped from files (which the system may take), and the most ever."""
    names = {"VmRSS": "resident", "RssAnon": "own", "RssFile": "mapped", "VmHWM": "peak"}
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise InputError("memory is measured on Linux only, from /proc") from error
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {ours: 1024 * int(fields[theirs].split()[0]) for theirs, ours in names.items()}


def draw(way: Way, layout: TokenLayout, schedule: Schedule, repeats: int) -> dict[str, list[float]]:
    """Guided steps of one picture; the first is not counted."""
    rng = np.random.default_rng(0)
    start = perf_counter()
    step = way.step([rng.integers(2, 1000, PROMPT_TOKENS).tolist()])
    times = {"prompt_ms": [1e3 * (perf_counter() - start)], "step_ms": list[float]()}
    everything = np.ones(layout.image_tokens, dtype=bool)
    longer = replace(schedule, steps=max(schedule.steps, repeats + 1))
    rows = [GridRow(np.full(layout.image_tokens, layout.mask_code), plan(longer, everything, 7), 7)]
    for number in range(min(repeats + 1, rows[0].plan.steps)):
        start = perf_counter()
        rows, _ = advance(step, rows, [0])
        if number:
            times["step_ms"].append(1e3 * (perf_counter() - start))
    return times


def read(way: Way, layout: TokenLayout, model: ModelConfiguration, repeats: int) -> dict[str, list[float]]:
    """A picture and a question up to the first token, and answer tokens one by one; the first of each is not counted."""
    rng = np.random.default_rng(0)
    shapes = {"semantic": model.semantic, "identity": model.identity}
    features = {name: rng.normal(size=(1, s.vectors, s.width)).astype(np.float32) for name, s in shapes.items() if s is not None}
    question = left_pad([[layout.start_of_text, *rng.integers(2, 1000, QUESTION_TOKENS - 1).tolist()]], layout.pad)
    times = {"prefill_ms": list[float](), "token_ms": list[float]()}
    for number in range(repeats + 1):
        start = perf_counter()
        extend, state = way.reading(rng.integers(0, layout.codes, (1, layout.image_tokens)), features)
        logits, state = extend(*question, state)
        if number:
            times["prefill_ms"].append(1e3 * (perf_counter() - start))
    lengths = question[1]
    for number in range(repeats + 1):
        lengths = lengths + 1
        token = logits.argmax(-1)[:, None].astype(np.int64)
        start = perf_counter()
        logits, state = extend(token, lengths, state)
        if number:
            times["token_ms"].append(1e3 * (perf_counter() - start))
    return times


def _torch_way(job: Job, layout: TokenLayout) -> Way:
    import torch

    from bench.latency.reference import CachedTorch, Lineage
    from export.checkpoints.random_weights import random_models_of

    torch.set_num_threads(job.threads or usable_cores())
    models = random_models_of(job.model, job.seed)
    if job.kind != "lineage":
        return Graphs(CachedTorch(models, compiled=job.kind == "compiled"), layout)
    assert models.transformer is not None
    models.transformer.use_fused_attention(fused=True)
    return Lineage(models, layout)


def _around(backend: Backend, layout: TokenLayout, model: ModelConfiguration, task: str, repeats: int) -> dict[str, list[float]]:
    """The image tokenizer's part of a task."""
    rng, side = np.random.default_rng(0), model.tokenizer.image_size
    codes = rng.integers(0, layout.codes, (1, layout.image_tokens))
    pixels = rng.uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    graph, feeds = ("image_decode", {"codes": codes}) if task == "t2i" else ("image_encode", {"pixels": pixels})
    times = []
    for number in range(min(repeats, 3) + 1):
        start = perf_counter()
        backend.run(graph, feeds)
        if number:
            times.append(1e3 * (perf_counter() - start))
    return {f"{graph}_ms": times}


def run(job: Job) -> dict[str, Any]:
    """Measure; see :class:`Job`.

    Returns:
        milliseconds by what was measured, ``"memory"`` after all of it, and ``"loaded"`` before the first call.
    """
    if job.kind == PEER:
        from bench.latency.llama_cpp import read as peer_read

        loaded, columns = memory(), job.model.image_columns + 3 + QUESTION_TOKENS
        return {**peer_read(Path(job.bundle), columns, job.threads or usable_cores(), job.repeats), "loaded": loaded, "memory": memory()}
    backend: Backend | None = None
    if job.kind == "engine":
        bundle = Bundle.load(job.bundle, verify=False)
        model, layout = bundle.configuration, bundle.layout
        backend = OnnxRuntimeBackend(bundle.path, job.threads or None)
        way: Way = Graphs(backend, layout)
    else:
        model = job.model
        layout = TokenLayout.of(model, _START, _END)
        way = _torch_way(job, layout)
    loaded = memory()
    if job.task == "t2i":
        times = draw(way, layout, Schedule(**manner_of(model).generation), job.repeats)
    else:
        times = read(way, layout, model, job.repeats)
    if backend is not None:
        times |= _around(backend, layout, model, job.task, job.repeats)
    return {**times, "loaded": loaded, "memory": memory()}


if __name__ == "__main__":
    print(json.dumps(run(Job(**json.loads(sys.argv[1])))))
