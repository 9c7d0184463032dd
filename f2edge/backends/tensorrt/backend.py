"""Graphs on an NVIDIA GPU through TensorRT plans (``python -m engines build``).

Plans for this GPU and TensorRT version are searched beside the bundle (:func:`f2edge.backends.tensorrt.plans.find_plans`); unsuitable ones
are refused with the reason.  Engines are loaded when a graph is first run.  Keys and values stay on the device
from run to run, and so does a step's grid; only ids, pixels and logits cross.  Requests with more rows than a plan takes are cut into
several runs.

Environment: ``F2EDGE_TENSORRT_PLUGINS`` names modules that register plug-ins; ``F2EDGE_TRUST_PLANS=1`` allows version-compatible plans,
which contain host code.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Mapping, Sequence
from threading import RLock

import numpy as np

from f2edge.backends.base import Array, Sequential, Value, host
from f2edge.backends.row_groups import row_groups
from f2edge.backends.tensorrt.device import open_device
from f2edge.backends.tensorrt.device_memory import DeviceArray, DeviceMemory
from f2edge.backends.tensorrt.installation import LogLines, import_tensorrt, machine_of, missing_plugins, register_plugins
from f2edge.backends.tensorrt.plans import PlanFolder, find_plans, manifest_sha256, unfit
from f2edge.backends.tensorrt.scratch import Scratch
from f2edge.backends.tensorrt.session import EngineSession
from f2edge.backends.tensorrt.shapes import largest
from f2edge.bundle.bundle import Bundle
from f2edge.errors import BackendError, BundleError
from f2edge.spec.graphs import SIGNATURES, T2I_STEP

logger = logging.getLogger(__name__)

TRUST_PLANS = "F2EDGE_TRUST_PLANS"
#: Limit of idle device memory kept for later requests: on a Jetson, which shares memory with the host, and elsewhere.
IDLE_BYTES_INTEGRATED, IDLE_BYTES = 256 << 20, 2 << 30


class TensorRTBackend(Sequential):
    """Thread-safe runner of a bundle's TensorRT plans, one run at a time.

    Args:
        bundle: open bundle with plans.
        graphs: whether repeated runs are captured as CUDA graphs, where cuda-bindings is installed.

    Attributes:
        machine, plans: what it runs on, and with.
        graphs: whether CUDA graphs are captured.
        cuda_library: "pycuda" or "cuda-bindings".

    Raises:
        BackendError: TensorRT, pycuda and cuda-bindings, or a GPU are missing, or no plans fit; the message names what to install or build.
    """

    name = "tensorrt"

    def __init__(self, bundle: Bundle, *, graphs: bool = True) -> None:
        self._trt = import_tensorrt()
        self._cuda = open_device()
        self.cuda_library, missing = self._cuda.binding, self._cuda.no_graphs
        if not graphs:
            self._cuda.no_graphs = "turned off"
        self.graphs = self._cuda.no_graphs is None
        self.machine = machine_of(self._trt, self._cuda)
        self.plans = choose_plans(bundle, self)
        self._log = LogLines()
        self._lock = RLock()
        self._sessions: dict[str, EngineSession] = {}
        with self._cuda.current():
            idle = IDLE_BYTES_INTEGRATED if self._cuda.integrated else IDLE_BYTES
            self._memory = DeviceMemory(self._cuda, self._lock, idle)
            self._scratch = Scratch(self._cuda)
            self._logger = self._log.make(self._trt)
            register_plugins(self._trt, self._logger)
            self._runtime = self._trt.Runtime(self._logger)
            self._runtime.engine_host_code_allowed = self.plans.version_compatible
        if graphs and missing:
            logger.warning("steps run without CUDA graphs: %s", missing)

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        with self._lock, self._cuda.current():
            session = self._session(graph)
            try:
                return self._run(session, feeds)
            except (BackendError, BundleError):
                raise
            except Exception as error:  # pycuda's and TensorRT's own classes
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise BackendError(f"graph {graph!r} failed in TensorRT: {first}") from error

    def pack(self, caches: Sequence[Value]) -> Value:
        with self._lock, self._cuda.current():
            packed = self._memory.gather([(self._on_device(cache), 0) for cache in caches])
            self._cuda.synchronize()
            return packed

    def _run(self, session: EngineSession, feeds: Mapping[str, Value]) -> dict[str, Value]:
        plan = session.plan
        if plan.name == T2I_STEP.name:
            limit = _step_rows(largest(plan, "R"), largest(plan, "B"))
            if limit is not None and feeds["codes"].shape[0] > limit:
                groups = [session.run(group) for group in row_groups(feeds, limit, self._rows)]
                return {name: self._joined([group[name] for group in groups]) for name in groups[0]}
            return session.run(feeds)
        letters = {tensor.name: tensor.axes for tensor in SIGNATURES[plan.name].inputs}
        limit, rows = largest(plan, "B"), max((v.shape[letters[n].index("B")] for n, v in feeds.items() if n in letters), default=0)
        if limit is None or rows <= limit:
            return session.run(feeds)
        parts = []
        for first in range(0, rows, limit):
            taken = np.arange(first, min(first + limit, rows))
            parts.append(session.run({n: self._taken(v, letters.get(n, ""), taken) for n, v in feeds.items()}))
        return {name: self._joined([part[name] for part in parts]) for name in parts[0]}

    def _taken(self, value: Value, letters: str, rows: Array) -> Value:
        """Return some rows of an input; an input shared by all rows is returned whole."""
        axis = letters.index("B")
        if axis == 1:
            return value if value.shape[1] == 1 else self._rows(value, rows)
        return host(value)[rows]

    def _rows(self, cache: Value, rows: Array) -> Value:
        """Return rows of a cache (L, B, H, P, W)."""
        if not isinstance(cache, DeviceArray):
            return host(cache)[:, rows]
        return self._memory.gather([(cache, int(row)) for row in rows])

    def _joined(self, parts: Sequence[Value]) -> Value:
        """Concatenate one output of several runs."""
        there = [part for part in parts if isinstance(part, DeviceArray)]
        if not there:
            return np.concatenate([host(part) for part in parts])
        if len(there[0].shape) == 5:
            return self._memory.gather([(cache, row) for cache in there for row in range(cache.shape[1])])
        return self._memory.join(there)

    def _on_device(self, cache: Value) -> DeviceArray:
        return cache if isinstance(cache, DeviceArray) else self._memory.upload(host(cache))

    def _session(self, graph: str) -> EngineSession:
        if graph not in self._sessions:
            self._sessions[graph] = self._load(graph)
        return self._sessions[graph]

    def _load(self, graph: str) -> EngineSession:
        path = self.plans.path(graph)
        plan = self.plans.graphs[graph]
        missing = missing_plugins(self._trt, plan.plugins)
        if missing:
            raise BackendError(f"graph {graph!r} needs the plug-ins {', '.join(missing)}; name their module in F2EDGE_TENSORRT_PLUGINS")
        self._log.clear()
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:  # not copied: may be gigabytes
            engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendError(f"TensorRT {self.machine.tensorrt} cannot read {path}: {self._log.last}; build the plans again")
        return EngineSession(plan, engine, self._trt, self._memory, self._scratch)


def choose_plans(bundle: Bundle, backend: TensorRTBackend) -> PlanFolder:
    """Return the bundle's first plans that fit this machine; raises :class:`BackendError` with the reason for each refused folder."""
    machine, refusals = backend.machine, []
    for folder in find_plans(bundle):
        try:
            plans = PlanFolder.load(folder)
        except BundleError as error:
            refusals.append(str(error))
            continue
        reason = unfit(plans, machine)
        if plans.bundle_sha256 != manifest_sha256(bundle):
            reason = "built from another version of the bundle; build them again"
        elif reason is None and plans.version_compatible and os.environ.get(TRUST_PLANS) != "1":
            reason = f"version-compatible plans run code that they carry; set {TRUST_PLANS}=1 if you built them"
        if reason is None:
            logger.info("plans %s, built with profile %s", folder, plans.profile)
            return plans
        refusals.append(f"{folder}: {reason}")
    build = f"`python -m engines build {bundle.name}` on this machine makes them ({machine.gpu}, TensorRT {machine.tensorrt})"
    raise BackendError(f"bundle {bundle.name!r} has no TensorRT plans that run here; {'; '.join(refusals) or build}")


def _step_rows(rows: int | None, branches: int | None) -> int | None:
    """Return the maximum number of requests per run of the step graph, with two branches each; None for no limit."""
    limits = [limit for limit in (rows, branches // 2 if branches is not None else None) if limit is not None]
    return max(1, min(limits)) if limits else None
