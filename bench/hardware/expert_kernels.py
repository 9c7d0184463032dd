"""Times of the expert kernels by width and number of rows, on which the table in ``export/graph/expert_kernels.py`` is based.

    python -m bench expert-kernels --config nano
    python -m bench expert-kernels --config 1.8b --rows 1,20,257,516

A graph of one mixture of random weights, as lowering leaves it, for every recipe and kernel; milliseconds, the best of several calls.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import onnx_ir as ir
import typer

from bench.options import AsJson, Threads, whole_numbers
from export.graph.expert_kernels import KERNEL_CHOICES
from export.graph.lower import OPSET
from export.quantize.quantize import quantize
from export.quantize.recipes import RECIPES
from f2edge.backends.onnxruntime import usable_cores
from f2edge.cli.console import Output
from f2edge.errors import InputError
from f2edge.spec.configuration import CONFIGURATIONS, TokenExperts

_NAME = "model.blocks.0.experts.t2i"
_TEXT = """
<ir_version: 10, opset_import: ["" : {opset}]>
t2i_step (float[B,S,{D}] x) => (float[B,S,{D}] y)
<
    int64[1] last = {{-1}}, int64[1] beside = {{-2}}, int64[1] active = {{{K}}}, int64[2] sizes = {{{shared}, {routed}}},
    int64[4] apart = {{0, 0, {E}, {I}}}, int64[3] together = {{0, 0, {routed}}}
>
{{
    scores = MatMul (x, router)
    probability = Softmax <axis = -1> (scores)
    best, chosen = TopK <axis = -1> (probability, active)
    column = Unsqueeze (chosen, last)
    equal = Equal (column, experts)
    ones = Cast <to = 1> (equal)
    mask = ReduceSum <keepdims = 0> (ones, beside)
    kept = Mul (probability, mask)
    total = ReduceSum <keepdims = 1> (kept, last)
    gates = Div (kept, total)
    up_product = MatMul (x, up)
    up_sum = Add (up_product, up_bias)
    hidden = Gelu <approximate = "tanh"> (up_sum)
    shared, routed = Split <axis = 2> (hidden, sizes)
    by_expert = Reshape (routed, apart)
    gate_column = Unsqueeze (gates, last)
    gated = Mul (by_expert, gate_column)
    flat = Reshape (gated, together)
    all_hidden = Concat <axis = -1> (shared, flat)
    down_product = MatMul (all_hidden, down)
    y = Add (down_product, down_bias)
}}
"""


def mixture(width: int, shape: TokenExperts, seed: int = 0) -> ir.Model:
    """Return a lowered mixture of experts with random weights, ``x`` (B, S, D) → ``y`` (B, S, D)."""
    E, I, J = shape.routed, shape.routed_width, shape.shared_width + shape.routed * shape.routed_width
    text = _TEXT.format(opset=OPSET, D=width, K=shape.active, shared=shape.shared_width, routed=E * I, E=E, I=I)
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)  # the text lacks the constants, which are added below
    model, rng = ir.from_onnx_text(text), np.random.default_rng(seed)
    logger.setLevel(level)
    values = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    constants = {
        "router": ("router.weight.T", rng.normal(size=(width, E)).astype(np.float32)),
        "experts": ("numbers", np.arange(E, dtype=np.int64)),
        "up": ("up.weight.T", (rng.normal(size=(width, J)) / width**0.5).astype(np.float32)),
        "up_bias": ("up.bias", np.zeros(J, dtype=np.float32)),
        "down": ("down.weight.T", (rng.normal(size=(J, width)) / J**0.5).astype(np.float32)),
        "down_bias": ("down.bias", np.zeros(width, dtype=np.float32)),
    }
    for name, (own, array) in constants.items():
        value = values[name]
        value.name = f"{_NAME}.{own}"
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    return model


def milliseconds(model: ir.Model, x: Any, threads: int, seconds: float) -> float:
    """Return the fastest of the calls that fit into ``seconds``, at least three."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    times: list[float] = []
    session.run(None, {"x": x})
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        session.run(None, {"x": x})
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def measure(
    width: int, shape: TokenExperts, rows: Sequence[int], *, threads: int | None = None, seconds: float = 0.5
) -> list[dict[str, Any]]:
    """Time every recipe and kernel: ``{"recipe", "kernel", "ms": {rows: fastest}}``."""
    model, rng, used = mixture(width, shape), np.random.default_rng(1), threads or usable_cores()
    results = []
    for recipe, kernel in (
        ("fp32", "dense"),
        ("fp32", "gathered"),
        ("int8", "dense"),
        ("int8", "gathered"),
        ("int4", "dense"),
        ("int4", "fused"),
    ):
        made = quantize(model.clone(), replace(RECIPES[recipe], experts=kernel))
        inputs = {count: rng.normal(size=(1, count, width)).astype(np.float32) for count in rows}
        results.append(
            {"recipe": recipe, "kernel": kernel, "ms": {count: milliseconds(made, x, used, seconds) for count, x in inputs.items()}}
        )
    return results


def expert_kernels(
    *,
    config: Annotated[str, typer.Option(help="Configuration of the mixture: nano or 1.8b.")] = "nano",
    rows: Annotated[list[str] | None, typer.Option(help="Numbers of rows; 1,20,130,260 by default.", show_default=False)] = None,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(help="Seconds of calls per cell of the table.")] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Time the kernels of the token-level experts on this CPU."""
    if config not in CONFIGURATIONS or not CONFIGURATIONS[config].token_experts.routed:
        known = [name for name, model in CONFIGURATIONS.items() if model.token_experts.routed]
        raise InputError(f"configuration {config!r} has no routed experts; choose one of: {', '.join(known)}")
    model, counts = CONFIGURATIONS[config], whole_numbers("--rows", rows or (), "1,20,130,260")
    found = measure(model.width, model.token_experts, counts, threads=threads, seconds=seconds)
    document = {"config": config, "threads": threads or usable_cores(), "rows": found, "table": [vars(choice) for choice in KERNEL_CHOICES]}
    cells = [[row["recipe"], row["kernel"], *(f"{ms:.3f}" for ms in row["ms"].values())] for row in found]
    Output(json=as_json).table(("recipe", "kernel", *(f">{count} rows, ms" for count in counts)), cells)
    print(json.dumps(document))
