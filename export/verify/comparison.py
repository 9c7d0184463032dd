"""Streaming comparison of two implementations of a graph: keeps sums only, since fifty prompts produce gigabytes of outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from export.graph.lower import Array

#: Values converted to float64 at a time.
_CHUNK = 1 << 20


class FloatDifference:
    """Largest and mean absolute error, cosine, and the reference's standard deviation over all values added; float64 sums."""

    def __init__(self) -> None:
        self.count = 0
        self._largest = self._error = 0.0
        self._product = self._wanted = self._found = 0.0
        self._mean = self._scatter = 0.0

    def add(self, wanted: Array, found: Array) -> None:
        """Add the reference's array and the other's; raises :class:`ValueError` for different shapes."""
        if wanted.shape != found.shape:
            raise ValueError(f"shapes differ: {wanted.shape} and {found.shape}")
        flat, other = wanted.reshape(-1), found.reshape(-1)
        for begin in range(0, flat.size, _CHUNK):
            a, b = (part[begin : begin + _CHUNK].astype(np.float64) for part in (flat, other))
            error = np.abs(a - b)
            self._largest = max(self._largest, float(error.max()))
            self._error += float(error.sum())
            self._product, self._wanted, self._found = self._product + float(a @ b), self._wanted + float(a @ a), self._found + float(b @ b)
            # Chan's parallel update of mean and sum of squares, stable for means far from zero
            shift, total = float(a.mean()) - self._mean, self.count + a.size
            self._scatter += float(((a - a.mean()) ** 2).sum()) + shift**2 * self.count * a.size / total
            self._mean += shift * a.size / total
            self.count = total

    def metrics(self) -> dict[str, float]:
        """Return ``max``, ``mean``, ``cosine`` and ``spread`` (the reference's standard deviation); 0, 0, 1, 0 without values."""
        norm = math.sqrt(self._wanted) * math.sqrt(self._found)
        return {
            "max": self._largest,
            "mean": self._error / self.count if self.count else 0.0,
            "cosine": self._product / norm if norm else 1.0,
            "spread": math.sqrt(self._scatter / self.count) if self.count else 0.0,
        }


class IntegerAgreement:
    """Share of equal integers over all values added."""

    def __init__(self) -> None:
        self.count = self._same = 0

    def add(self, wanted: Array, found: Array) -> None:
        """Add two arrays; raises :class:`ValueError` for different shapes."""
        if wanted.shape != found.shape:
            raise ValueError(f"shapes differ: {wanted.shape} and {found.shape}")
        self.count, self._same = self.count + wanted.size, self._same + int((wanted == found).sum())

    def metrics(self) -> dict[str, float]:
        """Return ``agreement`` and the number of ``values``."""
        return {"agreement": self._same / self.count if self.count else 1.0, "values": self.count}


class GraphComparison:
    """Comparison of one graph: differences by output, margins of differing tokens, and all routing decisions.

    Attributes:
        calls: number of calls added.
        chosen, found: the reference's and the graph's routing decisions by mixture, each a list of (…, K).
    """

    def __init__(self) -> None:
        self.calls = 0
        self.chosen: dict[str, list[Array]] = {}
        self.found: dict[str, list[Array]] = {}
        self._differences: dict[str, FloatDifference | IntegerAgreement] = {}
        self._margins: list[float] = []

    def add(self, wanted: Mapping[str, Array], found: Mapping[str, Array], margins: Sequence[float] = ()) -> None:
        """Add the outputs of one call by name; outputs that only ``found`` has are routing decisions."""
        self.calls += 1
        for name, value in wanted.items():
            kind = IntegerAgreement if np.issubdtype(value.dtype, np.integer) else FloatDifference
            self._differences.setdefault(name, kind()).add(value, found[name])
        for name in set(found) - set(wanted):
            self.found.setdefault(name, []).append(_small(found[name]))
        self._margins += margins

    def add_routing(self, chosen: Mapping[str, list[Array]]) -> None:
        """Add the reference's routing decisions of one call, by mixture."""
        for name, parts in chosen.items():
            self.chosen.setdefault(name, []).extend(_small(part) for part in parts)

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of each output; ``proposal`` also lists the largest margins of differing tokens."""
        metrics: dict[str, Any] = {name: difference.metrics() for name, difference in self._differences.items()}
        if "proposal" in metrics:
            metrics["proposal"]["largest_margins"] = sorted((round(margin, 7) for margin in self._margins), reverse=True)[:20]
        return metrics


def _small(indices: Array) -> Array:
    """Convert expert indices to the smallest integer type that holds them."""
    return indices.astype(np.min_scalar_type(int(indices.max(initial=0))))
