"""Graphs on a CPU through ONNX Runtime.

A session is created when its graph is first run, so ``generate`` does not load the graphs of ``ask``.  Arrays enter and leave a session
without a copy (4 MB through one node: 0.12 ms by ``run``, 0.14 ms by bound ``OrtValue``), so values are plain arrays.

Settings that differ from ONNX Runtime's defaults, measured on nano in int8:

* Idle threads sleep instead of spinning.  Every session has its own threads, and spinning ones compete with the next session: with the two
  cores shared, ``analyze`` took 544 ms spinning and 87 ms sleeping.  In the repeated graphs of a large model they spin for 50 µs, until the
  next operator comes: an answer token of Show-o takes 37 ms instead of 44.
* A decoding step of many requests runs in pairs, without the memory arena.  A face costs the same alone and in a batch (about 120 ms of
  one core), but memory grows with the batch: sixteen faces and an ``analyze`` leave 180 MB; in pairs with the arena 248 MB; the whole batch
  with the arena peaked at 514 MB.
* The repeated graphs of a large model keep the arena, unless memory is scarce: a step of Show-o mapped 135 MB anew, 7 % of its time.
* Pairs of a small model run in parallel, one core each (:mod:`f2edge.backends.worker_pool`), in additional single-thread sessions (57 MB
  on two cores); so do pictures in the encoders.  A large model has no additional sessions: its weights would be in memory twice.
* The two prefill graphs of a large model run once per prompt or face, directly from the mapped file, without prepacked weights; the other
  graphs are prepacked.  Four-bit products are three times slower unpacked and are always prepacked.  If memory is scarce (``F2EDGE_LEAN``),
  the prefill graphs are also closed after each run.  Show-o in int8, a picture and a question: 0.7 s kept open, 1.6 s closed in between.
* The optimizer that splits keys and values into all layers at once is off: it copies 100 MB of Show-o's cache per answer token into freshly
  mapped memory, 63 ms a token; layer by layer takes 34 ms.
* A decoding step of one branch runs as two equal branches, unless its graph says that its rows are independent of each other
  (export/graph/independent_rows.py), as new bundles' do.  A product of one row is summed in another order than the same row in a batch;
  int8 rounding amplifies the difference, and a face would depend on other requests in the batch.  Guided steps have two branches anyway.
* Logging is off: errors are raised, and log lines would appear in the user's terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime

from f2edge.backends.base import Item, Result, Value, host, pack_arrays
from f2edge.backends.memory import give_back
from f2edge.backends.ports import Layers, Ports
from f2edge.backends.row_groups import paired_branch, row_groups
from f2edge.backends.worker_pool import WorkerPool
from f2edge.errors import BackendError
from f2edge.spec.graphs import IMAGE_ENCODE, MMU_PREFILL, SEMANTIC, T2I_PREFILL, T2I_STEP

#: Requests in one run of the step graph; more are split.
ROWS_PER_STEP = 2
#: Graphs that process each picture independently.
ENCODERS = (IMAGE_ENCODE.name, SEMANTIC.name)
#: Graphs that run once for a prompt or a face.
PASSING = (T2I_PREFILL.name, MMU_PREFILL.name)
#: "1": large models use less memory and more time; "0": the opposite; unset: decided by the available memory at loading.
LEAN = "F2EDGE_LEAN"
#: Memory is scarce below this multiple of the model's weights.
PLENTY = 4
#: How long idle threads of a large model's repeated graphs wait for the next operator before they sleep.
SPIN_MICROSECONDS = "50"
#: Disabled optimizers of ONNX Runtime.
DISABLED = ("GatherSliceToSplitFusion",)
#: Weights from which a model counts as large.
LARGE_BYTES = 1 << 29


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxRuntimeBackend:
    """Runner of a bundle's ONNX graphs on the CPU.

    Args:
        path: returns the file of a graph; raises :class:`~f2edge.errors.BundleError` for a graph that the bundle lacks.
        threads: threads of each session and maximum number of parallel runs; None uses every usable core.
        split: whether large steps and batches of pictures are split into several runs; False runs every graph on its inputs as they are,
            as measurements of a modified graph need it.
    """

    name: str = "onnxruntime"
    providers: Sequence[tuple[str, Mapping[str, str]]] = (("CPUExecutionProvider", {}),)
    entries: Mapping[str, str] = {}  # further configuration of every session

    def __init__(self, path: Callable[[str], Path], threads: int | None = None, *, split: bool = True) -> None:
        self.threads = threads or usable_cores()
        self._split = split
        self._path = path
        self._sessions: dict[tuple[str, int], Any] = {}
        self._lock = Lock()
        self._pool = WorkerPool(self.threads)
        self._large: bool | None = None  # known from the first graph's folder
        self._lean = False

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        arrays = {name: value if isinstance(value, Layers) else host(value) for name, value in feeds.items()}
        groups = list(self._groups(graph, arrays))
        if len(groups) == 1:
            return {**self._run(graph, groups[0])}
        parts = self.each(lambda group: self._run(graph, group), groups)
        return {name: np.concatenate([host(part[name]) for part in parts]) for name in parts[0]}

    def _groups(self, graph: str, arrays: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Yield a graph's inputs split into the groups of its runs."""
        if not self._split:
            yield arrays
        elif graph == T2I_STEP.name:
            self._weigh(self._path(graph))
            rows = len(arrays["codes"])
            size = self._rows_at_once(rows)
            yield from row_groups(arrays, size) if rows > size else (arrays,)  # cutting copies
        elif graph in ENCODERS:
            for row in range(len(arrays["pixels"])):
                yield {"pixels": arrays["pixels"][row : row + 1]}
        else:
            yield arrays

    def _run(self, graph: str, arrays: Mapping[str, Any]) -> dict[str, Value]:
        session, ports = self._session(graph)
        if self._split and graph == T2I_STEP.name and not ports.independent_rows:
            arrays = paired_branch(arrays)
        try:
            found = session.run(ports.outputs, {name: host(value) for name, value in ports.feeds(arrays).items()})
            return ports.results(arrays, dict(zip(ports.outputs, found, strict=True)))
        except Exception as error:  # ONNX Runtime raises its own classes and builtins
            raise BackendError(f"graph {graph!r} failed in ONNX Runtime: {first_line(error)}") from error
        finally:
            if self._lean and self._split and graph in PASSING:
                del session
                give_back()

    def pack(self, caches: Sequence[Value]) -> Value:
        return pack_arrays([host(c) for c in caches])

    @property
    def workers(self) -> int:
        return self._pool.count if self._large is False else 1

    def each(self, call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        return self._pool.each(call, items) if self.workers > 1 else [call(item) for item in items]

    def _rows_at_once(self, rows: int) -> int:
        """Return the rows per part of a step: spread over all workers, at most ``ROWS_PER_STEP``."""
        workers = 1 if self._pool.in_worker else self.workers
        return min(ROWS_PER_STEP, -(-rows // workers))

    def _weigh(self, graph: Path) -> None:
        if self._large is None:
            weights = sum(entry.stat().st_size for entry in graph.parent.iterdir() if entry.is_file())
            self._lean = weights >= LARGE_BYTES and _lean(weights)
            self._large = weights >= LARGE_BYTES

    def _session(self, graph: str) -> tuple[Any, Ports]:
        key = graph, 1 if self._pool.in_worker else self.threads
        with self._lock:
            if key in self._sessions:
                found: tuple[Any, Ports] = self._sessions[key]
                return found
            path = self._path(graph)
            self._weigh(path)
            passing = self._split and graph in PASSING and bool(self._large)
            loaded = self._load(graph, path, key[1], packed=not passing or b"MatMulNBits" in path.read_bytes())
            if not (passing and self._lean):
                self._sessions[key] = loaded
            return loaded

    def _source(self, path: Path) -> str | bytes:
        """Return what a session is made of: the file, so that weights are mapped."""
        return str(path)

    def _load(self, graph: str, path: Path, threads: int, *, packed: bool) -> tuple[Any, Ports]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        repeated = bool(self._large) and self._split and graph not in PASSING
        # a step of a large model would map 20 MB a layer anew each time
        options.enable_cpu_mem_arena = repeated and not self._lean
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if repeated else "0")
        if repeated:
            options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
        source = self._source(path)
        for key, value in self.entries.items():
            options.add_session_config_entry(key, value)
        if not packed:
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            session = onnxruntime.InferenceSession(source, options, providers=list(self.providers), disabled_optimizers=list(DISABLED))
        except Exception as error:
            raise BackendError(
                f"graph {graph!r} cannot be loaded by ONNX Runtime {onnxruntime.__version__} from {path}: {first_line(error)}; "
                "check the bundle with `f2edge verify`"
            ) from error
        return session, Ports.of(session)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _lean(weights: int) -> bool:
    """Return whether a model of ``weights`` bytes should save memory."""
    chosen = os.environ.get(LEAN, "")
    if chosen in ("0", "1"):
        return chosen == "1"
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):  # not Linux
        return False
    return available < PLENTY * weights
