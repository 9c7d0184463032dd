"""Places of several tensors in one piece of memory, so that one copy moves all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from f2edge.backends.base import Array

#: Alignment of every tensor's address.
ALIGNMENT_BYTES = 256


class Place(NamedTuple):
    """Offset of a tensor in bytes, its shape and type."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def view(self, memory: NDArray[np.uint8]) -> Array:
        """Return the tensor in this memory."""
        found: Array = memory[self.offset : self.offset + self.size].view(self.dtype).reshape(self.shape)
        return found


@dataclass(frozen=True)
class Layout:
    """Tensors by name in the order of their places; ``size`` of all in bytes, rounded up."""

    places: Mapping[str, Place]
    size: int

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype[Any]]) -> Layout:
        """Return the layout of these tensors."""
        places, offset = {}, 0
        for name, shape in shapes.items():
            places[name] = Place(offset, shape, dtypes[name])
            offset += aligned(places[name].size)
        return cls(places, offset)


def aligned(size: int) -> int:
    """Return a size in bytes, rounded up."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
