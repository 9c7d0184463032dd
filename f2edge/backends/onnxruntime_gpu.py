"""Graphs on an NVIDIA GPU through ONNX Runtime's CUDA provider.

Alternative to TensorRT plans where only wheels can be installed: bundles of the "cuda" flavour run without building anything.  Inputs and
outputs are bound: keys and values stay on the device as ``OrtValue`` between runs, everything else is an array.

>>> FacePipeline.load("nano-cuda", backend="onnxruntime-cuda")                                                  # doctest: +SKIP

Nothing falls to the CPU silently.  From ONNX Runtime 1.24 on a session says where each operator runs; if any but shape arithmetic, which
ONNX Runtime keeps on the CPU by intention, is not on the GPU, the graph is refused by name.  Before, ``session.disable_cpu_ep_fallback``
makes any operator on the CPU an error, shape arithmetic too, so that only graphs of fixed sizes run.

| option | value | why |
|---|---|---|
| ``arena_extend_strategy`` | ``kSameAsRequested`` | memory grows by what is needed, not by doubling |
| ``cudnn_conv_algo_search`` | ``HEURISTIC`` | the default tries every algorithm at the first run of a shape |
| ``use_tf32`` | 0 | fp32 islands (router, LayerNorm, sampling) are fp32 for a reason |

Names and values: onnxruntime.ai/docs/execution-providers, page CUDA.  There is no backend for ONNX Runtime's TensorRT provider: without
explicit profiles it builds a new engine, in minutes, for every new size of an input, and plans (``python -m engines build``) do the same
work ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime

from f2edge.backends.base import Array, Sequential, Value, host, pack_arrays
from f2edge.backends.onnxruntime import OnnxRuntimeBackend, first_line
from f2edge.errors import BackendError
from f2edge.spec.graphs import SIGNATURES

INSTALL = (
    "`pip install --force-reinstall --no-deps onnxruntime-gpu` puts the GPU's build in the place of the CPU's "
    "(on a Jetson: a wheel built for its CUDA and GPU, docs/jetson.md)"
)


#: Operators that ONNX Runtime computes on the CPU by intention, on sizes.
SHAPE_OPERATORS = frozenset(
    {"Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Mul", "Range", "Reshape", "Shape", "Size", "Slice",
     "Squeeze", "Sub", "Unsqueeze", "Where"}
)  # fmt: skip
#: Makes a session report where operators run, and makes operators on the CPU an error.
RECORD, REFUSE = "session.record_ep_graph_assignment_info", "session.disable_cpu_ep_fallback"


@dataclass(frozen=True)
class Provider:
    """Execution provider of a backend.

    Attributes:
        name: name of the backend.
        provider: ONNX Runtime's name of the execution provider.
        options: its options.
        device: ONNX Runtime's name of the device memory.
    """

    name: str
    provider: str
    options: Mapping[str, str]
    device: str = "cuda"


_CUDA = {"device_id": "0", "arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
PROVIDERS: Mapping[str, Provider] = MappingProxyType({"onnxruntime-cuda": Provider("onnxruntime-cuda", "CUDAExecutionProvider", _CUDA)})


class OrtTensor:
    """Tensor in the memory of an execution provider; a :class:`~f2edge.backends.base.DeviceValue`."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape())

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("float16" if self.value.data_type() == "tensor(float16)" else "float32")

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
        self._wanted = provider.provider
        self.entries = {RECORD: "1"} if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info") else {REFUSE: "1"}
        available = onnxruntime.get_available_providers()
        if self._wanted not in available:
            raise BackendError(
                f"backend {provider.name!r} needs {self._wanted}, which ONNX Runtime {onnxruntime.__version__} as installed lacks "
                f"(it has {', '.join(available)}); {INSTALL}"
            )
        self.providers = [(provider.provider, provider.options)]  # the CPU's is always there, and must not be named with REFUSE

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        session, names = self._session(graph)
        stays = {tensor.name for tensor in SIGNATURES[graph].outputs if "H" in tensor.axes} if graph in SIGNATURES else set()
        try:
            binding = session.io_binding()
            for name, value in feeds.items():
                if isinstance(value, OrtTensor):
                    binding.bind_ortvalue_input(name, value.value)
                else:
                    binding.bind_cpu_input(name, np.ascontiguousarray(host(value)))
            for name in names:
                binding.bind_output(name, self._device if name in stays else "cpu", 0)
            session.run_with_iobinding(binding)
            found = dict(zip(names, binding.get_outputs(), strict=True))
            return {name: OrtTensor(value) if name in stays else np.asarray(value.numpy()) for name, value in found.items()}
        except Exception as error:  # ONNX Runtime raises its own classes and builtins alike
            raise BackendError(f"graph {graph!r} failed in ONNX Runtime: {first_line(error)}") from error

    def pack(self, caches: Sequence[Value]) -> Value:
        packed = pack_arrays([host(cache) for cache in caches])
        return OrtTensor(onnxruntime.OrtValue.ortvalue_from_numpy(packed, self._device, 0))

    def _session(self, graph: str) -> tuple[Any, list[str]]:
        key = graph, self.threads
        with self._lock:  # every session is kept: weights that went to the device stay there
            if key not in self._sessions:
                self._sessions[key] = self._load(graph, self._path(graph), self.threads, packed=True)
            found: tuple[Any, list[str]] = self._sessions[key]
            return found

    def _load(self, graph: str, path: Path, threads: int, *, packed: bool) -> tuple[Any, list[str]]:
        session, names = super()._load(graph, path, threads, packed=packed)
        if session.get_providers()[0] != self._wanted:  # ONNX Runtime continues without a provider that does not start
            raise BackendError(
                f"backend {self.name!r}: {self._wanted} does not start on this machine; are the driver, CUDA and cuDNN of the versions "
                f"that ONNX Runtime {onnxruntime.__version__} needs installed? (onnxruntime.ai/docs/execution-providers)"
            )
        if elsewhere := operators_elsewhere(session, self._wanted):
            raise BackendError(
                f"graph {graph!r}: ONNX Runtime would run {', '.join(elsewhere[:5])} on the CPU; export the bundle with "
                "`python -m export onnx --flavour cuda`, or use --backend onnxruntime"
            )
        return session, names


def operators_elsewhere(session: Any, wanted: str) -> list[str]:
    """Return the operators of a session, except shape arithmetic, that another provider than ``wanted`` runs."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name != wanted]
    return sorted({node.op_type for part in parts for node in part.get_nodes()} - SHAPE_OPERATORS)
