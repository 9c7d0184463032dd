"""A double of ``cuda.bindings.driver`` whose kernels run in Triton's interpreter; only in the process of
:mod:`tests.support.tensorrt.plugin_interpreter`.

Memory has device addresses in separate blocks.  Launches are recorded and run when the stream is synchronized.
"""

from __future__ import annotations

import enum
import sys
from types import ModuleType
from typing import Any

import numpy as np

from engines.plugins.compile_kernels import all_kernels
from engines.plugins.fused_moe import MoEShape
from tests.support.tensorrt.plugin_interpreter import Array

_NUMPY = {"*fp16": np.float16, "*fp32": np.float32, "*i32": np.int32}
_FIRST, _GAP = 1 << 32, 1 << 20


class CUresult(enum.Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_IMAGE = 200


class CUdevice_attribute(enum.Enum):  # noqa: N801  # CUDA's name
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class DriverDouble:
    """The device.

    Attributes:
        launches: kernel, file, grid, threads, shared memory and stream of each launch, in order.
        fails: name of a function that fails from now on.
    """

    def __init__(self, shape: MoEShape, capability: int, stream: int = 0x5E) -> None:
        import torch  # before the double is installed: torch takes the real module where there is one

        self._from_numpy = torch.from_numpy
        self.stream, self.capability = stream, capability
        self.launches: list[tuple[Any, ...]] = []
        self.fails = ""
        self._kernels = {kernel.file: kernel for kernel in all_kernels(shape)}
        self._blocks: dict[int, Array] = {}
        self._queue: list[tuple[Any, tuple[int, int], tuple[int, ...]]] = []

    def upload(self, array: Array) -> int:
        """Address of a copy of the array's bytes."""
        address = _FIRST if not self._blocks else max(start + len(block) for start, block in self._blocks.items()) + _GAP
        address -= address % -256  # as cudaMalloc aligns
        self._blocks[address] = np.frombuffer(array.tobytes(), dtype=np.uint8).copy()
        return address

    def download(self, address: int, array: Array) -> Array:
        """What is at the address now, in the form of ``array``."""
        return self._blocks[address].view(array.dtype).reshape(array.shape)

    def synchronize(self) -> None:
        """Run what was launched."""
        from engines.plugins import fused_moe_kernels

        for kernel, grid, arguments in self._queue:
            tensors = [
                self._from_numpy(self._memory(value, kind)) if kind.startswith("*") else value
                for value, (_, kind) in zip(arguments, kernel.arguments, strict=True)
            ]
            getattr(fused_moe_kernels, kernel.name)[grid](*tensors, **kernel.constants)
        self._queue.clear()

    def _memory(self, address: int, kind: str) -> Array:
        """From the address to the end of its block."""
        assert address % 16 == 0, "kernels are compiled for addresses that 16 divides"
        for start, block in self._blocks.items():
            if start <= address < start + len(block):
                return block[address - start :].view(_NUMPY[kind])
        raise AssertionError(f"an illegal memory access was encountered: {address:#x}")

    def install(self) -> None:
        """Put the module where ``import`` finds it."""
        driver: Any = ModuleType("cuda.bindings.driver")
        driver.CUresult, driver.CUdevice_attribute = CUresult, CUdevice_attribute
        driver.CUstream = type("CUstream", (int,), {})
        functions = (self.cuCtxGetDevice, self.cuDeviceGetAttribute, self.cuModuleLoadData, self.cuModuleGetFunction, self.cuLaunchKernel)
        for function in functions:
            setattr(driver, function.__name__, self._answering(function, driver.CUresult))
        self._driver = driver
        sys.modules["cuda.bindings.driver"] = driver

    def _answering(self, function: Any, results: Any) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if self.fails == function.__name__:
                return (results.CUDA_ERROR_INVALID_IMAGE, None)
            value = function(*arguments)
            return (results.CUDA_SUCCESS,) if value is None else (results.CUDA_SUCCESS, value)

        return call

    def cuCtxGetDevice(self) -> int:
        return 0

    def cuDeviceGetAttribute(self, attrib: Any, dev: int) -> int:
        return self.capability // 10 if attrib.name.endswith("MAJOR") else self.capability % 10

    def cuModuleLoadData(self, image: bytes) -> str:
        kind, target, file = image.removesuffix(b"\0").decode().split()
        assert (kind, int(target)) == ("cubin", self.capability), "code of another GPU"
        return file

    def cuModuleGetFunction(self, hmod: str, name: bytes) -> Any:
        assert self._kernels[hmod].name == name.decode()
        return self._kernels[hmod]

    def cuLaunchKernel(self, f: Any, *settings: Any) -> None:
        gx, gy, gz, bx, by, bz, shared, stream, (values, kinds), extra = settings
        assert isinstance(stream, self._driver.CUstream)
        assert stream == self.stream
        assert (gz, by, bz, extra) == (1, 1, 1, 0)
        assert bx == 32 * f.warps
        assert 0 < gx < 2**31
        assert 0 < gy < 2**16
        assert [k.__name__ for k in kinds] == ["c_void_p" if kind.startswith("*") else "c_int" for _, kind in f.arguments]
        self.launches.append((f.name, f.file, (gx, gy), bx, shared))
        self._queue.append((f, (gx, gy), tuple(values)))
