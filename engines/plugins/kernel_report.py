"""Implementation of ``python -m engines kernels``: compiles the kernels and reports their resource use."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engines.plugins.compile_kernels import compile_shape, import_triton
from engines.plugins.fused_moe import MoEShape
from engines.plugins.kernel_folder import TARGETS, CompiledKernel, default_folder
from f2edge.errors import InputError
from f2edge.provenance.saving import check_writable, write_atomically
from f2edge.spec.configuration import CONFIGURATIONS

_HEAD = """# Registers, shared memory and spills of the fused experts' kernels

Layer of "{model}": {label} (D {width}, E {experts}, I {expert_width}, K {active}).  Compiled by Triton {triton} without a GPU; nothing here
was run.  On sm_75 the products (up, down) have 256 threads.  Per cell: registers of a thread / shared memory of a block in bytes /
bytes spilled (stores + loads).  Written by
`python -m engines kernels --model {model} --table docs/kernels.md`.

"""


def shape_of(model: str) -> MoEShape:
    """Return the expert shape of a named configuration; raises :class:`InputError` if it is unknown or has no routed experts."""
    if model not in CONFIGURATIONS:
        raise InputError(f"unknown model {model!r}; choose one of: {', '.join(CONFIGURATIONS)}")
    experts = CONFIGURATIONS[model].token_experts
    if not experts.routed:
        raise InputError(f"model {model!r} has no routed experts, so it needs no kernels")
    return MoEShape(CONFIGURATIONS[model].width, experts.routed, experts.routed_width, experts.active)


def markdown(model: str, shape: MoEShape, triton: str, rows: Mapping[int, Sequence[CompiledKernel]]) -> str:
    """Return the resource table as Markdown: a line for each kernel, a column for each target."""
    head = _HEAD.format(
        model=model,
        label=shape.label,
        width=shape.width,
        experts=shape.experts,
        expert_width=shape.expert_width,
        active=shape.active,
        triton=triton,
    )
    columns = "".join(f" sm_{target} |" for target in rows)
    lines = [f"| kernel | grid | threads |{columns}", f"|---|---|---|{'---|' * len(rows)}"]
    for same in zip(*rows.values(), strict=True):
        cells = "".join(f" {c.registers} / {c.shared} / {c.spill_stores + c.spill_loads} |" for c in same)
        first = same[-1]
        lines.append(f"| {first.file} | `{first.grid['formula']}` | {first.threads} |{cells}")
    return head + "\n".join(lines) + "\n"


def make_kernels(out: Path | None, model: str, targets: Sequence[int], table: Path | None, *, as_json: bool) -> None:
    """Compile kernels, write the table if ``table`` is given, and print a summary."""
    shape = shape_of(model)
    root = default_folder() if out is None else out
    if table is not None:
        check_writable(table)
    terminal = sys.stderr.isatty()

    def progress(text: str) -> None:
        if terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    try:
        rows = compile_shape(shape, root, targets or TARGETS, progress)
    finally:
        progress("")
    if table is not None:
        write_atomically(table, markdown(model, shape, import_triton().__version__, rows).encode(), durable=True)
    made = [compiled.to_json() for row in rows.values() for compiled in row]
    if as_json:
        print(json.dumps({"folder": str(root / shape.label), "kernels": made}))
        return
    spilled = sorted({f"{row['file']} on sm_{row['target']}" for row in made if row["spill_stores"] or row["spill_loads"]})
    print(f"{len(made)} kernels for {', '.join(f'sm_{t}' for t in rows)} in {root / shape.label}")
    print(f"registers at most {max(int(r['registers']) for r in made)}, shared memory at most {max(int(r['shared']) for r in made)} bytes")
    print(f"spilled: {', '.join(spilled) or 'nothing'}")
