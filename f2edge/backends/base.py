"""Backend interface: run a graph by name, independent of the runtime.

A value is a NumPy array or a tensor on the backend's device (:class:`DeviceValue`), which the backend accepts as input; ``host`` converts
either to NumPy.  Outputs may be of either kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


class DeviceValue(Protocol):
    """Tensor in a device's memory, usable by the backend that made it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def numpy(self) -> Array:
        """Return a copy in host memory."""
        ...


Value: TypeAlias = Array | DeviceValue


class Backend(Protocol):
    """Thread-safe runner of one bundle's graphs (:mod:`f2edge.spec.graphs`) on one device."""

    @property
    def name(self) -> str:
        """Name in the registry, such as "onnxruntime"."""
        ...

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run a graph and return its outputs by name; raises :class:`~f2edge.errors.BackendError` naming the graph."""
        ...

    def pack(self, caches: Sequence[Value]) -> Value:
        """Stack caches of single sequences, each (L, 1, H, P_b, W), to (L, B, H, max P, W), right-aligned and zero-padded."""
        ...

    @property
    def workers(self) -> int:
        """Number of calls that :meth:`each` runs in parallel in about the time of one."""
        ...

    def each(self, call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return ``call(item)`` for every item, in order, run in parallel if the device benefits."""
        ...


class Sequential:
    """:meth:`Backend.each` for a device that runs one call at a time."""

    @property
    def workers(self) -> int:
        """Always 1."""
        return 1

    def each(self, call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return ``call(item)`` for every item, one after another."""
        return [call(item) for item in items]


def host(value: Value) -> Array:
    """Return the value as a NumPy array, copied only from a device."""
    return value if isinstance(value, np.ndarray) else value.numpy()


def pack_arrays(caches: Sequence[Array]) -> Array:
    """Stack caches in host memory as :meth:`Backend.pack`."""
    L, _, H, _, W = caches[0].shape
    columns = max(c.shape[3] for c in caches)
    packed = np.zeros((L, len(caches), H, columns, W), dtype=caches[0].dtype)
    for row, cache in enumerate(caches):
        packed[:, row, :, columns - cache.shape[3] :] = cache[:, 0]
    return packed
