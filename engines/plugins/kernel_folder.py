"""Compiled kernels on disk: a folder for each layer shape with ``kernels.json`` and a subfolder for each GPU generation.

    compiled/d2048-e8x512-k4-gelu/kernels.json
    compiled/d2048-e8x512-k4-gelu/sm_87/up-fp32-large.cubin
    compiled/d2048-e8x512-k4-gelu/sm_87/up-fp32-large.ptx

``python -m engines kernels`` writes it (:mod:`engines.plugins.compile_kernels`); the device reads it without Triton.  The folder is
``engines/plugins/compiled``, which the engine cache includes in the plug-in's digest, or ``F2EDGE_KERNELS``.  Binaries are not committed:
compiling them takes a minute.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.plugins.fused_moe import MoEShape
from f2edge.errors import InputError

FORMAT = 1
DOCUMENT = "kernels.json"
ENVIRONMENT = "F2EDGE_KERNELS"
#: Supported compute capabilities: T4, A100, A10, Orin, L4 and L40S, H100 and H200, Thor.
TARGETS = (75, 80, 86, 87, 89, 90, 110)
_COMPILE_AGAIN = "compile the kernels again with `python -m engines kernels`"


def default_folder() -> Path:
    """Return the default folder of compiled kernels."""
    return Path(os.environ.get(ENVIRONMENT) or Path(__file__).parent / "compiled")


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel for one GPU generation.

    Attributes:
        kernel, file, target: function name, file name without suffix, and compute capability.
        threads, shared: per block; dynamic shared memory in bytes, at most 48 KiB.
        constants: compile-time sizes.
        grid: number of programs (:class:`engines.plugins.fused_moe.Grid`), with its formula as text.
        registers, spill_stores, spill_loads, stack: per thread, from ptxas; the last three in bytes.
        cubin_sha256, ptx_sha256: checksums of the files.
        assembler: CUDA version of the ptxas that made the cubin, as "12.9".
    """

    kernel: str
    file: str
    target: int
    threads: int
    shared: int
    constants: Mapping[str, int]
    arguments: tuple[tuple[str, str], ...]
    grid: Mapping[str, Any]
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    cubin_sha256: str
    ptx_sha256: str
    assembler: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> CompiledKernel:
        return cls(**{**row, "arguments": tuple((str(name), str(kind)) for name, kind in row["arguments"])})


class KernelFolder:
    """The kernels of one layer shape.

    Raises:
        InputError: the shape has no kernels, or ``kernels.json`` is damaged.
    """

    def __init__(self, shape: MoEShape, root: Path | None = None) -> None:
        self.folder = (default_folder() if root is None else root) / shape.label
        try:
            document = json.loads((self.folder / DOCUMENT).read_bytes())
            known = document["format"] == FORMAT
            self._targets = {int(sm): {k: CompiledKernel.from_json(v) for k, v in rows.items()} for sm, rows in document["targets"].items()}
        except FileNotFoundError as error:
            raise InputError(
                f"no kernels of {shape.label} in {self.folder.parent}; compile them on any Linux machine with `python -m engines kernels` "
                f"and copy the folder here, or set {ENVIRONMENT}"
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError, UnicodeDecodeError) as error:
            raise InputError(f"{self.folder / DOCUMENT} is damaged ({error}); {_COMPILE_AGAIN}") from error
        if not known:
            raise InputError(f"{self.folder / DOCUMENT} has format {document['format']}, not {FORMAT}; {_COMPILE_AGAIN}")

    @classmethod
    def every(cls, root: Path | None = None) -> Iterator[KernelFolder]:
        """Yield the folder of each shape in ``root``, by name; raises :class:`InputError` if there is none."""
        root = default_folder() if root is None else root
        paths = sorted(root.glob(f"*/{DOCUMENT}"))
        if not paths:
            raise InputError(f"no kernels in {root}; compile them with `python -m engines kernels`, or set {ENVIRONMENT}")
        for path in paths:
            try:
                shape = MoEShape(**json.loads(path.read_bytes())["shape"])
            except (KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
                raise InputError(f"{path} is damaged ({error}); {_COMPILE_AGAIN}") from error
            yield cls(shape, root)

    @property
    def targets(self) -> tuple[int, ...]:
        """Compute capabilities with compiled kernels, ascending."""
        return tuple(sorted(self._targets))

    def describe(self, target: int, file: str) -> CompiledKernel:
        """Return the description of one kernel; raises :class:`InputError` if it was not compiled for this GPU generation."""
        rows = self._targets.get(target, {})
        if file not in rows:
            made = ", ".join(f"sm_{t}" for t in self.targets) or "none"
            raise InputError(f"{self.folder}: no kernel {file} for sm_{target}, only for {made}; add it with `python -m engines kernels`")
        return rows[file]

    def cubin(self, target: int, file: str) -> bytes:
        """Return a kernel's machine code; raises :class:`InputError` if it is missing or its checksum differs."""
        return self._read(target, f"{file}.cubin", self.describe(target, file).cubin_sha256)

    def ptx(self, target: int, file: str) -> bytes:
        """Return a kernel's PTX, which the driver or TensorRT compiles; raises like :meth:`cubin`."""
        return self._read(target, f"{file}.ptx", self.describe(target, file).ptx_sha256)

    def images(self, capability: int, file: str) -> Iterator[tuple[CompiledKernel, str, bytes]]:
        """Yield the code to load on a device, the best first, each as its description, "cubin" or "ptx", and the bytes.

        Machine code of the same or an earlier minor version, its PTX for a driver that refuses it, then the newest PTX that runs there.
        Code for sm_90 and sm_110 runs on exactly these; machine code of the others runs on later minor versions, and their PTX on every
        later GPU.

        Raises:
            InputError: no kernel fits, or a file is damaged.
        """
        same = [t for t in self.targets if t == capability or (t < 90 and t // 10 == capability // 10 and t < capability)]
        if same:
            yield self.describe(same[-1], file), "cubin", self.cubin(same[-1], file)
            yield self.describe(same[-1], file), "ptx", self.ptx(same[-1], file)
        older = [t for t in self.targets if t < 90 and t < capability and t not in same]
        if older:
            yield self.describe(older[-1], file), "ptx", self.ptx(older[-1], file)
        if not same and not older:
            self.describe(capability, file)  # raises with the list of available targets

    def portable_image(self, capability: int, file: str) -> tuple[CompiledKernel, bytes]:
        """Return the newest PTX that runs on a device of this compute capability; raises like :meth:`images`."""
        fitting = [t for t in self.targets if t == capability or (t < 90 and t < capability)]
        if not fitting:
            self.describe(capability, file)  # raises with the list of available targets
        return self.describe(fitting[-1], file), self.ptx(fitting[-1], file)

    def _read(self, target: int, name: str, sha256: str) -> bytes:
        path = self.folder / f"sm_{target}" / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); {_COMPILE_AGAIN}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise InputError(f"{path} is damaged (its checksum differs); {_COMPILE_AGAIN}")
        return data
