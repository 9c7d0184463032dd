"""Choice of a plan's profile and shapes for a request.

Each new shape costs host time in TensorRT and a captured CUDA graph.  Text axes are right-aligned (:mod:`f2edge.spec.graphs`), so left
padding does not change results: new text (S) is padded to a bucket if there is no earlier text, earlier text (T) always.  An answer of 30
tokens then runs in one shape instead of 30.  Earlier text may have more columns than needed, from the padding of the previous run; columns
that no row needs are cut off.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from f2edge.backends.base import Value
from f2edge.backends.tensorrt.plans import GraphPlan, Range
from f2edge.errors import BackendError
from f2edge.spec.graphs import SIGNATURES

#: Letters of axes that are padded on the left.
RIGHT_ALIGNED = "STP"
#: Plans, and requests of different shapes for each, that are remembered.
PLANS_KEPT, FITS_KEPT = 64, 1024
_KNOWN: dict[int, tuple[GraphPlan, dict[tuple[Hashable, ...], ProfileFit]]] = {}


@dataclass(frozen=True)
class ProfileFit:
    """Profile index and the shape of every input."""

    profile: int
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Axis:
    """Axis of a plan: letter in the signature, required size, whether it may be padded, fixed size or None."""

    letter: str
    needed: int
    padded: bool
    fixed: int | None


def fit(plan: GraphPlan, feeds: Mapping[str, Value]) -> ProfileFit:
    """Return the tightest profile that admits the request; raises :class:`BackendError` naming the axis that fits no profile.

    A request of known shapes is looked up: an answer's tokens have one text length each, and fitting takes 0.1 ms.
    """
    if id(plan) not in _KNOWN and len(_KNOWN) >= PLANS_KEPT:
        _KNOWN.clear()
    known = _KNOWN.setdefault(id(plan), (plan, {}))[1]  # holds the plan, so that no other one gets its id
    key = (_earlier(feeds), *((name, value.shape) for name, value in feeds.items()))
    if key not in known:
        if len(known) >= FITS_KEPT:
            known.clear()
        known[key] = _fit(plan, feeds)
    return known[key]


def _earlier(feeds: Mapping[str, Value]) -> int:
    """Return the number of earlier text columns that a row needs."""
    if "text_ids" not in feeds or "text_lengths" not in feeds:
        return 0
    return max(0, int(np.max(np.asarray(feeds["text_lengths"]), initial=0)) - feeds["text_ids"].shape[1])


def _fit(plan: GraphPlan, feeds: Mapping[str, Value]) -> ProfileFit:
    expected, given = {port.name for port in plan.inputs}, set(feeds)
    if expected != given:
        wrong = ", ".join(sorted(expected ^ given))
        raise BackendError(f"graph {plan.name!r} failed: inputs are missing or unknown: {wrong}")
    axes = _axes(plan, feeds)
    refusals = []
    best: tuple[int, int, dict[str, int]] | None = None
    for number, ranges in enumerate(plan.profiles):
        sizes = _sizes(plan, axes, ranges)
        if isinstance(sizes, str):
            refusals.append(sizes)
            continue
        span = int(np.prod([high - low + 1 for low, _, high in ranges.values()], dtype=np.float64))
        if best is None or span < best[0]:
            best = span, number, sizes
    if best is None:
        raise BackendError(
            f"graph {plan.name!r} failed: {'; '.join(dict.fromkeys(refusals))}; build plans that take it (`python -m engines build --help`)"
        )
    sizes = best[2]
    return ProfileFit(best[1], {port.name: tuple(sizes[str(axis)] for axis in port.shape) for port in plan.inputs})


def largest(plan: GraphPlan, letter: str) -> int | None:
    """Return the largest size of a row axis (R or B) in any profile; None if no input has it."""
    letters = {tensor.name: tensor.axes for tensor in SIGNATURES[plan.name].inputs}
    found = [axis for port in plan.inputs for own, axis in zip(letters[port.name], port.shape, strict=True) if own == letter]
    sizes = [axis if isinstance(axis, int) else max(ranges[axis][2] for ranges in plan.profiles) for axis in found]
    return max(sizes, default=None)


def _axes(plan: GraphPlan, feeds: Mapping[str, Value]) -> dict[str, _Axis]:
    """Return every axis by its name in the plan (fixed ones by their size); raises for contradictory sizes."""
    letters = {tensor.name: tensor.axes for tensor in SIGNATURES[plan.name].inputs}
    earlier = _earlier(feeds)
    axes: dict[str, _Axis] = {}
    for port in plan.inputs:
        shape = feeds[port.name].shape
        if len(shape) != len(port.shape):
            raise BackendError(f"graph {plan.name!r} failed: {port.name} has {len(shape)} axes, the plan takes {len(port.shape)}")
        for letter, axis, size in zip(letters[port.name], port.shape, shape, strict=True):
            needed = earlier if letter == "T" else size
            padded = letter in RIGHT_ALIGNED and not (letter == "S" and earlier)
            found = _Axis(letter, needed, padded, axis if isinstance(axis, int) else None)
            if isinstance(axis, int) and (needed > axis or (needed < axis and not padded)):
                raise BackendError(f"graph {plan.name!r} failed: {port.name} is {list(shape)}, the plan takes {list(port.shape)}")
            if isinstance(axis, str) and axes.setdefault(axis, found).needed != needed:
                raise BackendError(f"graph {plan.name!r} failed: axis {axis} is {axes[axis].needed} and, in {port.name}, {needed}")
            axes[str(axis)] = found
    return axes


def _sizes(plan: GraphPlan, axes: Mapping[str, _Axis], ranges: Mapping[str, Range]) -> dict[str, int] | str:
    """Return the size of every axis within a profile, or the reason why it does not fit."""
    sizes = {}
    for name, axis in axes.items():
        if axis.fixed is not None:
            sizes[name] = axis.fixed
            continue
        low, _, high = ranges[name]
        size = axis.needed
        if axis.padded:
            size = max(low, next((b for b in plan.buckets.get(name, ()) if size <= b <= high), size))
        if not low <= size <= high:
            return f"axis {name} is {axis.needed}, the plan takes {low} … {high}"
        sizes[name] = size
    return sizes


def right_aligned(source: tuple[int, ...], target: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the slices that copy a tensor into another shape with every axis aligned at its end."""
    common = [min(a, b) for a, b in zip(source, target, strict=True)]

    def last(shape: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(size - kept, size) for size, kept in zip(shape, common, strict=True))

    return last(source), last(target)


def cache_lines(shape: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Return the number of rows of P columns in a cache (L, B, H, P, W), and the bytes of one."""
    lines: Any = np.prod(shape[:3], dtype=np.int64)
    return int(lines), shape[3] * shape[4] * itemsize
