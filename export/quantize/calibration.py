"""Calibration: activation statistics of every linear layer from ordinary runs of the model.

:class:`Calibrator` is a backend, so an ordinary run of the runtime calibrates: whole decodings cover every mask ratio with both branches of
guidance, pictures and questions cover the other graphs.  Only maxima and sums are kept.

>>> with Calibrator(traced, recipe_named("int8-smooth")) as calibrator:  # doctest: +SKIP
...     generate(calibrator, layout, inputs)
>>> calibrator.statistics                                                # doctest: +SKIP
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from typing_extensions import Self

from export.graph.lower import Array
from export.quantize.convolutions import convolution_layers, range_of, ranges
from export.quantize.quantize import layer_name, linear_layers, own_name, products_of
from export.quantize.recipes import Recipe
from f2edge.backends.base import Value, host, pack_arrays
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.errors import InputError, OutputError
from f2edge.spec.graphs import SIGNATURES


def save_scratch(model: ir.Model, path: Path) -> None:
    """Write a graph to a temporary file to run it, with its weights beside it; raises :class:`OutputError` if the disk is full."""
    try:
        ir.save(model, path, external_data=f"{path.stem}.bin")
    except OSError as error:
        raise OutputError(
            f"{path}: a temporary graph cannot be written ({error.strerror}); free some space there, or set TMPDIR to a larger disk"
        ) from error


def valid_columns(graph: str, feeds: Mapping[str, Array]) -> Array | None:
    """Return which text columns are not padding, bool (B, S); None for graphs without text columns.  Texts are right-aligned."""
    match graph:
        case "t2i_prefill":
            lengths, columns = feeds["prompt_lengths"], feeds["prompt_ids"].shape[1]
        case "mmu_extend":
            columns = feeds["text_ids"].shape[1]
            lengths = feeds["text_lengths"]  # includes earlier columns, so every new column of a continued text is valid
        case _:
            return None
    valid: Array = np.arange(columns)[None] >= columns - lengths[:, None]
    return valid


class Calibrator:
    """Backend that runs traced fp32 graphs and accumulates the inputs of the linear layers that ``recipe`` quantizes, without padding.

    Attributes:
        statistics: a :data:`~export.quantize.quantize.Calibration`: largest activations, and their products for layers that the recipe
            rounds by GPTQ.
        mask_ratios: mask ratios of the decoding steps seen, rounded to hundredths.
        branches: numbers of (conditional, unconditional) branches seen.
    """

    name = "calibrator"

    def __init__(self, traced: Mapping[str, ir.Model], recipe: Recipe) -> None:
        self.statistics: dict[str, Array] = {}
        self.mask_ratios: set[float] = set()
        self.branches = (0, 0)
        self._traced, self._recipe = traced, recipe
        self._scratch = tempfile.TemporaryDirectory(prefix="f2edge-calibration-")
        self._convolutions: dict[str, dict[str, tuple[str, str]]] = {}
        self._opened: dict[str, tuple[OnnxRuntimeBackend, dict[str, list[str]]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._opened.clear()
        self._scratch.cleanup()

    def _open(self, graph: str) -> tuple[OnnxRuntimeBackend, dict[str, list[str]]]:
        """Return the graph with the inputs of its linear layers as extra outputs, and the layers that each of these values feeds."""
        model = self._traced[graph].clone()
        watched: dict[str, list[str]] = {}
        layers = linear_layers(model.graph, self._recipe.of(graph))
        for _, x, weight, _ in layers:
            watched.setdefault(str(x.name), []).append(layer_name(model.graph, weight))
        convolutions = convolution_layers(model.graph, self._recipe.of(graph))
        self._convolutions[graph] = {
            layer_name(model.graph, weight): (str(x.name), str(node.outputs[0].name)) for node, x, weight, _ in convolutions
        }
        seen = [x for _, x, _, _ in layers] + [value for node, x, _, _ in convolutions for value in (x, node.outputs[0])]
        inner = {str(x.name): x for x in seen if not x.is_graph_input()}
        model.graph.outputs.extend(value for value in inner.values() if not value.is_graph_output())
        folder = Path(self._scratch.name) / graph
        folder.mkdir()
        save_scratch(model, folder / "graph.onnx")
        return OnnxRuntimeBackend(lambda _graph: folder / "graph.onnx", split=False), watched

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run a graph and update the statistics; see :class:`f2edge.backends.base.Backend`."""
        if graph not in self._opened:
            self._opened[graph] = self._open(graph)
        backend, watched = self._opened[graph]
        arrays = {name: host(value) for name, value in feeds.items()}
        outputs = backend.run(graph, arrays)
        valid, recipe = valid_columns(graph, arrays), self._recipe.of(graph)
        for value, layers in watched.items():
            x = host(outputs[value]) if value in outputs else arrays[value]
            rows = x[valid] if valid is not None and x.shape[:2] == valid.shape else x.reshape(-1, x.shape[-1])
            largest = np.abs(rows).max(axis=0, initial=0)
            products = rows.T @ rows if recipe.precision == "int4" and recipe.method == "gptq" else None
            if recipe.activations == "fixed":
                self._widen(graph, layers, rows)
            for layer in layers:
                self.statistics[layer] = np.maximum(self.statistics.get(layer, largest), largest)
                if products is not None:
                    self.statistics[products_of(layer)] = self.statistics.get(products_of(layer), 0) + products
        for layer, ends in self._convolutions[graph].items():
            x, y = (host(outputs[value]) if value in outputs else arrays[value] for value in ends)
            self.statistics[range_of(layer)] = ranges(x, y, self.statistics.get(range_of(layer)))
        if graph == "t2i_step":
            self._count(arrays)
        return {tensor.name: outputs[tensor.name] for tensor in SIGNATURES[graph].outputs}

    def _widen(self, graph: str, layers: list[str], rows: Array) -> None:
        """Widen the range of a value that feeds some layers."""
        low, high = (np.float32(end) for end in (rows.min(initial=0), rows.max(initial=0)))
        for layer in layers:
            key = range_of(own_name(self._traced[graph].graph, layer))
            before = self.statistics.get(key, np.zeros(2, dtype=np.float32))
            self.statistics[key] = np.array([min(before[0], low), max(before[1], high)], dtype=np.float32)

    def _count(self, feeds: Mapping[str, Array]) -> None:
        rows = len(feeds["codes"])
        self.mask_ratios.update(np.round(feeds["mask_ratio"].astype(float), 2).tolist())
        unconditional = int((feeds["unconditional_branch"] != np.arange(rows)).sum())
        self.branches = (self.branches[0] + rows, self.branches[1] + unconditional)

    def pack(self, caches: Sequence[Value]) -> Value:
        """Join caches; see :class:`f2edge.backends.base.Backend`."""
        return pack_arrays([host(cache) for cache in caches])

    def check(self) -> None:
        """Check that decodings covered early and late steps and both branches of guidance.

        Graphs that never ran are found when their layers are quantized.

        Raises:
            InputError: some of these are missing.
        """
        if not self.mask_ratios:
            return  # a model without image generation
        if max(self.mask_ratios) < 0.9 or min(self.mask_ratios) > 0.5 or not all(self.branches):
            raise InputError(
                f"calibration saw mask ratios {min(self.mask_ratios):.2f} to {max(self.mask_ratios):.2f} and {self.branches[1]} "
                "unconditional branches; it needs whole guided decodings: schedule at least three steps with guidance"
            )
