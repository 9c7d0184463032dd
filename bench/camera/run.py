"""Measurements of the camera bench: concurrent cameras on one model, and the cost of a call by its number of faces."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter, process_time

import numpy as np

from bench.hardware.memory import resident_mb
from bench.results import Results
from f2edge.camera.crops import Cutter
from f2edge.camera.detect import Detection
from f2edge.camera.frames import Frame
from f2edge.camera.run import ModelInput, Request, run
from f2edge.camera.source.demo import Scene
from f2edge.camera.source.url import parse_source
from f2edge.errors import InputError
from f2edge.inference import Pixels
from f2edge.pipeline import FacePipeline
from f2edge.spec.sensitive import SensitivePolicy

_SAMPLE_S = 0.25


@dataclass(frozen=True)
class Setting:
    """Number of cameras, 1 … 16, and of people in view of each, 1 … 4."""

    cameras: int
    people: int

    def __post_init__(self) -> None:
        if not (1 <= self.cameras <= 16 and 1 <= self.people <= 4):
            raise InputError(f"{self.cameras} cameras with {self.people} people: give 1 … 16 cameras with 1 … 4 people each")


def watch(pipeline: FacePipeline, setting: Setting, duration_s: float, size_wh: tuple[int, int] = (960, 540)) -> Results:
    """Run demo cameras concurrently for ``duration_s``, overlay and JSON lines included.

    Returns:
        Ages in ms (the median camera's p50, the worst camera's p99), ``drop_rate`` of all frames, ``faces_per_second`` answered,
        ``cores`` busy on average (painting the demo's people included), ``rss_mb`` at most, ``accuracy`` of the values shown on gated
        faces, and ``saved``: faces seen for each face asked about.
    """
    manifest, schema = pipeline.bundle.manifest, pipeline.bundle.schema
    faces = ModelInput(schema, manifest.alignment, pipeline.bundle.configuration.tokenizer.image_size)
    names = SensitivePolicy(protected=True).attributes(schema, None)
    request = Request(
        url=parse_source("demo"), detector="given", attributes=names, size_wh=size_wh, duration_s=duration_s, people=setting.people
    )
    summaries: list[dict[str, float | int | None]] = []
    failures: list[BaseException] = []

    def one() -> None:
        try:
            with Path(os.devnull).open("w", encoding="utf-8") as lines, TemporaryDirectory() as folder:
                everything = replace(request, still=Path(folder) / "last.jpg")  # makes every frame draw its overlay
                summaries.append(run(everything, pipeline, faces, lines, lambda *_: None))
        except BaseException as error:  # noqa: BLE001  raised again by the caller
            failures.append(error)

    threads = [Thread(target=one) for _ in range(setting.cameras)]
    with _PeakMemory() as memory:
        began, busy = perf_counter(), process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cores = (process_time() - busy) / (perf_counter() - began)
    if failures:
        raise failures[0]
    return {"cameras": setting.cameras, "people": setting.people, **_joined(summaries), "cores": round(cores, 2), "rss_mb": memory.most_mb}


def _joined(summaries: Sequence[dict[str, float | int | None]]) -> Results:
    def values(name: str) -> list[float]:
        return [float(value) for summary in summaries if (value := summary[name]) is not None]

    frames, dropped, asked, seen = (sum(values(name)) for name in ("frames", "dropped", "faces_asked", "good_faces"))
    results: Results = {"frames_per_second": round(statistics.mean(values("frames_per_second")), 1)}
    for kind in ("frame_age_ms", "answer_age_ms"):
        middle, late = values(f"{kind}_p50"), values(f"{kind}_p99")
        results |= {f"{kind}_p50": statistics.median(middle) if middle else None, f"{kind}_p99": max(late) if late else None}
    accuracy = values("accuracy")
    return results | {
        "drop_rate": round(dropped / max(frames + dropped, 1), 4),
        "faces_per_second": round(asked / statistics.mean(values("seconds")), 1),
        "model_calls": int(sum(values("model_calls"))),
        "saved": round(seen / asked, 1) if asked else None,
        "accuracy": round(statistics.mean(accuracy), 4) if accuracy else None,
    }


def call_costs(pipeline: FacePipeline, counts: Sequence[int], repeats: int = 5) -> list[Results]:
    """Return the cost of one call by its number of new faces: encoders, image segments, questions and their sum, median ms.

    ``cpu_ms`` is the processor time of all threads, which other programs change less.  Faces are cut from the demo, each with a different
    corner, so that none is cached.
    """
    schema = pipeline.bundle.schema.select(SensitivePolicy(protected=True).attributes(pipeline.bundle.schema, None))
    encoders = ("image_encode",) if pipeline.bundle.configuration.semantic is None else ("image_encode", "semantic")
    fresh = _fresh_faces(pipeline)
    rows = []
    for count in counts:
        encode, segment, ask, whole, busy = (list[float]() for _ in range(5))
        for _ in range(repeats + 1):
            group = [next(fresh) for _ in range(count)]
            start, busy_since = perf_counter(), process_time()
            segments = pipeline.inference.image_prefixes(group)
            read = perf_counter()
            pipeline.questions.reports(segments, schema)
            done = perf_counter()
            busy.append(1e3 * (process_time() - busy_since))
            pixels = {"pixels": np.stack(group)}
            for graph in encoders:
                pipeline.backend.run(graph, pixels)
            encoded = perf_counter()
            encode.append(1e3 * (encoded - done))
            segment.append(max(0.0, 1e3 * (read - start) - encode[-1]))
            ask.append(1e3 * (done - read))
            whole.append(1e3 * (done - start))
        names = ("encoders_ms", "segments_ms", "questions_ms", "whole_ms", "cpu_ms")
        medians = [round(statistics.median(values[1:]), 2) for values in (encode, segment, ask, whole, busy)]
        rows.append({"faces": count, **dict(zip(names, medians, strict=True)), "face_ms": round(medians[3] / count, 2)})
    return rows


def _fresh_faces(pipeline: FacePipeline) -> Iterator[Pixels]:
    scene, cutter = Scene((960, 540), 3), Cutter(pipeline.bundle.manifest.alignment, pipeline.bundle.configuration.tokenizer.image_size)
    rng, step = np.random.default_rng(0), 0
    while True:
        step += 1
        image, known = scene.at(4.0 + 0.37 * step)
        for face in known:
            crop = cutter.cut(Frame(image, step, 0.0), face.box, Detection(face.box))
            pixels = pipeline.pixels(crop).copy()
            pixels[:, :4, :4] = rng.uniform(-1, 1, (3, 4, 4))
            yield pixels


class _PeakMemory:
    """Sampler of the largest resident memory in MB, in a ``with`` block."""

    def __init__(self) -> None:
        self.most_mb = 0.0
        self._over = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _PeakMemory:  # noqa: PYI034  Self is younger than Python 3.10
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            self.most_mb = max(self.most_mb, round(resident_mb() or 0.0, 1))


def measure(
    pipeline: FacePipeline, settings: Sequence[Setting], duration_s: float, size_wh: tuple[int, int], progress: Callable[[str], None]
) -> list[Results]:
    """Run :func:`watch` for each setting; ``progress`` is called with a message before each."""
    rows = []
    for setting in settings:
        progress(f"camera: {setting.cameras} x {setting.people} people, {duration_s:g} s …")
        rows.append(watch(pipeline, setting, duration_s, size_wh))
    return rows
