"""The quality bench from end to end: run the chosen sections, print tables, write ``quality.json``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.quality import quality
from bench.quality.edit import edit
from bench.quality.quality import Bench, Figures
from bench.quality.words import everyday, typed
from f2edge.errors import InputError

SECTIONS: Mapping[str, Callable[[Bench], Figures]] = {
    "tokenizer": quality.tokenizer,
    "generate": quality.generate,
    "analyze": quality.analyze,
    "ask": quality.ask,
    "describe": quality.describe,
    "edit": edit,
    "everyday": everyday,
    "typed": typed,
}

#: What the tables print as it is and not as a percentage.
_PLAIN = ("frechet", "psnr", "attributes_said")


def chosen_sections(only: str) -> list[str]:
    """Names from a comma-separated list, in the order of :data:`SECTIONS`; "" means all; an unknown one raises :class:`InputError`."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise InputError(f"unknown section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names or not names]


def run_sections(bench: Bench, names: Sequence[str], settings: Mapping[str, Any] | None = None) -> Figures:
    """Figures of each section by name, each with the seconds it took; ``bench.out`` has them (and ``settings``) after every section."""
    results: Figures = {}
    for name in names:
        print(f"quality: {name} …", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        results[name] = {**SECTIONS[name](bench), "seconds": round(time.perf_counter() - begun, 1)}
        if bench.out is not None:
            write_results({"settings": dict(settings or {}), **results}, bench.out)
    return results


def write_results(results: Mapping[str, Any], out: Path) -> Path:
    """``out/quality.json``."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "quality.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return path


def _shown(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if name.startswith(_PLAIN) or name == "seconds" else f"{100 * value:.1f} %"
    return str(value)


def print_results(results: Mapping[str, Figures], console: Console) -> None:
    """One summary table, then one table per section that has figures by slot or by kind."""
    summary = Table("section", "figure", "value", title="Quality")
    for section, figures in results.items():
        for name, value in figures.items():
            if not isinstance(value, dict):
                summary.add_row(section, name.replace("_", " "), _shown(name, value))
        summary.add_section()
    console.print(summary)
    for section, figures in results.items():
        for name, table in figures.items():
            if isinstance(table, dict) and table:
                console.print(_breakdown(f"{section}, {name.replace('_', ' ')}", table))


def _breakdown(title: str, table: Mapping[str, Any]) -> Table:
    """Rows by slot, weakest accuracy first."""
    columns = list(next(iter(table.values()))) if isinstance(next(iter(table.values())), dict) else ["accuracy"]
    rows = {key: value if isinstance(value, dict) else {"accuracy": value} for key, value in table.items()}
    made = Table("", *columns, title=title)
    for key, row in sorted(rows.items(), key=lambda item: item[1]["accuracy"]):
        made.add_row(key, *(_shown(column, row[column]) for column in columns))
    return made
