"""Text report of every latency bench: machine and ceilings, engines, a table of times, a table of memory, remarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from bench.results import Results
from f2edge.cli.console import Output

Cell = Callable[[Mapping[str, Any]], str]
_NAMES = {"ask": "first token"}
#: What distinguishes rows; a column of the table where it varies.
_AXES = ("system", "bundle", "backend", "threads", "steps", "batch")
_MEMORY = ("files", "loaded", "resident", "mapped", "peak")


def varying(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the axes on which rows differ; an axis that a row lacks (steps of "analyze") does not count."""
    return [axis for axis in _AXES if len({row.get(axis) for row in rows} - {None}) > 1]


def show(results: Results, output: Output) -> None:
    """Print a document of :mod:`~bench.latency.latency`, :mod:`~bench.latency.comparison` or :mod:`~bench.latency.paper_size`."""
    _show_setting(results, output)
    rows = results.get("rows", [])
    if rows:
        output.line("")
        output.table(*_time_table(rows))
    if results.get("memory"):
        output.line("")
        output.table(*_memory_table(results["memory"]))
    _show_remarks(results, output)


def _show_setting(results: Results, output: Output) -> None:
    if "size" in results:
        output.line(f"{results['size']['configuration']}, {results['size']['layers']} layers, random weights")
    if "machine" in results:
        output.line(f"{results['machine']['processor']}, {results['machine']['cores']} cores")
    for threads, values in results.get("ceilings", {}).items():
        reading = f"; reading {values['read_gb_per_s']:.1f} GB/s" if "read_gb_per_s" in values else ""
        products = f"fp32 {values['fp32_gops']:.0f}, int8 {values['int8_gops']:.0f} Gop/s"
        output.line(f"ceilings of matrix products, {_threads(threads)}: {products}{reading}")
    for engine in results.get("engines", []):
        output.line("  " + _engine(engine))
    for (backend, reason), bundles in _grouped(results.get("not_available", [])).items():
        output.line(f"  not available: {', '.join(bundles)} on {backend}: {reason}")
    for row in results.get("failed", []):
        output.line(f"  failed: {row['system']}, {row['task']}: {row['reason']}")
    rows = results.get("rows", [])
    steps = {row["steps"] for row in rows if row.get("steps")}
    prefix = f"generate with {steps.pop()} steps; " if len(steps) == 1 else ""
    if results.get("note") and rows:
        output.line(prefix + results["note"])


def _threads(count: int | str) -> str:
    return f"{count} thread{'' if int(count) == 1 else 's'}"


def _grouped(missing: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Return bundles by backend and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in missing:
        groups.setdefault((row["backend"], row["reason"]), []).append(row["bundle"])
    return groups


def _engine(engine: Mapping[str, Any]) -> str:
    bundle = f"{engine['bundle']} ({engine['precision']}, {engine['bytes'] / 1e6:.1f} MB)"
    peak = f"; memory at most {engine['memory']['peak'] / 1e6:.0f} MB" if engine["memory"] else ""
    return f"{bundle} on {engine['backend']}, {_threads(engine['threads'])}: first face after {engine['ready_ms'] / 1e3:.1f} s{peak}"


def _axis_cell(axis: str, row: Mapping[str, Any]) -> str:
    return "" if row.get(axis) is None else str(row[axis])


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Cell]]:
    """Return heading and cell function of every column that has content."""
    columns: list[tuple[str, Cell]] = [
        (axis if axis in {"system", "bundle", "backend"} else f">{axis}", partial(_axis_cell, axis)) for axis in varying(rows)
    ]
    columns += [
        (">ms", lambda row: number(row["ms"]["median"])),
        (">fastest", lambda row: number(row["ms"]["low"])),
        (">slowest", lambda row: number(row["ms"]["high"])),
    ]
    if any(row.get("batch", 1) > 1 for row in rows):
        columns.append((">ms/face", lambda row: number(row["ms_per_face"])))
    if any("faces_per_second" in row for row in rows):
        columns.append((">faces/s", lambda row: "" if row["call"] == "ask" else number(row["faces_per_second"])))
    if any("tokens_per_second" in row for row in rows):
        columns.append((">tokens/s", lambda row: number(row["tokens_per_second"]) if "tokens_per_second" in row else ""))
    if any(row.get("share") is not None for row in rows):
        columns.append((">share", lambda row: "" if row.get("share") is None else f"{100 * row['share']:.0f} %"))
    if any("ratio" in row for row in rows):
        columns.append((">ratio", ratio))
    if any("joules_per_face" in row for row in rows):
        columns.append((">J/face", lambda row: joules(row) if "joules_per_face" in row else ""))
    return columns


def _time_table(rows: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Return headings and cells, rows grouped by call; groups of several rows are separated by an empty line."""
    columns, calls = _columns(rows), [row["call"] for row in rows]
    grouped = len(set(calls)) < len(calls)
    cells = list[Sequence[str]]()
    for place, row in enumerate(rows):
        first = place == 0 or row["call"] != calls[place - 1]
        if first and place and grouped:
            cells.append([""] * (len(columns) + 1))
        cells.append([_NAMES.get(row["call"], row["call"]) if first else "", *(cell(row) for _, cell in columns)])
    return ("", *(heading for heading, _ in columns)), cells


def _memory_table(rows: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[Sequence[str]]]:
    cells: list[Sequence[str]] = []
    for row in rows:
        values = [row.get(name) for name in _MEMORY]
        cells.append([row["system"], row["task"], *("" if value is None else f"{value / 1e6:.0f}" for value in values)])
    return ("memory, MB", "task", *(f">{name}" for name in _MEMORY)), cells


def number(value: float) -> str:
    """Return three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def joules(row: Mapping[str, Any]) -> str:
    """Return the energy per face with three significant digits."""
    value = row["joules_per_face"]
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"


def ratio(row: Mapping[str, Any]) -> str:
    """Return the speed relative to the reference, per face; "≈" where the quarters on both sides enclose 1, "" without one."""
    if "ratio" not in row:
        return ""
    median = row["ratio"]["median"]
    low, high = row["ratio"].get("quarters", (median, median))
    if low == high == 1:
        return "1"
    return f"{'≈ ' if low <= 1 <= high else ''}{median:.2f}"


def _show_remarks(results: Results, output: Output) -> None:
    power, machine = results.get("power", {"meters": [], "missing": {}}), results.get("machine", {})
    if power["meters"]:
        rest = f", {power['watts_at_rest']:.1f} W at rest" if "watts_at_rest" in power else ""
        output.line(f"energy: {power['covers']}{rest}; includes other programs on this machine")
    if "lost" in power:
        output.line(f"energy: measuring stopped: {power['lost']}")
    for name, reason in power["missing"].items():
        output.line(f"no power from {name}: {reason}")
    if machine.get("busy"):
        share = f"{100 * machine['busy_share']:.0f} %"
        output.line(f"other programs used {share} of the machine before this run: times are too long, ratios less affected")
