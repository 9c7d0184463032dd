"""Bar chart of a comparison, and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.latency.report import joules, number, ratio, varying
from bench.results import Results, unwritable, write_json

_TITLES = {"generate": "generate: ms per face", "analyze": "analyze: ms per face", "ask": "ask: ms to the first token"}
_WORDS = {"threads": "threads", "steps": "steps", "batch": "at once"}


def write(results: Results, out: Path) -> list[Path]:
    """Write ``latency.json``, ``latency.svg`` and ``latency.png``; raise :class:`InputError` where ``out`` cannot be written."""
    from matplotlib import rc_context

    paths = [out / f"latency.{kind}" for kind in ("json", "svg", "png")]
    figure = plot(results)
    write_json(results, paths[0])
    try:
        with rc_context({"svg.fonttype": "none"}):  # keep text as text
            for path in paths[1:]:
                figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise unwritable(out, error) from error
    return paths


def plot(results: Results) -> Any:
    """Return a ``matplotlib.figure.Figure``: one panel per call, one bar per row with the median ms per face, fastest and slowest."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = results["rows"]
    calls = list(dict.fromkeys(row["call"] for row in rows))
    axes = varying(rows)
    engines = list(dict.fromkeys(_engine_of(row) for row in rows))
    colors = {engine: colormaps["tab10"](place % 10) for place, engine in enumerate(engines)}
    counts = [sum(row["call"] == call for row in rows) for call in calls]
    figure = Figure(figsize=(10, 1.2 + 0.34 * sum(counts) + 0.75 * len(calls)), layout="constrained")
    panels = figure.subplots(len(calls), 1, squeeze=False, gridspec_kw={"height_ratios": counts})[:, 0]
    for call, panel in zip(calls, panels, strict=True):
        _draw_panel(panel, call, [row for row in rows if row["call"] == call], axes, colors)
    machine = results["machine"]
    busy = " (busy)" if machine["busy"] else ""
    figure.suptitle(
        f"{machine['processor']}, {machine['cores']} cores{busy}. Bars: median, shorter is better; lines: fastest to slowest; "
        "x: times as fast as the first bar",
        fontsize="medium",
    )
    return figure


def _engine_of(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["bundle"], row["backend"], row["threads"]


def _draw_panel(panel: Any, call: str, rows: Sequence[Mapping[str, Any]], axes: Sequence[str], colors: Mapping[Any, Any]) -> None:
    for place, row in enumerate(rows):
        median, low, high = row["ms_per_face"], row["ms"]["low"] / row["batch"], row["ms"]["high"] / row["batch"]
        whisker = [[median - low], [high - median]]
        panel.barh(place, median, color=colors[_engine_of(row)], height=0.7, xerr=whisker, error_kw={"linewidth": 1, "capsize": 3})
        panel.annotate(_annotation(row), (high, place), (6, 0), textcoords="offset points", va="center", fontsize="small")
    panel.set_yticks(range(len(rows)), [_label(row, axes) for row in rows], fontsize="small")
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlim(0, 1.25 * max(row["ms"]["high"] / row["batch"] for row in rows))
    panel.set_title(_TITLES[call], loc="left", fontsize="medium")
    panel.grid(axis="x", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _label(row: Mapping[str, Any], axes: Sequence[str]) -> str:
    parts = [f"{row[axis]} {_WORDS[axis]}" if axis in _WORDS else str(row[axis]) for axis in axes if row[axis] is not None]
    if row["call"] == "ask" and "batch" in axes:
        parts.pop()
    return ", ".join(parts) or str(row["bundle"])


def _annotation(row: Mapping[str, Any]) -> str:
    factor = ratio(row)
    parts = [f"{number(row['ms_per_face'])} ms", "" if factor == "1" else f"{factor} x"]
    if "joules_per_face" in row:
        parts.append(f"{joules(row)} J")
    return ", ".join(filter(None, parts))
