"""Results of a run: percentiles with confidence intervals, goodput, refusals; as a table, JSON and a plot.

Percentiles are exact: every sample is kept.  A percentile with fewer than ten samples beyond it is not reported, so p99 needs a thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.load.loops import Run, Sample
from bench.load.server import Sampler
from bench.load.work import METHODS
from bench.results import unwritable
from f2edge.cli.console import Output
from f2edge.errors import InputError

LEVELS = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99)
#: Samples that must lie beyond a percentile.
_BEYOND = 10
#: Lag of the generator, as a share of the median latency and in milliseconds, beyond which results are unreliable.
_LATE_SHARE, _LATE_MS = 0.05, 5.0
_SHOWN = ("p50", "p90", "p99")


def parse_slo(text: str) -> dict[str, float]:
    """Return milliseconds by method from "2000" or "generate=2000,ask=300"; "" gives {}.

    Raises:
        InputError: an unknown method, or a bound that is not a number above 0.
    """
    bounds: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if (name and name not in METHODS) or not 0 < value < float("inf"):
            raise InputError(f"--slo {part!r}: write milliseconds, or METHOD=MILLISECONDS with one of {', '.join(METHODS)}")
        bounds.update(dict.fromkeys([name] if name else METHODS, value))
    return bounds


def percentiles(values: Sequence[float]) -> dict[str, Any]:
    """Return count, mean, extremes and percentiles of milliseconds, each with its 95 % interval from order statistics."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    results: dict[str, Any] = {"samples": count}
    if not count:
        return results
    results |= {"mean": float(ordered.mean()), "min": float(ordered[0]), "max": float(ordered[-1])}
    for level in LEVELS:
        share = level / 100
        if level > 50 and count * (1 - share) < _BEYOND - 1e-9:
            break
        spread = 1.96 * np.sqrt(count * share * (1 - share))
        low, high = (int(np.clip(round(count * share + side * spread), 0, count - 1)) for side in (-1, 1))
        name = f"p{level:g}"
        results[name] = float(np.quantile(ordered, share, method="higher"))
        results[f"{name}_interval"] = [float(ordered[low]), float(ordered[high])]
    return results


def health_results(health: Sampler) -> dict[str, Any]:
    """Return the milliseconds of health checks that returned SERVING, and the number of others."""
    values = [ms for _, ms in health.seen]
    good = [ms for ms in values if ms != float("inf")]
    return {"ms": percentiles(good), "not_serving": len(values) - len(good)}


def order_statistic(samples: Sequence[Sample], level: float) -> float:
    """Return a percentile of the latencies in ms; failed calls count as infinitely long."""
    values = sorted(s.latency_ms if s.ok else float("inf") for s in samples)
    return values[min(len(values) - 1, int(np.ceil(level / 100 * len(values))) - 1)] if values else float("inf")


def results_of(run: Run, slo: Mapping[str, float]) -> dict[str, Any]:
    """Return the results of a run: rates, codes, goodput, latencies by method, refusals, lag of the generator."""
    good = [s for s in run.samples if s.ok]
    within = [s for s in good if s.latency_ms <= slo.get(s.method, float("inf"))]
    methods = sorted({s.method for s in run.samples}, key=METHODS.index)
    lag = percentiles([s.lag_ms for s in run.samples])
    median_ms = float(np.median([s.latency_ms for s in good])) if good else 0.0
    lag_ms = lag.get("p99", lag.get("max", 0.0))
    return {
        "seconds": run.seconds,
        "given_up": run.given_up,
        "requests": len(run.samples),
        "codes": dict(Counter(s.reply.code for s in run.samples)),
        "per_second": len(good) / run.seconds if run.seconds else 0.0,
        "goodput_per_second": len(within) / run.seconds if slo and run.seconds else None,
        "slo_ms": dict(slo),
        "late": len(good) - len(within),
        "degraded": sum(s.reply.degraded for s in good),
        "latency_ms": {method: percentiles([s.latency_ms for s in good if s.method == method]) for method in methods},
        "first_ms": {method: percentiles(_firsts(good, method)) for method in methods if method != "analyze"},
        "refused_ms": percentiles([1e3 * (s.reply.done - s.reply.sent) for s in run.samples if s.reply.code == "RESOURCE_EXHAUSTED"]),
        "generator_lag_ms": lag,
        "generator_late": bool(lag_ms > max(_LATE_MS, _LATE_SHARE * median_ms)),
    }


def _firsts(samples: Sequence[Sample], method: str) -> list[float]:
    return [s.first_ms for s in samples if s.method == method and s.first_ms is not None]


def show(title: str, results: Mapping[str, Any], output: Output) -> None:
    """Print the results of a run."""
    rate = f"{results['per_second']:.2f} answered a second in {results['seconds']:.1f} s"
    if results["goodput_per_second"] is not None:
        rate += f", {results['goodput_per_second']:.2f} of them within the SLO"
    output.line(f"{title}: {rate}; {', '.join(f'{count} {code}' for code, count in results['codes'].items())}")
    rows = []
    for kind, label in (("latency_ms", "whole"), ("first_ms", "first message")):
        for method, values in results[kind].items():
            if values["samples"]:
                cells = [f"{values[name]:.1f}" if name in values else "" for name in (*_SHOWN, "max")]
                rows.append((f"{method}, {label}", str(values["samples"]), *cells))
    if results["refused_ms"]["samples"]:
        refused = results["refused_ms"]
        rows.append(("refused", str(refused["samples"]), *(f"{refused[n]:.1f}" if n in refused else "" for n in (*_SHOWN, "max"))))
    output.table(("ms from the intended start", ">calls", *(f">{name}" for name in (*_SHOWN, "max"))), rows)
    if results["given_up"]:
        output.line(f"ended early: {results['given_up']}")
    if results["generator_late"]:
        output.line("the load generator was late: results contain its delays (generator_lag_ms)")


def plot(run: Run, slo: Mapping[str, float], path: Path, title: str) -> None:
    """Plot latency over the share of faster requests (logarithmic towards 100 %) and over time.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    tails, times = figure.subplots(1, 2)
    for method in METHODS:
        samples = [s for s in run.samples if s.ok and s.method == method]
        if not samples:
            continue
        values = np.sort([s.latency_ms for s in samples])
        beyond = (np.arange(len(values), 0, -1)) / len(values)  # the share that was at least as slow
        (line,) = tails.plot(1 / beyond, values, label=method, drawstyle="steps-post")
        begun = min(s.intended for s in run.samples)
        times.plot([s.intended - begun for s in samples], [s.latency_ms for s in samples], ".", markersize=3, color=line.get_color())
        if method in slo:
            tails.axhline(slo[method], linestyle=":", linewidth=1, color=line.get_color())
    most = max((len(run.samples), 10))
    nines = [k for k in (2, 10, 100, 1000, 10_000, 100_000) if k <= most]
    tails.set_xscale("log")
    tails.set_xticks(nines, ["50 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"][: len(nines)])
    tails.minorticks_off()
    tails.set(xlabel="share of the calls that were faster", ylabel="ms from the intended start", title=title)
    times.set(xlabel="intended start, s", ylabel="ms", title="over time")
    if tails.get_lines():
        tails.legend()
    for axes in (tails, times):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise unwritable(path, error) from error
