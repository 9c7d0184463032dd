"""Sharding of one module's parameters, gradients, moments and average over all processes: PyTorch's FSDP2.

``fully_shard`` keeps of every parameter a slice of its first axis in each process.  A block's parameters are gathered when it runs and
freed after it; gradients are summed into slices as soon as a block's are complete.  Checkpoints of sharded runs are written by
``torch.distributed.checkpoint`` as safetensors, one file per process, and load into any number of processes.

A module to be sharded has:

* ``shard_units()``: submodules that are gathered one by one; everything else is gathered once per step;
* ``ENTRY_POINTS``: names of the methods that the training calls instead of ``forward``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from f2edge.errors import InputError

#: Folder of a checkpoint that holds the slices of a sharded run.
SHARDS = "shards"


class Shardable(Protocol):
    """A module that says how it is sharded."""

    ENTRY_POINTS: tuple[str, ...]

    def shard_units(self) -> Iterable[nn.Module]: ...


def shard(module: nn.Module, device: torch.device, world: int) -> None:
    """Shard a module in place over ``world`` processes, which hold equal parameters; raises :class:`InputError` if it cannot be."""
    if not hasattr(module, "shard_units"):
        raise InputError(f"--shard: {type(module).__name__} is small and cannot be sharded; train it without")
    mesh, shardable = init_device_mesh(device.type, (world,)), cast("Shardable", module)
    for unit in shardable.shard_units():
        fully_shard(unit, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for name in shardable.ENTRY_POINTS:
        register_fsdp_forward_method(module, name)


def free(module: nn.Module) -> None:
    """Drop gathered parameters, so that the next call gathers changed slices; nothing happens to a module that is not sharded."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor gathered from all processes, and any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return this process' slice of a tensor that all processes hold, sharded as ``target``; of a plain target, the tensor."""
    if not isinstance(target, DTensor):
        return tensor
    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def write_shards(directory: Path, files: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Write every process' slices into ``directory``; all processes call this."""
    save(_flat(files), storage_writer=HuggingFaceStorageWriter(str(directory), save_distributed=True))


def read_shards(directory: Path, files: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Fill tensors, sharded or whole, from the slices that any number of processes wrote.

    Raises:
        InputError: a file is missing or damaged, or the tensors are those of another model.
    """
    single = not torch.distributed.is_initialized()
    targets = _flat(files)
    try:
        reader = HuggingFaceStorageReader(str(directory))
        _check_shapes(directory, reader.read_metadata().state_dict_metadata, targets)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a single process reads alone
            load(targets, storage_reader=reader, no_dist=single)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{directory}: cannot be read ({error}); delete this checkpoint to resume from the one before") from error


def _check_shapes(directory: Path, stored: Mapping[str, Any], targets: Mapping[str, torch.Tensor]) -> None:
    for name, target in targets.items():
        if name not in stored or tuple(stored[name].size) != tuple(target.shape):
            raise InputError(f"{directory}: has no {name} of shape {tuple(target.shape)}; the configuration differs")


def holds(directory: Path, stem: str) -> bool:
    """Return whether a folder of :func:`write_shards` has tensors under this stem."""
    names = HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata
    return any(name.startswith(f"{stem}/") for name in names)


def _flat(files: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, Any]:
    return {f"{stem}/{name}": tensor.detach() for stem, tensors in files.items() for name, tensor in tensors.items()}
