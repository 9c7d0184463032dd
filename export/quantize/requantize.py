"""A bundle in fp32 once more by another recipe, without PyTorch and without tracing: its graphs are the lowered ones.

>>> requantise(Path("runs/fp32/nano"), Path("runs/int4/nano"), "int4")  # doctest: +SKIP
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir

from export.bundle_writer import recipe_form, replaced_folder, write_graphs
from export.quantize.calibration import Calibrator
from export.quantize.quantize import Calibration
from export.quantize.recipes import Recipe, recipe_named
from export.verify.parity import Inputs, generate, understand
from f2edge.bundle.bundle import TOKENIZER, Bundle, write_manifest
from f2edge.errors import InputError


def fp32_graphs(bundle: Path) -> dict[str, ir.Model]:
    """The lowered graphs of a bundle by name, their constants mapped from its file of weights.

    Raises:
        InputError: a graph of the bundle is quantised already.
    """
    graphs = {}
    for name, graph in Bundle.load(bundle).manifest.graphs.items():
        if graph.precision != "fp32":
            raise InputError(f"bundle {bundle}: graph {name!r} is {graph.precision}; export it with --recipe fp32 first")
        graphs[name] = ir.load(bundle / graph.file)
        graphs[name].graph.name = name
    return graphs


def calibration_of(graphs: dict[str, ir.Model], bundle: Bundle, inputs: Inputs, recipe: Recipe) -> Calibration | None:
    """Figures for a recipe that needs them, from whole decodings, pictures and questions; None for any other.

    Raises:
        InputError: no prompts, pictures or questions, or decodings without early and late steps and both branches of guidance.
    """
    if not recipe.calibrated:
        return None
    if not (len(inputs.prompts) and len(inputs.questions) and len(inputs.pixels)):
        raise InputError(
            f"recipe {recipe.name!r} needs calibration data: prompts, questions and pictures (got {len(inputs.prompts)}, "
            f"{len(inputs.questions)} and {len(inputs.pixels)}); give at least one of each, or choose 'int8' or 'int4'"
        )
    with Calibrator(graphs, recipe) as calibrator:
        generate(calibrator, bundle.layout, inputs)
        understand(calibrator, tuple(graphs), bundle.layout, inputs)
    calibrator.check()
    return calibrator.figures


def requantise(bundle: Path, out: Path, recipe: str, inputs: Inputs | None = None) -> Path:
    """Write ``bundle``, which is in fp32, by ``recipe`` into the folder ``out``.

    Args:
        bundle: folder of a bundle exported with ``--recipe fp32``.
        out: the new bundle's folder; an existing one is replaced when the new one is whole.
        recipe: a name of :data:`export.quantize.recipes.RECIPES`.
        inputs: real ones, for recipes that need calibration.

    Raises:
        InputError: an unknown recipe, a bundle that is not fp32, or missing calibration data.
        OutputError: the place cannot be written.
    """
    chosen, loaded, graphs = recipe_named(recipe), Bundle.load(bundle), fp32_graphs(bundle)
    nothing = Inputs([], [], np.zeros((0, 3, 1, 1), dtype=np.float32), [])
    figures = calibration_of(graphs, loaded, inputs or nothing, chosen)
    with replaced_folder(out) as folder:
        shutil.copyfile(bundle / TOKENIZER, folder / TOKENIZER)
        document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        own = ("files", "parity", "experts", "smoke", "quality", "graphs")
        rest = {name: value for name, value in document.items() if name not in own}
        graph_rows = write_graphs(folder, graphs, recipe_form(chosen, figures))
        write_manifest(folder, rest | {"name": out.name, "graphs": graph_rows})
    return out
