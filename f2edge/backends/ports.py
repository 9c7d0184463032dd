"""Caches that a graph takes and gives layer by layer, under the names of one stacked value.

A graph of a large model reads its keys and values best as one input per layer: ``image_key.0`` … instead of ``image_key`` (L, …), so that
no layer is cut out of a stack (Show-o: 100 MB per answer token).  Callers see none of it: :class:`Ports` cuts a stacked array into views
of its layers and joins the outputs of all layers to one :class:`Layers`.

L layers, B rows, H heads, T columns, W head width, D scored columns, V text vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from f2edge.backends.base import Array, Value, host

#: Input that says which of the new columns get logits, counted from the end; a graph without it gives the last one's.
SCORED = "scored"
#: Metadata of a ``t2i_step`` graph whose rows have the same results alone and beside others (export/graph/independent_rows.py).
INDEPENDENT_ROWS = "f2edge.independent_rows"
_LAST = np.array([-1], dtype=np.int64)
_BY_LAYER = re.compile(r"(.+)\.(\d+)")


class Layers:
    """Keys or values (L, B, H, T, W) whose layers, each (B, H, T, W), are values of their own."""

    def __init__(self, parts: Sequence[Value]) -> None:
        self._parts = tuple(parts)

    def __iter__(self) -> Iterator[Value]:
        return iter(self._parts)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self._parts), *self._parts[0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._parts[0].dtype

    def numpy(self) -> Array:
        """Return a stacked copy in host memory."""
        return np.stack([host(part) for part in self._parts])


def columns(value: Value, rows: slice, chosen: slice) -> Value:
    """Return some rows' ``chosen`` columns as a view, by layer where ``value`` is."""
    if isinstance(value, Layers):
        return Layers([host(part)[rows, :, chosen] for part in value])
    return host(value)[:, rows, :, chosen]


def _groups(names: Sequence[str]) -> dict[str, int]:
    """Return the caches that stand for several names, with their layers."""
    found: dict[str, int] = {}
    for name in names:
        if match := _BY_LAYER.fullmatch(name):
            found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    return found


@dataclass(frozen=True)
class Ports:
    """Inputs and outputs of one opened graph.

    Attributes:
        outputs: names of the graph's outputs in their order.
        layers_in, layers_out: layers of the caches that are passed layer by layer.
        scored: whether the graph has the input :data:`SCORED`.
        independent_rows: whether its metadata has :data:`INDEPENDENT_ROWS`.
    """

    outputs: tuple[str, ...]
    layers_in: Mapping[str, int]
    layers_out: Mapping[str, int]
    scored: bool
    independent_rows: bool = False

    @classmethod
    def of(cls, session: Any) -> Ports:
        """Return the ports of an ``onnxruntime.InferenceSession``."""
        inputs = [value.name for value in session.get_inputs()]
        outputs = tuple(value.name for value in session.get_outputs())
        metadata = session.get_modelmeta().custom_metadata_map
        return cls(outputs, _groups(inputs), _groups(outputs), SCORED in inputs, INDEPENDENT_ROWS in metadata)

    def feeds(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Return the graph's own inputs: stacked caches layer by layer, and which columns are scored."""
        own: dict[str, Value] = {}
        for name, value in feeds.items():
            if name in self.layers_in:
                own |= {f"{name}.{layer}": part for layer, part in enumerate(value)}  # type: ignore[arg-type]
            else:
                own[name] = value
        return own | ({SCORED: _LAST} if self.scored and SCORED not in feeds else {})

    def results(self, feeds: Mapping[str, Value], outputs: Mapping[str, Value]) -> dict[str, Value]:
        """Return the outputs under the names of the graph's signature; ``feeds`` are those of the caller."""
        layered = {f"{name}.{layer}" for name, count in self.layers_out.items() for layer in range(count)}
        found = {name: value for name, value in outputs.items() if name not in layered}
        found |= {name: Layers([outputs[f"{name}.{layer}"] for layer in range(count)]) for name, count in self.layers_out.items()}
        if self.scored and SCORED not in feeds:
            found["logits"] = host(found["logits"])[:, 0]
        return found
