"""Run of one camera: builds the stages, runs the loop, closes the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from f2edge.bundle.manifest import Alignment
from f2edge.camera.answers import AnswerBook, Freshness
from f2edge.camera.crops import Cutter
from f2edge.camera.describe import CameraModel, DescribeOptions, Describer
from f2edge.camera.detect import open_detector
from f2edge.camera.frames import Frame
from f2edge.camera.loop import Loop
from f2edge.camera.metrics import CameraMetrics
from f2edge.camera.output.events import LineWriter, Notify, TextSink
from f2edge.camera.output.outputs import Outputs, TextReporter, Window
from f2edge.camera.output.overlay import Overlay
from f2edge.camera.output.record import Recorder
from f2edge.camera.quality import Gate
from f2edge.camera.slots import LatestSlot
from f2edge.camera.source.reader import Reader, ReaderSettings
from f2edge.camera.source.sources import SourceOptions, open_source
from f2edge.camera.source.url import SourceUrl
from f2edge.camera.track import Tracker
from f2edge.camera.watch import Watcher
from f2edge.errors import OutputError
from f2edge.spec.attributes import AttributeSchema

_FPS = 24


@dataclass(frozen=True)
class Request:
    """Options of a run, as in ``f2edge camera --help``; ``people`` is the number in the demo's view."""

    url: SourceUrl
    detector: str
    attributes: tuple[str, ...]
    questions: tuple[str, ...] = ()
    refresh_s: float = 0.3
    budget_ms: float = 150.0
    size_wh: tuple[int, int] = (960, 540)
    max_fps: float | None = None
    duration_s: float | None = None
    show: bool = False
    record: Path | None = None
    still: Path | None = None
    stats: Path | None = None
    metrics_port: int | None = None
    blur_others: bool = False
    people: int = 3
    include_sensitive: bool = False


@dataclass(frozen=True)
class ModelInput:
    """Input of a model: attribute schema, crop geometry (None for portrait margins) and side in pixels."""

    schema: AttributeSchema
    alignment: Alignment | None
    image_size: int


def run(
    request: Request,
    model: CameraModel,
    faces: ModelInput,
    lines: TextSink | None,
    on_event: Callable[[str, str], None],
    *,
    print_line: Callable[[str], None] | None = None,
) -> dict[str, float | int | None]:
    """Run until the source ends, the time is up, the window is closed or Ctrl-C; return the statistics.

    Args:
        request: options.
        model: model that answers.
        faces: input of the model.
        lines: output of JSON lines, or None.
        on_event: called with (kind, reason) of every event.
        print_line: called with a text line when a face's description changes.

    Raises:
        OutputError: none of the outputs can be written any more.
        F2EdgeError: the source cannot be read, or this OpenCV lacks a required feature.
    """
    url = request.url
    book = AnswerBook(Freshness(refresh_s=request.refresh_s))
    watcher = Watcher(open_detector(request.detector), Tracker(), Gate(), book)
    fps = _FPS if request.max_fps is None else max(1, min(_FPS, round(request.max_fps)))
    options = SourceOptions(request.size_wh, fps, people=request.people)
    recording = None if url.live else open_source(url, options)  # before anything is written
    cutter = Cutter(faces.alignment, faces.image_size)
    work = DescribeOptions(request.attributes, request.questions, request.budget_ms, include_sensitive=request.include_sensitive)
    describer = Describer(model, cutter, book, work, monotonic)
    overlay = Overlay(faces.schema.select(request.attributes), blur_others=request.blur_others)
    metrics = None if request.stats is None and request.metrics_port is None else CameraMetrics(url.shown)
    if metrics is not None and request.metrics_port is not None:
        on_event("metrics", f"http://127.0.0.1:{metrics.serve(request.metrics_port)}/metrics")
    outputs = Outputs(
        url.shown,
        describer,
        overlay,
        on_event,
        lines=None if lines is None else LineWriter(lines, "--jsonl"),
        still=request.still,
        recorder=None if request.record is None else Recorder(request.record, fps),
        window=Window(f"f2edge {url.shown}") if request.show else None,
        stats_file=request.stats,
        metrics=metrics,
        reporter=None if print_line is None else TextReporter(print_line, overlay),
    )
    loop = Loop(watcher, describer, book, outputs, request.duration_s)
    settings = ReaderSettings(most_fps=request.max_fps)

    def make_reader(slot: LatestSlot[Frame], notify: Notify) -> Reader:
        return Reader(lambda: open_source(url, options), slot, notify, settings, reconnects=url.kind not in ("stdin", "demo"))

    try:
        if recording is None:
            loop.live(make_reader)
        else:
            loop.every(recording)
    except KeyboardInterrupt:
        outputs.event("ended", "interrupted")
    finally:
        outputs.close(loop.stats)
    if outputs.failed:
        raise OutputError(f"{url.shown}: ended because none of its outputs could be written any more; free some space and start it again")
    return loop.stats.document(describer)
