"""Launch of the compiled fused-expert kernels on a given CUDA stream, as TensorRT plug-ins need it.

Uses ``cuda.bindings.driver``: TensorRT passes a stream handle, and pycuda's ``Function`` takes only a ``pycuda.driver.Stream``, which
cannot be made from a handle (pycuda 2026.1).  Both libraries work in the device's primary context, so they can be combined.  A launch
neither allocates nor synchronizes, so it can be captured in a CUDA graph.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from engines.plugins.fused_moe import TILES, Kernel, KernelPlan, MoEShape, choose_tile, for_target
from engines.plugins.kernel_folder import CompiledKernel, KernelFolder
from f2edge.errors import BackendError

logger = logging.getLogger(__name__)


class RefusedImageError(BackendError):
    """Code that the driver does not load: damaged, or of another GPU or a newer CUDA."""


class Driver:
    """The CUDA driver calls needed for a launch, in the calling thread's current context.

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
        except (RuntimeError, OSError) as error:  # the driver library is missing
            raise BackendError(f"{name}: no usable CUDA driver ({error})") from error
        if code != self._cuda.CUresult.CUDA_SUCCESS:
            raise BackendError(f"{name} failed in CUDA: {getattr(code, 'name', code)}")
        return values[0] if values else None

    def capability(self) -> int:
        """Return the compute capability of the current device, such as 87."""
        device, attribute = self._call("cuCtxGetDevice"), self._cuda.CUdevice_attribute
        major = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        minor = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
        return 10 * int(major) + int(minor)

    def load(self, image: bytes, name: str) -> Any:
        """Load a function from a cubin or PTX; the module stays loaded as long as the context.

        Raises:
            RefusedImageError: the driver does not take the image.
            BackendError: it has no function of this name.
        """
        try:
            module = self._call("cuModuleLoadData", image + b"\0")
        except BackendError as error:
            raise RefusedImageError(str(error)) from error
        return self._call("cuModuleGetFunction", module, name.encode())

    def launch(self, function: Any, compiled: CompiledKernel, grid: tuple[int, int], stream: int, arguments: tuple[int, ...]) -> None:
        """Enqueue a kernel; ``arguments`` are addresses, or numbers for int32 parameters."""
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
    """The loaded kernels of one layer shape and one dtype of x, for every tile.

    Attributes:
        sources: what was loaded, such as "cubin of sm_87 (ptxas 12.9)", and for how many kernels; the driver compiles "ptx" itself.
    """

    def __init__(self, driver: Driver, shape: MoEShape, x_type: str, root: Path | None) -> None:
        folder, capability = KernelFolder(shape, root), driver.capability()
        self.shape, self._driver = shape, driver
        self._plans = {name: KernelPlan(shape, x_type, tile) for name, tile in TILES.items()}
        self.sources: dict[str, int] = {}
        self._functions: dict[str, tuple[Any, CompiledKernel]] = {}
        for plan in self._plans.values():
            for kernel in plan.kernels:
                self._functions[kernel.file], source = self._load(folder, capability, kernel)
                self.sources[source] = self.sources.get(source, 0) + 1
        taken = ", ".join(f"{count} {source}" for source, count in self.sources.items())
        logger.info("fused experts %s on sm_%d: %s", shape.label, capability, taken)

    def _load(self, folder: KernelFolder, capability: int, kernel: Kernel) -> tuple[tuple[Any, CompiledKernel], str]:
        """Return the first code of a kernel that the driver takes, and what it is."""
        refusals = []
        for compiled, kind, image in folder.images(capability, kernel.file):
            wanted = for_target(kernel, compiled.target)
            if dict(compiled.constants) != dict(wanted.constants) or compiled.arguments != wanted.arguments:
                raise BackendError(
                    f"{folder.folder}: kernel {kernel.file} was compiled from other sources; run `python -m engines kernels` again"
                )
            source = f"{kind} of sm_{compiled.target}" + (
                f" (ptxas {compiled.assembler})" if kind == "cubin" and compiled.assembler else ""
            )
            try:
                function = self._driver.load(image, kernel.name)
            except RefusedImageError as error:
                logger.warning("kernel %s: the driver refuses the %s: %s", kernel.file, source, error)
                refusals.append(f"{source}: {error}")
                continue
            return (function, compiled), source
        raise BackendError(f"kernel {kernel.file}: the driver takes none of its code ({'; '.join(refusals)}); update the driver")

    def enqueue(self, tokens: int, tensors: Mapping[str, int], workspace: int, stream: int) -> None:
        """Enqueue the five kernels; ``tensors`` maps the node's inputs and ``y`` to addresses.  Zero tokens launch nothing."""
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
    """Launchers by shape and dtype, created on first use and shared by all layers; ``root`` as for :class:`KernelFolder`."""

    def __init__(self, root: Path | None = None) -> None:
        self._root, self._lock = root, Lock()
        self._driver: Driver | None = None
        self._launchers: dict[tuple[MoEShape, str], Launcher] = {}

    def get(self, shape: MoEShape, x_type: str) -> Launcher:
        """Return the launcher of a shape and a dtype of x, "fp16" or "fp32"."""
        with self._lock:
            self._driver = self._driver or Driver()
            key = shape, x_type
            if key not in self._launchers:
                self._launchers[key] = Launcher(self._driver, shape, x_type, self._root)
            return self._launchers[key]
