"""Runs of the quality bench: chosen sections, tables, ``quality.json``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.quality import quality
from bench.quality.check import check
from bench.quality.edit import edit, instruct
from bench.quality.layout import layout
from bench.quality.quality import Bench
from bench.quality.realism import realism
from bench.quality.robustness import domain, robustness
from bench.quality.telephone import telephone
from bench.quality.words import everyday, typed, unsaid
from bench.results import Results, write_json
from f2edge.errors import InputError

SECTIONS: Mapping[str, Callable[[Bench], Results]] = {
    "tokenizer": quality.tokenizer,
    "generate": quality.generate,
    "realism": realism,
    "unsaid": unsaid,
    "analyze": quality.analyze,
    "ask": quality.ask,
    "describe": quality.describe,
    "robustness": robustness,
    "domain": domain,
    "telephone": telephone,
    "edit": edit,
    "instruct": instruct,
    "everyday": everyday,
    "typed": typed,
    "check": check,
    "layout": layout,
}

#: Prefixes of results that are not shares.
_PLAIN = ("frechet", "psnr", "attributes_said", "kernel", "discriminator", "relative", "calibration", "auroc", "distance")


def chosen_sections(only: str) -> list[str]:
    """Return names from a comma-separated list in the order of :data:`SECTIONS`; "" means all; others raise :class:`InputError`."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise InputError(f"unknown section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names or not names]


def run_sections(bench: Bench, names: Sequence[str], settings: Mapping[str, Any] | None = None) -> Results:
    """Return the results of each section with its duration in seconds; write them to ``bench.out`` after every section."""
    results: Results = {}
    for name in names:
        print(f"quality: {name} …", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        results[name] = {**SECTIONS[name](bench), "seconds": round(time.perf_counter() - begun, 1)}
        if bench.out is not None:
            write_json({"settings": dict(settings or {}), **results}, bench.out / "quality.json")
    return results


def _shown(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if name.startswith(_PLAIN) or name == "seconds" else f"{100 * value:.1f} %"
    return str(value)


def print_results(results: Mapping[str, Results], console: Console) -> None:
    """Print a summary table, then a table per section with results by slot or kind."""
    summary = Table("section", "metric", "value", title="Quality")
    for section, metrics in results.items():
        for name, value in metrics.items():
            if not isinstance(value, dict):
                summary.add_row(section, name.replace("_", " "), _shown(name, value))
        summary.add_section()
    console.print(summary)
    for section, metrics in results.items():
        for name, table in metrics.items():
            if isinstance(table, dict) and table:
                console.print(_breakdown(f"{section}, {name.replace('_', ' ')}", table))


def _breakdown(title: str, table: Mapping[str, Any]) -> Table:
    """Return a table by slot or condition, lowest first in its first column."""
    columns = list(next(iter(table.values()))) if isinstance(next(iter(table.values())), dict) else ["accuracy"]
    rows = {key: value if isinstance(value, dict) else {"accuracy": value} for key, value in table.items()}
    made = Table("", *columns, title=title)
    for key, row in sorted(rows.items(), key=lambda item: item[1][columns[0]]):
        made.add_row(key, *(_shown(column, row[column]) for column in columns))
    return made
