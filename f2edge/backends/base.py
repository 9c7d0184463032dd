"""What every backend offers: run a graph by name.  The caller never asks which backend it has.

A value is a NumPy array, or something that a backend keeps on its device (:class:`DeviceValue`) and takes back as an input; ``host``
brings either to NumPy.  Outputs of a graph may be of either kind.
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
    """A tensor in a device's memory, readable by the backend that made it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def numpy(self) -> Array:
        """A copy in host memory."""
        ...


Value: TypeAlias = Array | DeviceValue


class Backend(Protocol):
    """Runs the graphs of one bundle (:mod:`f2edge.spec.graphs`) on one device; safe to call from several threads."""

    @property
    def name(self) -> str:
        """Name in the registry, such as "onnxruntime"."""
        ...

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Outputs by name; raises :class:`~f2edge.errors.BackendError` naming the graph."""
        ...

    def pack(self, caches: Sequence[Value]) -> Value:
        """Keys or values of single sequences, each (L, 1, H, P_b, W), as one (L, B, H, max P, W), right-aligned, zeros before."""
        ...

    @property
    def lanes(self) -> int:
        """How many pieces of work :meth:`each` does side by side in about the time of one."""
        ...

    def each(self, call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """``call`` of every item, in order: work on this backend that is apart for each item, side by side where the device gains by it."""
        ...


class InTurn:
    """:meth:`Backend.each` of a device whose pieces of work wait for each other in any case."""

    @property
    def lanes(self) -> int:
        """One."""
        return 1

    def each(self, call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """One after another."""
        return [call(item) for item in items]


def host(value: Value) -> Array:
    """The value as a NumPy array, copied only if it lies on a device."""
    return value if isinstance(value, np.ndarray) else value.numpy()


def pack_arrays(caches: Sequence[Array]) -> Array:
    """:meth:`Backend.pack` for arrays in host memory."""
    L, _, H, _, W = caches[0].shape
    columns = max(c.shape[3] for c in caches)
    packed = np.zeros((L, len(caches), H, columns, W), dtype=caches[0].dtype)
    for row, cache in enumerate(caches):
        packed[:, row, :, columns - cache.shape[3] :] = cache[:, 0]
    return packed
