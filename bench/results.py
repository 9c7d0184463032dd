"""Results of a bench: plain dictionaries for JSON, the spread of repeated measurements, files."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from f2edge.errors import InputError

Results = dict[str, Any]
#: Called with a message before each part of a bench.
Progress = Callable[[str], None]


def spread(values: Sequence[float]) -> Results:
    """Return "median", "low", "high" and "quarters" (lower and upper quartile) of at least one value."""
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "quarters": [quarters[0], quarters[2]]}


def document(results: Mapping[str, Any]) -> str:
    """Return one line of JSON; NaN and infinity raise :class:`ValueError`."""
    return json.dumps(results, allow_nan=False)


def check_folder(out: Path) -> None:
    """Raise :class:`InputError` where ``out`` cannot be written; create nothing."""
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"{out}: cannot be written; choose another folder")


def write_json(results: Mapping[str, Any], path: Path) -> Path:
    """Write an indented document, its folder first if missing; raise :class:`InputError` where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise unwritable(path.parent, error) from error
    return path


def unwritable(out: Path, error: OSError) -> InputError:
    """Return the error for a folder that cannot be written."""
    return InputError(f"{out}: cannot be written ({error.strerror}); choose another folder")
