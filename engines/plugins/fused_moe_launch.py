"""Launches compiled kernels of the fused experts on a stream that somebody else owns, as TensorRT's plug-ins must.

Through ``cuda.bindings.driver``: pycuda can load the same cubins, but launches on streams of its own making only (its ``Function`` takes a
``pycuda.driver.Stream``, which cannot be made from a handle; read in pycuda 2026.1), while TensorRT hands a plug-in a handle.
Both libraries work in the device's primary context, so they mix freely.  A launch neither allocates nor waits, and so can be captured in a
CUDA graph.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from engines.plugins.fused_moe import TILES, MoEShape, Plan, choose_tile, for_target
from engines.plugins.kernel_folder import Compiled, KernelFolder
from f2edge.errors import BackendError


class Driver:
    """The few calls of CUDA's driver that are needed, in the context that is current in the calling thread.

    Raises:
        BackendError: ``cuda-bindings`` is missing, or a call fails.
    """

    def __init__(self) -> None:
        try:
            self._cuda: Any = import_module("cuda.bindings.driver")
        except ImportError as error:
            raise BackendError(
                f"the fused experts need cuda-bindings, which cannot be imported ({error}); pip install cuda-bindings"
            ) from error

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            code, *values = getattr(self._cuda, name)(*arguments)
        except (RuntimeError, OSError) as error:  # the driver's library is not there
            raise BackendError(f"{name}: no CUDA driver can be used ({error})") from error
        if code != self._cuda.CUresult.CUDA_SUCCESS:
            raise BackendError(f"{name} failed in CUDA: {getattr(code, 'name', code)}")
        return values[0] if values else None

    def capability(self) -> int:
        """Of the current context's device, as 87."""
        device, attribute = self._call("cuCtxGetDevice"), self._cuda.CUdevice_attribute
        major = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        minor = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
        return 10 * int(major) + int(minor)

    def load(self, image: bytes, name: str) -> Any:
        """A function of a cubin or of PTX; the module stays loaded as long as the context."""
        module = self._call("cuModuleLoadData", image + b"\0")
        return self._call("cuModuleGetFunction", module, name.encode())

    def launch(self, function: Any, compiled: Compiled, grid: tuple[int, int], stream: int, arguments: tuple[int, ...]) -> None:
        """Queue a kernel; arguments are addresses, or numbers where the kernel takes int32."""
        kinds = tuple(ctypes.c_void_p if kind.startswith("*") else ctypes.c_int32 for _, kind in compiled.arguments)
        self._call(
            "cuLaunchKernel",
            function,
            *(*grid, 1),
            *(compiled.threads, 1, 1),
            compiled.shared,
            self._cuda.CUstream(stream),
            (arguments, kinds),
            0,
        )


class Launcher:
    """The loaded kernels of one layer shape and one type of x, for every tile."""

    def __init__(self, driver: Driver, shape: MoEShape, x_type: str, root: Path | None) -> None:
        folder, capability = KernelFolder(shape, root), driver.capability()
        self.shape, self._driver = shape, driver
        self._plans = {name: Plan(shape, x_type, tile) for name, tile in TILES.items()}
        self._functions: dict[str, tuple[Any, Compiled]] = {}
        for plan in self._plans.values():
            for kernel in plan.kernels:
                compiled, image = folder.image(capability, kernel.file)
                wanted = for_target(kernel, compiled.target)
                if dict(compiled.constants) != dict(wanted.constants) or compiled.arguments != wanted.arguments:
                    raise BackendError(
                        f"{folder.folder}: kernel {kernel.file} was compiled from other sources; run `python -m engines kernels` again"
                    )
                self._functions[kernel.file] = driver.load(image, kernel.name), compiled

    def enqueue(self, tokens: int, tensors: Mapping[str, int], workspace: int, stream: int) -> None:
        """Queue the five kernels; ``tensors`` are addresses of the node's inputs by name and of ``y``.

        Without tokens there is nothing to do, and no grid of nothing can be launched.
        """
        if not tokens:
            return
        plan = self._plans[choose_tile(self.shape, tokens).name]
        offsets, _ = plan.workspace(tokens)
        addresses = {**tensors, **{name: workspace + offset for name, offset in offsets.items()}}
        for launch in plan.launches(tokens):
            function, compiled = self._functions[launch.file]
            arguments = tuple(a if isinstance(a, int) else addresses[a] for a in launch.arguments)
            self._driver.launch(function, compiled, launch.grid, stream, arguments)


class KernelCache:
    """Launchers, made when first asked for and shared by all layers of a model; ``root`` as for :class:`KernelFolder`."""

    def __init__(self, root: Path | None = None) -> None:
        self._root, self._lock = root, Lock()
        self._driver: Driver | None = None
        self._launchers: dict[tuple[MoEShape, str], Launcher] = {}

    def get(self, shape: MoEShape, x_type: str) -> Launcher:
        with self._lock:
            self._driver = self._driver or Driver()
            key = shape, x_type
            if key not in self._launchers:
                self._launchers[key] = Launcher(self._driver, shape, x_type, self._root)
            return self._launchers[key]
