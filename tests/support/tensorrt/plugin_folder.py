"""A folder of kernels without a compiler: every file says what it is, and nothing can run it but a double of the driver."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from engines.plugins.compile_kernels import all_kernels
from engines.plugins.fused_moe import MoEShape, for_target
from engines.plugins.kernel_folder import DOCUMENT, FORMAT, CompiledKernel


def write_folder(root: Path, shape: MoEShape, targets: Sequence[int]) -> None:
    """As ``python -m engines kernels`` writes it; a "cubin" is the text "cubin 87 up-fp32-large"."""
    rows: dict[str, dict[str, object]] = {}
    for target in targets:
        folder = root / shape.label / f"sm_{target}"
        folder.mkdir(parents=True, exist_ok=True)
        rows[str(target)] = {}
        for kernel in (for_target(kernel, target) for kernel in all_kernels(shape)):
            data = {kind: f"{kind} {target} {kernel.file}".encode() for kind in ("cubin", "ptx")}
            for kind, content in data.items():
                (folder / f"{kernel.file}.{kind}").write_bytes(content)
            rows[str(target)][kernel.file] = CompiledKernel(
                kernel=kernel.name,
                file=kernel.file,
                target=target,
                threads=32 * kernel.warps,
                shared=1024,
                constants=dict(kernel.constants),
                arguments=kernel.arguments,
                grid=kernel.document()["grid"],
                registers=32,
                spill_stores=0,
                spill_loads=0,
                stack=0,
                cubin_sha256=hashlib.sha256(data["cubin"]).hexdigest(),
                ptx_sha256=hashlib.sha256(data["ptx"]).hexdigest(),
                assembler="12.9",
            ).to_json()
    (root / shape.label / DOCUMENT).write_text(json.dumps({"format": FORMAT, "shape": asdict(shape), "targets": rows}))
