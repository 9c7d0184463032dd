"""Graphs on an NVIDIA GPU through ONNX Runtime: its CUDA provider, or its TensorRT provider, which builds engines on the way.

Alternative to TensorRT plans where only wheels can be installed: any bundle runs, including ONNX Runtime's own operators, without building
plans.  Inputs and outputs are bound: keys and values stay on the device as ``OrtValue`` between runs, everything else is an array.

>>> FacePipeline.load("nano", backend="onnxruntime-cuda")                                                       # doctest: +SKIP

| option | value | why |
|---|---|---|
| CUDA ``arena_extend_strategy`` | ``kSameAsRequested`` | memory grows by what is needed, not by doubling |
| CUDA ``cudnn_conv_algo_search`` | ``HEURISTIC`` | the default tries every algorithm at the first run of a shape |
| CUDA ``use_tf32`` | 0 | fp32 islands (router, LayerNorm, sampling) are fp32 for a reason |
| TensorRT ``trt_engine_cache_enable``, ``trt_engine_cache_path`` | 1, in the user's cache | an engine takes minutes to build |
| TensorRT ``trt_timing_cache_enable``, ``trt_timing_cache_path`` | 1, the same | and the next one is built faster |
| TensorRT ``trt_context_memory_sharing_enable`` | 1 | subgraphs do not run at once |

Names and values: onnxruntime.ai/docs/execution-providers, pages CUDA and TensorRT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime

from f2edge.backends.base import Array, Sequential, Value, host, pack_arrays
from f2edge.backends.onnxruntime import OnnxRuntimeBackend, first_line
from f2edge.backends.ports import Ports
from f2edge.errors import BackendError
from f2edge.spec.graphs import SIGNATURES

INSTALL = (
    "`pip install --force-reinstall --no-deps onnxruntime-gpu` puts the GPU's build in the place of the CPU's "
    "(on a Jetson: a wheel built for its CUDA and GPU, docs/jetson.md)"
)


@dataclass(frozen=True)
class Provider:
    """Execution providers of a backend.

    Attributes:
        name: name of the backend.
        chain: execution providers with their options in order of preference; each runs what the earlier ones cannot.
        device: ONNX Runtime's name of the device memory.
        cached: options whose value is a folder in the user's cache.
    """

    name: str
    chain: tuple[tuple[str, Mapping[str, str]], ...]
    device: str = "cuda"
    cached: tuple[str, ...] = field(default=())


_CUDA = {"device_id": "0", "arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
_TENSORRT = {
    "device_id": "0",
    "trt_engine_cache_enable": "1",
    "trt_timing_cache_enable": "1",
    "trt_context_memory_sharing_enable": "1",
}
PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {
        "onnxruntime-cuda": Provider("onnxruntime-cuda", (("CUDAExecutionProvider", _CUDA),)),
        "onnxruntime-tensorrt": Provider(
            "onnxruntime-tensorrt",
            (("TensorrtExecutionProvider", _TENSORRT), ("CUDAExecutionProvider", _CUDA)),
            cached=("trt_engine_cache_path", "trt_timing_cache_path"),
        ),
    }
)


class OrtTensor:
    """Tensor in the memory of an execution provider; a :class:`~f2edge.backends.base.DeviceValue`."""

    def __init__(self, value: Any, device: str) -> None:
        self.value, self._device = value, device
        self._layers: list[OrtTensor] | None = None

    def __iter__(self) -> Iterator[OrtTensor]:
        """Iterate over the first axis; its parts are copied once."""
        if self._layers is None:
            self._layers = [
                OrtTensor(onnxruntime.OrtValue.ortvalue_from_numpy(part, self._device, 0), self._device) for part in self.numpy()
            ]
        return iter(self._layers)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape())

    def numpy(self) -> Array:
        """Return a copy in host memory."""
        return np.asarray(self.value.numpy())


class OnnxRuntimeGpuBackend(Sequential, OnnxRuntimeBackend):
    """Runner of a bundle's ONNX graphs on a GPU.

    Args:
        path: returns the file of a graph.
        provider: one of :data:`PROVIDERS`.
        threads: CPU threads for operators without a GPU kernel.

    Raises:
        BackendError: the installed ONNX Runtime lacks the provider, or it does not start on this machine.
    """

    def __init__(self, path: Callable[[str], Path], provider: Provider, threads: int | None = None) -> None:
        super().__init__(path, threads)
        self.name = provider.name
        self._device = provider.device
        self._wanted = provider.chain[0][0]
        available = onnxruntime.get_available_providers()
        if self._wanted not in available:
            raise BackendError(
                f"backend {provider.name!r} needs {self._wanted}, which ONNX Runtime {onnxruntime.__version__} as installed lacks "
                f"(it has {', '.join(available)}); {INSTALL}"
            )
        cached = dict.fromkeys(provider.cached, str(_cache_folder())) if provider.cached else {}
        first, *others = provider.chain
        chain: dict[str, Mapping[str, str]] = {first[0]: {**first[1], **cached}, **dict(others)}
        self.providers = list({**chain, "CPUExecutionProvider": chain.get("CPUExecutionProvider", {})}.items())

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        session, ports = self._session(graph)
        caches = {tensor.name for tensor in SIGNATURES[graph].outputs if "H" in tensor.axes} if graph in SIGNATURES else set()
        stays = {name for name in ports.outputs if name.split(".")[0] in caches}
        try:
            binding = session.io_binding()
            for name, value in ports.feeds(feeds).items():
                if isinstance(value, OrtTensor):
                    binding.bind_ortvalue_input(name, value.value)
                else:
                    binding.bind_cpu_input(name, np.ascontiguousarray(host(value)))
            for name in ports.outputs:
                binding.bind_output(name, self._device if name in stays else "cpu", 0)
            session.run_with_iobinding(binding)
            found = dict(zip(ports.outputs, binding.get_outputs(), strict=True))
            outputs = {
                name: OrtTensor(value, self._device) if name in stays else np.asarray(value.numpy()) for name, value in found.items()
            }
            return ports.results(feeds, outputs)
        except Exception as error:  # ONNX Runtime raises its own classes and builtins alike
            raise BackendError(f"graph {graph!r} failed in ONNX Runtime: {first_line(error)}") from error

    def pack(self, caches: Sequence[Value]) -> Value:
        packed = pack_arrays([host(cache) for cache in caches])
        return OrtTensor(onnxruntime.OrtValue.ortvalue_from_numpy(packed, self._device, 0), self._device)

    def _session(self, graph: str) -> tuple[Any, Ports]:
        key = graph, self.threads
        with self._lock:  # every session is kept: weights that went to the device stay there
            if key not in self._sessions:
                self._sessions[key] = self._load(graph, self._path(graph), self.threads, packed=True)
            found: tuple[Any, Ports] = self._sessions[key]
            return found

    def _load(self, graph: str, path: Path, threads: int, *, packed: bool) -> tuple[Any, Ports]:
        session, ports = super()._load(graph, path, threads, packed=packed)
        if session.get_providers()[0] != self._wanted:  # ONNX Runtime continues without a provider that does not start
            raise BackendError(
                f"backend {self.name!r}: {self._wanted} does not start on this machine; are the driver, CUDA and cuDNN of the versions "
                f"that ONNX Runtime {onnxruntime.__version__} needs installed? (onnxruntime.ai/docs/execution-providers)"
            )
        return session, ports


def _cache_folder() -> Path:
    from platformdirs import user_cache_dir

    folder = Path(user_cache_dir("f2edge", appauthor=False)) / "onnxruntime-tensorrt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"{folder}: cannot be created ({error.strerror}), but engines are cached there; set XDG_CACHE_HOME") from error
    return folder
