"""Inputs of the self-test: a few cases for each graph, made from a counter-based generator, so that they need not be stored.

Keys, values and features are noise of unit variance, pictures are smooth, codes and words are any.  Every case runs on its own: what one
graph computes is the input of no other, so a damaged graph is the only one that differs.

Axes are those of :mod:`f2edge.spec.graphs`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from f2edge.backends.base import Array
from f2edge.bundle.bundle import Bundle
from f2edge.decoding.noise import noise_key
from f2edge.spec.graph_checks import GraphEntry, Port
from f2edge.spec.graphs import SIGNATURES

#: Name → sizes of the dynamic axes: R requests, B rows or branches, S new and T earlier text columns.
_ROWS = {"one": {"B": 1}, "two": {"B": 2}}
CASES: Mapping[str, Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "t2i_prefill": _ROWS,
        "t2i_step": {"guided": {"R": 1, "B": 2}, "unguided": {"R": 1, "B": 1}, "two guided": {"R": 2, "B": 4}},
        "mmu_prefill": _ROWS,
        "mmu_extend": {
            "question": {"B": 1, "S": 7, "T": 0},
            "token": {"B": 1, "S": 1, "T": 20},
            "three questions": {"B": 3, "S": 9, "T": 0},
            "three tokens": {"B": 3, "S": 1, "T": 40},
        },
    }
)


@dataclass(frozen=True)
class Case:
    """One run of one graph; ``sizes`` of its dynamic axes."""

    graph: str
    name: str
    sizes: Mapping[str, int]

    @property
    def label(self) -> str:
        return f"{self.graph}/{self.name}"

    @property
    def columns(self) -> int:
        """Columns of a state that count, from the right: none of a padding; 0 for all."""
        return (self.valid or 0) if self.graph == "t2i_prefill" else self.sizes.get("S", 0)

    @property
    def valid(self) -> int | None:
        """Columns of a cache that count, from the right: those that every row has; None for all."""
        if self.graph == "t2i_prefill":
            return min(_prompt_lengths(self.sizes["B"]))
        return self.sizes["S"] + self.sizes["T"] if self.graph == "mmu_extend" else None


def cases(bundle: Bundle) -> list[Case]:
    """Return the cases of every graph of a bundle, in the order of the manifest."""
    return [Case(graph, name, sizes) for graph in bundle.manifest.graphs for name, sizes in CASES.get(graph, _ROWS).items()]


def uniform(key: str, count: int) -> Array:
    """Return numbers in [0, 1), float64: a pure function of ``key``, in every version of NumPy."""
    found: Array = (np.random.Philox(key=zlib.crc32(key.encode())).random_raw(count) >> np.uint64(11)) * 2.0**-53
    return found


def _normal(key: str, shape: tuple[int, ...]) -> Array:
    parts = uniform(key, 4 * int(np.prod(shape))).reshape(4, -1)
    found: Array = ((parts.sum(axis=0) - 2.0) * np.sqrt(3.0)).astype(np.float32).reshape(shape)
    return found


def _whole(key: str, shape: tuple[int, ...], below: int) -> Array:
    found: Array = np.floor(uniform(key, int(np.prod(shape))) * below).astype(np.int64).reshape(shape)
    return found


def _picture(key: str, shape: tuple[int, ...]) -> Array:
    """Return pictures (B, 3, Y, X) in [-1, 1]: a few waves in each channel."""
    rows, channels, height, width = shape
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = uniform(key, rows * channels * 4 * 3).reshape(rows, channels, 4, 3, 1, 1)
    value = np.sin(2 * np.pi * (4 * waves[:, :, :, 0] * y + 4 * waves[:, :, :, 1] * x + waves[:, :, :, 2])).mean(axis=2)
    found: Array = value.astype(np.float32)
    return found


def _prompt_lengths(rows: int) -> list[int]:
    return [5 + 4 * row for row in range(rows)]


def feeds(bundle: Bundle, case: Case) -> dict[str, Array]:
    """Return the inputs of a case by name; keys and values stacked, as every backend takes them."""
    ports = _ports(bundle, bundle.manifest.graphs[case.graph])
    shapes = _shapes(bundle, ports, case)
    rows = case.sizes.get("R", 0)
    made: dict[str, Array] = {}
    for name, shape in shapes.items():
        key = f"{case.label}/{name}"
        if name in ("prompt_lengths", "prefix_lengths"):
            made[name] = np.array(_prompt_lengths(shape[0]), dtype=np.int64)
        elif name == "text_lengths":
            made[name] = np.full(shape, case.sizes["S"] + case.sizes["T"], dtype=np.int64)
        elif name in ("prompt_ids", "text_ids"):
            made[name] = _whole(key, shape, bundle.configuration.text_vocabulary)
        elif name == "codes":
            made[name] = _whole(key, shape, bundle.configuration.codes)
        elif name == "pixels":
            made[name] = _picture(key, shape)
        elif name not in _STEP:
            made[name] = _normal(key, shape)
    if case.graph == "t2i_step":
        made |= _step(bundle, made["codes"], rows, case.sizes["B"])
    return {port.name: made[port.name].astype(port.dtype, copy=False) for port in ports}


_STEP = {"branch_row", "unconditional_branch", "mask_ratio", "guidance", "token_temperature", "temperature", "noise_key", "priority",
         "masked_after"}  # fmt: skip


def _step(bundle: Bundle, codes: Array, rows: int, branches: int) -> dict[str, Array]:
    """Return the inputs of a step half-way through, guided where there are two branches for a row."""
    tokens = codes.shape[1]
    hidden = uniform("t2i_step/masked", tokens) < 0.5
    guided = branches == 2 * rows
    single = np.ones(rows, dtype=np.float32)
    return {
        "codes": np.where(hidden, bundle.configuration.codes, codes),
        "branch_row": np.arange(branches, dtype=np.int64) % rows,
        "unconditional_branch": np.arange(rows, dtype=np.int64) + (rows if guided else 0),
        "mask_ratio": single * np.float32(hidden.mean()),
        "guidance": single * np.float32(1.5 if guided else 0.0),
        "token_temperature": single,
        "temperature": single * np.float32(0.5),
        "noise_key": np.stack([noise_key(row, 3, np.arange(tokens)) for row in range(rows)]).astype(np.int64),
        "priority": np.zeros((rows, tokens), dtype=np.float32),
        "masked_after": np.full(rows, int(hidden.sum()) // 2, dtype=np.int64),
    }


def _ports(bundle: Bundle, entry: GraphEntry) -> list[Port]:
    """Return a graph's inputs under the names of its signature: caches that it takes layer by layer as one, and no optional ones."""
    own = {port.name: port for port in entry.inputs}
    found = []
    for tensor in SIGNATURES[entry.name].inputs:
        layer = own.get(f"{tensor.name}.0")
        if layer is not None:
            found.append(Port(tensor.name, layer.dtype, (bundle.configuration.layers, *layer.shape)))
        elif tensor.name in own:
            found.append(own[tensor.name])
    return found


def _shapes(bundle: Bundle, ports: Sequence[Port], case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shape of every input; the picture of ``mmu_extend`` has one row, for all."""
    letters = {tensor.name: tensor.axes for tensor in SIGNATURES[case.graph].inputs}
    sizes = {**case.sizes, "P": bundle.layout.prompt_tokens + len(bundle.layout.unconditional)}
    found = {}
    for port in ports:
        own = {**sizes, "B": 1} if port.name.startswith("image_") else sizes
        found[port.name] = tuple(
            axis if isinstance(axis, int) else own[letter] for letter, axis in zip(letters[port.name], port.shape, strict=True)
        )
    return found
