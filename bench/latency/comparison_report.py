"""A comparison as one table, one plot and one JSON document."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.latency.comparison import Results
from f2edge.cli.console import Output
from f2edge.errors import InputError

Cell = Callable[[Mapping[str, Any]], str]
_NAMES = {"generate": "generate", "analyze": "analyze", "ask": "first token"}
_TITLES = {"generate": "generate: ms per face", "analyze": "analyze: ms per face", "ask": "ask: ms to the first token"}
#: What tells rows apart; a column of the table where it varies, a word in the lines above where it does not.
_AXES = ("bundle", "backend", "threads", "steps", "batch")


def varying(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The axes on which some rows differ; "steps" is none of "analyze" and "ask"."""
    return [axis for axis in _AXES if len({row[axis] for row in rows if row[axis] is not None}) > 1]


def show(results: Results, speak: Output) -> None:
    """Machine and ceilings, the engines, the table, and what to think of it."""
    machine, rows = results["machine"], results["rows"]
    speak.line(f"{machine['processor']}, {machine['cores']} cores")
    for threads, values in results["ceilings"].items():
        speak.line(
            f"ceilings of matrix products, {_threads(threads)}: fp32 {values['fp32_gops']:.0f}, int8 {values['int8_gops']:.0f} Gop/s"
        )
    for engine in results["engines"]:
        speak.line("  " + _engine(engine))
    for (backend, reason), bundles in _grouped(results["not_available"]).items():
        speak.line(f"  not available: {', '.join(bundles)} on {backend}: {reason}")
    steps = {row["steps"] for row in rows} - {None}
    said = f"generate with {steps.pop()} steps; " if len(steps) == 1 else ""
    speak.line(f"{said}all rows took turns; ratio: to the first row of the call, per face")
    speak.line("")
    columns = _columns(rows)
    cells = list[Sequence[str]]()
    for place, row in enumerate(rows):
        first = place == 0 or row["call"] != rows[place - 1]["call"]
        if first and place:
            cells.append([""] * (len(columns) + 1))
        cells.append([_NAMES[row["call"]] if first else "", *(cell(row) for _, cell in columns)])
    speak.table(("", *(heading for heading, _ in columns)), cells)
    _remarks(results, speak)


def _threads(count: int | str) -> str:
    return f"{count} thread{'' if int(count) == 1 else 's'}"


def _grouped(missing: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Bundles by backend and reason."""
    made: dict[tuple[str, str], list[str]] = {}
    for row in missing:
        made.setdefault((row["backend"], row["reason"]), []).append(row["bundle"])
    return made


def _engine(engine: Mapping[str, Any]) -> str:
    what = f"{engine['bundle']} ({engine['precision']}, {engine['bytes'] / 1e6:.1f} MB)"
    peak = f"; memory at most {engine['memory']['peak'] / 1e6:.0f} MB" if engine["memory"] else ""
    return f"{what} on {engine['backend']}, {_threads(engine['threads'])}: first face after {engine['ready_ms'] / 1e3:.1f} s{peak}"


def _value(axis: str, row: Mapping[str, Any]) -> str:
    return "" if row[axis] is None else str(row[axis])


def _heading(axis: str) -> str:
    return axis if axis in {"bundle", "backend"} else f">{axis}"


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Cell]]:
    """Heading and cell of every column that says something here."""
    made: list[tuple[str, Cell]] = [(_heading(axis), partial(_value, axis)) for axis in varying(rows)]
    made += [
        (">ms", lambda row: number(row["ms"]["median"])),
        (">fastest", lambda row: number(row["ms"]["low"])),
        (">slowest", lambda row: number(row["ms"]["high"])),
    ]
    if any(row["batch"] > 1 for row in rows):
        made.append((">ms/face", lambda row: number(row["ms_per_face"])))
    made.append((">faces/s", lambda row: "" if row["call"] == "ask" else number(row["faces_per_second"])))
    if any(row["share"] is not None for row in rows):
        made.append((">share", lambda row: "" if row["share"] is None else f"{100 * row['share']:.0f} %"))
    made.append((">ratio", ratio))
    if any("joules_per_face" in row for row in rows):
        made.append((">J/face", lambda row: joules(row) if "joules_per_face" in row else ""))
    return made


def number(value: float) -> str:
    """Three digits that count, and never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def joules(row: Mapping[str, Any]) -> str:
    """Three digits that count, however little a face takes."""
    value = row["joules_per_face"]
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"


def ratio(row: Mapping[str, Any]) -> str:
    """How many times as fast as the reference, per face; "≈" where the run cannot tell it from 1."""
    low, high = row["ratio"]["quarters"]
    if low == high == 1:
        return "1"
    return f"{'≈ ' if low <= 1 <= high else ''}{row['ratio']['median']:.2f}"


def _remarks(results: Results, speak: Output) -> None:
    power, machine = results["power"], results["machine"]
    if power["meters"]:
        rest = f", {power['watts_at_rest']:.1f} W at rest" if "watts_at_rest" in power else ""
        speak.line(f"energy: {power['covers']}{rest}; of all that it covers, not of this process alone")
    if "lost" in power:
        speak.line(f"energy: measuring stopped: {power['lost']}")
    for name, reason in power["missing"].items():
        speak.line(f"no power from {name}: {reason}")
    if machine["busy"]:
        share = f"{100 * machine['busy_share']:.0f} %"
        speak.line(f"other work took {share} of the machine before this began: times are too long, ratios less so")


def document(results: Results) -> str:
    """One line of JSON."""
    return json.dumps(results, allow_nan=False)


def check_folder(out: Path) -> None:
    """Raise :class:`InputError` now, and not after minutes of measuring, where ``out`` cannot be written; nothing is made yet."""
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"{out}: cannot be written; choose another folder")


def write(results: Results, out: Path) -> list[Path]:
    """``latency.json``, ``latency.svg`` and ``latency.png`` in ``out``; raises :class:`InputError` where they cannot be written."""
    from matplotlib import rc_context

    paths = [out / f"latency.{kind}" for kind in ("json", "svg", "png")]
    drawn = plot(results)
    try:
        out.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        with rc_context({"svg.fonttype": "none"}):  # words stay words
            for path in paths[1:]:
                drawn.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from error
    return paths


def plot(results: Results) -> Any:
    """A ``matplotlib.figure.Figure``: per call a bar for every row, as long as the milliseconds per face, with the fastest and slowest."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = results["rows"]
    calls = list(dict.fromkeys(row["call"] for row in rows))
    axes_shown = varying(rows)
    engines = list(dict.fromkeys((row["bundle"], row["backend"], row["threads"]) for row in rows))
    colors = {engine: colormaps["tab10"](place % 10) for place, engine in enumerate(engines)}
    counts = [sum(row["call"] == call for row in rows) for call in calls]
    figure = Figure(figsize=(10, 1.2 + 0.34 * sum(counts) + 0.75 * len(calls)), layout="constrained")
    panels = figure.subplots(len(calls), 1, squeeze=False, gridspec_kw={"height_ratios": counts})[:, 0]
    for call, panel in zip(calls, panels, strict=True):
        chosen = [row for row in rows if row["call"] == call]
        for place, row in enumerate(chosen):
            median, batch = row["ms_per_face"], row["batch"]
            whisker = [[median - row["ms"]["low"] / batch], [row["ms"]["high"] / batch - median]]
            color = colors[row["bundle"], row["backend"], row["threads"]]
            panel.barh(place, median, color=color, height=0.7, xerr=whisker, error_kw={"linewidth": 1, "capsize": 3})
            panel.annotate(
                _aside(row), (row["ms"]["high"] / batch, place), (6, 0), textcoords="offset points", va="center", fontsize="small"
            )
        panel.set_yticks(range(len(chosen)), [_label(row, axes_shown) for row in chosen], fontsize="small")
        panel.set_ylim(len(chosen) - 0.5, -0.5)
        panel.set_xlim(0, 1.25 * max(row["ms"]["high"] / row["batch"] for row in chosen))
        panel.set_title(_TITLES[call], loc="left", fontsize="medium")
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    machine = results["machine"]
    busy = " (busy)" if machine["busy"] else ""
    figure.suptitle(
        f"{machine['processor']}, {machine['cores']} cores{busy}. Bars: median, shorter is better; lines: fastest to slowest; "
        "x: times as fast as the first bar",
        fontsize="medium",
    )
    return figure


def _label(row: Mapping[str, Any], axes: Sequence[str]) -> str:
    words = {"threads": "threads", "steps": "steps", "batch": "at once"}
    parts = [f"{row[axis]} {words[axis]}" if axis in words else str(row[axis]) for axis in axes if row[axis] is not None]
    if row["call"] == "ask" and "batch" in axes:
        parts.pop()
    return ", ".join(parts) or str(row["bundle"])


def _aside(row: Mapping[str, Any]) -> str:
    told = ratio(row)
    parts = [f"{number(row['ms_per_face'])} ms", "" if told == "1" else f"{told} x"]
    if "joules_per_face" in row:
        parts.append(f"{joules(row)} J")
    return ", ".join(filter(None, parts))
