"""Activation memory shared by all contexts of all engines; runs do not overlap, so the largest size suffices."""

from __future__ import annotations

from collections.abc import Callable

from f2edge.backends.tensorrt.cuda import CudaDevice
from f2edge.errors import BackendError

_LEAST_BYTES = 512
#: Called with address and size of the memory, first and after each move.
Place = Callable[[int, int], None]


class Scratch:
    """Growing buffer; when it moves, every user is given the new place."""

    def __init__(self, cuda: CudaDevice) -> None:
        self._cuda = cuda
        self._users: list[Place] = []
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
        if self._address:
            self._cuda.release(self._address)
        try:
            self._move(size)
        except BackendError:
            if before:
                self._move(before)
            raise

    def _move(self, size: int) -> None:
        self._address, self.size = self._cuda.allocate(size), size
        for place in self._users:
            place(self._address, self.size)

    def attach(self, place: Place) -> None:
        """Call ``place`` now and after each move."""
        self._users.append(place)
        place(self._address, self.size)

    def detach(self, place: Place) -> None:
        """Stop calling ``place``."""
        self._users.remove(place)
