"""Comparison of recipes: one fp32 bundle quantized by each, with size, times and quality.

    python -m export onnx … --recipe fp32 --out runs/fp32/nano
    python -m bench recipes --bundle runs/fp32/nano --images 500 --out runs/recipes

All recipes use the same faces, prompts and seeds.  With few images most differences are chance: the last row of the table has the standard
deviation of a difference by chance.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.options import DEFAULT_JUDGE, AsJson, Threads
from bench.results import write_json
from f2edge.errors import InputError

#: Section and name of the metrics that are shares, in the order of the table; 1 is best.
METRICS: tuple[tuple[str, str], ...] = (
    ("tokenizer", "accuracy"),
    ("generate", "accuracy"),
    ("analyze", "balanced_accuracy"),
    ("ask", "exact_match"),
    ("describe", "precision"),
    ("describe", "recall"),
    ("edit", "accuracy"),
    ("edit", "tokens_outside_identical"),
)
#: Allowed loss against fp32 in percentage points, by the precision of the coarsest graph; "mixed" as int8.
ALLOWED_POINTS: Mapping[str, float] = {"fp32": 0.0, "int8": 1.0, "int4": 2.0, "mixed": 1.0}
DEFAULT_RECIPES = "fp32,int8,int8-smooth,int8-gathered,int4,int4-128,int4-gptq,int4-careful,mixed"
_TIMES = ("one step", "analyze, per face", "ask, first token", "describe, per token")
#: Result with the number of trials of each section.
_TRIALS = {
    "tokenizer": "faces", "generate": "mentions", "analyze": "faces", "ask": "questions", "describe": "faces", "edit": "edits",
}  # fmt: skip


def chosen_recipes(names: str) -> list[str]:
    """Return recipes from a comma-separated list, fp32 first; others raise :class:`InputError`."""
    from export.quantize.recipes import recipe_named

    asked = [name.strip() for name in names.split(",") if name.strip()]
    if not asked:
        raise InputError(f"no recipes; give some, for instance --recipes {DEFAULT_RECIPES}")
    for name in asked:
        recipe_named(name)
    return ["fp32", *dict.fromkeys(name for name in asked if name != "fp32")]


def allowed_points(recipe: str) -> float:
    """Return the percentage points below fp32 that a recipe may lose."""
    from export.quantize.recipes import recipe_named

    return ALLOWED_POINTS.get(recipe, ALLOWED_POINTS[recipe_named(recipe).label])


def shares(quality: Mapping[str, Any]) -> dict[str, float]:
    """Return the measured :data:`METRICS` as ``section.name``."""
    return {f"{section}.{name}": float(quality[section][name]) for section, name in METRICS if name in quality.get(section, {})}


def chance(quality: Mapping[str, Any]) -> dict[str, float]:
    """Return the standard deviation of the difference of two such metrics by chance, in points, for independent trials."""
    result = {}
    for section, name in METRICS:
        trials = quality.get(section, {}).get(_TRIALS[section])
        if trials and name in quality[section]:
            share = min(max(float(quality[section][name]), 0.5 / trials), 1 - 0.5 / trials)
            result[f"{section}.{name}"] = 100 * math.sqrt(2 * share * (1 - share) / trials)
    return result


def losses(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the metrics that lose more against fp32 than their recipe allows, in words."""
    exact, by_chance, found = rows[0]["shares"], chance(rows[0]["quality"]), []
    for row in rows[1:]:
        allowed = allowed_points(row["recipe"])
        for name, value in row["shares"].items():
            lost = 100 * (exact[name] - value)
            if lost > allowed:
                doubt = f" (±{by_chance[name]:.1f} by chance)" if name in by_chance else ""
                found.append(f"{row['recipe']}: {name} is {lost:.1f} points below fp32, allowed are {allowed:g}{doubt}")
    return found


def write_recipe(bundle: Path, recipe: str, work: Path, prompts: int) -> Path:
    """Write the bundle quantized by ``recipe`` to ``work``; an existing one is reused."""
    from export.onnx_export import real_inputs
    from export.quantize.requantize import requantize
    from f2edge.bundle.bundle import TOKENIZER, Bundle

    out = work / recipe / bundle.name
    if out.is_dir():
        return out
    loaded = Bundle.load(bundle)
    size, template = loaded.configuration.tokenizer.image_size, loaded.layout.question_template
    inputs = real_inputs(bundle / TOKENIZER, loaded.generation, prompts, prompts, size=size, template=template)
    return requantize(bundle, out, recipe, inputs)


def measure_recipe(
    folder: Path, recipe: str, *, images: int, sections: Sequence[str], repeats: int, threads: int | None, judge: Path, seed: int
) -> dict[str, Any]:
    """Measure size, times and quality of one bundle."""
    from bench.latency import latency
    from bench.quality.judge import Judge
    from bench.quality.quality import Bench
    from bench.quality.report import run_sections
    from f2edge.pipeline import FacePipeline

    row: dict[str, Any] = {"recipe": recipe, "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file())}
    if repeats:
        measured = latency.measure(str(folder), threads=threads, repeats=repeats, shell=False)
        row["times"] = {entry["call"]: entry["ms"]["median"] for entry in measured["rows"]}
        row["ceilings"] = next(iter(measured["ceilings"].values()))
    pipeline = FacePipeline.load(str(folder), threads=threads)
    row["quality"] = run_sections(Bench(pipeline, Judge.load(judge), images, seed=seed), sections)
    row["shares"] = shares(row["quality"])
    return row


def print_table(rows: Sequence[Mapping[str, Any]], lost: Sequence[str]) -> None:
    """Print one row per recipe; shares as points relative to fp32."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    exact = rows[0]["shares"]
    timed = [name for name in _TIMES if name in rows[0].get("times", {})]
    heads = [f"{name}\nms" for name in timed] + [name.replace(".", "\n") for name in exact]
    table = Table("recipe", "MB", *heads, box=box.SIMPLE)
    for row in rows:
        points = {name: 100 * (value - exact[name]) for name, value in row["shares"].items()}
        metrics = [f"{100 * exact[name]:.1f}" if row is rows[0] else f"{points[name]:+.1f}" for name in exact]
        times = [f"{row['times'][name]:.2f}" for name in timed]
        table.add_row(row["recipe"], f"{row['bytes'] / 1e6:.1f}", *times, *metrics)
    by_chance = chance(rows[0]["quality"])
    table.add_section()
    table.add_row("by chance", "", *("" for _ in timed), *(f"±{by_chance[name]:.1f}" if name in by_chance else "" for name in exact))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for line in lost or ["every metric is within the allowed loss of its recipe"]:
        console.print(line)


def recipes(
    *,
    bundle: Annotated[Path, typer.Option(help="Folder of a bundle exported with --recipe fp32.")],
    names: Annotated[str, typer.Option("--recipes", help="Comma-separated recipes; fp32 is always measured.")] = DEFAULT_RECIPES,
    images: Annotated[int, typer.Option(min=2, help="Faces of the quality bench; 500 for publication.")] = 16,
    only: Annotated[str, typer.Option(help="Comma-separated sections of the quality bench; all by default.")] = "",
    repeats: Annotated[int, typer.Option(min=0, help="Measured calls per time; 0 measures no times.")] = 3,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts and faces for calibration.")] = 4,
    threads: Threads = None,
    judge: Annotated[Path, typer.Option(help="Weights of the judge.")] = DEFAULT_JUDGE,
    seed: Annotated[int, typer.Option(help="Seed of faces, prompts and pictures.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for recipes.json and the bundles, which are kept.")] = Path("runs/recipes"),
    as_json: AsJson = False,
) -> None:
    """Compare recipes: size, times and quality of one bundle by each."""
    from bench.quality.report import chosen_sections

    chosen, sections, rows = chosen_recipes(names), chosen_sections(only), list[dict[str, Any]]()
    settings = {"bundle": str(bundle), "images": images, "seed": seed, "repeats": repeats, "prompts": prompts}
    for recipe in chosen:
        print(f"recipes: {recipe} …", file=sys.stderr, flush=True)
        folder = write_recipe(bundle, recipe, out, prompts)
        rows.append(
            measure_recipe(folder, recipe, images=images, sections=sections, repeats=repeats, threads=threads, judge=judge, seed=seed)
        )
        document = {"settings": settings, "rows": rows, "chance": chance(rows[0]["quality"]), "losses": losses(rows)}
        write_json(document, out / "recipes.json")
    if as_json:
        print(json.dumps(document))
    else:
        print_table(rows, losses(rows))
