"""Sensitivity analysis of a recipe: quantizes each linear layer alone and compares its graph's outputs with fp32 on real inputs.

    python -m export sensitivity --bundle runs/fp32/nano --recipe int4 --out sensitivity.json

Squared errors of single layers roughly add up, so the few layers far above the median are worth a higher precision.  The report lists them
as a value for a recipe's ``higher``, with the error of the whole graph before and after.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from export.graph.lower import Array
from export.quantize.calibration import save_scratch
from export.quantize.quantize import Calibration, layer_name, linear_layers, quantize
from export.quantize.recipes import Recipe, recipe_named
from export.quantize.requantize import calibrate, fp32_graphs
from export.verify.parity import SampleInputs, generate, understand
from f2edge.backends.base import Value, host, pack_arrays
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.bundle.bundle import TOKENIZER, Bundle
from f2edge.errors import InputError
from f2edge.provenance.saving import check_writable, write_atomically

#: Values compared in each graph; the logits of a step are an internal value.
_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "t2i_prefill": ("prefix_key", "prefix_value"),
    "t2i_step": ("logits",),
    "mmu_prefill": ("image_key", "image_value"),
    "mmu_extend": ("logits",),
}


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer in one graph.

    Attributes:
        graph, layer: names.
        values: number of weights.
        error: relative error of the graph's outputs.
        divergence: mean Kullback-Leibler divergence of logits in nats; None for graphs without logits.
    """

    graph: str
    layer: str
    values: int
    error: float
    divergence: float | None


class _CallRecorder:
    """Backend that runs fp32 graphs and keeps the inputs of ``limit`` calls of each, spread over early and late steps."""

    name = "recorder"

    def __init__(self, inner: OnnxRuntimeBackend, limit: int) -> None:
        self.calls: dict[str, list[dict[str, Array]]] = {}
        self._inner, self._limit, self._seen = inner, limit, dict[str, int]()
        self._stride: dict[str, int] = {}

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        seen, kept = self._seen.get(graph, 0), self.calls.setdefault(graph, [])
        stride = self._stride.setdefault(graph, 1)
        if seen % stride == 0:
            kept.append({name: host(value) for name, value in feeds.items()})
        if len(kept) > self._limit:  # keep every other call, and record half as often from now on
            self.calls[graph], self._stride[graph] = kept[::2], 2 * stride
        self._seen[graph] = seen + 1
        return self._inner.run(graph, feeds)

    def pack(self, caches: Sequence[Value]) -> Value:
        return pack_arrays([host(cache) for cache in caches])


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def compare(wanted: Sequence[Array], found: Sequence[Array], *, logits: bool) -> tuple[float, float | None]:
    """Return the relative error of all values, and for logits the mean Kullback-Leibler divergence of their distributions."""
    pairs = list(zip(wanted, found, strict=True))
    wrong = sum(float(((a - b).astype(np.float64) ** 2).sum()) for a, b in pairs)
    error = (wrong / max(sum(float((a.astype(np.float64) ** 2).sum()) for a in wanted), 1e-30)) ** 0.5
    if not logits:
        return error, None
    divergences = []
    for a, b in pairs:
        p, q = _log_softmax(a), _log_softmax(b)
        divergences.append((np.exp(p) * (p - q)).sum(axis=-1).ravel())
    return error, float(np.concatenate(divergences).mean())


def _outputs(model: ir.Model, graph: str, calls: Sequence[Mapping[str, Array]]) -> list[Array]:
    """Return the values that ``_OUTPUTS`` names, for every call."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in _OUTPUTS[graph]:
        if not values[name].is_graph_output():
            values[name].dtype = ir.DataType.FLOAT
            model.graph.outputs.append(values[name])
    with tempfile.TemporaryDirectory(prefix="f2edge-sensitivity-") as scratch:
        path = Path(scratch) / "graph.onnx"
        save_scratch(model, path)
        backend = OnnxRuntimeBackend(lambda _graph: path, split=False)
        return [host(backend.run(graph, call)[name]) for call in calls for name in _OUTPUTS[graph]]


def sensitivity(
    bundle: Path,
    recipe: str,
    inputs: SampleInputs,
    *,
    only_graphs: Sequence[str] = tuple(_OUTPUTS),
    limit: int = 6,
    times: float = 3.0,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure every linear layer of the transformer's graphs.

    Args:
        bundle: folder of an fp32 bundle.
        recipe: recipe to test.
        inputs: real inputs with whole decodings, which cover all mask ratios and both branches of guidance.
        only_graphs: graphs to analyze.
        limit: calls of each graph to compare.
        times: layers with an error above this multiple of their graph's median are listed in ``higher``.
        progress: called with a message for each graph.

    Returns:
        ``{"recipe", "rows": [LayerSensitivity as dict, worst first], "higher": [layers], "pattern": regex or None,
        "whole": {graph: {"all": error, "raised": error}}}``.

    Raises:
        InputError: an unknown recipe, a bundle that is not fp32, or missing inputs.
    """
    chosen, loaded, graphs = recipe_named(recipe), Bundle.load(bundle), fp32_graphs(bundle)
    if all(chosen.of(name).precision == "float32" for name in only_graphs):
        raise InputError(f"recipe {recipe!r} quantizes no linear layer; choose another")
    calibration = calibrate(graphs, chosen, loaded.layout, inputs)
    graphs = {name: model for name, model in graphs.items() if name in _OUTPUTS and name in only_graphs}
    recorder = _CallRecorder(OnnxRuntimeBackend(loaded.path), limit)
    generate(recorder, loaded.layout, inputs)
    understand(recorder, tuple(loaded.manifest.graphs), loaded.layout, inputs)
    rows: list[LayerSensitivity] = []
    wanted: dict[str, list[Array]] = {}
    for name, model in graphs.items():
        progress(f"{name}: one layer after the other")
        wanted[name] = _outputs(model.clone(), name, recorder.calls[name])
        rows += _rows(model, chosen.of(name), calibration, recorder.calls[name], wanted[name])
    higher = _higher(rows, times)
    pattern = "|".join(rf"{re.escape(layer)}$" for layer in higher) or None
    whole = {}
    for name, model in graphs.items():
        progress(f"{name}: all layers together")
        own = chosen.of(name)
        tried = {"all": own} if own.precision != "int4" or pattern is None else {"all": own, "raised": replace(own, higher=pattern)}
        whole[name] = {
            label: compare(
                wanted[name],
                _outputs(quantize(model.clone(), replace(r, graphs={}), calibration), name, recorder.calls[name]),
                logits=False,
            )[0]
            for label, r in tried.items()
        }
    ordered = sorted(rows, key=lambda row: -row.error)
    return {"recipe": recipe, "rows": [asdict(row) for row in ordered], "higher": higher, "pattern": pattern, "whole": whole}


def _rows(
    model: ir.Model, recipe: Recipe, calibration: Calibration | None, calls: Sequence[Mapping[str, Array]], wanted: list[Array]
) -> list[LayerSensitivity]:
    """Measure every layer of one graph alone."""
    name = str(model.graph.name)
    alone = replace(recipe, tables=False, convolutions="float32", experts="dense", graphs={})
    rows = []
    for constant_name, layer, size in [
        (str(weight.name), layer_name(model.graph, weight), values.size) for _, _, weight, values in linear_layers(model.graph, recipe)
    ]:
        trial = quantize(model.clone(), replace(alone, keep=rf"^(?!{re.escape(constant_name)}$)"), calibration)
        error, divergence = compare(wanted, _outputs(trial, name, calls), logits=_OUTPUTS[name] == ("logits",))
        rows.append(LayerSensitivity(name, layer, size, error, divergence))
    return rows


def _higher(rows: Sequence[LayerSensitivity], times: float) -> list[str]:
    """Return the layers whose error in some graph is above ``times`` the graph's median."""
    found = set()
    for graph in {row.graph for row in rows}:
        own = [row for row in rows if row.graph == graph]
        middle = float(np.median([row.error for row in own]))
        found |= {row.layer for row in own if row.error > times * middle}
    return sorted(found)


def print_report(report: Mapping[str, Any], shown: int = 20) -> None:
    """Print tables of the worst layers and of the whole graphs to stderr."""
    from rich.console import Console
    from rich.table import Table

    console, table = Console(stderr=True), Table("graph", "layer", "values", "error", "nats", title=f"Each layer alone, {report['recipe']}")
    for row in report["rows"][:shown]:
        nats = "" if row["divergence"] is None else f"{row['divergence']:.5f}"
        table.add_row(row["graph"], row["layer"], f"{row['values']:,}", f"{100 * row['error']:.2f} %", nats)
    console.print(table)
    whole = Table("graph", "all layers", "the worst raised to int8", title="Whole graphs")
    for graph, errors in report["whole"].items():
        whole.add_row(graph, *(f"{100 * errors[key]:.2f} %" if key in errors else "" for key in ("all", "raised")))
    console.print(whole)


def run_sensitivity(bundle: Path, recipe: str, *, prompts: int = 2, times: float = 3.0, out: Path | None = None) -> None:
    """Run :func:`sensitivity` on held-out prompts, questions and a picture; print tables to stderr and JSON to ``out`` or stdout."""
    from export.onnx_export import real_inputs

    if not 0 < times < math.inf:
        raise InputError(f"--times {times}: must be a number above 0")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        check_writable(out)
    loaded = Bundle.load(bundle)
    size, template = loaded.configuration.tokenizer.image_size, loaded.layout.question_template
    inputs = real_inputs(bundle / TOKENIZER, loaded.generation, prompts, 1, size=size, template=template)
    report = sensitivity(bundle, recipe, inputs, times=times, progress=lambda message: print(message, file=sys.stderr))
    print_report(report)
    text = json.dumps(report, indent=1)
    if out is None:
        print(text)
    else:
        write_atomically(out, f"{text}\n".encode())
