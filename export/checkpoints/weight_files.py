"""Reader and writer of external weight files: opened without executing their code, checked and rewritten one tensor at a time.

    weights = open_weights(Path("show-o"))              # a folder in Hugging Face's layout, or one file
    weights.infos["showo.lm_head.bias"].shape           # (58498,), known without reading the tensor
    weights["showo.lm_head.bias"]                       # read now

safetensors files are memory-mapped; ``.bin`` files are read by PyTorch's restricted unpickler, which accepts tensors only.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from f2edge.errors import InputError, OutputError
from f2edge.text import one_line

#: Where Hugging Face's savers put weights, in the order in which they are looked for; each may also be an index of shards.
FILES = (
    "pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor, known without reading it."""

    shape: Shape
    dtype: torch.dtype

    @property
    def values(self) -> int:
        return prod(self.shape)


class ExternalWeights(Mapping[str, Tensor]):
    """Mapping of one model's tensors by name, each read on access.

    Attributes:
        source: the folder or file, for messages.
        infos: shape and dtype of every tensor.
    """

    def __init__(self, source: Path, infos: Mapping[str, TensorInfo], homes: Mapping[str, Any]) -> None:
        self.source = source
        self.infos = dict(infos)
        self._homes = dict(homes)  # name → an open safetensors file, or the dictionary of a .bin file

    def __getitem__(self, name: str) -> Tensor:
        home = self._homes[name]
        tensor: Tensor = home[name] if isinstance(home, dict) else home.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def float_dtype(self) -> torch.dtype:
        """The dtype of all floating-point tensors, or float32 if they differ."""
        found = {info.dtype for info in self.infos.values() if info.dtype.is_floating_point}
        return found.pop() if len(found) == 1 else torch.float32


def open_weights(path: Path) -> ExternalWeights:
    """The weights in ``path``: a file, or a folder with one of :data:`FILES` or its index of shards.

    Raises:
        InputError: nothing there, damaged, a shard lacking, or a ``.bin`` file that wants to run code.
    """
    homes: dict[str, Any] = {}
    infos: dict[str, TensorInfo] = {}
    for file in _files(path):
        home, own = _open_bin(file) if file.suffix == ".bin" else _open_safetensors(file)
        twice = sorted(set(own) & set(infos))
        if twice:
            raise InputError(f"{file}: {twice[0]} is also in another shard; download the model again")
        infos.update(own)
        homes.update(dict.fromkeys(own, home))
    return ExternalWeights(path, infos, homes)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; download the model there, with its config.json")
    for name in FILES:
        if (path / name).is_file():
            return [path / name]
        if (path / f"{name}.index.json").is_file():
            return _shards(path / f"{name}.index.json")
    there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise InputError(f"{path}: no weights here (found {there}); expected one of {', '.join(FILES)}, or an index of shards")


def _shards(index: Path) -> list[Path]:
    row = read_json(index)
    names = row.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) and Path(name).name == name for name in names.values()):
        raise InputError(f"{index}: has no weight_map of plain file names; download the model again")
    files = [index.parent / name for name in sorted(set(names.values()))]
    lacking = [file.name for file in files if not file.is_file()]
    if lacking:
        raise InputError(f"{index.parent}: {len(lacking)} of {len(files)} shards are missing: {', '.join(lacking)}; download them")
    return files


def _open_safetensors(file: Path) -> tuple[Any, dict[str, TensorInfo]]:
    try:
        handle: Any = safe_open(str(file), framework="pt")
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
        kinds = {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        reason = one_line(error, 200)
        raise InputError(f"{file}: cannot be read as safetensors ({reason}); the file is damaged or a Git LFS pointer") from error
    unknown = sorted({kind for _, kind in kinds.values()} - set(_DTYPES))
    if unknown:
        raise InputError(f"{file}: holds numbers of kind {', '.join(unknown)}; use the fp32, fp16 or bf16 weights of this model")
    return handle, {name: TensorInfo(shape, _DTYPES[kind]) for name, (shape, kind) in kinds.items()}


def _open_bin(file: Path) -> tuple[dict[str, Tensor], dict[str, TensorInfo]]:
    try:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before PyTorch 1.6: cannot be memory-mapped
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file}: holds more than tensors and would run code when loaded; use the safetensors file of this model"
        ) from error
    except Exception as error:  # a damaged pickle ends in whatever its bytes happen to say
        raise InputError(
            f"{file}: cannot be read as PyTorch weights ({one_line(error, 200)}); the file is damaged or a Git LFS pointer"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{file}: is not a plain table of tensors; use the weights file beside the model's config.json")
    return loaded, {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in loaded.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises :class:`InputError` for anything else."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({one_line(error, 200)}); download it again") from error
    if not isinstance(row, dict):
        raise InputError(f"{path}: is not a JSON object; download it again")
    return row


def mismatches(infos: Mapping[str, TensorInfo], expected: Mapping[str, Shape]) -> list[str]:
    """Return one line for each tensor that is missing, unexpected or has another shape."""
    lines = [f"missing    {name} {_size(shape)}" for name, shape in expected.items() if name not in infos]
    lines += [f"unexpected {name} {_size(info.shape)}" for name, info in infos.items() if name not in expected]
    return lines + [
        f"misshapen  {name} is {_size(infos[name].shape)}, must be {_size(shape)}"
        for name, shape in expected.items()
        if name in infos and infos[name].shape != shape
    ]


def check_finite(weights: ExternalWeights) -> None:
    """Read every tensor once, as it will be written.

    Raises:
        InputError: names the first tensors that hold a NaN or an infinity.
    """
    bad = []
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            wrong = tensor.numel() - int(torch.isfinite(tensor.to(weights.float_dtype)).sum())
            bad += [f"{name} ({wrong} of {tensor.numel()})"] if wrong else []
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise InputError(f"{weights.source}: NaN or infinite values in {', '.join(bad[:3])}{more}; download the model again")


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def write_streamed(path: Path, infos: Mapping[str, TensorInfo], tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file while its tensors arrive, in any order; no more than one is held.

    Args:
        path: of the file; it appears when it is whole, an interrupted one leaves nothing.
        infos: every tensor to be written; what arrives is cast to its dtype.
        tensors: all of them, once each.
        metadata: stored in the file's header.

    Raises:
        OutputError: the folder cannot be written or the disk is too small.
        InputError: what arrives is not what ``infos`` says.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, info in infos.items():
        start, end = end, end + info.values * info.dtype.itemsize
        header[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)  # the format's alignment
    partial = path.with_name(f".partial-{path.name}")
    awaited = set(infos)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < end + len(raw):
            raise OutputError(
                f"{path}: needs {end / 2**20:.0f} MiB, the disk has {free / 2**20:.0f} MiB free; make room or choose another --out"
            )
        with partial.open("wb") as stream:
            stream.write(struct.pack("<Q", len(raw)) + raw)
            first = stream.tell()
            for name, tensor in tensors:
                if name not in awaited or tuple(tensor.shape) != infos[name].shape:
                    raise InputError(f"{path}: {name} {_size(tuple(tensor.shape))} has no place in this file")
                awaited.remove(name)
                stream.seek(first + header[name]["data_offsets"][0])
                flat = tensor.detach().to(infos[name].dtype).contiguous().reshape(-1)
                stream.write(flat.view(torch.uint8).numpy().data)
            if awaited:
                raise InputError(f"{path}: {len(awaited)} tensors never came, {min(awaited)} among them")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path}: cannot be written ({error}); choose another --out") from error
    finally:
        partial.unlink(missing_ok=True)
