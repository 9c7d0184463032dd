"""Bench of the camera: ages, drops, accuracy and load with one to several cameras, and the cost of calls by their faces.

    python -m bench camera [--cameras 1,2,4] [--people 1,4] [--duration 20] [--json]

Demo cameras render, track, ask the model, draw the overlay and write JSON lines, in one process on one model.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bench.options import AsJson, BackendName, BundleName, Threads, whole_numbers
from bench.results import Results, document
from f2edge.cli.console import Output
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


def camera(
    *,
    cameras: Annotated[list[str] | None, typer.Option(help="Cameras, with 3 people each; 1,2,3,4 by default.", show_default=False)] = None,
    people: Annotated[list[str] | None, typer.Option(help="People in view of one camera; 1,4 by default.", show_default=False)] = None,
    duration: Annotated[float, typer.Option(help="Seconds of each measurement.")] = 20.0,
    bundle: BundleName = "nano",
    backend: BackendName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure live cameras: ages, drops, accuracy, load."""
    from bench.camera.run import Setting, call_costs, measure
    from f2edge.pipeline import FacePipeline

    if not 1 <= duration <= 3600:
        raise InputError(f"--duration {duration:g}: give 1 … 3600 seconds")
    people_counts = whole_numbers("--people", people or (), "1,4")
    camera_counts = whole_numbers("--cameras", cameras or (), "1,2,3,4")
    settings = [Setting(1, count) for count in people_counts] + [Setting(count, 3) for count in camera_counts]
    pipeline = FacePipeline.load(bundle, backend=backend, threads=threads)
    _report("camera: calls of 1, 2, 4 and 8 faces …")
    results: Results = {
        "bundle": pipeline.bundle.name,
        "backend": pipeline.backend.name,
        "calls": call_costs(pipeline, (1, 2, 4, 8)),
        "rows": measure(pipeline, settings, duration, (960, 540), _report),
    }
    print_results(results, Output(json=as_json))
    print(document(results))


def print_results(results: Results, output: Output) -> None:
    """Print two tables: calls by their faces, and cameras."""
    calls = results["calls"]
    one = calls[0]["whole_ms"] / calls[0]["faces"]
    cells = []
    for row in calls:
        parts = [f"{row[name]:.1f}" for name in ("encoders_ms", "segments_ms", "questions_ms", "whole_ms", "face_ms")]
        cells.append([str(row["faces"]), *parts, f"{row['whole_ms'] / one:.2f} x", f"{row['cpu_ms']:.1f}"])
    headings = ("encoders", "segments", "questions", "whole", "per face", "against one", "processor")
    output.table(("ms by faces in a call", *(f">{heading}" for heading in headings)), cells)
    output.line("")
    output.table(
        [f">{heading}" for heading in _COLUMNS.values()], [[_shown(name, row[name]) for name in _COLUMNS] for row in results["rows"]]
    )


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if name in _PERCENT else f"{value:g}"


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
