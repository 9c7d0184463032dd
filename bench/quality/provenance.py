"""Watermark and labels of generated faces: robustness, cost, false positives.

    python -m bench provenance [--bundle nano] [--faces 500] [--renders 10000] [--json]

HeldOutGenerated faces are marked and then treated as pictures are in use: saved as JPEG or WebP, scaled,
mirrored.  False positives are counted on unmarked renders with the default threshold.  Times are medians on this machine: "chain" is mark,
label and encoding, from a decoded picture to the bytes of its file.
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from bench.options import AsJson, BackendName, BundleName, Steps, Threads
from bench.quality.faces import held_out_faces, held_out_prompts, progress
from bench.results import Results, document, write_json
from f2edge.cli.console import Output
from f2edge.imaging.guard import decode
from f2edge.pipeline import FacePipeline
from f2edge.provenance.label import GENERATED, Label, label, read_label
from f2edge.provenance.saving import encode
from f2edge.provenance.watermark import PUBLIC, Watermark
from f2edge.results import GenerateOptions

Treatment = Callable[[Image.Image], Image.Image]
_GROUP = 8
_KINDS = ("PNG", "JPEG", "WEBP")
#: Sides in pixels of the timed pictures, which are scaled from the model's size.
_SIDES = (128, 256, 512)
_TIMED = 60
_REQUIRED = ("JPEG 70", "scaled to 0.75")


def encoded(kind: str, quality: int) -> Treatment:
    """Return the treatment that saves and loads a picture."""

    def treat(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, kind, quality=quality)
        return decode(buffer.getvalue())

    return treat


def scaled(factor: float) -> Treatment:
    """Return the treatment that scales a picture (bicubic)."""
    return lambda image: image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def both(first: Treatment, second: Treatment) -> Treatment:
    return lambda image: second(first(image))


TREATMENTS: Mapping[str, Treatment] = {
    "none": lambda image: image,
    "JPEG 90": encoded("JPEG", 90),
    "JPEG 70": encoded("JPEG", 70),
    "JPEG 50": encoded("JPEG", 50),
    "WebP 80": encoded("WEBP", 80),
    "WebP 50": encoded("WEBP", 50),
    "scaled to 0.75": scaled(0.75),
    "scaled to 0.5": scaled(0.5),
    "scaled to 4": scaled(4.0),
    "scaled to 0.75, JPEG 70": both(scaled(0.75), encoded("JPEG", 70)),
    "JPEG 70, scaled to 0.75": both(encoded("JPEG", 70), scaled(0.75)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "brighter by a tenth": lambda image: image.point(lambda value: min(255, round(value * 1.1))),
    "contrast to 0.8": lambda image: image.point(lambda value: round(128 + (value - 128) * 0.8)),
    "cropped by a twentieth": lambda image: image.crop((0, 0, round(image.width * 0.95), round(image.height * 0.95))),
}


def generated(pipeline: FacePipeline, count: int, options: GenerateOptions, seed: int) -> list[Image.Image]:
    """Generate unmarked faces for prompts of held-out renders."""
    prompts = [prompt.text for prompt in held_out_prompts(held_out_faces(count, seed).visible, seed)]
    faces: list[Image.Image] = []
    for first in progress(range(0, count, _GROUP), "generating", -(-count // _GROUP)):
        group = prompts[first : first + _GROUP]
        faces += [face.image for face in pipeline.generate(group, seeds=[first + row for row in range(len(group))], options=options)]
    return faces


def robustness(faces: Sequence[Image.Image], mark: Watermark) -> Results:
    """Measure the detection rate after each treatment and the visibility of the mark."""
    marked = [mark.embed(face) for face in progress(faces, "marking")]
    quality = [psnr(face, other) for face, other in zip(faces, marked, strict=True)]
    found: dict[str, Results] = {}
    for name, treat in TREATMENTS.items():
        looks = [mark.detect(treat(image)) for image in progress(marked, name)]
        scores = [look.score for look in looks]
        share = statistics.fmean(look.found for look in looks)
        found[name] = {"found": share, "lowest_score": round(min(scores), 2), "median_score": round(statistics.median(scores), 2)}
    unmarked = [mark.detect(face) for face in progress(faces, "unmarked")]
    return {
        "faces": len(faces),
        "psnr_db": {"lowest": round(min(quality), 2), "median": round(statistics.median(quality), 2)},
        "threshold": round(unmarked[0].threshold, 3),
        "after": found,
        "unmarked_found": sum(look.found for look in unmarked),
    }


def false_positives(count: int, mark: Watermark, seed: int) -> Results:
    """Count the renders that are detected as marked."""
    from export.data.render.renderer import sample_face

    scores = []
    threshold = 0.0
    for index in progress(range(count), "renders"):
        look = mark.detect(Image.fromarray(sample_face(seed * 1_000_000 + index, "heldout").image))
        threshold = look.threshold
        scores.append(look.score)
    wrong = sum(score >= threshold for score in scores)
    return {
        "renders": count,
        "false_positives": wrong,
        "highest_score": round(max(scores, default=0.0), 2),
        "threshold": round(threshold, 3),
    }


def durations(faces: Sequence[Image.Image], mark: Watermark, repeats: int = _TIMED) -> list[Results]:
    """Measure medians in ms for each size and step: wall time, and processor time, which other programs change less."""
    said = label(prompt="a young woman with long curly red hair and eyeglasses", seed=7, bundle="nano")
    steps: dict[str, Callable[[Image.Image], object]] = {"mark": mark.embed, "detect": mark.detect}
    for kind in _KINDS:
        found = read_label(encode(mark.embed(faces[0]), kind, said))
        assert found is not None
        assert found.source_type == GENERATED
        steps[f"{kind} encoding"] = partial(encode, kind=kind, metadata=None)
        steps[f"{kind} chain"] = partial(_chain, mark, kind, said)
    rows: list[Results] = []
    for side in _SIDES:
        pictures = [face.resize((side, side), Image.Resampling.LANCZOS) for face in faces[:repeats]]
        for name, step in steps.items():
            step(pictures[0])  # fills the cache of waves of that size
            times = [_ms(partial(step, picture)) for picture in pictures]
            wall, cpu = (round(statistics.median(values), 3) for values in zip(*times, strict=True))
            rows.append({"side": side, "step": name, "ms": wall, "cpu_ms": cpu})
    return rows


def _chain(mark: Watermark, kind: str, said: Label, picture: Image.Image) -> bytes:
    return encode(mark.embed(picture), kind, said)


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures of one size, in dB."""
    difference = np.asarray(image, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    return float(10 * np.log10(255**2 / max(float(np.mean(difference**2)), 1e-9)))


def objectives(measured: Mapping[str, Any]) -> dict[str, bool]:
    """Return the objectives of docs/provenance.md and whether they hold."""
    robust, renders = measured["robustness"], measured["false_positives"]
    chains = [row["ms"] for row in measured["durations"] if row["side"] == _SIDES[0] and row["step"].endswith("chain")]
    return {
        **{f"found in 99 % after {name}": robust["after"][name]["found"] >= 0.99 for name in _REQUIRED},
        "no false positive among renders": renders["false_positives"] == 0,
        "at least 40 dB": robust["psnr_db"]["lowest"] >= 40,
        f"chain of at most 10 ms at {_SIDES[0]} pixels": max(chains) <= 10,
    }


def provenance(
    *,
    bundle: BundleName = "nano",
    backend: BackendName = "auto",
    faces: Annotated[int, typer.Option(min=1, help="Faces to generate and mark.")] = 500,
    renders: Annotated[int, typer.Option(min=1, help="Renders without a mark.")] = 10_000,
    steps: Steps = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts, faces and renders.")] = 1,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option(help="File for the JSON document.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the watermark and the labels of generated faces."""
    pipeline = FacePipeline.load(bundle, backend=backend, threads=threads, watermark=None)
    _say(f"generating {faces} faces")
    pictures = generated(pipeline, faces, GenerateOptions(steps=steps), seed)
    settings = {"bundle": bundle, "faces": faces, "renders": renders, "steps": steps, "seed": seed}
    measured: Results = {"settings": settings, "durations": durations(pictures, PUBLIC)}
    _say(f"marking them, {len(TREATMENTS)} treatments")
    measured["robustness"] = robustness(pictures, PUBLIC)
    _say(f"looking at {renders} renders")
    measured["false_positives"] = false_positives(renders, PUBLIC, seed)
    measured["objectives"] = objectives(measured)
    if out is not None:
        write_json(measured, out)
    _print(measured, Output(json=as_json))
    print(document(measured))


def _say(what: str) -> None:
    print(f"provenance: {what} …", file=sys.stderr, flush=True)


def _print(measured: Mapping[str, Any], output: Output) -> None:
    robust, renders = measured["robustness"], measured["false_positives"]
    output.line(f"{robust['faces']} faces, detected from a score of {robust['threshold']}")
    cells = [
        (name, f"{row['found']:.1%}", f"{row['lowest_score']:.1f}", f"{row['median_score']:.1f}") for name, row in robust["after"].items()
    ]
    output.table(("after", ">detected", ">lowest score", ">median"), cells)
    output.line("\nmedians in ms (processor time)")
    steps = dict.fromkeys(row["step"] for row in measured["durations"])
    times = [(name, *(f"{row['ms']:.2f} ({row['cpu_ms']:.2f})" for row in measured["durations"] if row["step"] == name)) for name in steps]
    output.table(("", *(f">{side} pixels" for side in _SIDES)), times)
    output.line(f"PSNR {robust['psnr_db']['lowest']} dB lowest, {robust['psnr_db']['median']} dB median")
    output.line(
        f"{renders['false_positives']} of {renders['renders']} renders detected as marked, highest score {renders['highest_score']}"
    )
    for objective, holds in measured["objectives"].items():
        output.line(f"{'yes' if holds else 'NO '}  {objective}")


def _ms(call: Callable[[], object]) -> tuple[float, float]:
    """Return wall time and processor time in ms."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - busy)
