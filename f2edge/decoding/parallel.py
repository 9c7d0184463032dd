"""Parallel decoding: from masked token grids to finished ones in a few steps, many positions at a time (MaskGIT, arXiv 2202.04200).

The loop takes a step *function*, not a model, so ONNX Runtime, TensorRT, PyTorch and a scripted fake run the same code.  Rows (requests)
of a batch may differ in plan, seed and guidance; a row decodes to the same tokens whatever the other rows of the batch.

R rows, B branches (a guided row has two), N image tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from f2edge.decoding.grids import Grid, Grids, GridsValue, stacked
from f2edge.decoding.noise import noise_key
from f2edge.decoding.schedule import Plan
from f2edge.errors import CancelledError
from f2edge.spec.layout import Ids

#: Index of the empty prompt among the prefixes of a step.
UNCONDITIONAL = -1

#: Arrays by name; ``codes`` as the step function returned it, an array or grids on its device.
Feeds = Mapping[str, Any]

#: ``step(feeds, prefixes) -> (next_codes, proposal)``, both int64 (R, N).  ``feeds`` holds the inputs of the ``t2i_step`` graph except the
#: prefix; ``prefixes[b]`` names branch b's prefix: the index of a row given to :func:`decode`, or ``UNCONDITIONAL``.
StepFunction = Callable[[Feeds, tuple[int, ...]], tuple[GridsValue, GridsValue]]


@dataclass(frozen=True)
class GridRow:
    """State of one request in the loop: token grid, plan, seed and number of steps done."""

    grid: Grid
    plan: Plan
    seed: int
    step: int = 0

    @classmethod
    def of(cls, codes: Ids, plan: Plan, seed: int) -> GridRow:
        """Return the state before the first step; ``codes`` int64 (N,)."""
        return cls(Grid.of(codes), plan, seed)

    @property
    def codes(self) -> Ids:
        """The token grid in host memory, int64 (N,)."""
        return self.grid.ids

    @property
    def finished(self) -> bool:
        return self.step >= self.plan.steps


@dataclass(frozen=True)
class StepEvent:
    """Event emitted after each step.

    Attributes:
        step: steps done, 1 … ``steps``.
        steps: steps of the longest row.
        codes: int64 (R, N), V where still masked.
        proposal: int64 (R, N), every masked position filled with the model's current guess (preview).
        elapsed_ms: duration of this step.
        images: pictures of the proposals, one per row; empty unless requested.
    """

    step: int
    steps: int
    codes: Ids
    proposal: Ids
    elapsed_ms: float
    images: tuple[Image.Image, ...] = ()


def step_feeds(rows: Sequence[GridRow], indices: Sequence[int]) -> tuple[Feeds, tuple[int, ...]]:
    """Return the inputs of one step for ``rows`` and the prefix index of each branch; a row without guidance has one branch."""
    guidance = np.array([r.plan.guidance[r.step] for r in rows], dtype=np.float32)
    guided = np.flatnonzero(guidance > 0)
    unconditional_branch = np.arange(len(rows))
    unconditional_branch[guided] = len(rows) + np.arange(len(guided))
    codes = stacked([r.grid for r in rows])
    positions = np.arange(codes.shape[1])
    feeds: Feeds = {
        "codes": codes,
        "branch_row": np.concatenate([np.arange(len(rows)), guided]),
        "unconditional_branch": unconditional_branch,
        "mask_ratio": np.array([r.plan.mask_ratio[r.step] for r in rows], dtype=np.float32),
        "guidance": guidance,
        "token_temperature": np.array([r.plan.token_temperature[r.step] for r in rows], dtype=np.float32),
        "temperature": np.array([r.plan.temperature[r.step] for r in rows], dtype=np.float32),
        "noise_key": np.stack([noise_key(r.seed, r.step, positions) for r in rows]),
        "priority": np.stack([r.plan.priority for r in rows]),
        "masked_after": np.array([r.plan.masked_after[r.step] for r in rows], dtype=np.int64),
    }
    return feeds, (*indices, *([UNCONDITIONAL] * len(guided)))


def advance(step: StepFunction, rows: Sequence[GridRow], indices: Sequence[int]) -> tuple[list[GridRow], Grids]:
    """Run one step for unfinished ``rows``, each at its own step number; return the new rows and their proposals.

    ``indices[r]`` identifies row r's prefix for ``step``.
    """
    next_codes, proposal = step(*step_feeds(rows, indices))
    advanced = [replace(row, grid=grid, step=row.step + 1) for row, grid in zip(rows, Grids(next_codes).rows(), strict=True)]
    return advanced, Grids(proposal)


def decode(
    step: StepFunction,
    codes: Ids,
    plans: Sequence[Plan],
    seeds: Sequence[int],
    *,
    on_step: Callable[[StepEvent], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    times: list[float] | None = None,
) -> Ids:
    """Fill every masked position of ``codes``.

    Args:
        step: runs one step of the model.
        codes: int64 (R, N), V where masked; other codes are kept.
        plans: plan of each row.
        seeds: seed of each row, in ``[0, 2^64)``.
        on_step: called after each step, on the calling thread; it costs a copy of the grids from the model's device.
        cancelled: polled before each step; True stops.
        times: the milliseconds of each step are appended.

    Returns:
        int64 (R, N), all in ``[0, V)``.

    Raises:
        CancelledError: ``cancelled`` returned True.
    """
    rows = [GridRow(grid, p, s) for grid, p, s in zip(Grids(codes).rows(), plans, seeds, strict=True)]
    steps = max(p.steps for p in plans)
    proposal = codes.copy()
    for number in range(1, steps + 1):
        if cancelled():
            raise CancelledError(f"generation was stopped before step {number} of {steps}")
        active = [i for i, row in enumerate(rows) if not row.finished]
        start = perf_counter()
        advanced, proposals = advance(step, [rows[i] for i in active], active)
        elapsed_ms = 1e3 * (perf_counter() - start)
        if times is not None:
            times.append(elapsed_ms)
        for i, row in zip(active, advanced, strict=True):
            rows[i] = row
        if on_step:
            proposal[active] = proposals.ids
            on_step(StepEvent(number, steps, np.stack([row.codes for row in rows]), proposal.copy(), elapsed_ms))
    return np.stack([row.codes for row in rows])
