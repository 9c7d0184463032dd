"""Checkpoints and weight files: safetensors and JSON only, nothing is pickled.

A run's folder holds ``step-000123/`` folders with ``model.safetensors``, ``model.ema.safetensors``, ``model.optimizer.safetensors`` (one
such triple per optimizer) and ``state.json``; those of a sharded run hold ``shards/`` instead of the triple, one file per process.  Either
kind is read by any number of processes.  A folder gets its name when it is complete (written aside, flushed,
renamed), so a run killed at any moment finds its last whole checkpoint.

    load_weights(Path("runs/tokenizer"), tokenizer)        # EMA weights of the newest checkpoint
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from export.training.distributed import Processes
from export.training.sharding import SHARDS, holds, like, read_shards, write_shards
from f2edge.bundle.trained_for import TrainedFor
from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration, configuration_named

KEEP = 2
T = TypeVar("T")
_STEP = re.compile(r"step-(\d{6,})")


def checkpoints(directory: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def latest_checkpoint(directory: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    found = checkpoints(directory)
    return found[-1] if found else None


def write_checkpoint(directory: Path, step: int, files: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> Path:
    """Write ``step-…`` atomically and delete all but the newest two; ``files`` maps a file's stem to its tensors."""
    partial = _new_partial(directory, step)
    for stem, tensors in files.items():
        _write(partial / f"{stem}.safetensors", tensors, {})
    return _finish(partial, state)


def write_sharded(
    directory: Path, step: int, files: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any], processes: Processes
) -> None:
    """As :func:`write_checkpoint`, every process its slices; all processes call this."""
    if processes.rank == 0:
        _new_partial(directory, step)
    processes.barrier()
    partial = _partial(directory, step)
    write_shards(partial / SHARDS, files)
    processes.barrier()
    if processes.rank == 0:
        _finish(partial, state)


def _partial(directory: Path, step: int) -> Path:
    return directory / f".partial-step-{step:06d}"


def _new_partial(directory: Path, step: int) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    partial = _partial(directory, step)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return partial


def _finish(partial: Path, state: Mapping[str, Any]) -> Path:
    """Add ``state.json``, flush, and give the folder its name."""
    directory = partial.parent
    (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    final = directory / partial.name.removeprefix(".partial-")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in checkpoints(directory)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def read_checkpoint(directory: Path, files: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, Any]:
    """Copy a checkpoint's tensors into those of ``files`` in place; return its ``state.json``."""
    if (directory / SHARDS).is_dir():
        read_shards(directory / SHARDS, files)
    else:
        for stem, targets in files.items():
            path = directory / f"{stem}.safetensors"
            _fill(path, _read(path), targets)
    try:
        state: dict[str, Any] = json.loads((directory / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{directory}/state.json cannot be read ({error}); delete the checkpoint to resume from the one before") from error
    return state


def is_finished(run: Path) -> bool:
    """Return whether a run's newest checkpoint is its last one; a run that was stopped writes weights too."""
    found = latest_checkpoint(run)
    if found is None:
        return False
    try:
        return bool(json.loads((found / "state.json").read_text(encoding="utf-8")).get("finished"))
    except (OSError, ValueError):
        return False


def save_weights(path: Path, module: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Write one module's parameters and buffers as a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, module.state_dict(), dict(metadata or {}))


def load_weights(path: Path, module: nn.Module, *, ema: bool = True, name: str = "model") -> dict[str, str]:
    """Fill ``module`` in place from a weights file, a checkpoint folder or a run's folder (its newest checkpoint).

    Args:
        path: a ``.safetensors`` file, ``step-…`` folder or run folder.
        module: receives parameters and buffers; names and shapes must agree exactly.
        ema: take the averaged weights where the checkpoint has them.
        name: which optimizer's module to take from a checkpoint.

    Returns:
        The file's metadata (empty for a checkpoint's files).

    Raises:
        InputError: nothing there, unreadable, or it does not fit.
    """
    sharded = (latest_checkpoint(path) or path) / SHARDS
    if sharded.is_dir():
        stem = f"{name}.ema" if ema and holds(sharded, f"{name}.ema") else name
        read_shards(sharded, {stem: module.state_dict()})
        return {}
    file = weights_file(path, ema=ema, name=name)
    _fill(file, _read(file), module.state_dict())
    return weights_metadata(file)


def read_weights(path: Path, *, ema: bool = True, name: str = "model") -> dict[str, torch.Tensor]:
    """Return the tensors that :func:`load_weights` would fill a module with; of a run that is not sharded."""
    return _read(weights_file(path, ema=ema, name=name))


def weights_file(path: Path, *, ema: bool = True, name: str = "model") -> Path:
    """Return the safetensors file that :func:`load_weights` reads; raises :class:`InputError` if there is none."""
    if path.is_file():
        return path
    folder = latest_checkpoint(path) or path
    for stem in ([f"{name}.ema"] if ema else []) + [name]:
        if (folder / f"{stem}.safetensors").is_file():
            return folder / f"{stem}.safetensors"
    raise InputError(f"{path}: no weights named {name!r} here; give a .safetensors file, a step-… folder or a run's folder")


def weights_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that :func:`save_weights` wrote; raises :class:`InputError` for a damaged file."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error}); the file is missing or damaged") from error


def finished_or_newest(run: Path) -> Path:
    """Return the transformer's weights of a finished run, and the path itself of another: what :func:`load_weights` is to read."""
    finished = run / "unified.safetensors"
    return finished if finished.is_file() else run


def configuration_of(path: Path) -> ModelConfiguration | None:
    """Return the configuration, whole or by its name, that a transformer's weights say; None where they say none, as a checkpoint's do."""
    stored = weights_metadata(weights_file(path)).get("configuration")
    if stored is None:
        return None
    return ModelConfiguration.from_json(json.loads(stored)) if stored.startswith("{") else configuration_named(stored)


def trained_for_of(path: Path) -> TrainedFor | None:
    """Return the schedules that a student's weights were trained for; None of other weights."""
    stored = weights_metadata(weights_file(path)).get("trained_for")
    return None if stored is None else TrainedFor.parse(json.loads(stored))


def stored_json(path: Path, key: str, kind: type[T], part: str) -> T:
    """Return JSON metadata of a weights file; raises :class:`InputError` if it is not a file of ``part``, such as "an image tokenizer"."""
    try:
        value = json.loads(weights_metadata(path)[key])
    except (KeyError, ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise InputError(f"{path}: not weights of {part} (no {key} in the file); give the file or run folder of that part")
    return value


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    # Clones: tied or overlapping tensors are written once per name, and strided ones become plain.
    save_file({k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}, str(path), metadata)


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded: dict[str, torch.Tensor] = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error}); the file is missing or damaged") from error
    return loaded


@torch.no_grad()
def _fill(path: Path, source: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> None:
    missing, extra = sorted(set(targets) - set(source)), sorted(set(source) - set(targets))
    if missing or extra:
        raise InputError(f"{path}: does not fit this model: lacks {missing[:5]}, has unknown {extra[:5]}; the configuration differs")
    for key, target in targets.items():
        if source[key].shape != target.shape:
            raise InputError(f"{path}: {key} has shape {tuple(source[key].shape)}, this model needs {tuple(target.shape)}")
        target.copy_(like(source[key], target))
