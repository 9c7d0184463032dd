"""``f2edge camera``: structured descriptions of the faces in a live video."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from f2edge.cli.console import print_line
from f2edge.cli.options import BackendOption, BundleOption, QuietOption, ServerOption, ThreadsOption, open_description, open_pipeline
from f2edge.errors import InputError
from f2edge.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from f2edge.bundle.bundle import Bundle
    from f2edge.camera.describe import CameraModel
    from f2edge.camera.output.events import NewFile
    from f2edge.camera.run import ModelInput, Request
    from f2edge.camera.source.url import SourceUrl
    from f2edge.client.sync import Client

#: Upper bound of every duration, rate and budget.
_LARGEST = 1e9
_SENSITIVE = (
    "Also estimate age, gender presentation, skin tone, build and emotion. Off by default: such estimates are often wrong and unwanted; "
    "the EU AI Act prohibits inferring emotions at work and school (Art. 5(1)(f)) and requires notice elsewhere (Art. 50(3))."
)


def camera(
    *,
    source: Annotated[
        str, typer.Option("--source", "-s", metavar="WHAT", help="demo, 0 (webcam), FILE, FOLDER, PIPE, rtsp://…, csi://0 or - (MJPEG).")
    ] = "demo",
    show: Annotated[bool, typer.Option("--show", help="Open a window; q closes it.")] = False,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Record the annotated video: .mkv (also without suffix), .avi or .mp4.")
    ] = None,
    still: Annotated[
        Path | None, typer.Option("--still", metavar="FILE", help="Save the last picture shown: .jpg or .png.", show_default=False)
    ] = None,
    jsonl: Annotated[
        str | None,
        typer.Option("--jsonl", metavar="FILE|-", help="Write a JSON document per frame and event to a file, named pipe or stdout (-)."),
    ] = None,
    stats: Annotated[Path | None, typer.Option("--stats", metavar="FILE", help="Write rates and ages there as Prometheus text.")] = None,
    figures: Annotated[Path | None, typer.Option("--figures", hidden=True)] = None,
    metrics_port: Annotated[
        int | None, typer.Option("--metrics-port", help="Serve the same by HTTP on this port of the loopback address.", min=0, max=65535)
    ] = None,
    ask: Annotated[list[str] | None, typer.Option("--ask", metavar="QUESTION", help="Question about every face; repeatable.")] = None,
    attributes: Annotated[
        str | None, typer.Option("--attributes", metavar="A,B,…", help="Only these attributes.", show_default=False)
    ] = None,
    include_sensitive: Annotated[bool, typer.Option("--include-sensitive", help=_SENSITIVE)] = False,
    blur_others: Annotated[bool, typer.Option("--blur-others", help="Blur every face that is not described.")] = False,
    detector: Annotated[
        str | None,
        typer.Option(
            "--detector",
            metavar="HOW",
            help="haar, yunet:FILE@sha256=HEX or region:X,Y,W,H (default: haar; in the demo, its known boxes).",
        ),
    ] = None,
    refresh: Annotated[float, typer.Option("--refresh", metavar="S", help="Seconds until a face is analyzed again.")] = 0.3,
    budget: Annotated[float, typer.Option("--budget", metavar="MS", help="Model time per batch of faces, in ms.")] = 150.0,
    size: Annotated[str, typer.Option("--size", metavar="WxH", help="Frame size requested from webcam, CSI camera or demo.")] = "960x540",
    max_fps: Annotated[float | None, typer.Option("--max-fps", help="Upper limit of frames per second.", show_default=False)] = None,
    duration: Annotated[
        float | None, typer.Option("--duration", metavar="S", help="Stop after this many seconds.", show_default=False)
    ] = None,
    bundle: BundleOption = "nano",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    server: ServerOption = None,
    quiet: QuietOption = False,
) -> None:
    """Describe the faces in a camera's video.

    Without --show, --record, --still or --jsonl the descriptions are printed.  Nothing is stored without --record, --still or --jsonl.
    The embedded model understands rendered faces like the demo's, not photographs.
    """
    from f2edge.camera.output.record import recording_path
    from f2edge.camera.run import Request
    from f2edge.camera.source.url import parse_source
    from f2edge.spec.sensitive import SensitivePolicy
    from f2edge.text import check_text

    url, stats = parse_source(source), stats or figures
    record = None if record is None else recording_path(record)
    _check_files(record, still, stats, jsonl)
    policy = SensitivePolicy(protected=True, include=include_sensitive)
    for question in ask or ():
        policy.check_question(check_text(question, "question"))
    for name, value in (("--refresh", refresh), ("--budget", budget), ("--max-fps", max_fps), ("--duration", duration)):
        if value is not None and not 0 < value < _LARGEST:
            raise InputError(f"{name} {value:g}: must lie above 0 and below {_LARGEST:g}")
    width_height = _size(size)
    opened = open_description(bundle, backend, threads, server)
    names = None if attributes is None else [name.strip() for name in attributes.split(",")]
    request = Request(
        url=url,
        detector=detector or ("given" if url.kind == "demo" else "haar"),
        attributes=policy.attributes(opened.schema, names),
        questions=tuple(ask or ()),
        refresh_s=refresh,
        budget_ms=budget,
        size_wh=width_height,
        max_fps=max_fps,
        duration_s=duration,
        show=show,
        record=record,
        still=still,
        stats=stats,
        metrics_port=metrics_port,
        blur_others=blur_others,
        include_sensitive=include_sensitive,
    )
    _watch(request, opened, (backend, threads), jsonl, quiet=quiet)


def _watch(request: Request, opened: Bundle | Client, runs_on: tuple[str, int | None], jsonl: str | None, *, quiet: bool) -> None:
    """Run a request, close its resources and print a summary."""
    from f2edge.camera.run import run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped service also finishes its recording
    printer = None if request.show or request.record or request.still or jsonl or quiet else print_line
    model = _model(opened, *runs_on)
    lines = _line_file(jsonl)
    try:
        summary = run(request, model, _model_input(opened), lines, _on_event(request.url, quiet), print_line=printer)
    finally:
        _close(opened)
        if lines is not None and lines is not sys.stdout:
            with suppress(OSError):  # a full disk has been reported already
                lines.close()
    if not quiet and jsonl != "-":
        _report(summary)


def _check_files(record: Path | None, still: Path | None, stats: Path | None, jsonl: str | None) -> None:
    """Refuse outputs that could not be written later."""
    from f2edge.camera.output.record import STILLS, check_path, check_place

    if record is not None:
        check_path(record)
    if still is not None:
        check_path(still, "--still", STILLS)
    if stats is not None:
        check_place(stats, "--stats")
    if jsonl is not None and jsonl != "-" and not _is_stream(Path(jsonl)):
        check_place(Path(jsonl), "--jsonl")


def _is_stream(path: Path) -> bool:
    """Return whether a path is a named pipe, which is written and not replaced."""
    with suppress(OSError, ValueError):
        return path.is_fifo()
    return False


def _model(opened: Bundle | Client, backend: str, threads: int | None) -> CameraModel:
    """Return the local model, or a client that streams faces to a server."""
    from f2edge.bundle.bundle import Bundle

    if isinstance(opened, Bundle):
        return open_pipeline(opened, backend, threads)
    from f2edge.camera.remote import RemoteModel

    return RemoteModel(opened)


def _close(opened: Bundle | Client) -> None:
    """Close a connection; a bundle needs no closing."""
    from f2edge.bundle.bundle import Bundle

    if not isinstance(opened, Bundle):
        opened.close()


def _model_input(opened: Bundle | Client) -> ModelInput:
    """Return the model's input; a server crops faces itself, so local crops (questions, drift) use portrait margins."""
    from f2edge.bundle.bundle import Bundle
    from f2edge.camera.run import ModelInput

    if isinstance(opened, Bundle):
        return ModelInput(opened.schema, opened.manifest.alignment, opened.configuration.tokenizer.image_size)
    return ModelInput(opened.schema, None, opened.bundle.image_side)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and 64 <= int(width) <= 4096 and 64 <= int(height) <= 4096):
        raise InputError(f"--size {text!r}: write WIDTHxHEIGHT with sides of 64 … 4096 pixels, as in 1280x720")
    return int(width), int(height)


def _line_file(name: str | None) -> TextIO | NewFile | None:
    from f2edge.camera.output.events import NewFile

    if name is None:
        return None
    return sys.stdout if name == "-" else NewFile(Path(name))


def _on_event(url: SourceUrl, quiet: bool) -> Callable[[str, str], None]:
    def on_event(kind: str, reason: str) -> None:
        if not quiet or kind in ("record", "output", "model"):
            sys.stderr.write(one_line(f"{url.shown}: {kind}{': ' if reason else ''}{reason}") + "\n")

    return on_event


def _report(summary: dict[str, float | int | None]) -> None:
    """Print a one-line summary."""
    parts = [f"{summary['frames']} frames ({summary['frames_per_second']} per second, {summary['dropped']} dropped)"]
    if summary["answer_age_ms_p99"] is not None:
        parts.append(f"answer age {summary['answer_age_ms_p50']:.0f} ms (median), {summary['answer_age_ms_p99']:.0f} ms (99th percentile)")
    parts.append(f"{summary['faces_asked']} analyses for {summary['good_faces']} faces seen")
    if summary["accuracy"] is not None:
        parts.append(f"{100 * summary['accuracy']:.1f} % of the attributes correct")
    print_line("; ".join(parts))
