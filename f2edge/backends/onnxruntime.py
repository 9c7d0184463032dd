"""Graphs on a CPU through ONNX Runtime.

Sessions are made when a graph is first run, so that ``generate`` never loads what only ``ask`` needs.  Arrays go in and out of a session
without a copy on this device (4 MB through one node: 0.12 ms by ``run``, 0.14 ms by bound ``OrtValue``), hence values are plain arrays.

Settings that differ from ONNX Runtime's own, and why, measured on nano in int8:

* Idle threads sleep instead of spinning.  Every session has its own threads, and spinning ones take the cores from the next session and
  from everybody else: with the machine's two cores shared, ``analyze`` took 544 ms spinning and 87 ms sleeping.
* A decoding step of many requests runs in pairs, and without the memory arena.  A face costs the same alone and in a batch (about 120 ms of
  one core), while memory grows with the batch: sixteen faces at once, then ``analyze``, leave 180 MB; in pairs with the arena 248 MB; the
  whole batch with the arena peaked at 514 MB.
* Pairs of a small model run side by side, each on one core (:mod:`f2edge.backends.worker_pool`), in sessions of one thread that stand
beside the
  usual ones (57 MB on two cores); so do pictures in the encoders.  Of a model with large weights there are no second sessions: their
  weights would be in memory twice.
* Of a model with large weights, the two prefill graphs are opened without a copy of their weights in the order that the processor likes:
  they run once for a prompt or a face, straight from the mapped file, beside the graph that does the work and has such a copy.  Products
  with four-bit weights are three times slower without it and have it in any case.  Where memory is scarce (``F2EDGE_LEAN``), these graphs
  are moreover closed after each run.  Show-o in int8, a picture and a question: 0.7 s kept open, 1.6 s closed in between.
* ONNX Runtime would cut keys and values into layers all at once, copying 100 MB of Show-o's for each answer token into memory that the
  system has to find anew: 63 ms a token.  Cut layer by layer: 34 ms.
* A decoding step of one branch runs as two alike.  A product of one row is summed in another order than the same row among others; in int8
  the difference becomes a step, and a face would depend on its company.  Guided steps have two branches anyway.
* Nothing is logged: errors are raised, and what is logged would land in a user's terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime

from f2edge.backends.base import Array, Item, Result, Value, host, pack_arrays
from f2edge.backends.row_groups import paired_branch, row_groups
from f2edge.backends.worker_pool import Lanes
from f2edge.errors import BackendError
from f2edge.memory import give_back
from f2edge.spec.graphs import IMAGE_ENCODE, MMU_PREFILL, SEMANTIC, T2I_PREFILL, T2I_STEP

#: Requests in one run of the step graph; more are split.
ROWS_PER_STEP = 2
#: Graphs of pictures, which know nothing of each other.
ENCODERS = (IMAGE_ENCODE.name, SEMANTIC.name)
#: Graphs that run once for a prompt or a face.
PASSING = (T2I_PREFILL.name, MMU_PREFILL.name)
#: "1": large models take less memory and more time; "0": the other way; neither: by the memory that is available when a model is loaded.
LEAN = "F2EDGE_LEAN"
#: Memory is plenty where so many times a model's weights are available.
PLENTY = 4
#: ONNX Runtime's optimizers that cost more than they save.
DISABLED = ("GatherSliceToSplitFusion",)
#: A model is large from so many bytes on.
LARGE_BYTES = 1 << 29


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxRuntimeBackend:
    """Runs a bundle's ONNX graphs on the CPU.

    Args:
        path: where a graph's file is; raises :class:`~f2edge.errors.BundleError` for a graph that the bundle lacks.
        threads: of each session, and runs side by side at most; None takes every usable core.
    """

    name: str = "onnxruntime"
    providers: Sequence[tuple[str, Mapping[str, str]]] = (("CPUExecutionProvider", {}),)

    def __init__(self, path: Callable[[str], Path], threads: int | None = None) -> None:
        self.threads = threads or usable_cores()
        self._path = path
        self._sessions: dict[tuple[str, int], Any] = {}
        self._lock = Lock()
        self._lanes = Lanes(self.threads)
        self._large: bool | None = None  # known from the first graph's folder
        self._lean = False

    def run(self, graph: str, feeds: Mapping[str, Value]) -> dict[str, Value]:
        arrays = {name: host(value) for name, value in feeds.items()}
        groups = list(self._groups(graph, arrays))
        if len(groups) == 1:
            return {**self._run(graph, groups[0])}
        parts = self.each(lambda group: self._run(graph, group), groups)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _groups(self, graph: str, arrays: Mapping[str, Array]) -> Iterator[Mapping[str, Array]]:
        """The inputs of a graph, cut into what its runs take."""
        if graph == T2I_STEP.name:
            self._weigh(self._path(graph))
            rows = len(arrays["codes"])
            size = self._rows_at_once(rows)
            for group in row_groups(arrays, size) if rows > size else (arrays,):  # cutting copies
                yield paired_branch(group)
        elif graph in ENCODERS:
            for row in range(len(arrays["pixels"])):
                yield {"pixels": arrays["pixels"][row : row + 1]}
        else:
            yield arrays

    def _run(self, graph: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        session, names = self._session(graph)
        try:
            return dict(zip(names, session.run(names, arrays), strict=True))
        except Exception as error:  # ONNX Runtime raises its own classes and builtins alike
            raise BackendError(f"graph {graph!r} failed in ONNX Runtime: {first_line(error)}") from error
        finally:
            if self._lean and graph in PASSING:
                del session
                give_back()

    def pack(self, caches: Sequence[Value]) -> Value:
        return pack_arrays([host(c) for c in caches])

    @property
    def lanes(self) -> int:
        return self._lanes.count if self._large is False else 1

    def each(self, call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        return self._lanes.each(call, items) if self.lanes > 1 else [call(item) for item in items]

    def _rows_at_once(self, rows: int) -> int:
        """Rows of each part of a step: all lanes have work, and none of them more than ``ROWS_PER_STEP`` rows at once."""
        lanes = 1 if self._lanes.inside else self.lanes
        return min(ROWS_PER_STEP, -(-rows // lanes))

    def _weigh(self, graph: Path) -> None:
        if self._large is None:
            weights = sum(entry.stat().st_size for entry in graph.parent.iterdir() if entry.is_file())
            self._lean = weights >= LARGE_BYTES and _lean(weights)
            self._large = weights >= LARGE_BYTES

    def _session(self, graph: str) -> tuple[Any, list[str]]:
        key = graph, 1 if self._lanes.inside else self.threads
        with self._lock:
            if key in self._sessions:
                found: tuple[Any, list[str]] = self._sessions[key]
                return found
            path = self._path(graph)
            self._weigh(path)
            passing = graph in PASSING and bool(self._large)
            loaded = self._load(graph, path, key[1], packed=not passing or b"MatMulNBits" in path.read_bytes())
            if not (passing and self._lean):
                self._sessions[key] = loaded
            return loaded

    def _load(self, graph: str, path: Path, threads: int, *, packed: bool) -> tuple[Any, list[str]]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not packed:
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=list(self.providers), disabled_optimizers=list(DISABLED))
        except Exception as error:
            raise BackendError(
                f"graph {graph!r} cannot be loaded by ONNX Runtime {onnxruntime.__version__} from {path}: {first_line(error)}; "
                "check the bundle with `f2edge verify`"
            ) from error
        return session, [output.name for output in session.get_outputs()]


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _lean(weights: int) -> bool:
    """Whether a model of so many bytes shall spare memory."""
    chosen = os.environ.get(LEAN, "")
    if chosen in ("0", "1"):
        return chosen == "1"
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):  # not Linux
        return False
    return available < PLENTY * weights
