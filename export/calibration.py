"""What flows into every linear layer while a model does its real work.

:class:`Calibrator` is a backend like any other, so an ordinary run of the runtime calibrates: whole decodings pass every mask ratio, with
and without the prompt (both branches of guidance), pictures and questions pass the other graphs.  Only maxima are kept.

>>> with Calibrator(traced, recipe_named("int8-smooth")) as calibrator:  # doctest: +SKIP
...     generate(calibrator, layout, inputs)
>>> calibrator.largest                                                   # doctest: +SKIP
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from typing_extensions import Self

from export.lower import Array
from export.quantise import Recipe, layer_name, linear_layers
from f2edge.backends.base import Value, host, pack_arrays
from f2edge.backends.onnxruntime import OnnxRuntimeBackend


def only(path: Path, _graph: str) -> Path:
    """The same file for every graph."""
    return path


class Calibrator:
    """Runs traced fp32 graphs and keeps the largest absolute activation of every input channel of every layer that ``recipe`` quantises.

    Attributes:
        largest: by :func:`export.quantise.layer_name`, float32 (K,).
        mask_ratios: of the decoding steps seen, rounded to hundredths.
        branches: (conditional, unconditional) branches of guidance seen.
    """

    name = "calibrator"

    def __init__(self, traced: Mapping[str, ir.Model], recipe: Recipe) -> None:
        self.largest: dict[str, Array] = {}
        self.mask_ratios: set[float] = set()
        self.branches = (0, 0)
        self._traced, self._recipe = traced, recipe
        self._scratch = tempfile.TemporaryDirectory(prefix="f2edge-calibration-")
        self._opened: dict[str, tuple[OnnxRuntimeBackend, list[tuple[str, str]]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._opened.clear()
        self._scratch.cleanup()

    def _open(self, graph: str) -> tuple[OnnxRuntimeBackend, list[tuple[str, str]]]:
        """The graph with the inputs of its linear layers as further outputs, and the pairs (value, layer) to look at."""
        model = self._traced[graph].clone()
        watched = [(str(x.name), layer_name(model.graph, weight)) for _, x, weight, _ in linear_layers(model.graph, self._recipe)]
        inner = {str(x.name): x for _, x, _, _ in linear_layers(model.graph, self._recipe) if not x.is_graph_input()}
        model.graph.outputs.extend(value for value in inner.values() if not value.is_graph_output())
        folder = Path(self._scratch.name) / graph
        folder.mkdir()
        ir.save(model, folder / "graph.onnx", external_data="weights.bin")
        return OnnxRuntimeBackend(partial(only, folder / "graph.onnx")), watched

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """As :class:`f2edge.backends.base.Backend`."""
        if graph not in self._opened:
            self._opened[graph] = self._open(graph)
        backend, watched = self._opened[graph]
        arrays = {name: host(value) for name, value in feeds.items()}
        outputs = backend.run(f"watched {graph}", arrays)  # under a name of its own: the backend splits large steps
        seen: dict[str, Array] = {}
        for value, layer in watched:
            if value not in seen:
                x = np.abs(host(outputs[value]) if value in outputs else arrays[value])
                seen[value] = x.reshape(-1, x.shape[-1]).max(axis=0, initial=0)
            self.largest[layer] = np.maximum(self.largest.get(layer, seen[value]), seen[value])
        if graph == "t2i_step":
            self._count(arrays)
        return outputs

    def _count(self, feeds: Mapping[str, Array]) -> None:
        rows = len(feeds["codes"])
        self.mask_ratios.update(np.round(feeds["mask_ratio"].astype(float), 2).tolist())
        unconditional = int((feeds["unconditional_branch"] != np.arange(rows)).sum())
        self.branches = (self.branches[0] + rows, self.branches[1] + unconditional)

    def pack(self, caches: Sequence[Value]) -> Value:
        """As :class:`f2edge.backends.base.Backend`."""
        return pack_arrays([host(cache) for cache in caches])
