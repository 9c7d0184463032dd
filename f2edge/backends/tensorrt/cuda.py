"""CUDA for the TensorRT backend: memory, copies, one stream, and CUDA graphs.

:class:`CudaDevice` is the interface; memory and copies go through pycuda (:mod:`~f2edge.backends.tensorrt.cuda_pycuda`) or, where that
cannot be built, through NVIDIA's ``cuda-bindings`` (:mod:`~f2edge.backends.tensorrt.cuda_bindings`).  Graphs are always captured by
``cuda-bindings``, since pycuda has no call for it.  Both use the driver API in the device's primary context, shared with TensorRT, PyTorch
and the CUDA runtime, so addresses, streams and graphs are valid in all of them.

All work is queued on one stream.  It is non-blocking: a stream that waits for the legacy default stream loses its capture whenever another
library of the process uses that.  Only :meth:`CudaDevice.synchronize` waits.

A Jetson's GPU reads host memory: a :class:`HostBuffer` then has a device address and needs no copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from f2edge.backends.base import Array
from f2edge.errors import BackendError

#: ``CU_STREAM_NON_BLOCKING``, for which pycuda has no name.
NON_BLOCKING = 1


@dataclass(frozen=True)
class HostBuffer:
    """Page-locked host memory: ``bytes`` uint8 (size,), and its device address on a Jetson, else None."""

    bytes: NDArray[np.uint8]
    address: int | None


@dataclass(frozen=True)
class CapturedGraph:
    """Captured CUDA graph; ``executable`` is launched, ``source`` is kept only to be destroyed with it."""

    executable: Any
    source: Any


class Lines(NamedTuple):
    """Rows of bytes in device memory: address of the first, and distance of their starts in bytes."""

    address: int
    pitch: int


class CudaDevice(ABC):
    """First CUDA device of this process (``CUDA_VISIBLE_DEVICES`` chooses it).

    Every method but :meth:`current` must be called inside ``with device.current()``, by one thread at a time.

    Attributes:
        binding: "pycuda" or "cuda-bindings".
        name, capability, multiprocessors: properties of the device; capability as "8.7".
        integrated: whether it shares the host's memory.
        cuda: highest CUDA version that the driver supports, as "12.6".
        stream: handle of the stream of all work.
        no_graphs: why graphs cannot be captured; None if they can.
    """

    binding: str
    name: str
    capability: str
    multiprocessors: int
    integrated: bool
    cuda: str
    stream: int

    def __init__(self) -> None:
        self._graphs, self.no_graphs = _graph_library()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device's context current in this thread."""
        self._push()
        try:
            yield
        finally:
            self._pop()

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes and return the address; raises :class:`BackendError` if out of memory."""
        try:
            return self._allocate(size)
        except Exception as error:
            free, total = self.memory()
            raise BackendError(
                f"the GPU has no room for {size / 2**20:.0f} MiB ({free / 2**20:.0f} of {total / 2**20:.0f} MiB free); "
                "close other programs, or build plans for fewer rows (`python -m engines build --image-rows 1 --answer-rows 1`)"
            ) from error

    @abstractmethod
    def _push(self) -> None: ...

    @abstractmethod
    def _pop(self) -> None: ...

    @abstractmethod
    def _allocate(self, size: int) -> int: ...

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Return free and total device memory in bytes."""

    @abstractmethod
    def release(self, address: int) -> None:
        """Free memory of :meth:`allocate`."""

    @abstractmethod
    def host_buffer(self, size: int) -> HostBuffer:
        """Allocate page-locked memory, freed with its array."""

    @abstractmethod
    def upload(self, address: int, source: Array) -> None:
        """Queue a copy to the device; ``source`` must be contiguous and unchanged until the copy is done."""

    @abstractmethod
    def download(self, target: Array, address: int) -> None:
        """Queue a copy from the device into a contiguous array."""

    def copy_lines(self, target: Lines, source: Lines, width: int, count: int) -> None:
        """Queue a copy on the device of the first ``width`` bytes of ``count`` rows."""
        if width and count:
            self._copy_lines(target, source, width, count)

    @abstractmethod
    def _copy_lines(self, target: Lines, source: Lines, width: int, count: int) -> None: ...

    @abstractmethod
    def zero(self, address: int, size: int) -> None:
        """Queue the zeroing of ``size`` bytes."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all queued work."""

    # Graphs --------------------------------------------------------------------------------------------------------------------------

    def capture(self, enqueue: Callable[[], bool]) -> CapturedGraph:
        """Return a graph of the work that ``enqueue`` queues; other threads may continue to call CUDA.

        Raises:
            BackendError: the work cannot be captured.  The stream is usable again, and no error is left behind for the next call.
        """
        stream = self._graphs.CUstream(self.stream)
        self.synchronize()
        call(self._graphs, "cuStreamBeginCapture", stream, self._graphs.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        reason = "TensorRT does not enqueue it while a stream is captured"
        try:
            accepted = enqueue()
        except Exception as error:  # noqa: BLE001  # of a plug-in, or of TensorRT's bindings
            accepted, reason = False, str(error) or type(error).__name__
        try:
            (source,) = call(self._graphs, "cuStreamEndCapture", stream)
            if accepted:
                return self._instantiated(source)
            call(self._graphs, "cuGraphDestroy", source)
        except BackendError as error:
            reason = str(error)
        self._clear_error()
        raise BackendError(reason)

    def _instantiated(self, source: Any) -> CapturedGraph:
        try:
            (executable,) = call(self._graphs, "cuGraphInstantiate", source, 0)
        except BackendError:
            call(self._graphs, "cuGraphDestroy", source)
            raise
        return CapturedGraph(executable, source)

    def launch(self, graph: CapturedGraph) -> None:
        """Queue a captured graph."""
        call(self._graphs, "cuGraphLaunch", graph.executable, self._graphs.CUstream(self.stream))

    def destroy(self, graph: CapturedGraph) -> None:
        """Destroy a captured graph."""
        call(self._graphs, "cuGraphExecDestroy", graph.executable)
        call(self._graphs, "cuGraphDestroy", graph.source)

    @staticmethod
    def _clear_error() -> None:
        """Clear the CUDA runtime's last error, which a failed capture leaves for the next caller to find."""
        with suppress(ImportError, RuntimeError):
            import_module("cuda.bindings.runtime").cudaGetLastError()


def call(library: Any, name: str, *arguments: Any) -> tuple[Any, ...]:
    """Return the values of a function of ``cuda.bindings.driver``; raises :class:`BackendError` with its status."""
    try:
        code, *values = getattr(library, name)(*arguments)
    except (RuntimeError, OSError) as error:  # the driver library is missing
        raise BackendError(f"{name}: no usable CUDA driver ({error})") from error
    if code != library.CUresult.CUDA_SUCCESS:
        raise BackendError(f"{name} failed in CUDA: {getattr(code, 'name', code)}")
    return tuple(values)


def _graph_library() -> tuple[Any, str | None]:
    """Return ``cuda.bindings.driver``, or the reason why it is missing."""
    try:
        return import_module("cuda.bindings.driver"), None
    except ImportError as error:
        return None, f"cuda-bindings cannot be imported ({error}); pip install cuda-bindings"
