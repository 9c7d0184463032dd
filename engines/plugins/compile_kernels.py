"""Ahead-of-time compilation of the fused-expert kernels: Triton → PTX → cubin for every GPU generation, without a GPU.

Triton's wheel includes LLVM and ptxas; it exists for Linux (x86-64 and aarch64) only.  Two adjustments:

* Triton appends two scratch-memory pointers to the parameters of every kernel, which TensorRT does not pass.  They are removed from the
  PTX, after a check that the code never reads them.
* A driver compiles PTX up to its own version only, so the oldest PTX version that knows the target is used: 8.0 (CUDA 12.0) up to sm_90,
  9.0 (CUDA 13.0) for sm_110.

>>> compile_shape(MoEShape(256, 4, 128, 2), Path("compiled"), targets=(87,))  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from engines.plugins.fused_moe import TILES, X_TYPES, Kernel, KernelPlan, MoEShape, for_target
from engines.plugins.kernel_folder import DOCUMENT, FORMAT, TARGETS, CompiledKernel
from f2edge.errors import BackendError, InputError
from f2edge.provenance.saving import write_atomically

#: Maximum shared memory of a launch without a special kernel attribute, on every GPU generation.
MAX_SHARED_BYTES = 48 * 1024
#: Newest of our targets that CUDA 12's ptxas and PTX 8.0 know.
LAST_OF_CUDA_12 = 90
_ENTRY = re.compile(r"(\.visible \.entry \w+\()(.*?)(\n\))", re.DOTALL)
_PARAMETER = re.compile(r"\w+_param_\d+")
_ARCHITECTURE = re.compile(r"^\.target (sm_\d+a?)", re.MULTILINE)
_REPORTS = {
    "registers": re.compile(r"Used (\d+) registers"),
    "spill_stores": re.compile(r"(\d+) bytes spill stores"),
    "spill_loads": re.compile(r"(\d+) bytes spill loads"),
    "stack": re.compile(r"(\d+) bytes stack frame"),
}


def import_triton() -> Any:
    """Import ``triton``; raises :class:`BackendError` if it is missing or set to interpret."""
    try:
        triton = import_module("triton")
    except ImportError as error:
        raise BackendError(
            f"Triton cannot be imported ({error}); compile kernels on Linux after `pip install 'f2edge[plugins]'`; no GPU is needed"
        ) from error
    if triton.knobs.runtime.interpret:
        raise BackendError("TRITON_INTERPRET is set, so Triton interprets and cannot compile; unset it")
    return triton


def all_kernels(shape: MoEShape) -> tuple[Kernel, ...]:
    """Return every distinct kernel of a shape, for both dtypes of x and both tiles."""
    kernels = {k.file: k for x_type in X_TYPES for tile in TILES.values() for k in KernelPlan(shape, x_type, tile).kernels}
    return tuple(kernels.values())


def without_scratch(ptx: str, wanted: int) -> str:
    """Return the PTX with its first ``wanted`` parameters only; raises :class:`BackendError` if the code reads another one."""
    entry = _ENTRY.search(ptx)
    if entry is None:
        raise BackendError("Triton wrote PTX without an entry; this Triton version is not supported, install 3.9")
    lines = entry[2].split(",")
    for line in lines[wanted:]:
        name = _PARAMETER.search(line)
        if name is None or len(re.findall(rf"\b{name[0]}\b", ptx)) != 1:
            raise BackendError("a kernel reads Triton's scratch memory, which no launch provides; this is a bug in the kernel")
    return ptx[: entry.start()] + entry[1] + ",".join(lines[:wanted]) + entry[3] + ptx[entry.end() :]


def compile_kernel(kernel: Kernel, target: int) -> tuple[CompiledKernel, bytes, bytes]:
    """Compile a kernel for one compute capability such as 87; return its description, cubin and PTX.

    Raises:
        BackendError: Triton is missing, or the kernel needs more than 48 KiB of shared memory.
    """
    triton = import_triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from engines.plugins import fused_moe_kernels

    kernel = for_target(kernel, target)
    function = getattr(fused_moe_kernels, kernel.name)
    names: list[str] = function.arg_names
    kinds = [kind for _, kind in kernel.arguments]
    source = ASTSource(
        fn=function,
        signature={name: kinds[i] if i < len(kinds) else "constexpr" for i, name in enumerate(names)},
        constexprs={(names.index(name),): value for name, value in kernel.constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, kind in enumerate(kinds) if kind.startswith("*")},
    )
    options = {
        "num_warps": kernel.warps,
        "num_stages": kernel.stages,
        "ptx_version": 80 if target <= LAST_OF_CUDA_12 else 90,
        "enable_fp_fusion": True,
    }
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # no local paths, so that every machine writes the same bytes
        made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    shared = int(made.metadata.shared)
    if shared > MAX_SHARED_BYTES:
        raise BackendError(
            f"kernel {kernel.file} needs {shared} bytes of shared memory on sm_{target}, more than {MAX_SHARED_BYTES}; shrink its tile"
        )
    ptx = without_scratch(made.asm["ptx"], len(kinds))
    path, version = assembler(target)
    cubin, report = assemble(ptx, path)
    data = ptx.encode()
    compiled = CompiledKernel(
        kernel=kernel.name,
        file=kernel.file,
        target=target,
        threads=32 * kernel.warps,
        shared=shared,
        constants=dict(kernel.constants),
        arguments=kernel.arguments,
        grid=kernel.document()["grid"],
        **report,
        cubin_sha256=hashlib.sha256(cubin).hexdigest(),
        ptx_sha256=hashlib.sha256(data).hexdigest(),
        assembler=version,
    )
    return compiled, cubin, data


def assembler(target: int) -> tuple[str, str]:
    """Return path and CUDA version of the ptxas in Triton's wheel that assembles for a compute capability.

    CUDA 12's wherever it knows the GPU: drivers load machine code of their own major version or an earlier one, and Triton's choice for
    sm_90, CUDA 13's, would need driver 580.
    """
    tools = import_triton().knobs.nvidia
    tool = tools.ptxas if target <= LAST_OF_CUDA_12 else tools.ptxas_blackwell
    return str(tool.path), str(tool.version)


def assemble(ptx: str, ptxas: str) -> tuple[bytes, dict[str, int]]:
    """Assemble PTX for its own target; return the cubin and ptxas' resource report.

    Raises:
        BackendError: ptxas fails; the message contains its output.
    """
    architecture = _ARCHITECTURE.search(ptx)
    if architecture is None:
        raise BackendError("PTX without a target cannot be assembled")
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        command = [ptxas, "-v", f"--gpu-name={architecture[1]}", str(source), "-o", str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # the assembler of Triton's wheel
        if done.returncode:
            raise BackendError(f"ptxas failed on a kernel for {architecture[1]}: {' '.join(done.stderr.split())}")
        found = {name: pattern.search(done.stderr) for name, pattern in _REPORTS.items()}
        return result.read_bytes(), {name: int(match[1]) if match else 0 for name, match in found.items()}


def compile_shape(
    shape: MoEShape, out: Path, targets: Sequence[int] = TARGETS, progress: Callable[[str], None] = lambda _: None
) -> dict[int, list[CompiledKernel]]:
    """Compile every kernel of a shape for every target into ``out`` (:mod:`engines.plugins.kernel_folder`).

    Raises:
        InputError: an unsupported target.
        OutputError: the folder cannot be written.
        BackendError: Triton is missing or fails.
    """
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown or not targets:
        raise InputError(f"targets {unknown}: unsupported; choose from {', '.join(map(str, TARGETS))}")
    triton = import_triton()
    folder = out / shape.label
    rows: dict[int, list[CompiledKernel]] = {}
    for target in sorted(set(targets)):
        rows[target] = []
        for kernel in all_kernels(shape):
            progress(f"sm_{target} {kernel.file}")
            compiled, cubin, ptx = compile_kernel(kernel, target)
            write_atomically(folder / f"sm_{target}" / f"{kernel.file}.cubin", cubin, durable=True)
            write_atomically(folder / f"sm_{target}" / f"{kernel.file}.ptx", ptx, durable=True)
            rows[target].append(compiled)
    document = {
        "format": FORMAT,
        "shape": asdict(shape),
        "triton": triton.__version__,
        "targets": {str(target): {c.file: c.to_json() for c in compiled} for target, compiled in rows.items()},
    }
    write_atomically(folder / DOCUMENT, json.dumps(document, indent=1).encode(), durable=True)
    return rows
