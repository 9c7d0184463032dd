"""Stages of the model (guided step, prefill, answer token) timed for one engine or baseline in a worker process.

    worker = Worker("bench.latency.stages", {"kind": "engine", "task": "t2i", "bundle": "runs/show-o/int8"}, "int8")
    worker.ask({})["step_ms"]

Inputs are random numbers: times do not depend on values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.hardware.memory import process_memory
from bench.latency.decoders import GraphDecoder, TokenDecoder
from bench.latency.worker import Handler, Message, serve
from export.defaults import defaults_of
from f2edge.backends.base import Backend, host
from f2edge.backends.onnxruntime import OnnxRuntimeBackend, usable_cores
from f2edge.bundle.bundle import Bundle
from f2edge.decoding.parallel import GridRow, advance
from f2edge.decoding.schedule import Schedule, plan
from f2edge.errors import InputError
from f2edge.spec.configuration import CONFIGURATIONS, ModelConfiguration
from f2edge.spec.layout import TokenLayout, left_pad

LLAMA_CPP = "llama.cpp"
BASELINES = ("lineage", "cached", "compiled", LLAMA_CPP)
KINDS = ("engine", *BASELINES)
TASKS = ("t2i", "mmu")
PROMPT_TOKENS, QUESTION_TOKENS = 16, 20
#: Start and end of text in the random models, which have the embedded model's tokenizer.
_START, _END = 0, 1

Times = dict[str, list[float]]


@dataclass(frozen=True)
class System:
    """System under test.

    Attributes:
        kind: "engine" (a bundle in ONNX Runtime), "lineage", "cached" or "compiled" (:mod:`bench.latency.reference`), or "llama.cpp"
            (:mod:`bench.latency.llama_cpp`, task "mmu" only).
        task: "t2i" or "mmu".
        configuration: of the model; an engine takes its bundle's.
        layers: of a shortened model, or None.
        seed: of the random weights.
        bundle: folder of the engine's bundle, or llama.cpp's file.
        threads: CPU threads; 0 takes every usable core.
        repeats: measured steps, prefills and answer tokens, at least 1.
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
                raise InputError(f"{name} {value!r}: choose from {', '.join(known)}")
        if self.repeats < 1:
            raise InputError(f"repeats must be at least 1, got {self.repeats}")

    @property
    def model(self) -> ModelConfiguration:
        whole = CONFIGURATIONS[self.configuration]
        return whole if self.layers is None else replace(whole, layers=self.layers)


def repeated_ms(call: Callable[[], object], repeats: int) -> list[float]:
    """Return the milliseconds of ``repeats`` calls after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = perf_counter()
        call()
        times.append(1e3 * (perf_counter() - start))
    return times[1:]


def time_steps(decoder: TokenDecoder, layout: TokenLayout, schedule: Schedule, repeats: int) -> Times:
    """Time steps of one picture, guided and without guidance; the first of each does not count."""
    rng = np.random.default_rng(0)
    start = perf_counter()
    step = decoder.step([rng.integers(2, 1000, PROMPT_TOKENS).tolist()])
    times = {"prompt_ms": [1e3 * (perf_counter() - start)]}
    everything = np.ones(layout.image_tokens, dtype=bool)
    longer = replace(schedule, steps=max(schedule.steps, repeats + 1))
    for name, guidance in (("step_ms", schedule.guidance), ("unguided_step_ms", 0.0)):
        chosen = replace(longer, guidance=guidance)
        rows = [GridRow.of(np.full(layout.image_tokens, layout.mask_code), plan(chosen, everything, 7, layout.block), 7)]

        def one(rows: list[GridRow] = rows) -> None:
            rows[:] = advance(step, rows, [0])[0]

        times[name] = repeated_ms(one, min(repeats, rows[0].plan.steps - 1))
    return times


def time_answers(decoder: TokenDecoder, layout: TokenLayout, model: ModelConfiguration, repeats: int) -> Times:
    """Time the prefill of a picture and a question, then single answer tokens; the first of each does not count."""
    rng = np.random.default_rng(0)
    shapes = {"semantic": model.semantic, "identity": model.identity}
    features = {name: rng.normal(size=(1, s.vectors, s.width)).astype(np.float32) for name, s in shapes.items() if s is not None}
    question = left_pad([[layout.start_of_text, *rng.integers(2, 1000, QUESTION_TOKENS - 1).tolist()]], layout.pad)
    extend: Any = None
    logits, state, lengths = np.empty(0), None, question[1]

    def prefill() -> None:
        nonlocal extend, logits, state
        extend, state = decoder.prefill(rng.integers(0, layout.codes, (1, layout.image_tokens)), features)
        logits, state = extend(*question, state)

    def token() -> None:
        nonlocal logits, state, lengths
        lengths = lengths + 1
        logits, state = extend(logits.argmax(-1)[:, None].astype(np.int64), lengths, state)

    return {"prefill_ms": repeated_ms(prefill, repeats), "token_ms": repeated_ms(token, repeats)}


def time_image_tokenizer(backend: Backend, layout: TokenLayout, model: ModelConfiguration, task: str, repeats: int) -> Times:
    """Time the image tokenizer's part of a task: "image_decode_ms" or "image_encode_ms"."""
    rng, side = np.random.default_rng(0), model.tokenizer.image_size
    codes = rng.integers(0, layout.codes, (1, layout.image_tokens))
    pixels = rng.uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    graph, feeds = ("image_decode", {"codes": codes}) if task == "t2i" else ("image_encode", {"pixels": pixels})
    return {f"{graph}_ms": repeated_ms(lambda: backend.run(graph, feeds), min(repeats, 3))}


def time_first_token(backend: Backend, layout: TokenLayout, model: ModelConfiguration, repeats: int) -> Times:
    """Time from a picture's pixels to the first token of an answer: encoders, image prefill and question."""
    rng, side, decoder = np.random.default_rng(0), model.tokenizer.image_size, GraphDecoder(backend, layout)
    question = left_pad([[layout.start_of_text, *rng.integers(2, 1000, QUESTION_TOKENS - 1).tolist()]], layout.pad)
    pixels = {"pixels": rng.uniform(-1, 1, (1, 3, side, side)).astype(np.float32)}
    encoders = [name for name in ("semantic", "identity") if getattr(model, name) is not None]

    def first_token() -> None:
        codes = np.asarray(host(backend.run("image_encode", pixels)["codes"]))
        features = {name: np.asarray(host(backend.run(name, pixels)["features"])) for name in encoders}
        extend, state = decoder.prefill(codes, features)
        extend(*question, state)

    return {"first_token_ms": repeated_ms(first_token, min(repeats, 3))}


def _torch_decoder(system: System, layout: TokenLayout) -> TokenDecoder:
    import torch

    from bench.latency.reference import CachedTorch, Lineage
    from export.checkpoints.random_weights import random_models_of

    torch.set_num_threads(system.threads or usable_cores())
    models = random_models_of(system.model, system.seed)
    if system.kind != "lineage":
        return GraphDecoder(CachedTorch(models, compiled=system.kind == "compiled"), layout)
    assert models.transformer is not None
    models.transformer.use_fused_attention(fused=True)
    return Lineage(models, layout)


def _loaded(system: System) -> Callable[[], Times]:
    """Load a system; return the function that measures it."""
    if system.kind == LLAMA_CPP:
        from bench.latency.llama_cpp import time_llama

        columns = system.model.understanding_columns + QUESTION_TOKENS
        return lambda: time_llama(Path(system.bundle), columns, system.threads or usable_cores(), system.repeats)
    backend: Backend | None = None
    decoder: TokenDecoder
    if system.kind == "engine":
        bundle = Bundle.load(system.bundle, verify=False)
        model, layout = bundle.configuration, bundle.layout
        backend = OnnxRuntimeBackend(bundle.path, system.threads or None)
        decoder = GraphDecoder(backend, layout)
    else:
        model = system.model
        layout = TokenLayout.of(model, _START, _END)
        decoder = _torch_decoder(system, layout)

    def measure() -> Times:
        if system.task == "t2i":
            times = time_steps(decoder, layout, Schedule(**defaults_of(model).generation), system.repeats)
        else:
            times = time_answers(decoder, layout, model, system.repeats)
        if backend is not None:
            times |= time_image_tokenizer(backend, layout, model, system.task, system.repeats)
            if system.task == "mmu":
                times |= time_first_token(backend, layout, model, system.repeats)
        return times

    return measure


def start(**arguments: Any) -> tuple[Message, Handler]:
    """Load a :class:`System`; each message is answered with milliseconds by stage and the memory "loaded" and afterwards."""
    measure = _loaded(System(**arguments))
    loaded = process_memory()
    return {}, lambda _: {"times": measure(), "memory": {"loaded": loaded["resident"], **process_memory()}}


if __name__ == "__main__":
    serve(start)
