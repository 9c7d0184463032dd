"""CUDA operations of the TensorRT backend: memory, copies and one stream by pycuda; graphs by ``cuda-bindings``.

Both use the driver API in the device's primary context, shared with TensorRT, PyTorch and the CUDA runtime, so addresses, streams and
graphs are valid in all of them.  All work is queued on one non-default stream (TensorRT synchronises the default one).  Only
:meth:`CudaDevice.synchronize` waits.

A Jetson's GPU reads host memory: a :class:`HostBuffer` then has a device address and needs no copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from f2edge.backends.base import Array
from f2edge.errors import BackendError

INSTALL = "pip install 'f2edge[tensorrt]' (pycuda is built on the spot and needs CUDA's nvcc in PATH; docs/jetson.md)"


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


class CudaDevice:
    """First CUDA device of this process (``CUDA_VISIBLE_DEVICES`` chooses it).

    Every method but :meth:`current` must be called inside ``with device.current()``, by one thread at a time.

    Attributes:
        name, capability, multiprocessors: properties of the device; capability as "8.7".
        integrated: whether it shares the host's memory.
        cuda: highest CUDA version that the driver supports, as "12.6".
        stream: handle of the stream of all work.
        no_graphs: why graphs cannot be captured; None if they can.

    Raises:
        BackendError: pycuda, a device or the driver is missing.
    """

    def __init__(self) -> None:
        try:
            self._cuda: Any = import_module("pycuda.driver")
        except ImportError as error:
            raise BackendError(f"backend 'tensorrt' needs pycuda, which cannot be imported ({error}); {INSTALL}") from error
        try:
            self._cuda.init()
            device = self._cuda.Device(0)
            self._context = device.retain_primary_context()
        except Exception as error:  # pycuda.driver.Error and its many children
            raise BackendError(f"no CUDA device can be used ({error}); `nvidia-smi` or, on a Jetson, `tegrastats` must see one") from error
        attribute = self._cuda.device_attribute
        self.name = str(device.name())
        self.capability = ".".join(map(str, device.compute_capability()))
        self.multiprocessors = int(device.get_attribute(attribute.MULTIPROCESSOR_COUNT))
        self.integrated = bool(device.get_attribute(attribute.INTEGRATED) and device.get_attribute(attribute.CAN_MAP_HOST_MEMORY))
        version = int(self._cuda.get_driver_version())
        self.cuda = f"{version // 1000}.{version % 1000 // 10}"
        self._blocks: dict[int, Any] = {}
        with self.current():
            self._stream = self._cuda.Stream()
        self.stream = int(self._stream.handle)
        self._graphs, self.no_graphs = _graph_library()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device's context current in this thread."""
        self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def memory(self) -> tuple[int, int]:
        """Return free and total device memory in bytes."""
        free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes and return the address; raises :class:`BackendError` if out of memory."""
        try:
            block = self._cuda.mem_alloc(size)
        except Exception as error:
            free, total = self.memory()
            raise BackendError(
                f"the GPU has no room for {size / 2**20:.0f} MiB ({free / 2**20:.0f} of {total / 2**20:.0f} MiB free); "
                "close other programs, or build plans for fewer rows (`python -m engines build --image-rows 1 --answer-rows 1`)"
            ) from error
        address = int(block)
        self._blocks[address] = block
        return address

    def release(self, address: int) -> None:
        """Free memory of :meth:`allocate`."""
        self._blocks.pop(address).free()

    def host_buffer(self, size: int) -> HostBuffer:
        """Allocate page-locked memory, freed with its array."""
        flags = self._cuda.host_alloc_flags.DEVICEMAP if self.integrated else 0
        array = self._cuda.pagelocked_empty((size,), np.uint8, "C", flags)
        return HostBuffer(array, int(array.base.get_device_pointer()) if self.integrated else None)

    def upload(self, address: int, source: Array) -> None:
        """Queue a copy to the device; ``source`` must be contiguous and unchanged until the copy is done."""
        self._cuda.memcpy_htod_async(address, source, self._stream)

    def download(self, target: Array, address: int) -> None:
        """Queue a copy from the device into a contiguous array."""
        self._cuda.memcpy_dtoh_async(target, address, self._stream)

    def copy_lines(self, target: Lines, source: Lines, width: int, count: int) -> None:
        """Queue a copy on the device of the first ``width`` bytes of ``count`` rows."""
        if not width or not count:
            return
        copy = self._cuda.Memcpy2D()
        copy.set_src_device(source.address)
        copy.set_dst_device(target.address)
        copy.src_pitch, copy.dst_pitch = source.pitch, target.pitch
        copy.width_in_bytes, copy.height = width, count
        copy(self._stream)

    def zero(self, address: int, size: int) -> None:
        """Queue the zeroing of ``size`` bytes."""
        self._cuda.memset_d8_async(address, 0, size, self._stream)

    def synchronize(self) -> None:
        """Wait for all queued work."""
        self._stream.synchronize()

    def begin_capture(self) -> None:
        """Start capturing the stream; other threads may continue to call CUDA."""
        mode = self._graphs.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._graphs.CUstream(self.stream), mode)

    def end_capture(self) -> CapturedGraph:
        """Return the captured graph; raises :class:`BackendError` if the work cannot be captured."""
        (source,) = self._call("cuStreamEndCapture", self._graphs.CUstream(self.stream))
        try:
            (executable,) = self._call("cuGraphInstantiate", source, 0)
        except BackendError:
            self._call("cuGraphDestroy", source)
            raise
        return CapturedGraph(executable, source)

    def launch(self, graph: CapturedGraph) -> None:
        """Queue a captured graph."""
        self._call("cuGraphLaunch", graph.executable, self._graphs.CUstream(self.stream))

    def destroy(self, graph: CapturedGraph) -> None:
        """Destroy a captured graph."""
        self._call("cuGraphExecDestroy", graph.executable)
        self._call("cuGraphDestroy", graph.source)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        code, *values = getattr(self._graphs, name)(*arguments)
        if code != self._graphs.CUresult.CUDA_SUCCESS:
            raise BackendError(f"{name} failed in CUDA: {getattr(code, 'name', code)}")
        return tuple(values)


def _graph_library() -> tuple[Any, str | None]:
    """Return ``cuda.bindings.driver``, or the reason why it is missing."""
    try:
        return import_module("cuda.bindings.driver"), None
    except ImportError as error:
        return None, f"cuda-bindings cannot be imported ({error}); pip install cuda-bindings"
