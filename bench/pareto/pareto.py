"""Quality against time: ``python -m bench pareto --bundle nano --out runs/pareto``.

Steps, guidance, order and named presets of one or more bundles, a distilled student among them, draw the same held-out prompts with the
same seeds.  Each method has

* the accuracy of mentioned attributes by the judge, with a 95 % interval by resampling the prompts;
* the share of faces whose eyes have two colors, and of how many faces;
* the kernel distance to renders with its 95 % interval, beside that of other renders;
* its forwards (a guided step has two), and the milliseconds of one face alone, end to end.

``pareto.json`` is written after every method; the same command goes on where it stopped.  ``pareto.svg`` and ``pareto.png`` show the rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from bench.options import DEFAULT_JUDGE, AsJson, BackendName, Threads, listed, whole_numbers
from bench.pareto.plot import draw, front
from bench.quality.presets import SEED, branches, drawn, scale
from bench.results import Results, check_folder, spread, write_json
from f2edge.cli.console import Output
from f2edge.decoding.schedule import ORDERS, Schedule
from f2edge.errors import InputError

if TYPE_CHECKING:
    from bench.quality.quality import Bench
    from bench.quality.realism import Features
    from f2edge.bundle.bundle import Bundle

#: Draws of the prompts for an interval.
_RESAMPLED = 1000
_COLUMNS = (
    "",
    "bundle",
    "preset",
    ">steps",
    ">guidance",
    "order",
    ">forwards",
    ">ms",
    ">attributes %",
    ">unlike eyes %",
    ">kernel distance",
)


@dataclass(frozen=True)
class Method:
    """One way to draw: a bundle with a schedule, which may be one of its presets."""

    bundle: str
    schedule: Schedule
    preset: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """What tells it from others, as JSON."""
        return json.loads(json.dumps({"bundle": self.bundle, "preset": self.preset, "schedule": asdict(self.schedule)}))  # type: ignore[no-any-return]


def methods(name: str, bundle: Bundle, steps: Sequence[int], guidance: Sequence[float], orders: Sequence[str]) -> Iterator[Method]:
    """Yield the default, the presets that the bundle was given, and all steps, guidances and orders; none twice.

    A student has the guidance that it was trained for only.
    """
    student = bundle.manifest.trained_for
    given = {bundle.generation: ""}
    if bundle.manifest.document.get("presets"):
        given |= {preset.schedule: preset_name for preset_name, preset in bundle.presets.items()}
    scales = guidance if student is None else (student.guidance,)
    grid = (replace(bundle.generation, steps=n, guidance=g, order=order) for g, order, n in product(scales, orders, steps))
    for schedule in dict.fromkeys([*given, *grid]):
        yield Method(name, schedule, given.get(schedule, ""))


def measured(bench: Bench, schedule: Schedule, repeats: int, real: Features) -> Results:
    """Return the figures of a schedule on the bench's prompts; ``real`` are the features of the prompts' renders."""
    from bench.quality import scores
    from bench.quality.realism import kernel_distance, unlike_eyes

    pictures, seconds = drawn(bench, schedule)
    said = scores.mention_table([p.mentioned for p in bench.prompts], bench.schema)
    right, asked = ((bench.judge.predict(pictures) == said) & (said >= 0)).sum(axis=1), (said >= 0).sum(axis=1)
    eyes, seen = unlike_eyes(pictures, bench.judge)
    kernel = list(kernel_distance(bench.judge.features(pictures), real))
    return {
        "forwards": branches(bench, schedule),
        "attributes": interval(right, asked, bench.seed),
        "unlike_eyes": eyes,
        "eyes_seen": seen,
        "kernel": kernel,
        "ms": spread(list(_alone(bench, repeats))),
        "ms_in_groups": 1e3 * seconds / len(pictures),
    }


def interval(right: Sequence[int] | np.ndarray, asked: Sequence[int] | np.ndarray, seed: int) -> list[float]:
    """Return the share of right answers over all prompts, and its 95 % interval by resampling the prompts."""
    right, asked = np.asarray(right), np.asarray(asked)
    rows = np.random.default_rng(seed).integers(len(right), size=(_RESAMPLED, len(right)))
    low, high = np.quantile(right[rows].sum(axis=1) / asked[rows].sum(axis=1), (0.025, 0.975))
    return [float(right.sum() / asked.sum()), float(low), float(high)]


def _alone(bench: Bench, repeats: int) -> Iterator[float]:
    """Yield the milliseconds of faces drawn one at a time, the first one not counted."""
    for number in range(repeats + 1):
        start = time.perf_counter()
        bench.pipeline.generate([bench.prompts[number % len(bench.prompts)].text], seeds=[number], options=bench.options)
        if number:
            yield 1e3 * (time.perf_counter() - start)


def stored(path: Path, settings: Results) -> list[Results]:
    """Return the rows that an interrupted run left in ``path``; raises :class:`InputError` where they are of other settings."""
    if not path.is_file():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        same, rows = document["settings"] == settings, list(document["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it or choose another --out") from error
    if not same:
        raise InputError(f"{path}: holds rows of other settings ({document['settings']}); choose another --out")
    return rows


def pareto(
    *,
    bundle: Annotated[
        list[str] | None, typer.Option(help="Name or folder of a bundle; may be given several times.  [default: nano]")
    ] = None,
    backend: BackendName = "auto",
    judge_file: Annotated[Path, typer.Option("--judge", help="Weights of the judge.")] = DEFAULT_JUDGE,
    images: Annotated[int, typer.Option(min=4, help="Faces of each method.")] = 64,
    steps: Annotated[str, typer.Option(help="Steps to try.")] = "1,2,3,4,6,8,12,16,24",
    guidance: Annotated[str, typer.Option(help="Guidance scales to try.")] = "0,1.5,4",
    orders: Annotated[str, typer.Option(help="Orders to try.")] = "maskgit,halton",
    repeats: Annotated[int, typer.Option(min=1, help="Faces that are timed alone.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of faces, prompts and pictures.")] = 1,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Folder for pareto.json and the plot; an interrupted run goes on.")],
    as_json: AsJson = False,
) -> None:
    """Measure quality and time of steps, guidance, order and presets, and plot them."""
    from bench.quality.faces import held_out_faces
    from bench.quality.judge import Judge
    from bench.quality.quality import Bench
    from f2edge.pipeline import FacePipeline

    counts, scales, chosen = (
        whole_numbers("--steps", [steps], "4"),
        [scale(text) for text in listed([guidance], "0")],
        listed([orders], "maskgit"),
    )
    if unknown := [order for order in chosen if order not in ORDERS]:
        raise InputError(f"--orders {unknown[0]!r}: choose of {', '.join(ORDERS)}")
    if seed == SEED:
        raise InputError(f"--seed {seed}: its prompts are those that presets are searched on; choose another")
    check_folder(out)
    judge, path = Judge.load(judge_file), out / "pareto.json"
    settings: Results = {"images": images, "seed": seed, "repeats": repeats, "backend": backend, "threads": threads}
    rows = stored(path, settings)
    floor: Results = {}
    for name in listed(bundle or [], "nano"):
        pipeline = FacePipeline.load(name, backend=backend, threads=threads, watermark=None)
        render = partial(held_out_faces, size=pipeline.bundle.configuration.tokenizer.image_size)
        bench = Bench(pipeline, judge, images, seed=seed, render=render)
        floor, real = floor or _floor(bench), judge.features(bench.faces.images[:images])
        for method in methods(name, pipeline.bundle, counts, scales, chosen):
            if not any(row["method"] == method.key for row in rows):
                rows.append({"method": method.key, **measured(bench, method.schedule, repeats, real)})
                write_json({"settings": settings, "renders": floor, "rows": rows}, path)
    document = {"settings": settings, "renders": floor, "rows": rows}
    draw(document, out)
    output = Output(json=as_json)
    output.table(_COLUMNS, [_cells(row, best=any(row is other for other in front(rows))) for row in rows])
    if as_json:
        print(json.dumps(document))


def _floor(bench: Bench) -> Results:
    """Return the figures of renders: the judge on the prompts' own faces, and two sets of renders beside each other."""
    from bench.quality import scores
    from bench.quality.realism import kernel_distance, unlike_eyes

    faces, others = bench.faces[: bench.images], bench.faces[bench.images :]
    said = scores.mention_table([p.mentioned for p in bench.prompts], bench.schema)
    return {
        "attributes": scores.slot_shares(bench.judge.predict(faces.images), said, bench.schema).overall,
        "unlike_eyes": unlike_eyes(others.images, bench.judge)[0],
        "kernel": list(kernel_distance(bench.judge.features(others.images), bench.judge.features(faces.images))),
    }


def _cells(row: Results, *, best: bool) -> tuple[str, ...]:
    method, schedule = row["method"], row["method"]["schedule"]
    return (
        "*" if best else "",
        Path(method["bundle"]).name,
        method["preset"],
        str(schedule["steps"]),
        f"{schedule['guidance']:g}",
        schedule["order"],
        str(row["forwards"]),
        f"{row['ms']['median']:.0f}",
        "{:.1f} ({:.1f} … {:.1f})".format(*(100 * value for value in row["attributes"])),
        f"{100 * row['unlike_eyes']:.0f}",
        "{:.0f} ({:.0f} … {:.0f})".format(*row["kernel"]),
    )
