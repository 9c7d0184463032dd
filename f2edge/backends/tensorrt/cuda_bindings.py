"""Memory and copies through NVIDIA's ``cuda-bindings``, which has wheels where pycuda would have to be compiled."""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from importlib import import_module
from typing import Any

import numpy as np

from f2edge.backends.base import Array
from f2edge.backends.tensorrt.cuda import CudaDevice, HostBuffer, Lines, call
from f2edge.backends.tensorrt.cuda_pycuda import UNUSABLE
from f2edge.errors import BackendError

_NAME_BYTES = 256


class BindingsDevice(CudaDevice):
    """The device as ``cuda-bindings`` sees it.

    Raises:
        ImportError: ``cuda-bindings`` is missing.
        BackendError: no device, or no driver.
    """

    binding = "cuda-bindings"

    def __init__(self) -> None:
        self._cuda: Any = import_module("cuda.bindings.driver")
        super().__init__()
        try:
            self._call("cuInit", 0)
            (device,) = self._call("cuDeviceGet", 0)
            (self._context,) = self._call("cuDevicePrimaryCtxRetain", device)
        except BackendError as error:
            raise BackendError(UNUSABLE.format(error)) from error
        (name,) = self._call("cuDeviceGetName", _NAME_BYTES, device)
        self.name = bytes(name).partition(b"\0")[0].decode(errors="replace")
        kinds = self._cuda.CUdevice_attribute

        def attribute(kind: Any) -> int:
            return int(self._call("cuDeviceGetAttribute", kind, device)[0])

        major = attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        self.capability = f"{major}.{attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)}"
        self.multiprocessors = attribute(kinds.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        maps = attribute(kinds.CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY)
        self.integrated = bool(attribute(kinds.CU_DEVICE_ATTRIBUTE_INTEGRATED) and maps)
        version = int(self._call("cuDriverGetVersion")[0])
        self.cuda = f"{version // 1000}.{version % 1000 // 10}"
        self._dropped: deque[int] = deque()  # host buffers that finalizers gave back, in whatever thread
        with self.current():
            (self._stream,) = self._call("cuStreamCreate", int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.stream = int(self._stream)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        return call(self._cuda, name, *arguments)

    def _push(self) -> None:
        self._call("cuCtxPushCurrent", self._context)

    def _pop(self) -> None:
        self._call("cuCtxPopCurrent")

    def memory(self) -> tuple[int, int]:
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def _allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size)[0])

    def release(self, address: int) -> None:
        self._call("cuMemFree", address)

    def host_buffer(self, size: int) -> HostBuffer:
        while self._dropped:
            self._call("cuMemFreeHost", self._dropped.popleft())
        (host,) = self._call("cuMemHostAlloc", size, self._cuda.CU_MEMHOSTALLOC_DEVICEMAP if self.integrated else 0)
        mapped = int(self._call("cuMemHostGetDevicePointer", host, 0)[0]) if self.integrated else None
        memory = (ctypes.c_uint8 * size).from_address(int(host))
        weakref.finalize(memory, self._dropped.append, int(host))
        return HostBuffer(np.ctypeslib.as_array(memory), mapped)

    def upload(self, address: int, source: Array) -> None:
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self._stream)

    def download(self, target: Array, address: int) -> None:
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, self._stream)

    def _copy_lines(self, target: Lines, source: Lines, width: int, count: int) -> None:
        copy = self._cuda.CUDA_MEMCPY2D()
        copy.srcMemoryType = copy.dstMemoryType = self._cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice, copy.dstDevice = source.address, target.address
        copy.srcPitch, copy.dstPitch = source.pitch, target.pitch
        copy.WidthInBytes, copy.Height = width, count
        self._call("cuMemcpy2DAsync", copy, self._stream)

    def zero(self, address: int, size: int) -> None:
        self._call("cuMemsetD8Async", address, 0, size, self._stream)

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)
