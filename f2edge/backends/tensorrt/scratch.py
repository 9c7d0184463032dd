"""Activation memory shared by all engines; runs do not overlap, so the largest size suffices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from f2edge.backends.tensorrt.cuda import CudaDevice
from f2edge.errors import BackendError

_LEAST_BYTES = 512


class Scratch:
    """Growing buffer; when it moves, every context is updated and graphs captured with the old address are dropped."""

    def __init__(self, cuda: CudaDevice) -> None:
        self._cuda = cuda
        self._contexts: list[Any] = []
        self._movers: list[Callable[[], None]] = []
        self._address, self.size = 0, 0

    def reserve(self, size: int) -> None:
        """Grow to at least ``size`` bytes (and at least 512, since a context must have memory).

        Raises:
            BackendError: out of memory; existing engines keep the previous size.
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
        """Assign the memory to a context, now and after each move."""
        self._contexts.append(context)
        context.set_device_memory(self._address, self.size)

    def on_move(self, forget: Callable[[], None]) -> None:
        """Register a function to call before the memory moves."""
        self._movers.append(forget)
