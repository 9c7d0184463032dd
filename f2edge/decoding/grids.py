"""Token grids of a batch, where the model keeps them: in host memory, or in a device's until somebody reads them.

What a step returns is the next step's input.  The loop passes it on as it is while the batch stays the same, so between two steps nothing
crosses; a grid is copied to the host when an event, a preview or a result needs it.

R rows, N image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np

from f2edge.spec.layout import Ids


class DeviceGrids(Protocol):
    """Grids int64 (R, N) in a device's memory, which the step function takes as ``codes`` again."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def numpy(self) -> Any:
        """Return a copy in host memory."""
        ...


GridsValue: TypeAlias = Ids | DeviceGrids


class Grids:
    """Grids (R, N) of one batch; ``value`` as the step function gave it."""

    def __init__(self, value: GridsValue) -> None:
        self.value = value

    @cached_property
    def ids(self) -> Ids:
        """The grids in host memory, int64 (R, N); copied once."""
        ids: Ids = self.value if isinstance(self.value, np.ndarray) else self.value.numpy()
        return ids

    def rows(self) -> list[Grid]:
        """Return the grids one by one."""
        return [Grid(self, row) for row in range(self.value.shape[0])]


@dataclass(frozen=True, eq=False)
class Grid:
    """Row ``row`` of grids that it shares with the rows it was batched with."""

    grids: Grids
    row: int = 0

    @classmethod
    def of(cls, codes: Ids) -> Grid:
        """Return a grid alone, from int64 (N,)."""
        return cls(Grids(codes[None]))

    @property
    def ids(self) -> Ids:
        """The grid in host memory, int64 (N,)."""
        found: Ids = self.grids.ids[self.row]
        return found


def stacked(grids: Sequence[Grid]) -> GridsValue:
    """Return grids as one value (R, N); the batch itself where they are all of its rows, in order."""
    batch = grids[0].grids
    if len(grids) == batch.value.shape[0] and all(grid.grids is batch and grid.row == row for row, grid in enumerate(grids)):
        return batch.value
    return np.stack([grid.ids for grid in grids])
