r"""Bundles of random weights for the benches, written in a worker process, whose end frees PyTorch's memory.

    python -m bench.latency.random_bundles \
        '{"configuration": "show-o", "layers": 2, "seed": 0, "recipes": ["int8"], "folder": "runs/show-o"}'

Times do not depend on values, so recipes that would calibrate the transformer round to nearest instead, and no parity is measured;
``python -m export random-bundle`` does both.  Convolutions that are computed in int8 are calibrated on two pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.latency.worker import Handler, Message, serve
from export.bundle_writer import ModelCard, recipe_transform, trace_all, write_bundle
from export.checkpoints.random_weights import random_models_of, shortened
from export.defaults import defaults_of
from export.onnx_export import held_out, pixels_of
from export.quantize.recipes import RECIPES, Recipe, recipe_named
from export.quantize.requantize import calibrate
from export.verify.parity import SampleInputs
from f2edge.bundle.bundle import TOKENIZER, embedded_folder
from f2edge.spec.layout import TokenLayout


def uncalibrated(recipe: Recipe) -> Recipe:
    """Return the recipe without calibration of linear layers and, but for fixed scales, with the same kernels."""

    def plain(name: str) -> str:
        own = recipe_named(name)
        rounded = own.smooth is None and own.method == "rtn" and own.activations == "rows"
        return name if rounded else next(r.name for r in RECIPES.values() if not r.calibrated and r.precision == own.precision)

    return replace(
        recipe, method="rtn", smooth=None, activations="rows", graphs={graph: plain(name) for graph, name in recipe.graphs.items()}
    )


def start(configuration: str, layers: int | None, seed: int, recipes: Sequence[str], folder: str) -> tuple[Message, Handler]:
    """Write one bundle per recipe to ``folder/<recipe>``."""
    chosen = [recipe_named(name) for name in recipes]
    models = random_models_of(shortened(configuration, layers), seed)
    defaults = defaults_of(models.configuration)
    card = ModelCard("Random weights; for benches.", generation=defaults.generation, question_template=defaults.question_template)
    traced = trace_all(models, lambda message: print(message, file=sys.stderr))
    pixels = pixels_of(held_out(2, models.configuration.tokenizer.image_size))
    inputs, layout = SampleInputs([], [], pixels, []), TokenLayout.of(models.configuration, 0, 1)
    for recipe in map(uncalibrated, chosen):
        write_bundle(
            Path(folder) / recipe.name,
            models=models,
            text_tokenizer_path=embedded_folder() / "nano" / TOKENIZER,
            recipe=recipe.name,
            transform=recipe_transform(recipe, calibrate(traced, recipe, layout, inputs)),
            card=card,
            traced=traced,
        )
    return {"written": list(recipes)}, lambda _: {}


if __name__ == "__main__":
    serve(start)
