"""Fake GPU behind the two libraries that the runner uses, ``pycuda.driver`` and ``cuda.bindings.driver``.

Memory has device addresses in separate blocks; access outside a block or to a freed block raises.  New memory is filled with NaN.  Work
queued on a stream runs at synchronization, so that early reads of a result and early writes to a host buffer are detected.  Captured work
runs each time its graph is launched.
"""

from __future__ import annotations

import enum
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

_GAP = 1 << 20


class CudaError(RuntimeError):
    """Stands for ``pycuda.driver.Error``."""


class CudaDouble:
    """The device.

    Attributes:
        stream: handle of the one stream that there is.
        capture_fails: whether captured work turns out not to be capturable.
        room: bytes that can be allocated.
        launches, captures: counted.
    """

    stream = 0x51

    def __init__(self, *, integrated: bool = False, room: int = 1 << 33) -> None:
        self.integrated = integrated
        self.name, self.capability, self.multiprocessors, self.version = "Orin", (8, 7), 8, 12060
        self.room = room
        self.capture_fails = False
        self.launches = self.captures = self.runs = 0
        self.blocks: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self._next = _GAP
        self._queue: list[Callable[[], None]] = []
        self._recording: list[Callable[[], None]] | None = None
        self._current = threading.local()

    # memory

    def allocate(self, size: int) -> int:
        self.check()
        if sum(map(len, self.blocks.values())) + size > self.room:
            raise CudaError("cuMemAlloc failed: out of memory")
        return self.add(np.full(size, 0xFF, dtype=np.uint8))

    def add(self, memory: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
        address, self._next = self._next, self._next + len(memory) + _GAP - len(memory) % 256
        self.blocks[address] = memory
        return address

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """Device memory as an array; raises where it is nobody's."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        for start, block in self.blocks.items():
            if start <= address and address + size <= start + len(block):
                found: np.ndarray[Any, Any] = block[address - start : address - start + size].view(dtype).reshape(shape)
                return found
        raise CudaError(f"an illegal memory access was encountered: {size} bytes at {address:#x}")

    # stream

    def enqueue(self, stream: int, work: Callable[[], None]) -> bool:
        self.check()
        assert stream == self.stream, "work on another stream than the runner's"
        if self._recording is None:
            self._queue.append(work)
        else:
            self._recording.append(work)
        self.runs += 1
        return True

    def synchronize(self) -> None:
        self.check()
        assert self._recording is None, "synchronising breaks a capture"
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def check(self) -> None:
        if not getattr(self._current, "depth", 0):
            raise CudaError("invalid device context: nothing is current in this thread")

    def push(self) -> None:
        self._current.depth = getattr(self._current, "depth", 0) + 1

    def pop(self) -> None:
        self.check()
        self._current.depth -= 1

    def begin(self) -> None:
        assert self._recording is None
        self._recording = []

    def end(self) -> int | None:
        recorded, self._recording = self._recording, None
        assert recorded is not None
        if self.capture_fails:
            return None
        self.captures += 1
        self.graphs[self.captures] = recorded
        return self.captures


def install(monkeypatch: pytest.MonkeyPatch, cuda: CudaDouble, *, graphs: bool = True) -> None:
    """Put the two libraries where ``import`` finds them; without ``graphs`` cuda-bindings is not installed."""
    pycuda: Any = ModuleType("pycuda")
    pycuda.driver = pycuda_driver(cuda)
    monkeypatch.setitem(sys.modules, "pycuda", pycuda)
    monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda.driver)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", bindings_driver(cuda) if graphs else None)


def pycuda_driver(cuda: CudaDouble) -> Any:
    """``pycuda.driver``, as far as it is used; the contract test compares it with pycuda's source."""
    driver: Any = ModuleType("pycuda.driver")
    driver.Error = CudaError
    driver.init = lambda flags=0: None
    driver.device_attribute = Attribute
    driver.host_alloc_flags = type("host_alloc_flags", (), {"PORTABLE": 1, "DEVICEMAP": 2, "WRITECOMBINED": 4})
    driver.get_driver_version = lambda: cuda.version
    _add_device(driver, cuda)
    _add_memory(driver, cuda)
    _add_copies(driver, cuda)
    return driver


def _add_device(driver: Any, cuda: CudaDouble) -> None:
    class Context:
        def push(self) -> None:
            cuda.push()

        @staticmethod
        def pop() -> None:
            cuda.pop()

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0

        def name(self) -> str:
            return cuda.name

        def compute_capability(self) -> tuple[int, int]:
            return cuda.capability

        def get_attribute(self, attribute: Any) -> int:
            values = {"MULTIPROCESSOR_COUNT": cuda.multiprocessors, "INTEGRATED": cuda.integrated, "CAN_MAP_HOST_MEMORY": True}
            return int(values[attribute.name])

        def retain_primary_context(self) -> Context:
            return Context()

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            cuda.check()
            self.handle = cuda.stream

        def synchronize(self) -> None:
            cuda.synchronize()

    driver.Device, driver.Context, driver.Stream = Device, Context, Stream


def _add_memory(driver: Any, cuda: CudaDouble) -> None:
    class DeviceAllocation:
        def __init__(self, address: int) -> None:
            self._address = address

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            cuda.check()
            del cuda.blocks[self._address]

    class PagelockedHostAllocation:
        def __init__(self, size: int, *, mapped: bool) -> None:
            self.memory = np.full(size, 0xFF, dtype=np.uint8)
            self.address = cuda.add(self.memory) if mapped else None
            self.__array_interface__ = self.memory.__array_interface__

        def get_device_pointer(self) -> int:
            if self.address is None:
                raise CudaError("cuMemHostGetDevicePointer failed: invalid argument")
            return self.address

    def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        cuda.check()
        assert dtype is np.uint8
        assert order == "C"
        return np.asarray(PagelockedHostAllocation(shape[0], mapped=bool(mem_flags & driver.host_alloc_flags.DEVICEMAP)))

    driver.mem_get_info = lambda: (cuda.room - sum(map(len, cuda.blocks.values())), cuda.room)
    driver.mem_alloc = lambda size: DeviceAllocation(cuda.allocate(size))
    driver.pagelocked_empty = pagelocked_empty


def _add_copies(driver: Any, cuda: CudaDouble) -> None:
    class Memcpy2D:
        __slots__ = ("dst_pitch", "height", "source", "src_pitch", "target", "width_in_bytes")
        source: int
        target: int
        src_pitch: int
        dst_pitch: int
        width_in_bytes: int
        height: int

        def set_src_device(self, devptr: int) -> None:
            self.source = devptr

        def set_dst_device(self, devptr: int) -> None:
            self.target = devptr

        def __call__(self, stream: Any) -> None:
            assert self.width_in_bytes <= min(self.src_pitch, self.dst_pitch), "cuMemcpy2DAsync failed: invalid argument"
            given = (self.source, self.target, self.src_pitch, self.dst_pitch, self.width_in_bytes, self.height)

            def work() -> None:
                source, target, source_pitch, target_pitch, width, height = given
                for line in range(height):
                    cuda.view(target + line * target_pitch, (width,), np.uint8)[:] = cuda.view(
                        source + line * source_pitch, (width,), np.uint8
                    )

            cuda.enqueue(stream.handle, work)

    def host_bytes(array: Any) -> np.ndarray[Any, Any]:
        assert array.flags.c_contiguous, "pycuda takes contiguous buffers only"
        return array.reshape(-1).view(np.uint8)  # type: ignore[no-any-return]

    def memcpy_htod_async(dest: int, src: Any, stream: Any) -> None:
        data = host_bytes(src)
        cuda.enqueue(stream.handle, lambda: cuda.view(dest, data.shape, np.uint8).__setitem__(slice(None), data))

    def memcpy_dtoh_async(dest: Any, src: int, stream: Any) -> None:
        data = host_bytes(dest)
        cuda.enqueue(stream.handle, lambda: data.__setitem__(slice(None), cuda.view(src, data.shape, np.uint8)))

    def memset_d8_async(dest: int, data: int, size: int, stream: Any) -> None:
        cuda.enqueue(stream.handle, lambda: cuda.view(dest, (size,), np.uint8).fill(data))

    driver.Memcpy2D, driver.memset_d8_async = Memcpy2D, memset_d8_async
    driver.memcpy_htod_async, driver.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async


class Attribute(enum.Enum):
    """``pycuda.driver.device_attribute``, as far as it is used; numbers do not matter."""

    MULTIPROCESSOR_COUNT = 1
    INTEGRATED = 2
    CAN_MAP_HOST_MEMORY = 3


class Result(enum.Enum):
    """``CUresult``, as far as it is used."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class CaptureMode(enum.Enum):
    """``CUstreamCaptureMode``."""

    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


def bindings_driver(cuda: CudaDouble) -> Any:
    """``cuda.bindings.driver``, as far as it is used: every function returns its status first."""
    driver: Any = ModuleType("cuda.bindings.driver")
    driver.CUresult, driver.CUstreamCaptureMode = Result, CaptureMode
    fine, broken = (driver.CUresult.CUDA_SUCCESS,), driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED

    class CUstream(int):
        __slots__ = ()

    def cuStreamBeginCapture(hStream: CUstream, mode: Any) -> tuple[Any, ...]:
        assert isinstance(mode, driver.CUstreamCaptureMode)
        assert hStream == cuda.stream
        cuda.check()
        cuda.begin()
        return fine

    def cuStreamEndCapture(hStream: CUstream) -> tuple[Any, ...]:
        graph = cuda.end()
        return (broken, None) if graph is None else (*fine, graph)

    def cuGraphInstantiate(hGraph: int, flags: int) -> tuple[Any, ...]:
        return (*fine, -hGraph)

    def cuGraphLaunch(hGraphExec: int, hStream: CUstream) -> tuple[Any, ...]:
        cuda.launches += 1
        for work in cuda.graphs[-hGraphExec]:
            cuda.enqueue(hStream, work)
        return fine

    def cuGraphExecDestroy(hGraphExec: int) -> tuple[Any, ...]:
        assert -hGraphExec in cuda.graphs
        return fine

    def cuGraphDestroy(hGraph: int) -> tuple[Any, ...]:
        del cuda.graphs[hGraph]
        return fine

    for function in (cuStreamBeginCapture, cuStreamEndCapture, cuGraphInstantiate, cuGraphLaunch, cuGraphExecDestroy, cuGraphDestroy):
        setattr(driver, function.__name__, function)
    driver.CUstream = CUstream
    return driver
