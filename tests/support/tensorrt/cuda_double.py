"""Fake GPU behind the libraries that the runner uses: ``pycuda.driver``, ``cuda.bindings.driver`` and ``cuda.bindings.runtime``.

Memory has device addresses in separate blocks; access outside a block or to a freed block raises.  New memory is filled with NaN.  Work
queued on a stream runs at synchronization, so that early reads of a result and early writes to a host buffer are detected.  Captured work
runs each time its graph is launched.

Rules of stream capture, each of them CUDA's or TensorRT's (docs/tensorrt.md names the sources):

* while a stream is captured nothing is allocated and nothing is waited for; an allocation invalidates the capture;
* a capture on a stream that is not non-blocking is invalidated when anything else uses the legacy default stream meanwhile;
* a capture that failed has to be ended, and leaves an error behind that the next enqueue of TensorRT stumbles on, until it is cleared.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

_GAP = 1 << 20
#: Handles of the default streams: legacy (0 and 1) and per-thread (2).
DEFAULT_STREAMS = (0, 1, 2)
NON_BLOCKING = 1


class CudaError(RuntimeError):
    """Stands for ``pycuda.driver.Error``."""


class CudaDouble:
    """The device.

    Attributes:
        stream: handle of the one stream that there is.
        stream_flags: what it was made with; None before.
        legacy_traffic: whether another library of the process uses the legacy default stream all the time.
        capture_fails: whether captured work turns out not to be capturable.
        own_runtime: whether TensorRT's CUDA runtime is another than ours, so that only TensorRT's next call reports and clears its error.
        room: bytes that can be allocated.
        launches, captures, runs: counted.
        copies: bytes of every copy "to the device", "to the host" and "on the device", in order.
        invalidated: why captures were invalidated, in order.
    """

    stream = 0x51

    def __init__(self, *, integrated: bool = False, room: int = 1 << 33) -> None:
        self.integrated = integrated
        self.name, self.capability, self.multiprocessors, self.version = "Orin", (8, 7), 8, 12060
        self.room = room
        self.stream_flags: int | None = None
        self.legacy_traffic = self.capture_fails = self.own_runtime = self.error = False
        self.launches = self.captures = self.runs = 0
        self.copies: dict[str, list[int]] = {"to the device": [], "to the host": [], "on the device": []}
        self.invalidated: list[str] = []
        self.blocks: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self._next = _GAP
        self._queue: list[Callable[[], None]] = []
        self._recording: list[Callable[[], None]] | None = None
        self._valid = True
        self._current = threading.local()

    # memory

    def allocate(self, size: int) -> int:
        self.check()
        if self.capturing:
            self.invalidate("memory was allocated")
            raise CudaError("cuMemAlloc failed: operation not permitted when stream is capturing")
        if sum(map(len, self.blocks.values())) + size > self.room:
            raise CudaError("cuMemAlloc failed: out of memory")
        return self.add(np.full(size, 0xFF, dtype=np.uint8))

    def add(self, memory: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
        address, self._next = self._next, self._next + len(memory) + _GAP - len(memory) % 256
        self.blocks[address] = memory
        return address

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """Device memory as an array; raises where it is nobody's."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        for start, block in self.blocks.items():
            if start <= address and address + size <= start + len(block):
                found: np.ndarray[Any, Any] = block[address - start : address - start + size].view(dtype).reshape(shape)
                return found
        raise CudaError(f"an illegal memory access was encountered: {size} bytes at {address:#x}")

    def copy_lines(self, target: tuple[int, int], source: tuple[int, int], width: int, height: int) -> None:
        """Copy ``height`` lines of ``width`` bytes; target and source are address and pitch."""
        assert width <= min(target[1], source[1]), "cuMemcpy2DAsync failed: invalid argument"
        for line in range(height):
            taken = self.view(source[0] + line * source[1], (width,), np.uint8)
            self.view(target[0] + line * target[1], (width,), np.uint8)[:] = taken

    # stream

    def open_stream(self, flags: int) -> int:
        self.check()
        self.stream_flags = flags
        return self.stream

    def enqueue(self, stream: int, work: Callable[[], None]) -> bool:
        self.check()
        assert stream not in DEFAULT_STREAMS, "TensorRT synchronises the device around work on a default stream"
        assert stream == self.stream, "work on another stream than the runner's"
        if self._recording is None:
            self._queue.append(work)
        else:
            self._recording.append(work)
        self.runs += 1
        return True

    def synchronize(self) -> None:
        self.check()
        assert self._recording is None, "synchronising breaks a capture"
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def check(self) -> None:
        if not getattr(self._current, "depth", 0):
            raise CudaError("invalid device context: nothing is current in this thread")

    def push(self) -> None:
        self._current.depth = getattr(self._current, "depth", 0) + 1

    def pop(self) -> None:
        self.check()
        self._current.depth -= 1

    # capture

    @property
    def capturing(self) -> bool:
        return self._recording is not None

    def invalidate(self, reason: str) -> None:
        """What CUDA does with a capture when something is not allowed in it."""
        self.invalidated.append(reason)
        self._valid, self.error = False, True

    def begin(self) -> None:
        assert self._recording is None, "the last capture was not ended"
        self._recording, self._valid = [], True
        if self.legacy_traffic and not (self.stream_flags or 0) & NON_BLOCKING:
            self.invalidate("work on the legacy default stream waits for a blocking stream")

    def end(self) -> int | None:
        """The graph, or None where the capture was invalidated."""
        recorded, self._recording = self._recording, None
        assert recorded is not None
        if self.capture_fails or not self._valid:
            self.error = True
            return None
        self.captures += 1
        self.graphs[self.captures] = recorded
        return self.captures


def install(monkeypatch: pytest.MonkeyPatch, cuda: CudaDouble, *, library: str = "pycuda", graphs: bool = True) -> None:
    """Put the libraries where ``import`` finds them.

    Memory and copies go through ``library``, "pycuda" or "cuda-bindings"; without ``graphs`` cuda-bindings is not installed.
    """
    from tests.support.tensorrt.bindings_double import bindings_driver, bindings_runtime
    from tests.support.tensorrt.pycuda_double import pycuda_driver

    pycuda: Any = ModuleType("pycuda")
    pycuda.driver = pycuda_driver(cuda)
    has_pycuda = library == "pycuda"
    monkeypatch.setitem(sys.modules, "pycuda", pycuda if has_pycuda else None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda.driver if has_pycuda else None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", bindings_driver(cuda) if graphs else None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", bindings_runtime(cuda) if graphs else None)
