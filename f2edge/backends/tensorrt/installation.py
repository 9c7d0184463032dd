"""TensorRT's Python package: import with a clear error, log, plug-ins, and the machine properties that plans depend on.

``import tensorrt`` comes from the system's package on a Jetson (JetPack installs it for the system's Python) and from a wheel elsewhere.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from f2edge.backends.tensorrt.cuda import CudaDevice
from f2edge.backends.tensorrt.plans import Machine, l4t_release
from f2edge.errors import BackendError

logger = logging.getLogger(__name__)

OLDEST = (10, 3)
INSTALL = (
    "on a Jetson `sudo apt install python3-libnvinfer` and a virtual environment made with --system-site-packages (docs/jetson.md), "
    "elsewhere `pip install tensorrt-cu13` (driver 580 or newer; else tensorrt-cu12)"
)
#: Modules to import before plans are read, separated by commas; each has ``register(tensorrt)``, which registers its plug-ins.
PLUGIN_MODULES = "F2EDGE_TENSORRT_PLUGINS"


def import_tensorrt() -> Any:
    """Return the ``tensorrt`` module.

    Raises:
        BackendError: the package or its libraries are missing or too old.
    """
    try:
        trt = import_module("tensorrt")
        version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    except (ImportError, OSError, AttributeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(f"TensorRT's Python package cannot be used ({reason}); {INSTALL}") from error
    if version < OLDEST:
        raise BackendError(f"TensorRT {trt.__version__} is too old: 10.3 is needed, which JetPack 6.1 brings; flash JetPack 6.1 or newer")
    return trt


class LogLines:
    """Latest errors of TensorRT, for messages; all lines are also passed to :mod:`logging`."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=20)

    def make(self, trt: Any) -> Any:
        """Return a ``tensorrt.ILogger`` that writes here; the caller must keep a reference."""
        severity, lines = trt.ILogger.Severity, self._lines
        levels = {
            severity.INTERNAL_ERROR: logging.ERROR,
            severity.ERROR: logging.ERROR,
            severity.WARNING: logging.WARNING,
            severity.INFO: logging.INFO,
            severity.VERBOSE: logging.DEBUG,
        }

        class Log(trt.ILogger):  # type: ignore[misc]  # exists only where TensorRT is installed
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                level = levels.get(severity, logging.INFO)
                if level >= logging.ERROR:
                    lines.append(msg.strip())
                logger.log(min(level, logging.INFO), "TensorRT: %s", msg)

        return Log()

    @property
    def last(self) -> str:
        """Latest errors in one line; TensorRT may log several."""
        return " | ".join(" ".join(line.split()) for line in self._lines) or "TensorRT gave no reason"

    def clear(self) -> None:
        self._lines.clear()


def machine_of(trt: Any, cuda: CudaDevice) -> Machine:
    """Return the machine properties that plans depend on."""
    return Machine(
        gpu=cuda.name,
        capability=cuda.capability,
        multiprocessors=cuda.multiprocessors,
        tensorrt=str(trt.__version__),
        cuda=cuda.cuda,
        l4t=l4t_release(),
    )


def register_plugins(trt: Any, log: Any, modules: str | None = None) -> None:
    """Register TensorRT's own plug-ins and those of the modules named in ``F2EDGE_TENSORRT_PLUGINS`` (or ``modules``).

    Raises:
        BackendError: a module cannot be imported or has no ``register``.
    """
    if not trt.init_libnvinfer_plugins(log, ""):
        raise BackendError("TensorRT's own plug-ins cannot be registered; is libnvinfer_plugin of the same version installed?")
    names = os.environ.get(PLUGIN_MODULES, "") if modules is None else modules
    for name in filter(None, (part.strip() for part in names.split(","))):
        try:
            import_module(name).register(trt)
        except (ImportError, AttributeError) as error:
            raise BackendError(
                f"{PLUGIN_MODULES}: {name!r} registers no plug-ins ({error}); name a module with register(tensorrt)"
            ) from error


def missing_plugins(trt: Any, plugins: Iterable[str]) -> list[str]:
    """Return the plug-ins, each "namespace::name:version", that are not registered."""
    registry = trt.get_plugin_registry()

    def known(plugin: str) -> bool:
        space, _, rest = plugin.rpartition("::")
        name, _, version = rest.partition(":")
        return registry.get_creator(name, version or "1", space) is not None

    return [plugin for plugin in plugins if not known(plugin)]
