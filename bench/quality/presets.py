"""Search of a bundle's named presets: ``python -m bench presets --bundle DIR --out runs/presets``.

Schedules are tried on held-out prompts that no figure uses (their seed is apart), in two rounds: steps, guidance, order and temperature
all with all, then for each number of steps the best one with changes of the rest: part of the steps guided, a ramp of guidance, sharper
tokens, other mask counts, a constant temperature.  Each candidate has the accuracy of mentioned attributes by the judge, the Fréchet
distance, the sharpness of its pictures and its branches (transformer runs, a guided step has two).

Of those that are about as near to renders and as sharp as the bundle's default, ``best`` is the nearest within half a point of the highest
accuracy, ``balanced`` has the fewest branches within half a point, and ``fast`` the fewest within a point of the default.

``--write`` stores the three with their figures in the manifest of a bundle's folder, and seals it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from bench.options import DEFAULT_JUDGE, AsJson, BackendName, BundleName, Threads
from bench.results import write_json
from f2edge.cli.console import Output
from f2edge.decoding.schedule import Schedule
from f2edge.errors import InputError

if TYPE_CHECKING:
    from bench.quality.judge import Images
    from bench.quality.quality import Bench
    from f2edge.bundle.bundle import Bundle

#: Faces and prompts of this seed are in no figure.
SEED = 7001
#: Accuracy that ``best`` and ``balanced`` may lose against the highest, and ``fast`` against the default.
_NEAR, _FAST = 0.005, 0.01
#: Greatest Fréchet distance and least sharpness of a preset, as multiples of the default's.  In too few steps parts of several faces lie
#: over each other: the attributes do not show that, softer lines do.
_FARTHEST, _SOFTEST = 1.02, 0.95
#: Changes of the second round; those of guidance are for guided schedules.
_CHANGES: tuple[dict[str, Any], ...] = (
    {"token_temperature": 0.8},
    {"mask_law": "linear"},
    {"mask_law": "arccos"},
    {"temperature_law": "constant"},
)
_GUIDANCE_CHANGES: tuple[dict[str, Any], ...] = (
    {"guidance_interval": (0.0, 0.9)},
    {"guidance_interval": (0.6, 1.0)},
    {"guidance_ramp": True},
)


@dataclass(frozen=True)
class Candidate:
    """A schedule and what was measured of it."""

    schedule: Schedule
    accuracy: float
    frechet: float
    branches: int
    seconds: float
    sharpness: float

    @property
    def row(self) -> dict[str, Any]:
        """The options that a preset has, with the figures."""
        measured = {"attributes": round(self.accuracy, 4), "frechet": round(self.frechet, 1), "sharpness": round(self.sharpness, 1)}
        measured["branches"] = self.branches
        return {**asdict(self.schedule), "measured": measured}

    @property
    def described(self) -> str:
        """The options that are not a schedule's own, for people."""
        usual = asdict(Schedule())
        given = {name: value for name, value in asdict(self.schedule).items() if value != usual[name] and name not in {"steps", "guidance"}}
        return ", ".join(f"{name} {value}" for name, value in given.items())


def candidates(default: Schedule, steps: Sequence[int], guidance: Sequence[float]) -> list[Schedule]:
    """Return the schedules to try: all steps and guidances with the default's order and two others, then temperatures around them."""
    orders = (("maskgit", default.temperature), ("maskgit", 0.4 * default.temperature), ("halton", default.temperature))
    found = [
        replace(default, steps=count, guidance=scale, order=order, temperature=temperature)
        for count, scale, (order, temperature) in product(steps, guidance, orders)
    ]
    return list(dict.fromkeys([default, *found]))


def variations(measured: Sequence[Candidate]) -> list[Schedule]:
    """Return the schedules of the second round: changes of the most accurate one of each number of steps; none that was measured."""
    best: dict[int, Candidate] = {}
    for candidate in sorted(measured, key=lambda c: c.accuracy):
        best[candidate.schedule.steps] = candidate
    found = [
        replace(candidate.schedule, **change)
        for candidate in best.values()
        for change in (*_CHANGES, *(_GUIDANCE_CHANGES if candidate.schedule.guidance else ()))
    ]
    known = {candidate.schedule for candidate in measured}
    return [schedule for schedule in dict.fromkeys(found) if schedule not in known]


def chosen(measured: Sequence[Candidate]) -> dict[str, Candidate]:
    """Return the presets; the first of ``measured`` is the default."""
    default = measured[0]
    sound = [c for c in measured if c.frechet <= _FARTHEST * default.frechet and c.sharpness >= _SOFTEST * default.sharpness]
    top = [c for c in sound if c.accuracy >= max(c.accuracy for c in sound) - _NEAR]
    enough = [c for c in sound if c.accuracy >= default.accuracy - _FAST]
    fast, balanced = (min(these, key=lambda c: (c.branches, -c.accuracy)) for these in (enough, top))
    return {"fast": fast, "balanced": balanced, "best": min(top, key=lambda c: (c.frechet, c.branches))}


def drawn(bench: Bench, schedule: Schedule) -> tuple[Images, float]:
    """Return the pictures of the bench's prompts with a schedule, and the seconds that they took."""
    from bench.quality.quality import as_array
    from f2edge.results import GenerateOptions

    bench.options = GenerateOptions(**asdict(schedule))
    prompts, start = bench.prompts, time.perf_counter()
    made = bench.draw([p.text for p in prompts], [bench.seed * 1_000_000 + row for row in range(len(prompts))], f"{schedule.steps} steps")
    return as_array(made), time.perf_counter() - start


def branches(bench: Bench, schedule: Schedule) -> int:
    """Return the transformer runs of a picture: two of a guided step."""
    from f2edge.decoding.schedule import plan

    made = plan(schedule, np.ones(bench.pipeline.bundle.layout.image_tokens, dtype=bool), 0)
    return made.steps + int((made.guidance > 0).sum())


def measure(bench: Bench, schedule: Schedule) -> Candidate:
    """Return what the bench's prompts give with a schedule."""
    from bench.quality import scores
    from bench.quality.frechet import frechet_distance
    from bench.quality.realism import sharpness

    pictures, seconds = drawn(bench, schedule)
    said = scores.mention_table([p.mentioned for p in bench.prompts], bench.schema)
    accuracy = scores.slot_shares(bench.judge.predict(pictures), said, bench.schema).overall
    distance = frechet_distance(bench.judge.features(pictures), bench.judge.features(bench.faces.images))
    return Candidate(schedule, accuracy, distance, branches(bench, schedule), seconds, sharpness(pictures))


def write(bundle: Bundle, presets: Mapping[str, Candidate]) -> None:
    """Store presets in the manifest of a bundle's folder, with a new checksum."""
    from f2edge.bundle.bundle import write_manifest

    rows = {name: candidate.row for name, candidate in presets.items()}
    write_manifest(bundle.folder, {**bundle.manifest.document, "presets": rows})


def presets(
    *,
    bundle: BundleName = "nano",
    backend: BackendName = "auto",
    judge_file: Annotated[Path, typer.Option("--judge", help="Weights of the judge.")] = DEFAULT_JUDGE,
    images: Annotated[int, typer.Option(min=2, help="Faces of each candidate.")] = 64,
    steps: Annotated[str, typer.Option(help="Steps to try.")] = "2,3,4,6,8,12",
    guidance: Annotated[str, typer.Option(help="Guidance scales to try.")] = "0,1.5,3,5",
    threads: Threads = None,
    write_to: Annotated[bool, typer.Option("--write", help="Store the presets in the manifest; the bundle is then a folder.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for presets.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search the presets fast, balanced and best of a bundle."""
    from bench.options import listed, whole_numbers
    from bench.quality.faces import held_out_faces
    from bench.quality.judge import Judge
    from bench.quality.quality import Bench
    from f2edge.pipeline import FacePipeline

    counts, scales = whole_numbers("--steps", [steps], "4"), [scale(text) for text in listed([guidance], "3")]
    pipeline, output = FacePipeline.load(bundle, backend=backend, threads=threads, watermark=None), Output(json=as_json)
    if write_to and not Path(bundle).is_dir():
        raise InputError(f"--write changes a bundle's manifest; give the folder of {bundle!r} as --bundle")
    render = partial(held_out_faces, size=pipeline.bundle.configuration.tokenizer.image_size)
    bench = Bench(pipeline, Judge.load(judge_file), images, seed=SEED, render=render)
    measured = [measure(bench, schedule) for schedule in candidates(pipeline.bundle.generation, counts, scales)]
    measured += [measure(bench, schedule) for schedule in variations(measured)]
    found = chosen(measured)
    names = {id(candidate): name for name, candidate in found.items()}
    rows = [
        (
            names.get(id(c), ""),
            str(c.schedule.steps),
            f"{c.schedule.guidance:g}",
            c.described,
            f"{100 * c.accuracy:.1f}",
            f"{c.frechet:.0f}",
            f"{c.sharpness:.0f}",
            str(c.branches),
            f"{1e3 * c.seconds / images:.0f}",
        )
        for c in sorted(measured, key=lambda c: -c.accuracy)
    ]
    output.table(("preset", ">steps", ">guidance", "other options", ">attributes %", ">Fréchet", ">sharpness", ">branches", ">ms"), rows)
    document = {"bundle": bundle, "images": images, "seed": SEED, "presets": {name: c.row for name, c in found.items()},
                "tried": [c.row for c in measured]}  # fmt: skip
    if out is not None:
        write_json(document, out / "presets.json")
    if write_to:
        write(pipeline.bundle, found)
        output.line(f"{bundle}: presets are in its manifest; check it with `f2edge verify {bundle}`")
    print(json.dumps(document))


def scale(text: str) -> float:
    """Return a guidance scale; raises :class:`InputError` for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise InputError(f"--guidance {text!r}: write numbers in 0 … 100")
    return value
