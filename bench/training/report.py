"""Table and plot of an ablation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.results import Results, unwritable, write_json
from bench.training.ablation import METRICS
from bench.training.variants import BASE

_HEADS = {
    "cross_entropy": "cross entropy, nats",
    "hidden_75": "at 75 % masked, nats",
    "judge": "judge's accuracy, %",
    "frechet": "Fréchet distance",
    "slots": "answers right, %",
}
_PERCENT = ("judge", "slots")


def write(results: Results, out: Path) -> list[Path]:
    """Write ``ablation.json``, ``ablation.md``, ``ablation.svg`` and ``ablation.png``; raise :class:`InputError` where that fails."""
    from matplotlib import rc_context

    paths = [out / f"ablation.{kind}" for kind in ("json", "md", "svg", "png")]
    write_json(results, paths[0])
    figure = plot(results)
    try:
        paths[1].write_text(table(results), encoding="utf-8")
        with rc_context({"svg.fonttype": "none"}):
            for path in paths[2:]:
                figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise unwritable(out, error) from error
    return paths


def table(results: Results) -> str:
    """Return the summary as Markdown: mean ± half of the 95 % interval; bold where the difference to the base excludes 0."""
    rows = [["variant", "seeds", *_HEADS.values()], ["---"] * (2 + len(_HEADS))]
    for name, row in results["summary"].items():
        rows.append([name, str(row["seeds"]), *(_cell(row[metric], metric) for metric in _HEADS)])
    best = results["ceiling"]
    rows.append(["renders through the image tokenizer", "", "", "", f"{100 * best['judge']:.1f}", f"{best['frechet']:.0f}", ""])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def differs(cell: Mapping[str, Any]) -> bool:
    """Return whether the interval of a difference to the base excludes 0."""
    apart = cell["difference"]
    return apart is not None and apart["half"] is not None and abs(apart["mean"]) > apart["half"]


def _cell(cell: Mapping[str, Any], metric: str) -> str:
    scale = 100 if metric in _PERCENT else 1
    digits = 0 if metric == "frechet" else 1 if metric in _PERCENT else 3
    text = f"{scale * cell['mean']:.{digits}f}" + ("" if cell["half"] is None else f" ± {scale * cell['half']:.{digits}f}")
    return f"**{text}**" if differs(cell) else text


def plot(results: Results) -> Any:
    """Return a ``matplotlib.figure.Figure``: one panel per metric, the difference of each variant to the base with its interval."""
    from matplotlib.figure import Figure

    names = [name for name in results["summary"] if name != BASE]
    figure = Figure(figsize=(12, 1.4 + 0.32 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True, squeeze=False)[0]
    for (metric, more), panel in zip(METRICS.items(), panels, strict=True):
        scale = 100 if metric in _PERCENT else 1
        for place, name in enumerate(names):
            cell = results["summary"][name][metric]
            apart = cell["difference"]
            if apart is None:
                continue
            better = (apart["mean"] > 0) == more
            color = "0.6" if not differs(cell) else "tab:green" if better else "tab:red"
            panel.errorbar(scale * apart["mean"], place, xerr=scale * (apart["half"] or 0.0), fmt="o", color=color, capsize=3)
        panel.axvline(0, color="0.3", linewidth=1)
        panel.set_yticks(range(len(names)), names)
        panel.set_title(f"{_HEADS[metric]}\n({'more' if more else 'less'} is better)", fontsize="small")
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.suptitle(f"Difference to {BASE} with both levels of experts; 95 % intervals over seeds", fontsize="medium")
    return figure
