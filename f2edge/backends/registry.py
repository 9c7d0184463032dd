"""Selection of the backend, by name or by the machine's hardware, with a logged reason.

>>> choose_backend("auto", Bundle.load("nano"))[1]
'auto: onnxruntime, the CPU backend, runs everywhere'
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from f2edge.backends.base import Backend
from f2edge.errors import BackendError

logger = logging.getLogger(__name__)


class GraphFiles(Protocol):
    """Bundle interface of a backend."""

    def path(self, graph_name: str, /) -> Path:
        """Return the graph's file; raises :class:`~f2edge.errors.BundleError` where the bundle lacks it."""
        ...


def _onnxruntime(bundle: GraphFiles, threads: int | None) -> Backend:
    try:
        from f2edge.backends.onnxruntime import OnnxRuntimeBackend
    except ImportError as error:
        raise BackendError(f"backend 'onnxruntime' cannot be imported ({error}); reinstall with `pip install onnxruntime`") from error
    return OnnxRuntimeBackend(bundle.path, threads)


def _onnxruntime_cuda(bundle: GraphFiles, threads: int | None) -> Backend:
    name = "onnxruntime-cuda"
    try:
        from f2edge.backends.onnxruntime_gpu import PROVIDERS, OnnxRuntimeGpuBackend
    except ImportError as error:
        raise BackendError(f"backend {name!r} cannot be imported ({error}); install it with `pip install onnxruntime-gpu`") from error
    return OnnxRuntimeGpuBackend(bundle.path, PROVIDERS[name], threads)


def _tensorrt(bundle: GraphFiles, _threads: int | None) -> Backend:
    from f2edge.backends.tensorrt.backend import TensorRTBackend
    from f2edge.bundle.bundle import Bundle

    if not isinstance(bundle, Bundle):
        raise BackendError("backend 'tensorrt' needs an opened bundle, because plans are stored in its folder")
    return TensorRTBackend(bundle)


#: Name → factory.  Modules are imported only when selected.
BACKENDS: Mapping[str, Callable[[GraphFiles, int | None], Backend]] = MappingProxyType(
    {
        "onnxruntime": _onnxruntime,
        "onnxruntime-cuda": _onnxruntime_cuda,
        "tensorrt": _tensorrt,
    }
)


def choose_backend(name: str, bundle: GraphFiles, threads: int | None = None) -> tuple[Backend, str]:
    """Return the backend of a name ("auto" selects one) and the reason, which is also logged.

    Raises:
        BackendError: unknown name, or a backend that this machine cannot run.
    """
    if name != "auto" and name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}; choose one of: auto, {', '.join(BACKENDS)}")
    backend, reason = _automatic(bundle, threads) if name == "auto" else (BACKENDS[name](bundle, threads), f"{name}: requested by name")
    logger.info("backend %s", reason)
    return backend, reason


def _automatic(bundle: GraphFiles, threads: int | None) -> tuple[Backend, str]:
    """Return TensorRT if there are plans of this bundle for this machine, otherwise the CPU backend."""
    from f2edge.backends.tensorrt.plans import find_plans
    from f2edge.bundle.bundle import Bundle

    reason = "auto: onnxruntime, the CPU backend, runs everywhere"
    if isinstance(bundle, Bundle) and any(find_plans(bundle)):
        try:
            return _tensorrt(bundle, threads), "auto: tensorrt, for which the bundle has plans that fit this machine"
        except BackendError as error:
            reason = f"auto: onnxruntime, because the bundle's TensorRT plans do not run here: {error}"
            logger.warning("%s", reason)
    return _onnxruntime(bundle, threads), reason
