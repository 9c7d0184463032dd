"""Execution of one TensorRT engine: buffers, profile, shapes and captured CUDA graphs.

* Host inputs pass through page-locked buffers of the engine; device inputs of the right shape are bound in place; keys and values are
  returned as new tensors on the device, everything else as arrays.
* One context per profile; all engines share one scratch memory, since runs do not overlap.
* The second run with the same profile, shapes and addresses is captured as a CUDA graph; later runs launch it.  Graphs are dropped when
  an address in them is freed; if capture fails, the engine runs without.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from f2edge.backends.base import Array, Value, host
from f2edge.backends.tensorrt.cuda import CapturedGraph, HostBuffer, Lines
from f2edge.backends.tensorrt.device_memory import DeviceArray, DeviceMemory
from f2edge.backends.tensorrt.plans import GraphPlan
from f2edge.backends.tensorrt.scratch import Scratch
from f2edge.backends.tensorrt.shapes import ProfileFit, cache_lines, fit, right_aligned
from f2edge.errors import BackendError
from f2edge.spec.graphs import SIGNATURES

logger = logging.getLogger(__name__)

#: Maximum number of captured graphs per engine; the least recently used is dropped first.
GRAPHS_KEPT = 32

Shapes = tuple[tuple[int, ...], ...]
#: Key of a captured graph: profile, shapes of the inputs, addresses of inputs and outputs.
GraphKey = tuple[int, Shapes, tuple[int, ...]]


@dataclass
class _Buffer:
    """Engine-owned memory of one tensor: device address and, if hosted, the host buffer."""

    size: int
    address: int
    host: HostBuffer | None
    owned: bool


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
        self._contexts: dict[int, Any] = {}
        self._bound: dict[int, tuple[Shapes, tuple[int, ...]]] = {}
        self._output_shapes: dict[tuple[int, Shapes], Shapes] = {}
        self._buffers: dict[str, _Buffer] = {}
        self._seen: OrderedDict[GraphKey, CapturedGraph | None] = OrderedDict()
        self._no_graphs = self._cuda.no_graphs
        scratch.reserve(int(engine.device_memory_size_v2))
        scratch.on_move(self.forget_graphs)

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run the engine and return its outputs by name: :class:`DeviceArray` for keys and values, else arrays."""
        chosen = fit(self.plan, feeds)
        shapes = tuple(chosen.shapes[port.name] for port in self.plan.inputs)
        context = self._context(chosen.profile)
        outputs = self._shaped(context, chosen, shapes)
        addresses = (
            *(self._input(name, feeds[name], chosen.shapes[name]) for name in chosen.shapes),
            *(self._output(port.name, shape) for port, shape in zip(self.plan.outputs, outputs, strict=True)),
        )
        self._execute(context, (chosen.profile, shapes, addresses))
        return self._results(outputs)

    def forget_graphs(self, address: int | None = None) -> None:
        """Drop the captured graphs that use an address; all of them for None."""
        for key in [key for key in self._seen if address is None or address in key[2]]:
            graph = self._seen.pop(key)
            if graph is not None:
                self._cuda.destroy(graph)

    @property
    def captured(self) -> int:
        """Number of captured graphs."""
        return sum(graph is not None for graph in self._seen.values())

    # Shapes --------------------------------------------------------------------------------------------------------------------------

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            if context is None:
                raise BackendError(f"graph {self.plan.name!r}: TensorRT makes no execution context; is the GPU's memory full?")
            self._scratch.attach(context)
            if not context.set_optimization_profile_async(profile, self._cuda.stream):
                raise BackendError(f"graph {self.plan.name!r}: TensorRT refuses profile {profile}; build the plans again")
            self._cuda.synchronize()
            self._contexts[profile] = context
        return self._contexts[profile]

    def _shaped(self, context: Any, chosen: ProfileFit, shapes: Shapes) -> Shapes:
        """Set the input shapes in the context if they changed, and return the output shapes."""
        known = self._output_shapes.get((chosen.profile, shapes))
        if known is not None:
            return known
        self._set_shapes(context, chosen.profile, shapes)
        found = tuple(tuple(int(size) for size in context.get_tensor_shape(port.name)) for port in self.plan.outputs)
        if any(size < 0 for shape in found for size in shape):
            raise BackendError(f"graph {self.plan.name!r}: an output's shape depends on data, which this runner does not support")
        self._output_shapes[chosen.profile, shapes] = found
        return found

    def _set_shapes(self, context: Any, profile: int, shapes: Shapes) -> None:
        before, _ = self._bound.pop(profile, ((), ()))
        if before == shapes:
            self._bound[profile] = shapes, ()
            return
        for port, shape in zip(self.plan.inputs, shapes, strict=True):
            if not context.set_input_shape(port.name, shape):
                raise BackendError(f"graph {self.plan.name!r}: TensorRT refuses shape {list(shape)} for {port.name}")
        missing = context.infer_shapes()
        if missing:
            raise BackendError(f"graph {self.plan.name!r}: TensorRT still needs shapes of {', '.join(missing)}")
        self._bound[profile] = shapes, ()

    # Memory --------------------------------------------------------------------------------------------------------------------------

    def _input(self, name: str, value: Value, shape: tuple[int, ...]) -> int:
        """Return the address of an input: in place if it is on the device in the right shape, else in the engine's memory."""
        dtype = self._dtypes[name]
        if isinstance(value, DeviceArray) and value.dtype == dtype:
            if value.shape == shape:
                return value.address
            if len(shape) == 5:
                return self._restage(name, value, shape)
        array = host(value)
        if array.dtype != dtype and not (array.dtype.kind == dtype.kind == "f"):
            raise BackendError(f"graph {self.plan.name!r} failed: {name} is {array.dtype}, the plan takes {dtype}")
        if not array.size and len(shape) == 5:  # no earlier text: the padding alone
            buffer = self._buffer(name, shape, hosted=False)
            self._cuda.zero(buffer.address, buffer.size)
            return buffer.address
        buffer = self._buffer(name, shape, hosted=True)
        assert buffer.host is not None
        staged = _view(buffer.host, shape, dtype)
        source, target = right_aligned(array.shape, shape)
        if array.shape != shape:
            staged[...] = 0
        staged[target] = array[source]
        if buffer.host.address is None and staged.size:
            self._cuda.upload(buffer.address, staged)
        return buffer.address

    def _restage(self, name: str, value: DeviceArray, shape: tuple[int, ...]) -> int:
        """Copy a cache on the device into one of another width, right-aligned."""
        buffer = self._buffer(name, shape, hosted=False)
        lines, source_bytes = cache_lines(value.shape, value.dtype.itemsize)
        _, target_bytes = cache_lines(shape, value.dtype.itemsize)
        taken = min(source_bytes, target_bytes)
        if taken < target_bytes:
            self._cuda.zero(buffer.address, lines * target_bytes)
        source, target = value.address + source_bytes - taken, buffer.address + target_bytes - taken
        self._cuda.copy_lines(Lines(target, target_bytes), Lines(source, source_bytes), taken, lines)
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
            self.forget_graphs(known.address)
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

    # Execution -----------------------------------------------------------------------------------------------------------------------

    def _execute(self, context: Any, key: GraphKey) -> None:
        graph = self._seen.get(key)
        if key in self._seen:
            self._seen.move_to_end(key)
            if graph is None and self._no_graphs is None:
                graph = self._seen[key] = self._capture(context, key)
        else:
            self._seen[key] = None
            while len(self._seen) > GRAPHS_KEPT:
                _, oldest = self._seen.popitem(last=False)
                if oldest is not None:
                    self._cuda.destroy(oldest)
        if graph is not None:
            self._cuda.launch(graph)
            return
        self._bind(context, key)
        if not context.execute_async_v3(self._cuda.stream):
            raise BackendError(f"graph {self.plan.name!r} failed in TensorRT (execute_async_v3); its log says why")

    def _capture(self, context: Any, key: GraphKey) -> CapturedGraph | None:
        """Capture the run as a CUDA graph; return None, and never try again, if that fails."""
        self._bind(context, key)
        self._cuda.synchronize()  # inputs are uploaded: only the engine is captured
        try:
            self._cuda.begin_capture()
            recorded = context.execute_async_v3(self._cuda.stream)
            graph = self._cuda.end_capture()
        except BackendError as error:
            self._no_graphs = str(error)
        else:
            if recorded:
                return graph
            self._cuda.destroy(graph)
            self._no_graphs = "TensorRT does not enqueue it while a stream is captured"
        logger.warning("graph %r runs without a CUDA graph: %s", self.plan.name, self._no_graphs)
        return None

    def _bind(self, context: Any, key: GraphKey) -> None:
        """Set the shapes and addresses of a run in the context."""
        profile, shapes, addresses = key
        if self._bound.get(profile) == (shapes, addresses):
            return
        self._set_shapes(context, profile, shapes)
        for port, address in zip((*self.plan.inputs, *self.plan.outputs), addresses, strict=True):
            if not context.set_tensor_address(port.name, address):
                raise BackendError(f"graph {self.plan.name!r}: TensorRT refuses the address of {port.name}")
        self._bound[profile] = shapes, addresses


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
