"""Splitting of a decoding step of many requests into steps of a few.

On a CPU a batch is no faster per request than a pair, and small groups keep the working set in the caches and the memory low.
R requests, B branches; names and axes are those of :data:`f2edge.spec.graphs.T2I_STEP`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from f2edge.backends.base import Array, Value

_BY_ROW = ("codes", "mask_ratio", "guidance", "token_temperature", "temperature", "noise_key", "priority", "masked_after")


def _branches(cache: Value, branches: Array) -> Value:
    return np.asarray(cache)[:, branches]


def paired_branch(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return the inputs of ``t2i_step`` with a single branch duplicated; the copy belongs to no request and changes no output."""
    if len(feeds.get("branch_row", ())) != 1:
        return feeds
    return {
        **feeds,
        "branch_row": np.repeat(feeds["branch_row"], 2),
        "prefix_key": np.repeat(feeds["prefix_key"], 2, axis=1),
        "prefix_value": np.repeat(feeds["prefix_value"], 2, axis=1),
        "prefix_lengths": np.repeat(feeds["prefix_lengths"], 2),
    }


def row_groups(feeds: Mapping[str, Any], size: int, take: Callable[[Value, Array], Value] = _branches) -> Iterator[dict[str, Any]]:
    """Yield the inputs of ``t2i_step`` in groups of ``size`` requests, each with its branches only.

    ``take`` selects branches of a prefix's keys or values.
    """
    other = feeds["unconditional_branch"]
    for first in range(0, len(other), size):
        rows = np.arange(first, min(first + size, len(other)))
        guided = rows[other[rows] != rows]
        branches = np.concatenate([rows, other[guided]])
        renamed = np.arange(len(rows))
        renamed[guided - first] = len(rows) + np.arange(len(guided))
        yield {
            **{name: feeds[name][rows] for name in _BY_ROW},
            "branch_row": feeds["branch_row"][branches] - first,
            "unconditional_branch": renamed,
            "prefix_key": take(feeds["prefix_key"], branches),
            "prefix_value": take(feeds["prefix_value"], branches),
            "prefix_lengths": feeds["prefix_lengths"][branches],
        }
