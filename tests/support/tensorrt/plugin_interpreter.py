"""The fused experts' kernels on the CPU, through Triton's interpreter.

The interpreter is chosen when Triton is first imported, and other tests import Triton their own way: everything here runs in a process of
its own, :func:`in_interpreter`.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.plugins.fused_moe import KernelPlan, MoEShape, Tile

Array = NDArray[Any]
Result = TypeVar("Result")


def _prepare() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"


class Interpreter:
    """Runs functions in the process whose Triton interprets; arguments and results are pickled."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def __call__(self, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        return self._pool.submit(function, *arguments, **named).result()


@contextmanager
def interpreter() -> Iterator[Interpreter]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_prepare) as pool:
        yield Interpreter(pool)


def allocate(plan: KernelPlan, tokens: int) -> dict[str, Array]:
    """Workspace and output of a run, filled with what must not be read: NaN, and numbers of no expert or row."""
    shape = plan.shape
    A = tokens * shape.active
    poison = np.int32(2**30)
    return {
        "experts": np.full((tokens, shape.active), poison, dtype=np.int32),
        "gates": np.full((tokens, shape.active), np.nan, dtype=np.float32),
        "order": np.full(A, poison, dtype=np.int32),
        "blocks": np.full((shape.blocks(tokens, plan.tile.rows), 4), poison, dtype=np.int32),
        "hidden": np.full((A, shape.expert_width), np.nan, dtype=np.float16),
        "parts": np.full((A, shape.width), np.nan, dtype=np.float16),
        "y": np.full((tokens, shape.width), np.nan, dtype=np.float16),
    }


def launch(plan: KernelPlan, tensors: Mapping[str, Any], tokens: int, *, reverse: bool = False) -> None:
    """Launch all kernels on torch tensors; ``reverse`` runs the programs of every grid from the last to the first."""
    from triton.runtime import interpreter as triton_interpreter

    from engines.plugins import fused_moe_kernels

    for kernel, planned in zip(plan.kernels, plan.launches(tokens), strict=True):
        arguments = [tensors[a] if isinstance(a, str) else a for a in planned.arguments]
        function = getattr(fused_moe_kernels, kernel.name)
        if reverse:
            with _reversed_programs(triton_interpreter.interpreter_builder):
                function[planned.grid](*arguments, **kernel.constants)
        else:
            function[planned.grid](*arguments, **kernel.constants)


@contextmanager
def _reversed_programs(builder: Any) -> Iterator[None]:
    """Let program (x, y) run where (X - 1 - x, Y - 1 - y) would have run."""
    original = builder.set_grid_idx

    def mirrored(x: int, y: int, z: int) -> None:
        width, height, _ = builder.grid_dim
        original(width - 1 - x, height - 1 - y, z)

    builder.set_grid_idx = mirrored
    try:
        yield
    finally:
        del builder.set_grid_idx


def run(shape: MoEShape, x: Array, weights: Mapping[str, Array], tile: Tile, *, reverse: bool = False) -> dict[str, Array]:
    """Every tensor that the kernels write, for x (T, D) of fp16 or fp32."""
    import torch

    plan = KernelPlan(shape, "fp32" if x.dtype == np.float32 else "fp16", tile)
    arrays = allocate(plan, len(x))
    tensors = {name: torch.from_numpy(array) for name, array in {**arrays, **weights, "x": x}.items()}
    launch(plan, tensors, len(x), reverse=reverse)
    return arrays
