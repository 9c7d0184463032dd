"""Weights on their way: halved to fp16 and cut into files of a size that the way allows, and joined again.

>>> pack([runs / "tokenizer" / "tokenizer.safetensors"], Path("return"), largest_bytes=15 << 20)
>>> unpack(Path("return"), Path("runs"))
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from export.training.checkpoint import weights_metadata
from f2edge.errors import InputError

_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d+)-of-(?P<parts>\d+)\.safetensors")


def pack(files: Iterable[Path], out: Path, largest_bytes: int) -> list[Path]:
    """Write weights files into ``out``, floats as fp16, none above ``largest_bytes``: ``NAME``, or ``NAME-1-of-2`` ….

    Raises:
        InputError: a file is missing or damaged, or one tensor alone is too large.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for file in files:
        metadata = weights_metadata(file)
        parts: list[dict[str, torch.Tensor]] = [{}]
        room = largest_bytes - _header(metadata)
        for name, tensor in load_file(str(file)).items():
            half = tensor.half() if tensor.is_floating_point() else tensor
            size = half.numel() * half.element_size() + _header({name: str(list(half.shape))})
            if size > largest_bytes - _header(metadata):
                raise InputError(f"{file}: tensor {name!r} alone takes {size / 2**20:.1f} MiB; allow larger files")
            if size > room:
                parts.append({})
                room = largest_bytes - _header(metadata)
            parts[-1][name] = half
            room -= size
        for index, part in enumerate(parts, start=1):
            path = out / (f"{file.stem}.safetensors" if len(parts) == 1 else f"{file.stem}-{index}-of-{len(parts)}.safetensors")
            save_file(part, str(path), metadata)
            written.append(path)
    return written


def unpack(folder: Path, out: Path) -> list[Path]:
    """Join what :func:`pack` wrote into one fp32 file for each name in ``out``; a missing part raises :class:`InputError`."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found = _PART.fullmatch(path.name)
        groups.setdefault(path.stem if found is None else found["stem"], []).append(path)
        if found is not None:
            missing = [k for k in range(1, int(found["parts"]) + 1) if not (folder / _sibling(found, k)).is_file()]
            if missing:
                raise InputError(f"{folder}: {_sibling(found, missing[0])} is missing; copy all parts")
    if not groups:
        raise InputError(f"{folder}: no packed weights here; give the folder that `python -m export pack` wrote")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for stem, paths in groups.items():
        tensors = {name: t.float() if t.is_floating_point() else t for path in paths for name, t in load_file(str(path)).items()}
        save_file(tensors, str(out / f"{stem}.safetensors"), weights_metadata(paths[0]))
        written.append(out / f"{stem}.safetensors")
    return written


def _sibling(found: re.Match[str], part: int) -> str:
    return f"{found['stem']}-{part}-of-{found['parts']}.safetensors"


def _header(words: dict[str, str]) -> int:
    """Bytes that safetensors' header takes for these entries, at most."""
    return 128 + sum(len(key.encode()) + len(value.encode()) + 96 for key, value in words.items())
