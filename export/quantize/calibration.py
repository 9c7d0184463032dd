"""What flows into every linear layer while a model does its real work.

:class:`Calibrator` is a backend like any other, so an ordinary run of the runtime calibrates: whole decodings pass every mask ratio, with
and without the prompt (both branches of guidance), pictures and questions pass the other graphs.  Only maxima and sums are kept.

>>> with Calibrator(traced, recipe_named("int8-smooth")) as calibrator:  # doctest: +SKIP
...     generate(calibrator, layout, inputs)
>>> calibrator.figures                                                   # doctest: +SKIP
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from typing_extensions import Self

from export.graph.lower import Array
from export.quantize.quantize import layer_name, linear_layers, products_of
from export.quantize.recipes import Recipe
from f2edge.backends.base import Value, host, pack_arrays
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.errors import InputError, OutputError


def only(path: Path, _graph: str) -> Path:
    """The same file for every graph."""
    return path


def save_scratch(model: ir.Model, path: Path) -> None:
    """Write a graph, with its weights beside it, into a temporary folder, to be run; raises :class:`OutputError` where that is full."""
    try:
        ir.save(model, path, external_data=f"{path.stem}.bin")
    except OSError as error:
        raise OutputError(
            f"{path}: a graph cannot be written to be run ({error.strerror}); free some space there, or set TMPDIR to a larger disk"
        ) from error


def valid_columns(graph: str, feeds: Mapping[str, Array]) -> Array | None:
    """Which text columns are no padding, bool (B, S); None for graphs without any.  Texts are right-aligned."""
    match graph:
        case "t2i_prefill":
            lengths, columns = feeds["prompt_lengths"], feeds["prompt_ids"].shape[1]
        case "mmu_extend":
            columns = feeds["text_ids"].shape[1]
            lengths = feeds["text_lengths"]  # earlier columns included, which only makes every new column valid
        case _:
            return None
    valid: Array = np.arange(columns)[None] >= columns - lengths[:, None]
    return valid


class Calibrator:
    """Runs traced fp32 graphs and adds up what flows into the linear layers that ``recipe`` quantises, padding left out.

    Attributes:
        figures: largest activations, and their products for layers that the recipe rounds by GPTQ; grows while it runs.
        mask_ratios: of the decoding steps seen, rounded to hundredths.
        branches: (conditional, unconditional) branches of guidance seen.
    """

    name = "calibrator"

    def __init__(self, traced: Mapping[str, ir.Model], recipe: Recipe) -> None:
        self.figures: dict[str, Array] = {}
        self.mask_ratios: set[float] = set()
        self.branches = (0, 0)
        self._traced, self._recipe = traced, recipe
        self._scratch = tempfile.TemporaryDirectory(prefix="f2edge-calibration-")
        self._opened: dict[str, tuple[OnnxRuntimeBackend, dict[str, list[str]]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._opened.clear()
        self._scratch.cleanup()

    def _open(self, graph: str) -> tuple[OnnxRuntimeBackend, dict[str, list[str]]]:
        """The graph with the inputs of its linear layers as further outputs, and the layers that each of these values feeds."""
        model = self._traced[graph].clone()
        watched: dict[str, list[str]] = {}
        layers = linear_layers(model.graph, self._recipe.of(graph))
        for _, x, weight, _ in layers:
            watched.setdefault(str(x.name), []).append(layer_name(model.graph, weight))
        inner = {str(x.name): x for _, x, _, _ in layers if not x.is_graph_input()}
        model.graph.outputs.extend(value for value in inner.values() if not value.is_graph_output())
        folder = Path(self._scratch.name) / graph
        folder.mkdir()
        save_scratch(model, folder / "graph.onnx")
        return OnnxRuntimeBackend(partial(only, folder / "graph.onnx")), watched

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """As :class:`f2edge.backends.base.Backend`."""
        if graph not in self._opened:
            self._opened[graph] = self._open(graph)
        backend, watched = self._opened[graph]
        arrays = {name: host(value) for name, value in feeds.items()}
        outputs = backend.run(f"watched {graph}", arrays)  # under a name of its own: the backend splits large steps
        valid, recipe = valid_columns(graph, arrays), self._recipe.of(graph)
        for value, layers in watched.items():
            x = host(outputs[value]) if value in outputs else arrays[value]
            rows = x[valid] if valid is not None and x.shape[:2] == valid.shape else x.reshape(-1, x.shape[-1])
            largest = np.abs(rows).max(axis=0, initial=0)
            products = rows.T @ rows if recipe.precision == "int4" and recipe.method == "gptq" else None
            for layer in layers:
                self.figures[layer] = np.maximum(self.figures.get(layer, largest), largest)
                if products is not None:
                    self.figures[products_of(layer)] = self.figures.get(products_of(layer), 0) + products
        if graph == "t2i_step":
            self._count(arrays)
        return {name: value for name, value in outputs.items() if name not in watched}

    def _count(self, feeds: Mapping[str, Array]) -> None:
        rows = len(feeds["codes"])
        self.mask_ratios.update(np.round(feeds["mask_ratio"].astype(float), 2).tolist())
        unconditional = int((feeds["unconditional_branch"] != np.arange(rows)).sum())
        self.branches = (self.branches[0] + rows, self.branches[1] + unconditional)

    def pack(self, caches: Sequence[Value]) -> Value:
        """As :class:`f2edge.backends.base.Backend`."""
        return pack_arrays([host(cache) for cache in caches])

    def check(self) -> None:
        """Refuse figures of decodings that saw no early or no late step, or one branch of guidance only.

        Raises:
            InputError: saying what was missing; graphs that never ran are found when their layers are quantised.
        """
        if not self.mask_ratios:
            return  # a model that draws nothing
        if max(self.mask_ratios) < 0.9 or min(self.mask_ratios) > 0.5 or not all(self.branches):
            raise InputError(
                f"calibration saw mask ratios {min(self.mask_ratios):.2f} to {max(self.mask_ratios):.2f} and {self.branches[1]} "
                "unconditional branches; it needs whole guided decodings: schedule at least three steps with guidance"
            )
