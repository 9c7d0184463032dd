"""Collective operations of the training loop, for one process or several under ``torchrun``.

Started by ``torchrun --nproc-per-node 2 -m export train tokenizer …``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Processes:
    """Rank and number of the processes; every method is a no-op for one process."""

    rank: int
    world: int

    @staticmethod
    def local_rank() -> int:
        """Return the index among the processes of this machine, set by torchrun."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    @staticmethod
    def first() -> bool:
        """Return whether this is the first of all processes, joined or not."""
        return os.environ.get("RANK", "0") == "0"

    @classmethod
    def expected(cls) -> int:
        """Return the number of processes that torchrun started, joined or not."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @classmethod
    def current(cls) -> Processes:
        """Return the processes that have joined; outside :meth:`join`, this one alone."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else cls(0, 1)

    @classmethod
    @contextmanager
    def join(cls, device: torch.device) -> Iterator[Processes]:
        """Join the process group that torchrun describes in the environment (gloo on the CPU, NCCL on GPUs); leave it at the end."""
        world = cls.expected()
        if world == 1:
            yield cls(0, 1)
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield cls(dist.get_rank(), world)
        finally:
            dist.destroy_process_group()

    def average(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its mean over the processes."""
        if self.world > 1:
            dist.all_reduce(tensor)
            tensor /= self.world

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the values of rank 0 to every process."""
        if self.world > 1:
            for tensor in tensors:
                plain = tensor.contiguous()  # collectives want dense, row-major memory; channels-last weights are not
                dist.broadcast(plain, 0)
                tensor.copy_(plain)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag is set in any process."""
        if self.world == 1:
            return flag
        shared = torch.tensor(float(flag), device=device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared.item())

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return ``[function(item) for item in items]``, each computed by one of the processes, in every process.

        All processes call ``function`` equally often (the last ones repeat an item), so that it may hold collective operations.
        """
        own = []
        for first in range(0, len(items), self.world):
            place = first + self.rank
            result = function(items[min(place, len(items) - 1)])
            own += [(place, result)] if place < len(items) else []
        parts: list[list[tuple[int, R]] | None] = [own]
        if self.world > 1:
            parts = [None] * self.world
            dist.all_gather_object(parts, own)
        found = dict(pair for part in parts if part is not None for pair in part)
        return [found[place] for place in range(len(items))]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()
