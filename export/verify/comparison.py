"""Differences between two implementations of a graph, added up call by call; nothing but sums is kept.

A run of fifty prompts passes some gigabytes of keys, values and logits by; figures over all of them need six numbers per output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from export.graph.lower import Array

#: Values that are taken to float64 at a time.
_CHUNK = 1 << 20


class FloatDifference:
    """Largest and mean absolute error, cosine, and the reference's standard deviation, of all values seen so far; sums in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._largest = self._error = 0.0
        self._product = self._wanted = self._found = 0.0
        self._mean = self._scatter = 0.0

    def add(self, wanted: Array, found: Array) -> None:
        """Two arrays of one shape: the reference's, and the other's."""
        if wanted.shape != found.shape:
            raise ValueError(f"shapes differ: {wanted.shape} and {found.shape}")
        flat, other = wanted.reshape(-1), found.reshape(-1)
        for begin in range(0, flat.size, _CHUNK):
            a, b = (part[begin : begin + _CHUNK].astype(np.float64) for part in (flat, other))
            error = np.abs(a - b)
            self._largest = max(self._largest, float(error.max()))
            self._error += float(error.sum())
            self._product, self._wanted, self._found = self._product + float(a @ b), self._wanted + float(a @ a), self._found + float(b @ b)
            # Chan's merging of means and sums of squares: stable where the mean is far from zero
            shift, total = float(a.mean()) - self._mean, self.count + a.size
            self._scatter += float(((a - a.mean()) ** 2).sum()) + shift**2 * self.count * a.size / total
            self._mean += shift * a.size / total
            self.count = total

    def figures(self) -> dict[str, float]:
        """``max``, ``mean``, ``cosine`` and ``spread`` (to read them against); of nothing: 0, 0, 1, 0."""
        norm = math.sqrt(self._wanted) * math.sqrt(self._found)
        return {
            "max": self._largest,
            "mean": self._error / self.count if self.count else 0.0,
            "cosine": self._product / norm if norm else 1.0,
            "spread": math.sqrt(self._scatter / self.count) if self.count else 0.0,
        }


class Agreement:
    """Share of equal integers."""

    def __init__(self) -> None:
        self.count = self._same = 0

    def add(self, wanted: Array, found: Array) -> None:
        """Two arrays of one shape."""
        if wanted.shape != found.shape:
            raise ValueError(f"shapes differ: {wanted.shape} and {found.shape}")
        self.count, self._same = self.count + wanted.size, self._same + int((wanted == found).sum())

    def figures(self) -> dict[str, float]:
        """``agreement`` and how many ``values`` it rests on."""
        return {"agreement": self._same / self.count if self.count else 1.0, "values": self.count}


class GraphComparison:
    """What is known about one graph: differences by output, the margins of differing tokens, and every routing decision.

    Attributes:
        calls: how many were added.
        chosen, found: the reference's and the graph's routing decisions by mixture, each a list of (…, K); small integers.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.chosen: dict[str, list[Array]] = {}
        self.found: dict[str, list[Array]] = {}
        self._differences: dict[str, FloatDifference | Agreement] = {}
        self._margins: list[float] = []

    def add(self, wanted: Mapping[str, Array], found: Mapping[str, Array], margins: Sequence[float] = ()) -> None:
        """Outputs of one call by name; what only ``found`` has is a routing decision."""
        self.calls += 1
        for name, value in wanted.items():
            kind = Agreement if np.issubdtype(value.dtype, np.integer) else FloatDifference
            self._differences.setdefault(name, kind()).add(value, found[name])
        for name in set(found) - set(wanted):
            self.found.setdefault(name, []).append(_small(found[name]))
        self._margins += margins

    def choose(self, chosen: Mapping[str, list[Array]]) -> None:
        """The reference's decisions of one call, by mixture."""
        for name, parts in chosen.items():
            self.chosen.setdefault(name, []).extend(_small(part) for part in parts)

    def figures(self) -> dict[str, Any]:
        """By output; ``proposal`` also lists the largest margins by which tokens differ."""
        figures: dict[str, Any] = {name: difference.figures() for name, difference in self._differences.items()}
        if "proposal" in figures:
            figures["proposal"]["largest_margins"] = sorted((round(margin, 7) for margin in self._margins), reverse=True)[:20]
        return figures


def _small(indices: Array) -> Array:
    """Indices of experts in the smallest type that holds them."""
    return indices.astype(np.min_scalar_type(int(indices.max(initial=0))))
