"""Collective operations of the training loop, for one process or several under ``torchrun``.

Started by ``torchrun --nproc-per-node 2 -m export train tokenizer …``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """Rank and number of the processes; every method is a no-op for one process."""

    rank: int
    world: int

    @staticmethod
    def local_rank() -> int:
        """Return the index among the processes of this machine, set by torchrun."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    @classmethod
    @contextmanager
    def join(cls, device: torch.device) -> Iterator[Processes]:
        """Join the process group that torchrun describes in the environment (gloo on the CPU, NCCL on GPUs); leave it at the end."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
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

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()
