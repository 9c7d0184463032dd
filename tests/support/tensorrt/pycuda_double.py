"""``pycuda.driver`` in front of :class:`tests.support.tensorrt.cuda_double.CudaDouble`."""

from __future__ import annotations

import enum
from types import ModuleType
from typing import Any

import numpy as np

from tests.support.tensorrt.cuda_double import CudaDouble, CudaError


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
            self.handle = cuda.open_stream(flags)

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
        if cuda.capturing:
            cuda.invalidate("host memory was allocated")
            raise CudaError("cuMemHostAlloc failed: operation not permitted when stream is capturing")
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
            target, source, width, height = (self.target, self.dst_pitch), (self.source, self.src_pitch), self.width_in_bytes, self.height
            cuda.copies["on the device"].append(width * height)
            cuda.enqueue(stream.handle, lambda: cuda.copy_lines(target, source, width, height))

    def host_bytes(array: Any) -> np.ndarray[Any, Any]:
        assert array.flags.c_contiguous, "pycuda takes contiguous buffers only"
        return array.reshape(-1).view(np.uint8)  # type: ignore[no-any-return]

    def memcpy_htod_async(dest: int, src: Any, stream: Any) -> None:
        data = host_bytes(src)
        cuda.copies["to the device"].append(data.size)
        cuda.enqueue(stream.handle, lambda: cuda.view(dest, data.shape, np.uint8).__setitem__(slice(None), data))

    def memcpy_dtoh_async(dest: Any, src: int, stream: Any) -> None:
        data = host_bytes(dest)
        cuda.copies["to the host"].append(data.size)
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
