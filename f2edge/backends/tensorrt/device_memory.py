"""Tensors on the GPU: a pool of memory blocks, and splitting and joining of key and value caches.

A released block is reused for the next tensor of its size.  All memory accesses are ordered by one stream, so a block may be reused while
earlier work that reads it is still queued.  A tensor is written once, where it is made.

L layers, B rows, H heads, P columns, W head width.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from threading import RLock
from typing import Any

import numpy as np

from f2edge.backends.base import Array
from f2edge.backends.tensorrt.cuda import CudaDevice, Lines
from f2edge.backends.tensorrt.layout import Place, aligned
from f2edge.errors import BackendError


class DeviceArray:
    """Contiguous tensor in the GPU's memory; a :class:`~f2edge.backends.base.DeviceValue`.

    ``block`` is the tensor whose memory it is a part of, if it is.
    """

    def __init__(
        self, memory: DeviceMemory, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], block: DeviceArray | None = None
    ) -> None:
        self.memory, self.address, self.shape, self.dtype, self._block = memory, address, shape, dtype, block

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def numpy(self) -> Array:
        """Return a copy in host memory; waits for the stream."""
        return self.memory.fetch(self)

    def __getitem__(self, rows: Array) -> DeviceArray:
        """Return consecutive rows, in this tensor's memory."""
        size = self.nbytes // self.shape[0]
        return self.part(Place(size * int(rows[0]), (len(rows), *self.shape[1:]), self.dtype))

    def part(self, place: Place) -> DeviceArray:
        """Return a tensor in this one's memory, which stays as long as the part."""
        return DeviceArray(self.memory, self.address + place.offset, place.shape, place.dtype, self)


class DeviceMemory:
    """Pool of memory blocks of one device.

    Args:
        cuda: device.
        lock: lock held while the device is used.
        idle_bytes: maximum size of the idle blocks; the oldest are freed first.
    """

    def __init__(self, cuda: CudaDevice, lock: RLock, idle_bytes: int) -> None:
        self.cuda = cuda
        self._lock = lock
        self._idle_limit = idle_bytes
        self._idle: OrderedDict[int, int] = OrderedDict()  # address → size, the oldest first
        self._returned: deque[tuple[int, int]] = deque()  # by finalizers, which may run in any thread at any moment

    def new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        """Return a tensor with undefined content."""
        self._collect()
        size = aligned(max(1, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize))  # so that more sizes are equal
        address = next((a for a, s in self._idle.items() if s == size), None)
        if address is None:
            try:
                address = self.cuda.allocate(size)
            except BackendError:
                self._trim(0)
                address = self.cuda.allocate(size)
        else:
            del self._idle[address]
        array = DeviceArray(self, address, shape, dtype)
        weakref.finalize(array, self._returned.append, (address, size))
        return array

    def upload(self, source: Array) -> DeviceArray:
        """Copy an array to the device; waits for the copy."""
        array = self.new(source.shape, source.dtype)
        if source.size:
            self.cuda.upload(array.address, np.ascontiguousarray(source))
            self.cuda.synchronize()
        return array

    def fetch(self, array: DeviceArray) -> Array:
        """Return a copy of a tensor in host memory."""
        target = np.empty(array.shape, dtype=array.dtype)
        if target.size:
            with self._lock, self.cuda.current():
                self.cuda.download(target, array.address)
                self.cuda.synchronize()
        return target

    def join(self, arrays: Sequence[DeviceArray]) -> DeviceArray:
        """Join tensors along their first axis."""
        joined = self.new((sum(array.shape[0] for array in arrays), *arrays[0].shape[1:]), arrays[0].dtype)
        address = joined.address
        for array in arrays:
            self.cuda.copy_lines(Lines(address, array.nbytes), Lines(array.address, array.nbytes), array.nbytes, 1)
            address += array.nbytes
        return joined

    def gather(self, caches: Sequence[tuple[DeviceArray, int]]) -> DeviceArray:
        """Join rows of caches, each ``(cache (L, B, H, P, W), row)``, to one cache (L, rows, H, max P, W), right-aligned, zero-padded."""
        L, _, H, _, W = caches[0][0].shape
        columns = max(cache.shape[3] for cache, _ in caches)
        joined = self.new((L, len(caches), H, columns, W), caches[0][0].dtype)
        if any(cache.shape[3] != columns for cache, _ in caches):
            self.cuda.zero(joined.address, joined.nbytes)
        for place, (cache, row) in enumerate(caches):
            self._copy_row(cache, row, joined, place)
        return joined

    def _copy_row(self, source: DeviceArray, row: int, target: DeviceArray, place: int) -> None:
        """Queue a copy of one row of a cache into a row of another that is as wide or wider, right-aligned."""
        L, B, H, P, W = source.shape
        _, places, _, columns, _ = target.shape
        taken, pitch = P * W * source.dtype.itemsize, columns * W * source.dtype.itemsize
        if columns == P:  # one piece for each layer
            piece = H * taken
            self.cuda.copy_lines(
                Lines(target.address + place * piece, places * piece), Lines(source.address + row * piece, B * piece), piece, L
            )
            return
        for layer in range(L):
            line, target_line = (layer * B + row) * H, (layer * places + place) * H
            self.cuda.copy_lines(
                Lines(target.address + (target_line + 1) * pitch - taken, pitch), Lines(source.address + line * taken, taken), taken, H
            )

    def _collect(self) -> None:
        """Collect the blocks released by finalizers and free the excess."""
        while self._returned:
            address, size = self._returned.popleft()
            self._idle[address] = size
        self._trim(self._idle_limit)

    def _trim(self, limit: int) -> None:
        while sum(self._idle.values()) > limit:
            address, _ = self._idle.popitem(last=False)
            self.cuda.synchronize()
            self.cuda.release(address)
