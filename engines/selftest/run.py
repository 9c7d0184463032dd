"""The self-test itself: runs every case shape by shape, then all of them interleaved, and compares and times the runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engines.selftest.cases import Case, feeds, uniform
from engines.selftest.reference import BETWEEN, Groups, Reference, error, groups, tolerance
from f2edge.backends.base import Backend
from f2edge.bundle.bundle import Bundle
from f2edge.errors import F2EdgeError

#: Runs of a case before it is timed: the first binds, the second captures, the third launches.
WARM = 3
LEAST_CALLS, MOST_CALLS = 5, 200
#: Runs of every case in the interleaved pass.
ROUNDS = 3


@dataclass
class CaseResult:
    """Result of one case.

    Attributes:
        case: graph, name and sizes.
        shapes: shape of every input.
        errors: worst error of each group in any run, in order.
        limit: tolerance of floats; of integers.
        failure: message of a run that failed; empty if all ran.
        interleaved: worst error in the interleaved pass, in multiples of the tolerance.
        times: milliseconds of each timed run, by mode ("as built", "without CUDA graphs").
    """

    case: Case
    shapes: Mapping[str, tuple[int, ...]]
    limits: Mapping[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    interleaved: float = 0.0
    failure: str = ""
    times: dict[str, list[float]] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        """Groups outside their tolerance, in the reference's order."""
        return [group for group, limit in self.limits.items() if not self.errors.get(group, 0.0) <= limit]

    @property
    def passed(self) -> bool:
        return not self.wrong and not self.failure

    def note(self, found: Groups, wanted: Groups) -> float:
        """Compare one run; return its worst error in multiples of the tolerance.  States are compared where a run gives them."""
        worst = 0.0
        for group, value in wanted.items():
            if group not in found and group.startswith(BETWEEN):
                continue
            off = error(found[group], value) if group in found else float("inf")
            self.errors[group] = max(off, self.errors.get(group, 0.0))
            worst = max(worst, off / self.limits[group])
        return worst


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile, ``share`` in [0, 100]; the nearest value that was measured."""
    return float(np.percentile(np.asarray(values), share, method="nearest"))


class SelfTest:
    """One bundle on one machine.

    Args:
        bundle: open bundle.
        reference: what the outputs should be.
        cases: to run, in order.
        seconds: time to spend on timing each case.
        progress: called with a line before each case.
    """

    def __init__(
        self, bundle: Bundle, reference: Reference, cases: Sequence[Case], seconds: float, progress: Callable[[str], None] = lambda _: None
    ) -> None:
        self._bundle, self._reference, self._seconds, self._progress = bundle, reference, seconds, progress
        self.results = [self._result(case) for case in cases]

    def _result(self, case: Case) -> CaseResult:
        limit = tolerance(self._bundle, case.graph)
        wanted = self._reference.cases[case.label]
        limits = {group: limit.integers if value.dtype.kind in "iu" else limit.floats for group, value in wanted.items()}
        return CaseResult(case, {name: value.shape for name, value in feeds(self._bundle, case).items()}, limits)

    def alone(self, backend: Backend, mode: str) -> None:
        """Run every case, shape by shape: compare the first runs, then time further ones."""
        for result in self.results:
            if result.failure:
                continue
            self._progress(f"{result.case.label}, {mode}")
            inputs: dict[str, Any] = feeds(self._bundle, result.case)
            try:
                for _ in range(WARM):
                    self._compare(backend, result, inputs)
                result.times[mode] = self._timed(backend, result.case.graph, inputs)
            except F2EdgeError as problem:
                result.failure = str(problem)

    def layers(self, backend: Backend) -> None:
        """Run every case once by the graphs' self-test forms."""
        for result in self.results:
            if result.failure:
                continue
            self._progress(f"{result.case.label}, layer by layer")
            try:
                self._compare(backend, result, feeds(self._bundle, result.case))
            except F2EdgeError as problem:
                result.failure = f"layer by layer: {problem}"

    def interleaved(self, backend: Backend) -> None:
        """Run all cases in a mixed order, so that every run follows one of another graph or shape."""
        waiting = [result for result in self.results if not result.failure]
        order = [waiting[i % len(waiting)] for i in np.argsort(uniform("order", ROUNDS * len(waiting)))] if waiting else []
        for result in order:
            self._progress(f"{result.case.label}, interleaved")
            try:
                off = self._compare(backend, result, feeds(self._bundle, result.case))
            except F2EdgeError as problem:
                result.failure = f"interleaved: {problem}"
                continue
            result.interleaved = max(result.interleaved, off)

    def _compare(self, backend: Backend, result: CaseResult, inputs: dict[str, Any]) -> float:
        case = result.case
        return result.note(groups(case, backend.run(case.graph, inputs)), self._reference.cases[case.label])

    def _timed(self, backend: Backend, graph: str, inputs: dict[str, Any]) -> list[float]:
        """Return the milliseconds of each run."""
        times: list[float] = []
        while len(times) < LEAST_CALLS or (sum(times) < 1e3 * self._seconds and len(times) < MOST_CALLS):
            start = time.perf_counter()
            backend.run(graph, inputs)  # returns when the device is done
            times.append(1e3 * (time.perf_counter() - start))
        return times
