"""Schedules of parallel decoding: token counts, temperatures, guidance and order per step, each law a named function.

A :class:`Schedule` holds the options; :func:`plan` computes the per-step numbers of one request, which the loop
(:mod:`f2edge.decoding.parallel`) feeds to the step graph.  N image tokens, T steps.

>>> plan(Schedule(steps=4), np.ones(64, dtype=bool), seed=7).masked_after.tolist()
[59, 45, 24, 0]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import acos, cos, floor, pi, prod
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from f2edge.decoding.halton import halton_tokens
from f2edge.decoding.noise import REQUEST_STEP, noise_key
from f2edge.errors import InputError

#: Difference in priority between neighbours of a fixed order: above any log-probability, below float32's loss of whole numbers.
PRIORITY_STEP = 1e4


def cosine(progress: float) -> float:
    """Return the masked share after ``progress`` in [0, 1] by MaskGIT's law, cos(π/2 · progress) (arXiv 2202.04200)."""
    return cos(pi / 2 * progress)


def show_o_cosine(progress: float) -> float:
    """Return :func:`cosine` as Show-o's code computes it, in single precision (arXiv 2408.12528).

    In single precision cos 60° is just below 1/2, so if the steps are a multiple of three, one more token is decoded at two thirds.
    This reproduces the published counts of 256 tokens for every number of steps, and of 1024 tokens up to 970 steps.
    """
    angle = np.float32(progress) * np.float32(pi) * np.float32(0.5)
    return max(0.0, float(np.float32(cos(float(angle)))))


def arccos(progress: float) -> float:
    """Return the masked share by Halton-MaskGIT's law, the arc cosine over π/2 (arXiv 2503.17076)."""
    return acos(progress) / (pi / 2)


def linear(progress: float) -> float:
    """Return the masked share 1 - progress: log-linear noise of masked diffusion, the same number of tokens per step."""
    return 1.0 - progress


MASK_LAWS: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {"cosine": cosine, "show-o": show_o_cosine, "arccos": arccos, "linear": linear}
)


def linear_temperature(start: float, step: int, steps: int) -> float:
    """Return MaskGIT's annealed temperature, start · (1 - (step + 1) / steps)."""
    return start * (1.0 - (step + 1) / steps)


def show_o_temperature(start: float, step: int, steps: int) -> float:
    """Return Show-o's annealed temperature: the factors 1 - (j + 1) / steps of all steps j so far, multiplied."""
    return start * prod(1.0 - (j + 1) / steps for j in range(step + 1))


def constant_temperature(start: float, _step: int, _steps: int) -> float:
    """Return the same temperature at every step."""
    return start


TEMPERATURE_LAWS: Mapping[str, Callable[[float, int, int], float]] = MappingProxyType(
    {"linear": linear_temperature, "show-o": show_o_temperature, "constant": constant_temperature}
)

#: Order of decoding → its own mask law.  "maskgit": the most confident first.  "halton": low-discrepancy order.
#: "ancestral": a random order, a fixed number at every step (masked diffusion's sampler without the spread of its counts).
ORDERS: Mapping[str, str] = MappingProxyType({"maskgit": "cosine", "halton": "arccos", "ancestral": "linear"})


@dataclass(frozen=True)
class Schedule:
    """Decoding options; invalid values raise :class:`~f2edge.errors.InputError`.

    Attributes:
        steps: T, 1 … 1024; more steps than masked tokens are cut to one token a step (not under the mask law "show-o").
        guidance: g ≥ 0 of ``c + g (c - u)``; 0 runs one branch only.
        order: "maskgit", "halton" or "ancestral".
        mask_law: "cosine", "show-o" (:func:`show_o_counts`), "arccos" or "linear"; None takes the order's own.
        temperature: ≥ 0, initial scale of the Gumbel noise on the confidence ("maskgit" only; a fixed order ignores confidence).
        temperature_law: "linear" (MaskGIT), "show-o" (compounding) or "constant".
        token_temperature: > 0; logits are divided by it before sampling.
        guidance_interval: guidance applies while the masked share of the request's tokens lies in ``[lo, hi]``.
        guidance_ramp: guidance grows linearly from 0 at the first step to ``guidance`` at the last.
    """

    steps: int = 12
    guidance: float = 2.0
    order: str = "maskgit"
    mask_law: str | None = None
    temperature: float = 1.0
    temperature_law: str = "linear"
    token_temperature: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_ramp: bool = False

    def __post_init__(self) -> None:
        lo, hi = self.guidance_interval
        for sound, complaint in (
            (1 <= self.steps <= 1024, f"steps must lie in 1 … 1024, got {self.steps}"),
            (0 <= self.guidance <= 100, f"guidance must lie in 0 … 100, got {self.guidance}"),
            (0 <= self.temperature <= 100, f"temperature must lie in 0 … 100, got {self.temperature}"),
            (0.01 <= self.token_temperature <= 100, f"token_temperature must lie in 0.01 … 100, got {self.token_temperature}"),
            (0 <= lo <= hi <= 1, f"guidance_interval must be 0 <= low <= high <= 1, got {self.guidance_interval}"),
            (self.order in ORDERS, f"unknown order {self.order!r}; choose one of: {', '.join(ORDERS)}"),
            (self.mask_law in {None, *MASK_LAWS}, f"unknown mask_law {self.mask_law!r}; choose one of: {', '.join(MASK_LAWS)}"),
            (
                self.temperature_law in TEMPERATURE_LAWS,
                f"unknown temperature_law {self.temperature_law!r}; choose one of: {', '.join(TEMPERATURE_LAWS)}",
            ),
        ):
            if not sound:
                raise InputError(f"generation options: {complaint}")


@dataclass(frozen=True)
class Plan:
    """Per-step numbers of one request.

    Attributes:
        mask_ratio: float32 (T,), share of all N tokens masked when the step begins.
        masked_after: int64 (T,), tokens masked when it ends; falls to 0, strictly but for "show-o" with more steps than tokens.
        temperature, token_temperature, guidance: float32 (T,).
        priority: float32 (N,), added to the confidence; in a fixed order it dominates.
    """

    mask_ratio: NDArray[np.float32]
    masked_after: NDArray[np.int64]
    temperature: NDArray[np.float32]
    token_temperature: NDArray[np.float32]
    guidance: NDArray[np.float32]
    priority: NDArray[np.float32]

    @property
    def steps(self) -> int:
        return len(self.masked_after)


def masked_counts(law: Callable[[float], float], masked: int, steps: int) -> list[int]:
    """Return the tokens still masked after each step: ``floor(masked · law((k + 1) / steps))``, made strictly falling to 0.

    Every step decodes at least one token; more steps than tokens are cut to ``masked`` steps.
    """
    steps = min(steps, masked)
    counts: list[int] = []
    before = masked
    for k in range(steps):
        before = max(min(floor(masked * law((k + 1) / steps)), before - 1), steps - 1 - k)
        counts.append(before)
    return counts


def show_o_counts(masked: int, steps: int, tokens: int) -> list[int]:
    """Return the masked tokens after each step of Show-o's loop: ``max(1, min(before - 1, floor(tokens · cos)))``, then 0.

    The law is that of the whole grid of ``tokens`` even if only ``masked`` of them are decoded, as in edits: one token a step until a
    whole picture would have as few.  With more steps than tokens the last one is decoded again in each remaining step.
    """
    counts: list[int] = []
    before = masked
    for k in range(steps):
        before = max(1, min(before - 1, floor(tokens * show_o_cosine((k + 1) / steps))))
        counts.append(before)
    return [*counts[:-1], 0]


def fixed_order(order: str, tokens: int, seed: int, block: int = 1) -> NDArray[np.int64]:
    """Return positions (N,) in decoding order: "halton", rolled by the seed, or "ancestral", shuffled by the seed."""
    keys = noise_key(seed, REQUEST_STEP, np.arange(tokens))
    if order == "ancestral":
        return np.argsort(keys, kind="stable")
    return np.roll(halton_tokens(tokens, block), int(keys[0]) % tokens)


def plan(schedule: Schedule, masked: NDArray[np.bool_], seed: int, block: int = 1) -> Plan:
    """Return the plan of one request.

    Args:
        schedule: decoding options.
        masked: bool (N,), positions to decode: all for a new image, a region for an edit.
        seed: seed of the request; determines random orders.
        block: cells along each side of a block whose tokens lie together, as in :class:`f2edge.spec.layout.TokenLayout`.

    Raises:
        InputError: no position is masked.
    """
    total, count = len(masked), int(masked.sum())
    if not count:
        raise InputError("there is nothing to decode: no token is masked; choose a region that covers at least one token")
    law = schedule.mask_law or ORDERS[schedule.order]
    counts = show_o_counts(count, schedule.steps, total) if law == "show-o" else masked_counts(MASK_LAWS[law], count, schedule.steps)
    after = np.array(counts, dtype=np.int64)  # (T,)
    steps = len(after)
    before = np.concatenate(([count], after[:-1]))  # (T,)
    share = before / count
    lo, hi = schedule.guidance_interval
    ramp = np.linspace(0.0, 1.0, steps) if schedule.guidance_ramp and steps > 1 else np.ones(steps)
    guidance = np.where((lo <= share) & (share <= hi), schedule.guidance * ramp, 0.0)
    priority = np.zeros(total, dtype=np.float32)
    start = schedule.temperature
    if schedule.order != "maskgit":
        start = 0.0
        priority[fixed_order(schedule.order, total, seed, block)] = PRIORITY_STEP * np.arange(total, 0, -1)
    anneal = TEMPERATURE_LAWS[schedule.temperature_law]
    return Plan(
        mask_ratio=(before / total).astype(np.float32),
        masked_after=after,
        temperature=np.array([anneal(start, k, steps) for k in range(steps)], dtype=np.float32),
        token_temperature=np.full(steps, schedule.token_temperature, dtype=np.float32),
        guidance=guidance.astype(np.float32),
        priority=priority,
    )
