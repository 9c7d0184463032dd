"""Memory and copies through pycuda."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from f2edge.backends.base import Array
from f2edge.backends.tensorrt.cuda import NON_BLOCKING, CudaDevice, HostBuffer, Lines
from f2edge.errors import BackendError

UNUSABLE = "no CUDA device can be used ({}); `nvidia-smi` or, on a Jetson, `tegrastats` must see one"


class PycudaDevice(CudaDevice):
    """The device as pycuda sees it.

    Raises:
        ImportError: pycuda is missing.
        BackendError: no device, or no driver.
    """

    binding = "pycuda"

    def __init__(self) -> None:
        self._cuda: Any = import_module("pycuda.driver")
        super().__init__()
        try:
            self._cuda.init()
            device = self._cuda.Device(0)
            self._context = device.retain_primary_context()
        except Exception as error:  # pycuda.driver.Error and its many children
            raise BackendError(UNUSABLE.format(error)) from error
        attribute = self._cuda.device_attribute
        self.name = str(device.name())
        self.capability = ".".join(map(str, device.compute_capability()))
        self.multiprocessors = int(device.get_attribute(attribute.MULTIPROCESSOR_COUNT))
        self.integrated = bool(device.get_attribute(attribute.INTEGRATED) and device.get_attribute(attribute.CAN_MAP_HOST_MEMORY))
        version = int(self._cuda.get_driver_version())
        self.cuda = f"{version // 1000}.{version % 1000 // 10}"
        self._blocks: dict[int, Any] = {}
        with self.current():
            self._stream = self._cuda.Stream(NON_BLOCKING)
        self.stream = int(self._stream.handle)

    def _push(self) -> None:
        self._context.push()

    def _pop(self) -> None:
        self._cuda.Context.pop()

    def memory(self) -> tuple[int, int]:
        free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def _allocate(self, size: int) -> int:
        block = self._cuda.mem_alloc(size)
        self._blocks[int(block)] = block
        return int(block)

    def release(self, address: int) -> None:
        self._blocks.pop(address).free()

    def host_buffer(self, size: int) -> HostBuffer:
        flags = self._cuda.host_alloc_flags.DEVICEMAP if self.integrated else 0
        array = self._cuda.pagelocked_empty((size,), np.uint8, "C", flags)
        return HostBuffer(array, int(array.base.get_device_pointer()) if self.integrated else None)

    def upload(self, address: int, source: Array) -> None:
        self._cuda.memcpy_htod_async(address, source, self._stream)

    def download(self, target: Array, address: int) -> None:
        self._cuda.memcpy_dtoh_async(target, address, self._stream)

    def _copy_lines(self, target: Lines, source: Lines, width: int, count: int) -> None:
        copy = self._cuda.Memcpy2D()
        copy.set_src_device(source.address)
        copy.set_dst_device(target.address)
        copy.src_pitch, copy.dst_pitch = source.pitch, target.pitch
        copy.width_in_bytes, copy.height = width, count
        copy(self._stream)

    def zero(self, address: int, size: int) -> None:
        self._cuda.memset_d8_async(address, 0, size, self._stream)

    def synchronize(self) -> None:
        self._stream.synchronize()
