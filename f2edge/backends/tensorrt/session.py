"""Execution of one TensorRT engine: buffers, staging of inputs, and contexts.

* Host inputs pass through page-locked buffers of the engine.  Inputs on the device are copied into the engine's memory, once as long as
  the caller passes the same tensor: every tensor has one address, so a new picture needs no new CUDA graph.  Keys and values are
  returned as new tensors on the device, everything else as arrays.
* One context per profile and shapes (:mod:`~f2edge.backends.tensorrt.bound_context`); all share one scratch memory, since runs do not
  overlap.  The least recently used is given up.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from f2edge.backends.base import Array, Value, host
from f2edge.backends.tensorrt.bound_context import BoundContext, Shapes
from f2edge.backends.tensorrt.cuda import HostBuffer, Lines
from f2edge.backends.tensorrt.device_memory import DeviceArray, DeviceMemory
from f2edge.backends.tensorrt.plans import GraphPlan
from f2edge.backends.tensorrt.scratch import Scratch
from f2edge.backends.tensorrt.shapes import ProfileFit, cache_lines, fit, right_aligned
from f2edge.errors import BackendError
from f2edge.spec.graphs import SIGNATURES

#: Maximum number of contexts per engine, each with at most one CUDA graph; the least recently used is dropped first.
CONTEXTS_KEPT = 16


@dataclass
class _Buffer:
    """Engine-owned memory of one tensor: device address, host buffer if hosted, and the device tensor and shape that it holds a copy of."""

    size: int
    address: int
    host: HostBuffer | None
    owned: bool
    staged: tuple[weakref.ref[DeviceArray], tuple[int, ...]] | None = None


class EngineSession:
    """Runner of one engine; methods need the current device and run one at a time.

    Args:
        plan: plan of the graph.
        engine: ``tensorrt.ICudaEngine``.
        trt: the ``tensorrt`` module.
        memory, scratch: memory of the backend.

    Raises:
        BackendError: the engine's inputs and outputs differ from the plan.
    """

    def __init__(self, plan: GraphPlan, engine: Any, trt: Any, memory: DeviceMemory, scratch: Scratch) -> None:
        self.plan = plan
        self._engine, self._trt, self._cuda, self._memory, self._scratch = engine, trt, memory.cuda, memory, scratch
        self._dtypes = checked_dtypes(plan, engine, trt)
        axes = {tensor.name: tensor.axes for tensor in SIGNATURES[plan.name].outputs}
        self._stays = {name for name, letters in axes.items() if "H" in letters}  # keys and values
        self._contexts: OrderedDict[tuple[int, Shapes], BoundContext] = OrderedDict()
        self._buffers: dict[str, _Buffer] = {}
        scratch.reserve(int(engine.device_memory_size_v2))

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run the engine and return its outputs by name: :class:`DeviceArray` for keys and values, else arrays."""
        chosen = fit(self.plan, feeds)
        context = self._context(chosen)
        inputs = [self._input(name, feeds[name], shape) for name, shape in chosen.shapes.items()]
        outputs = [self._output(port.name, shape) for port, shape in zip(self.plan.outputs, context.outputs, strict=True)]
        context.run((*inputs, *outputs))
        return self._results(context.outputs)

    @property
    def captured(self) -> int:
        """Number of captured graphs."""
        return sum(context.captured for context in self._contexts.values())

    def _context(self, chosen: ProfileFit) -> BoundContext:
        """Return the context of these shapes; where there is no memory for another one, the others are given up for it."""
        key = chosen.profile, tuple(chosen.shapes.values())
        if key not in self._contexts:
            self._keep(CONTEXTS_KEPT - 1)
            try:
                self._contexts[key] = self._bound(chosen)
            except BackendError:
                if not self._contexts:
                    raise
                self._keep(0)
                self._contexts[key] = self._bound(chosen)
        self._contexts.move_to_end(key)
        return self._contexts[key]

    def _bound(self, chosen: ProfileFit) -> BoundContext:
        return BoundContext(self.plan, self._engine, self._trt, self._cuda, self._scratch, chosen=chosen)

    def _keep(self, count: int) -> None:
        """Give up contexts, the least recently used first, until ``count`` are left."""
        while len(self._contexts) > count:
            self._cuda.synchronize()  # a run that failed may have left work behind
            self._contexts.popitem(last=False)[1].close()

    # Memory --------------------------------------------------------------------------------------------------------------------------

    def _input(self, name: str, value: Value, shape: tuple[int, ...]) -> int:
        """Copy an input into the engine's memory, unless it is there already, and return the address."""
        dtype = self._dtypes[name]
        if isinstance(value, DeviceArray) and value.dtype == dtype and (value.shape == shape or len(shape) == 5):
            return self._stage(name, value, shape)
        array = host(value)
        if array.dtype != dtype and not (array.dtype.kind == dtype.kind == "f"):
            raise BackendError(f"graph {self.plan.name!r} failed: {name} is {array.dtype}, the plan takes {dtype}")
        buffer = self._buffer(name, shape, hosted=bool(array.size) or len(shape) != 5)
        buffer.staged = None
        if not array.size and len(shape) == 5:  # no earlier text: the padding alone
            self._cuda.zero(buffer.address, buffer.size)
            return buffer.address
        assert buffer.host is not None
        staged = _view(buffer.host, shape, dtype)
        source, target = right_aligned(array.shape, shape)
        if array.shape != shape:
            staged[...] = 0
        staged[target] = array[source]
        if buffer.host.address is None and staged.size:
            self._cuda.upload(buffer.address, staged)
        return buffer.address

    def _stage(self, name: str, value: DeviceArray, shape: tuple[int, ...]) -> int:
        """Copy a tensor on the device; a cache (5 axes) into one of another width right-aligned."""
        buffer = self._buffer(name, shape, hosted=False)
        if buffer.staged is not None and buffer.staged[0]() is value and buffer.staged[1] == shape:
            return buffer.address
        if len(shape) == 5:
            lines, source_bytes = cache_lines(value.shape, value.dtype.itemsize)
            _, target_bytes = cache_lines(shape, value.dtype.itemsize)
        else:
            lines, source_bytes, target_bytes = 1, value.nbytes, value.nbytes
        if source_bytes == target_bytes:
            lines, source_bytes, target_bytes = 1, value.nbytes, value.nbytes
        taken = min(source_bytes, target_bytes)
        if taken < target_bytes:
            self._cuda.zero(buffer.address, lines * target_bytes)
        source, target = value.address + source_bytes - taken, buffer.address + target_bytes - taken
        self._cuda.copy_lines(Lines(target, target_bytes), Lines(source, source_bytes), taken, lines)
        buffer.staged = weakref.ref(value), shape
        return buffer.address

    def _output(self, name: str, shape: tuple[int, ...]) -> int:
        return self._buffer(name, shape, hosted=name not in self._stays).address

    def _buffer(self, name: str, shape: tuple[int, ...], *, hosted: bool) -> _Buffer:
        """Return the engine's memory for a tensor, enlarged if too small."""
        size = max(1, int(np.prod(shape, dtype=np.int64)) * self._dtypes[name].itemsize)
        known = self._buffers.get(name)
        if known is not None and known.size >= size and (known.host is not None or not hosted):
            return known
        if known is not None:
            self._cuda.synchronize()
            if known.owned:
                self._cuda.release(known.address)
            del self._buffers[name]
        host_side = self._cuda.host_buffer(size) if hosted else None
        mapped = host_side.address if host_side is not None else None
        self._buffers[name] = _Buffer(size, self._cuda.allocate(size) if mapped is None else mapped, host_side, owned=mapped is None)
        return self._buffers[name]

    def _results(self, shapes: Shapes) -> dict[str, Value]:
        """Wait for the run and copy its outputs out of the engine's memory."""
        results: dict[str, Value] = {}
        views: dict[str, Array] = {}
        for port, shape in zip(self.plan.outputs, shapes, strict=True):
            name, dtype, buffer = port.name, self._dtypes[port.name], self._buffers[port.name]
            if name in self._stays:
                kept = self._memory.new(shape, dtype)
                pitch = kept.nbytes // shape[0] if shape[0] else 0
                self._cuda.copy_lines(Lines(kept.address, pitch), Lines(buffer.address, pitch), pitch, shape[0])
                results[name] = kept
                continue
            assert buffer.host is not None
            views[name] = _view(buffer.host, shape, dtype)
            if buffer.host.address is None and views[name].size:
                self._cuda.download(views[name], buffer.address)
        self._cuda.synchronize()
        results.update((name, view.copy()) for name, view in views.items())
        return results


def _view(buffer: HostBuffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return buffer.bytes[:size].view(dtype).reshape(shape)


def checked_dtypes(plan: GraphPlan, engine: Any, trt: Any) -> dict[str, np.dtype[Any]]:
    """Return the NumPy types of all tensors; raises :class:`BackendError` if engine and plan differ."""
    modes = {trt.TensorIOMode.INPUT: {p.name: p for p in plan.inputs}, trt.TensorIOMode.OUTPUT: {p.name: p for p in plan.outputs}}
    found: dict[str, np.dtype[Any]] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        port = modes[engine.get_tensor_mode(name)].get(name)
        if port is None or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise BackendError(f"graph {plan.name!r}: the engine has a tensor {name!r} that its plan does not have; build it again")
        try:
            found[name] = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        except TypeError as error:
            raise BackendError(
                f"graph {plan.name!r}: {name} has a type that NumPy lacks ({error}); export it with float32 there"
            ) from error
        if found[name] != np.dtype(port.dtype):
            raise BackendError(f"graph {plan.name!r}: the engine's {name} is {found[name]}, its plan says {port.dtype}; build it again")
    missing = {p.name for p in (*plan.inputs, *plan.outputs)} - set(found)
    if missing:
        raise BackendError(f"graph {plan.name!r}: the engine lacks {', '.join(sorted(missing))}; build it again")
    if engine.num_optimization_profiles != len(plan.profiles):
        raise BackendError(
            f"graph {plan.name!r}: the engine has {engine.num_optimization_profiles} profiles, its plan {len(plan.profiles)}"
        )
    return found
