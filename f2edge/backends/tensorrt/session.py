"""Execution of one TensorRT engine: buffers, staging of inputs, and contexts.

* Host inputs lie side by side in one page-locked buffer and cross in one copy; so do the outputs that go to the host.
* Inputs on the device are copied into the engine's memory, keys and values once as long as the caller passes the same tensor: every tensor
  has one address, so a new picture needs no new CUDA graph.
* Keys and values, and a step's grids, are returned on the device, in one copy of all of them: the grids that one step returns are the next
  one's input without crossing.  A Jetson's grids are in memory that both sides read and cross without a copy anyway.
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
from f2edge.backends.tensorrt.layout import Layout, Place
from f2edge.backends.tensorrt.plans import GraphPlan
from f2edge.backends.tensorrt.scratch import Scratch
from f2edge.backends.tensorrt.shapes import ProfileFit, cache_lines, fit, right_aligned
from f2edge.errors import BackendError
from f2edge.spec.graphs import CACHES, SIGNATURES

#: Maximum number of contexts per engine, each with at most one CUDA graph; the least recently used is dropped first.
CONTEXTS_KEPT = 16
#: An input that may be the output of the run before.  It lies behind the others and is not sent with them.
_FED = "codes"
#: Buffers of several tensors; no tensor has such a name.
_STAGED, _RETURNED, _KEPT = "<inputs>", "<outputs>", "<kept outputs>"


@dataclass
class _Buffer:
    """Engine-owned memory: device address, host buffer if hosted, and the device tensor and shape that it holds a copy of."""

    size: int
    address: int
    host: HostBuffer | None
    owned: bool
    staged: tuple[weakref.ref[DeviceArray], tuple[int, ...]] | None = None


@dataclass(frozen=True)
class _Bound:
    """A context, and where its staged inputs, its outputs to the host and its outputs that stay on the device lie."""

    context: BoundContext
    staged: Layout
    returned: Layout
    kept: Layout


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
        kept = SIGNATURES[plan.name].kept
        self._stays = kept & CACHES if self._cuda.integrated else kept
        self._contexts: OrderedDict[tuple[int, Shapes], _Bound] = OrderedDict()
        self._buffers: dict[str, _Buffer] = {}
        scratch.reserve(int(engine.device_memory_size_v2))

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run the engine and return its outputs by name: :class:`DeviceArray` for those that stay, else arrays."""
        chosen = fit(self.plan, feeds)
        bound = self._context(chosen)
        addresses = self._stage(feeds, bound.staged)
        addresses |= {name: self._cache(name, feeds[name], shape) for name, shape in chosen.shapes.items() if name not in addresses}
        for name, layout, hosted in ((_RETURNED, bound.returned, True), (_KEPT, bound.kept, False)):
            if layout.places:
                addresses |= _addresses(layout, self._buffer(name, layout.size, hosted=hosted).address)
        bound.context.run([addresses[port.name] for port in (*self.plan.inputs, *self.plan.outputs)])
        return self._results(bound)

    @property
    def captured(self) -> int:
        """Number of captured graphs."""
        return sum(bound.context.captured for bound in self._contexts.values())

    def _context(self, chosen: ProfileFit) -> _Bound:
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

    def _bound(self, chosen: ProfileFit) -> _Bound:
        context = BoundContext(self.plan, self._engine, self._trt, self._cuda, self._scratch, chosen=chosen)
        outputs = dict(zip((port.name for port in self.plan.outputs), context.outputs, strict=True))

        def layout(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
            return Layout.of(shapes, self._dtypes)

        return _Bound(
            context,
            layout({name: chosen.shapes[name] for name in sorted(chosen.shapes, key=_FED.__eq__) if name not in CACHES}),
            layout({name: shape for name, shape in outputs.items() if name not in self._stays}),
            layout({name: shape for name, shape in outputs.items() if name in self._stays}),
        )

    def _keep(self, count: int) -> None:
        """Give up contexts, the least recently used first, until ``count`` are left."""
        while len(self._contexts) > count:
            self._cuda.synchronize()  # a run that failed may have left work behind
            self._contexts.popitem(last=False)[1].context.close()

    # Inputs --------------------------------------------------------------------------------------------------------------------------

    def _stage(self, feeds: Mapping[str, Value], layout: Layout) -> dict[str, int]:
        """Copy all inputs but keys and values into the engine's memory, those of the host together; return their addresses."""
        if not layout.places:
            return {}
        buffer = self._buffer(_STAGED, layout.size, hosted=True)
        addresses = _addresses(layout, buffer.address)
        there = {name: value for name in layout.places if self._is_here(value := feeds[name], layout.places[name])}
        assert buffer.host is not None
        end = 0
        for name, place in layout.places.items():
            if name not in there:
                self._write(name, feeds[name], place.view(buffer.host.bytes))
                end = place.offset + place.size
        if buffer.host.address is None and end:
            self._cuda.upload(buffer.address, buffer.host.bytes[:end])
        for name, value in there.items():
            assert isinstance(value, DeviceArray)
            self._copy(addresses[name], value.address, value.nbytes)
        return addresses

    @staticmethod
    def _is_here(value: Value, place: Place) -> bool:
        return isinstance(value, DeviceArray) and value.dtype == place.dtype and value.shape == place.shape

    def _write(self, name: str, value: Value, target: Array) -> None:
        """Write a host input into page-locked memory, right-aligned."""
        array = host(value)
        if array.dtype != target.dtype and not (array.dtype.kind == target.dtype.kind == "f"):
            raise BackendError(f"graph {self.plan.name!r} failed: {name} is {array.dtype}, the plan takes {target.dtype}")
        if array.shape == target.shape:
            target[...] = array
            return
        taken, place = right_aligned(array.shape, target.shape)
        target[...] = 0
        target[place] = array[taken]

    def _cache(self, name: str, value: Value, shape: tuple[int, ...]) -> int:
        """Copy keys or values into the engine's memory, unless they are there already, and return the address."""
        dtype = self._dtypes[name]
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if isinstance(value, DeviceArray) and value.dtype == dtype:
            return self._cache_on_device(name, value, shape, size)
        array = host(value)
        buffer = self._buffer(name, size, hosted=bool(array.size))
        buffer.staged = None
        if not array.size:  # no earlier text: the padding alone
            self._cuda.zero(buffer.address, buffer.size)
            return buffer.address
        assert buffer.host is not None
        staged = Place(0, shape, dtype).view(buffer.host.bytes)
        self._write(name, array, staged)
        if buffer.host.address is None and staged.size:
            self._cuda.upload(buffer.address, staged)
        return buffer.address

    def _cache_on_device(self, name: str, value: DeviceArray, shape: tuple[int, ...], size: int) -> int:
        """Copy keys or values on the device into those of another width, right-aligned."""
        buffer = self._buffer(name, size, hosted=False)
        if buffer.staged is not None and buffer.staged[0]() is value and buffer.staged[1] == shape:
            return buffer.address
        lines, source_bytes = cache_lines(value.shape, value.dtype.itemsize)
        _, target_bytes = cache_lines(shape, value.dtype.itemsize)
        taken = min(source_bytes, target_bytes)
        if taken < target_bytes:
            self._cuda.zero(buffer.address, lines * target_bytes)
        source, target = value.address + source_bytes - taken, buffer.address + target_bytes - taken
        if source_bytes == target_bytes:
            self._copy(target, source, value.nbytes)
        else:
            self._cuda.copy_lines(Lines(target, target_bytes), Lines(source, source_bytes), taken, lines)
        buffer.staged = weakref.ref(value), shape
        return buffer.address

    def _copy(self, target: int, source: int, size: int) -> None:
        self._cuda.copy_lines(Lines(target, size), Lines(source, size), size, 1)

    # Memory --------------------------------------------------------------------------------------------------------------------------

    def _buffer(self, name: str, size: int, *, hosted: bool) -> _Buffer:
        """Return memory of the engine, enlarged if too small."""
        size = max(1, size)
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

    # Outputs -------------------------------------------------------------------------------------------------------------------------

    def _results(self, bound: _Bound) -> dict[str, Value]:
        """Wait for the run and copy its outputs out of the engine's memory."""
        results: dict[str, Value] = {}
        if bound.kept.places:
            block = self._memory.new((bound.kept.size,), np.dtype(np.uint8))
            self._copy(block.address, self._buffers[_KEPT].address, bound.kept.size)
            results |= {name: block.part(place) for name, place in bound.kept.places.items()}
        returned = self._buffers[_RETURNED] if bound.returned.places else None
        if returned is not None and returned.host is not None and returned.host.address is None and bound.returned.size:
            self._cuda.download(returned.host.bytes[: bound.returned.size], returned.address)
        self._cuda.synchronize()
        if returned is not None and returned.host is not None:
            results |= {name: place.view(returned.host.bytes).copy() for name, place in bound.returned.places.items()}
        return results


def _addresses(layout: Layout, base: int) -> dict[str, int]:
    return {name: base + place.offset for name, place in layout.places.items()}


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
