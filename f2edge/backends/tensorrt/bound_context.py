"""An execution context with one profile, one set of shapes and one address for every tensor, and the CUDA graph captured from it.

TensorRT's guide ties a captured graph to the state of its context: a graph launched after its context was given another shape, address
or memory is undefined, and the first enqueue after such a change allocates, which cannot be captured ("CUDA graphs" in NVIDIA's best
practices; NVIDIA/TensorRT issue 3798; trtexec enqueues once and waits before it captures).  So each context here keeps its shapes for life,
a change of an address or of the scratch memory drops its graph, and the first run after one is enqueued and waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from f2edge.backends.tensorrt.cuda import CapturedGraph, CudaDevice
from f2edge.backends.tensorrt.plans import GraphPlan
from f2edge.backends.tensorrt.scratch import Scratch
from f2edge.backends.tensorrt.shapes import ProfileFit
from f2edge.errors import BackendError

logger = logging.getLogger(__name__)

Shapes = tuple[tuple[int, ...], ...]


class BoundContext:
    """One context of an engine.

    Args:
        plan, engine, trt, cuda, scratch: as for :class:`~f2edge.backends.tensorrt.session.EngineSession`.
        chosen: profile and input shapes.

    Attributes:
        outputs: shapes of the outputs, in the plan's order.
        captured: whether it has a CUDA graph.

    Raises:
        BackendError: TensorRT makes no context or refuses the shapes.
    """

    def __init__(self, plan: GraphPlan, engine: Any, trt: Any, cuda: CudaDevice, scratch: Scratch, *, chosen: ProfileFit) -> None:
        self._plan, self._cuda, self._scratch = plan, cuda, scratch
        self._addresses: tuple[int, ...] = ()
        self._graph: CapturedGraph | None = None
        self._settled, self._no_graph = False, cuda.no_graphs is not None
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None:
            raise self._error("TensorRT makes no execution context; is the GPU's memory full?")
        if not self._context.set_optimization_profile_async(chosen.profile, cuda.stream):
            raise self._error(f"TensorRT refuses profile {chosen.profile}; build the plans again")
        cuda.synchronize()
        self.outputs = self._shaped(chosen)
        self._shapes = ", ".join(f"{name} {list(shape)}" for name, shape in chosen.shapes.items())
        scratch.attach(self._place)

    def _error(self, text: str) -> BackendError:
        return BackendError(f"graph {self._plan.name!r}: {text}")

    def _shaped(self, chosen: ProfileFit) -> Shapes:
        for name, shape in chosen.shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise self._error(f"TensorRT refuses shape {list(shape)} for {name}")
        missing = self._context.infer_shapes()
        if missing:
            raise self._error(f"TensorRT still needs shapes of {', '.join(missing)}")
        found = tuple(tuple(int(size) for size in self._context.get_tensor_shape(port.name)) for port in self._plan.outputs)
        if any(size < 0 for shape in found for size in shape):
            raise self._error("an output's shape depends on data, which this runner does not support")
        return found

    def _place(self, address: int, size: int) -> None:
        self._forget()
        self._context.set_device_memory(address, size)

    def _forget(self) -> None:
        """Drop the graph; the next run settles the context again."""
        self._settled = False
        if self._graph is not None:
            self._cuda.destroy(self._graph)
            self._graph = None

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def close(self) -> None:
        """Give the context up; nothing of it may be queued."""
        self._forget()
        self._scratch.detach(self._place)

    def run(self, addresses: Sequence[int]) -> None:
        """Queue a run with these addresses of inputs and outputs, in the plan's order.

        The first run with them is waited for, the second is captured as a CUDA graph, later ones launch it.  Shapes that cannot be captured
        run without.

        Raises:
            BackendError: TensorRT refuses an address or the run.
        """
        self._bind(tuple(addresses))
        tried = self._settled and self._graph is None and not self._no_graph
        if tried:
            self._capture()
        if self._graph is not None:
            self._cuda.launch(self._graph)
            return
        # TensorRT has a CUDA runtime of its own, whose last error of a failed capture only its next call can report.
        if not (self._enqueue() or (tried and self._enqueue())):
            raise BackendError(f"graph {self._plan.name!r} failed in TensorRT (execute_async_v3); its log says why")
        if not self._settled:
            self._cuda.synchronize()
            self._settled = True

    def _bind(self, addresses: tuple[int, ...]) -> None:
        if addresses == self._addresses:
            return
        self._forget()
        for port, address in zip((*self._plan.inputs, *self._plan.outputs), addresses, strict=True):
            if not self._context.set_tensor_address(port.name, address):
                raise self._error(f"TensorRT refuses the address of {port.name}")
        self._addresses = addresses

    def _enqueue(self) -> bool:
        return bool(self._context.execute_async_v3(self._cuda.stream))

    def _capture(self) -> None:
        """Capture the run; if that fails, say so and do not try these shapes again."""
        try:
            self._graph = self._cuda.capture(self._enqueue)
        except BackendError as error:
            self._no_graph = True
            logger.warning("graph %r runs without a CUDA graph at %s: %s", self._plan.name, self._shapes, error)
