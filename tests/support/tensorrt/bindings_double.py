"""``cuda.bindings.driver`` and ``cuda.bindings.runtime`` in front of :class:`tests.support.tensorrt.cuda_double.CudaDouble`.

Every function has the parameters of the real one and returns its status first.  Host memory is passed as addresses, as the real library
takes it; what is there is read when the stream gets to it.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from tests.support.tensorrt.cuda_double import CudaDouble, CudaError


class Result(enum.Enum):
    """``CUresult``, as far as it is used."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class CaptureMode(enum.Enum):
    """``CUstreamCaptureMode``."""

    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


class DeviceAttribute(enum.Enum):
    """``CUdevice_attribute``, as far as it is used."""

    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_INTEGRATED = 18
    CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY = 19
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class MemoryType(enum.Enum):
    """``CUmemorytype``, as far as it is used."""

    CU_MEMORYTYPE_HOST = 1
    CU_MEMORYTYPE_DEVICE = 2


class StreamFlags(enum.IntEnum):
    """``CUstream_flags``."""

    CU_STREAM_DEFAULT = 0
    CU_STREAM_NON_BLOCKING = 1


class CUstream(int):
    """A stream's handle."""

    __slots__ = ()


class Memcpy2D:
    """``CUDA_MEMCPY2D``, as far as it is used."""

    __slots__ = ("Height", "WidthInBytes", "dstDevice", "dstMemoryType", "dstPitch", "srcDevice", "srcMemoryType", "srcPitch")


def bindings_driver(cuda: CudaDouble) -> Any:
    """``cuda.bindings.driver``, as far as it is used."""
    driver: Any = ModuleType("cuda.bindings.driver")
    driver.CUresult, driver.CUstreamCaptureMode, driver.CUdevice_attribute = Result, CaptureMode, DeviceAttribute
    driver.CUmemorytype, driver.CUstream_flags, driver.CUstream, driver.CUDA_MEMCPY2D = MemoryType, StreamFlags, CUstream, Memcpy2D
    driver.CU_MEMHOSTALLOC_DEVICEMAP = 2
    for functions in (_device(cuda), _memory(cuda), _copies(cuda), _capture(cuda)):
        for function in functions:
            setattr(driver, function.__name__, function)
    return driver


def bindings_runtime(cuda: CudaDouble) -> Any:
    """``cuda.bindings.runtime``, as far as it is used."""
    runtime: Any = ModuleType("cuda.bindings.runtime")

    def cudaGetLastError() -> tuple[Any, ...]:
        if not cuda.own_runtime:
            cuda.error = False
        return (0,)

    runtime.cudaGetLastError = cudaGetLastError
    return runtime


def _answer(work: Callable[[], Any]) -> tuple[Any, ...]:
    try:
        value = work()
    except CudaError as error:
        memory, capture = "out of memory" in str(error), "capturing" in str(error)
        bad = Result.CUDA_ERROR_OUT_OF_MEMORY if memory else Result.CUDA_ERROR_INVALID_VALUE
        return (Result.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED if capture else bad, None)
    return (Result.CUDA_SUCCESS,) if value is None else (Result.CUDA_SUCCESS, *(value if isinstance(value, tuple) else (value,)))


def _device(cuda: CudaDouble) -> list[Callable[..., Any]]:  # noqa: C901  # one function of CUDA after the other
    def cuInit(Flags: int) -> Any:
        return _answer(lambda: None)

    def cuDriverGetVersion() -> Any:
        return _answer(lambda: cuda.version)

    def cuDeviceGet(ordinal: int) -> Any:
        return _answer(lambda: ordinal)

    def cuDeviceGetName(length: int, dev: int) -> Any:
        return _answer(lambda: cuda.name.encode()[: length - 1].ljust(length, b"\0"))

    def cuDeviceGetAttribute(attrib: Any, dev: int) -> Any:
        values = {
            "MULTIPROCESSOR_COUNT": cuda.multiprocessors,
            "INTEGRATED": int(cuda.integrated),
            "CAN_MAP_HOST_MEMORY": 1,
            "COMPUTE_CAPABILITY_MAJOR": cuda.capability[0],
            "COMPUTE_CAPABILITY_MINOR": cuda.capability[1],
        }
        return _answer(lambda: values[attrib.name.removeprefix("CU_DEVICE_ATTRIBUTE_")])

    def cuDevicePrimaryCtxRetain(dev: int) -> Any:
        return _answer(lambda: 0xC0)

    def cuCtxPushCurrent(ctx: int) -> Any:
        assert ctx == 0xC0
        return _answer(cuda.push)

    def cuCtxPopCurrent() -> Any:
        return (*_answer(cuda.pop), 0xC0)

    def cuStreamCreate(Flags: int) -> Any:
        return _answer(lambda: CUstream(cuda.open_stream(int(Flags))))

    def cuStreamSynchronize(hStream: Any) -> Any:
        assert hStream == cuda.stream
        return _answer(cuda.synchronize)

    return [cuInit, cuDriverGetVersion, cuDeviceGet, cuDeviceGetName, cuDeviceGetAttribute, cuDevicePrimaryCtxRetain, cuCtxPushCurrent,
            cuCtxPopCurrent, cuStreamCreate, cuStreamSynchronize]  # fmt: skip


def _memory(cuda: CudaDouble) -> list[Callable[..., Any]]:  # noqa: C901  # as above
    pinned: dict[int, tuple[Any, int | None]] = {}

    def cuMemGetInfo() -> Any:
        return _answer(lambda: (cuda.room - sum(map(len, cuda.blocks.values())), cuda.room))

    def cuMemAlloc(bytesize: int) -> Any:
        return _answer(lambda: cuda.allocate(bytesize))

    def cuMemFree(dptr: int) -> Any:
        cuda.check()
        del cuda.blocks[int(dptr)]
        return _answer(lambda: None)

    def cuMemHostAlloc(bytesize: int, Flags: int) -> Any:
        def work() -> int:
            cuda.check()
            if cuda.capturing:
                cuda.invalidate("host memory was allocated")
                raise CudaError("operation not permitted when stream is capturing")
            memory = np.full(bytesize, 0xFF, dtype=np.uint8)
            pinned[memory.ctypes.data] = memory, cuda.add(memory) if Flags & 2 else None
            return int(memory.ctypes.data)

        return _answer(work)

    def cuMemHostGetDevicePointer(p: int, Flags: int) -> Any:
        def work() -> int:
            address = pinned[p][1]
            if address is None:
                raise CudaError("invalid argument")
            return address

        return _answer(work)

    def cuMemFreeHost(p: int) -> Any:
        cuda.check()
        _, address = pinned.pop(p)
        if address is not None:
            del cuda.blocks[address]
        return _answer(lambda: None)

    return [cuMemGetInfo, cuMemAlloc, cuMemFree, cuMemHostAlloc, cuMemHostGetDevicePointer, cuMemFreeHost]


def _host(address: int, size: int) -> Any:
    assert isinstance(address, int)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def _copies(cuda: CudaDouble) -> list[Callable[..., Any]]:
    def cuMemcpyHtoDAsync(dstDevice: int, srcHost: int, ByteCount: int, hStream: Any) -> Any:
        cuda.copies["to the device"].append(ByteCount)
        cuda.enqueue(hStream, lambda: cuda.view(dstDevice, (ByteCount,), np.uint8).__setitem__(slice(None), _host(srcHost, ByteCount)))
        return _answer(lambda: None)

    def cuMemcpyDtoHAsync(dstHost: int, srcDevice: int, ByteCount: int, hStream: Any) -> Any:
        cuda.copies["to the host"].append(ByteCount)
        cuda.enqueue(hStream, lambda: _host(dstHost, ByteCount).__setitem__(slice(None), cuda.view(srcDevice, (ByteCount,), np.uint8)))
        return _answer(lambda: None)

    def cuMemcpy2DAsync(pCopy: Any, hStream: Any) -> Any:
        assert pCopy.srcMemoryType is pCopy.dstMemoryType is MemoryType.CU_MEMORYTYPE_DEVICE
        target, source = (pCopy.dstDevice, pCopy.dstPitch), (pCopy.srcDevice, pCopy.srcPitch)
        width, height = pCopy.WidthInBytes, pCopy.Height
        cuda.copies["on the device"].append(width * height)
        cuda.enqueue(hStream, lambda: cuda.copy_lines(target, source, width, height))
        return _answer(lambda: None)

    def cuMemsetD8Async(dstDevice: int, uc: int, N: int, hStream: Any) -> Any:
        cuda.enqueue(hStream, lambda: cuda.view(dstDevice, (N,), np.uint8).fill(uc))
        return _answer(lambda: None)

    return [cuMemcpyHtoDAsync, cuMemcpyDtoHAsync, cuMemcpy2DAsync, cuMemsetD8Async]


def _capture(cuda: CudaDouble) -> list[Callable[..., Any]]:
    def cuStreamBeginCapture(hStream: Any, mode: Any) -> Any:
        assert isinstance(mode, CaptureMode)
        assert hStream == cuda.stream
        cuda.check()
        return _answer(cuda.begin)

    def cuStreamEndCapture(hStream: Any) -> Any:
        graph = cuda.end()
        return (Result.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None) if graph is None else (Result.CUDA_SUCCESS, graph)

    def cuGraphInstantiate(hGraph: int, flags: int) -> Any:
        return _answer(lambda: -hGraph)

    def cuGraphLaunch(hGraphExec: int, hStream: Any) -> Any:
        cuda.launches += 1
        for work in cuda.graphs[-hGraphExec]:
            cuda.enqueue(hStream, work)
        return _answer(lambda: None)

    def cuGraphExecDestroy(hGraphExec: int) -> Any:
        assert -hGraphExec in cuda.graphs
        return _answer(lambda: None)

    def cuGraphDestroy(hGraph: int) -> Any:
        del cuda.graphs[hGraph]
        return _answer(lambda: None)

    return [cuStreamBeginCapture, cuStreamEndCapture, cuGraphInstantiate, cuGraphLaunch, cuGraphExecDestroy, cuGraphDestroy]
