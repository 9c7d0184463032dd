"""Check of a manifest's graphs against the signatures of ``f2edge.spec.graphs`` and the model's sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from f2edge.errors import BundleError
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.graphs import CACHES, SCORED_SIGNATURES, STATE, GraphSignature, Tensor
from f2edge.spec.layout import TokenLayout


@dataclass(frozen=True)
class Port:
    """One input or output of a graph; ``shape`` mixes fixed sizes and names of dynamic axes."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphEntry:
    """One graph: its file (a key of ``files``), ports, precision ("fp32", "int8") and quantisation recipe (any JSON)."""

    name: str
    file: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    precision: str
    recipe: Any = None


@dataclass(frozen=True)
class SignatureCheck:
    """Comparison of graphs with their signatures: names, dtypes, ranks and the sizes that the model fixes."""

    model: ModelConfiguration
    layout: TokenLayout
    regions: tuple[str, ...]

    def check(self, entry: GraphEntry, signature: GraphSignature) -> None:
        """Raise :class:`BundleError` naming the first port that differs."""
        if any(port.name == "scored" for port in entry.inputs):
            signature = SCORED_SIGNATURES.get(signature.name, signature)
        absent = self.model.absent_inputs(signature.name)
        inputs = tuple(t for t in signature.inputs if t.name not in absent)
        outputs = tuple(port for port in entry.outputs if not port.name.startswith(STATE))
        for kind, given, tensors in (("inputs", entry.inputs, inputs), ("outputs", outputs, signature.outputs)):
            ports = self._joined(given, tensors)
            found, wanted = [port.name for port in ports], [tensor.name for tensor in tensors]
            if sorted(found) != sorted(wanted):
                raise BundleError(
                    f"manifest: graph {entry.name!r} has {kind} {', '.join(found) or 'none'}; "
                    f"this f2edge needs {', '.join(wanted)}; export the bundle again"
                )
            by_name = {tensor.name: tensor for tensor in tensors}
            for port in ports:
                self._check_port(entry.name, port, by_name[port.name])

    def _joined(self, ports: tuple[Port, ...], tensors: tuple[Tensor, ...]) -> tuple[Port, ...]:
        """Return the ports with caches that are passed layer by layer as one port each."""
        rest = {port.name: port for port in ports}
        if len(rest) < len(ports):
            return ports  # a name twice
        for tensor in tensors:
            names = [f"{tensor.name}.{layer}" for layer in range(self.model.layers)]
            parts = [rest[name] for name in names if name in rest]
            if tensor.axes.startswith("L") and len(parts) == len(names) and len({(part.dtype, part.shape) for part in parts}) == 1:
                rest = {name: port for name, port in rest.items() if name not in names}
                rest[tensor.name] = Port(tensor.name, parts[0].dtype, (len(parts), *parts[0].shape))
        return tuple(rest.values())

    def _check_port(self, graph: str, port: Port, tensor: Tensor) -> None:
        wanted = [self._size(graph, tensor, axis) for axis in tensor.axes]
        same = len(port.shape) == len(wanted) and all(
            isinstance(found, str) or size in (None, found) for found, size in zip(port.shape, wanted, strict=True)
        )
        dtypes = {tensor.dtype, "float16"} if tensor.name in CACHES else {tensor.dtype}
        if port.dtype not in dtypes or not same:
            axes = ", ".join(axis if size is None else str(size) for axis, size in zip(tensor.axes, wanted, strict=True))
            shape = ", ".join(map(str, port.shape))
            raise BundleError(
                f"manifest: graph {graph!r}: {port.name} is {port.dtype}[{shape}], needs {tensor.dtype}[{axes}]; export the bundle again"
            )

    def _size(self, graph: str, tensor: Tensor, axis: str) -> int | None:
        """Return the size of an axis that the model fixes; None where the request decides."""
        model = self.model
        sizes = {
            "3": 3,
            "L": model.layers,
            "H": model.heads,
            "W": model.head_width,
            "N": model.image_tokens,
            "C": model.understanding_columns,
            "V": model.text_vocabulary,
            "Y": model.tokenizer.image_size,
            "X": model.tokenizer.image_size,
            "G": model.tokenizer.grid,
            "K": len(self.regions),
        }
        features = model.semantic if "semantic" in (graph, tensor.name) else model.identity
        if features is not None:
            sizes |= {"M": features.vectors, "F": features.width}
            if graph in {"semantic", "identity"} and features.image_size is not None:
                sizes |= {"Y": features.image_size, "X": features.image_size}
        return sizes.get(axis)
