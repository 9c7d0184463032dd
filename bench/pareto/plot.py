"""Plot of quality against time, readable on light and dark pages: it brings its own white ground."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.results import Results, unwritable

_DASHES = {"maskgit": "-", "halton": "--", "ancestral": ":"}
_MARKS = "os^Dv"
_PANELS = (
    ("attributes", "mentioned attributes, %\n(more is better)", 100.0),
    ("unlike_eyes", "eyes of two colors, %\n(less is better)", 100.0),
    ("kernel", "kernel distance to renders\n(less is better)", 1.0),
)


def front(rows: Iterable[Results]) -> list[Results]:
    """Return the rows that no other beats in accuracy without being slower, fastest first."""
    best, found = -1.0, []
    for row in sorted(rows, key=lambda row: (row["ms"]["median"], -row["attributes"][0])):
        if row["attributes"][0] > best:
            best = row["attributes"][0]
            found.append(row)
    return found


def draw(results: Results, out: Path) -> list[Path]:
    """Write ``pareto.svg`` and ``pareto.png``; raise :class:`InputError` where ``out`` cannot be written."""
    from matplotlib import rc_context

    figure, paths = plot(results), [out / f"pareto.{kind}" for kind in ("svg", "png")]
    try:
        with rc_context({"svg.fonttype": "none"}):  # keep text as text
            for path in paths:
                figure.savefig(path, dpi=120, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise unwritable(out, error) from error
    return paths


def plot(results: Results) -> Any:
    """Return a ``matplotlib.figure.Figure``: one panel per figure, one line per bundle, guidance and order."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    lines: dict[tuple[str, float, str], list[Mapping[str, Any]]] = {}
    for row in results["rows"]:
        method, schedule = row["method"], row["method"]["schedule"]
        lines.setdefault((Path(method["bundle"]).name, schedule["guidance"], schedule["order"]), []).append(row)
    bundles = list(dict.fromkeys(name for name, _, _ in lines))
    colors = {pair: colormaps["tab10"](place % 10) for place, pair in enumerate(dict.fromkeys((name, g) for name, g, _ in lines))}
    figure = Figure(figsize=(10, 12), layout="constrained", facecolor="white")
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    for panel, (key, label, factor) in zip(panels, _PANELS, strict=True):
        for (name, guidance, order), rows in lines.items():
            rows.sort(key=lambda row: row["ms"]["median"])
            values = [[factor * value for value in _with_interval(row, key)] for row in rows]
            times = [row["ms"]["median"] for row in rows]
            style = {"color": colors[name, guidance], "marker": _MARKS[bundles.index(name) % len(_MARKS)], "markersize": 5}
            panel.plot(times, [v[0] for v in values], _DASHES[order], label=f"{name}, guidance {guidance:g}, {order}", lw=1.2, **style)
            panel.vlines(times, [v[1] for v in values], [v[2] for v in values], color=style["color"], alpha=0.35, lw=2)
        floor = results["renders"][key]
        panel.axhline(factor * (floor[0] if isinstance(floor, list) else floor), color="0.5", lw=1, ls=(0, (1, 3)))
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for row in front(results["rows"]):
        schedule = row["method"]["schedule"]
        text = f"{schedule['steps']}" + (f" ({row['method']['preset']})" if row["method"]["preset"] else "")
        panels[0].annotate(
            text, (row["ms"]["median"], 100 * row["attributes"][0]), (0, 7), textcoords="offset points", ha="center", fontsize="small"
        )
    panels[0].legend(fontsize="small", ncols=2, loc="lower right", framealpha=0.9)
    panels[-1].set_xscale("log")
    panels[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    panels[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panels[-1].xaxis.set_minor_formatter(NullFormatter())
    panels[-1].set_xlabel("ms per face, one at a time")
    images = results["settings"]["images"]
    figure.suptitle(
        f"{images} held-out prompts; bars: 95 % intervals; dotted: renders; numbers: steps of the fastest method of its accuracy",
        fontsize="medium",
    )
    return figure


def _with_interval(row: Mapping[str, Any], key: str) -> list[float]:
    """Return a figure and its 95 % interval; that of a share of some faces is Wilson's."""
    if isinstance(row[key], list):
        return list(row[key])
    from scipy.stats import binomtest

    faces = max(row["eyes_seen"], 1)
    low, high = binomtest(round(row[key] * faces), faces).proportion_ci(method="wilson")
    return [row[key], low, high]
