"""The activations' memory that all engines share: runs do not overlap, so the largest need is enough for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from f2edge.backends.tensorrt.cuda import CudaDevice
from f2edge.errors import BackendError

_LEAST_BYTES = 512


class Scratch:
    """Grows when an engine needs more; then it moves, every context is told, and graphs captured with the old address are forgotten."""

    def __init__(self, cuda: CudaDevice) -> None:
        self._cuda = cuda
        self._contexts: list[Any] = []
        self._movers: list[Callable[[], None]] = []
        self._address, self.size = 0, 0

    def reserve(self, size: int) -> None:
        """Make room for an engine's activations, in bytes; one that needs none gets a little, for a context must have memory.

        Raises:
            BackendError: there is no room; the engines that were there before go on with what they had.
        """
        size, before = max(size, _LEAST_BYTES), self.size
        if size <= before:
            return
        self._cuda.synchronize()
        for forget in self._movers:
            forget()
        if self._address:
            self._cuda.release(self._address)
        try:
            self._place(size)
        except BackendError:
            if before:
                self._place(before)
            raise

    def _place(self, size: int) -> None:
        self._address, self.size = self._cuda.allocate(size), size
        for context in self._contexts:
            context.set_device_memory(self._address, self.size)

    def attach(self, context: Any) -> None:
        """Give the memory to a context, now and whenever it moves."""
        self._contexts.append(context)
        context.set_device_memory(self._address, self.size)

    def on_move(self, forget: Callable[[], None]) -> None:
        """Call this before the memory moves."""
        self._movers.append(forget)
