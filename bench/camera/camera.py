"""How the camera keeps up: ages, drops, accuracy and load with one to several cameras, and what a call costs by its faces.

    python -m bench camera [--cameras 1,2,4] [--people 1,4] [--duration 20] [--json]

Everything is live: demo cameras paint, track, ask the model, draw the overlay and write JSON lines, in one process on one model.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from f2edge.errors import InputError

_COLUMNS = {
    "cameras": "cameras",
    "people": "people each",
    "frames_per_second": "frames/s",
    "frame_age_ms_p50": "frame age p50",
    "frame_age_ms_p99": "p99 ms",
    "answer_age_ms_p50": "answer age p50",
    "answer_age_ms_p99": "p99 ms",
    "drop_rate": "dropped",
    "faces_per_second": "faces/s",
    "saved": "calls saved",
    "accuracy": "accuracy",
    "cores": "cores",
    "rss_mb": "RSS MB",
}
_PERCENT = ("drop_rate", "accuracy")


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers from a comma-separated list; raises :class:`InputError` naming the option."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise InputError(f"{option} {text!r}: write numbers from 1 on, as in 1,2,4")
    return found


def camera(
    *,
    cameras: Annotated[str, typer.Option(help="Numbers of cameras, each measured with 3 people in view.")] = "1,2,3,4",
    people: Annotated[str, typer.Option(help="Numbers of people before a single camera, 1 … 4.")] = "1,4",
    duration: Annotated[float, typer.Option(help="Seconds of each measurement.")] = 20.0,
    bundle: Annotated[str, typer.Option(help="Name or folder of a bundle.")] = "nano",
    backend: Annotated[str, typer.Option(help="Backend of the runtime.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of the backend.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")] = False,
) -> None:
    """Measure live cameras: ages, drops, accuracy, load."""
    from bench.camera.run import Setting, call_costs, measure
    from f2edge.pipeline import FacePipeline

    if not 1 <= duration <= 3600:
        raise InputError(f"--duration {duration:g}: give 1 … 3600 seconds")
    settings = [Setting(1, count) for count in numbers(people, "--people")] + [Setting(n, 3) for n in numbers(cameras, "--cameras")]
    pipeline = FacePipeline.load(bundle, backend=backend, threads=threads)
    _tell("camera: calls of 1, 2, 4 and 8 faces …")
    results: dict[str, Any] = {
        "bundle": pipeline.bundle.name,
        "backend": pipeline.backend.name,
        "calls": call_costs(pipeline, (1, 2, 4, 8)),
        "rows": measure(pipeline, settings, duration, (960, 540), _tell),
    }
    if not as_json:
        print_results(results)
    print(json.dumps(results))


def print_results(results: dict[str, Any]) -> None:
    """Two tables: calls by their faces, cameras."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=160)
    calls = Table(
        "faces in a call", "encoders", "segments", "questions", "whole", "per face", "against one", "processor", box=box.SIMPLE, title="ms"
    )
    one = results["calls"][0]["whole_ms"] / results["calls"][0]["faces"]
    for row in results["calls"]:
        parts = [f"{row[name]:.1f}" for name in ("encoders_ms", "segments_ms", "questions_ms", "whole_ms", "face_ms")]
        calls.add_row(str(row["faces"]), *parts, f"{row['whole_ms'] / one:.2f} x", f"{row['cpu_ms']:.1f}")
    console.print(calls)
    table = Table(*_COLUMNS.values(), box=box.SIMPLE)
    for row in results["rows"]:
        table.add_row(*(_shown(name, row[name]) for name in _COLUMNS))
    console.print(table)


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if name in _PERCENT else f"{value:g}"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
