"""Quantization of a bundle that was exported in fp32, without its checkpoints and without tracing.

>>> requantize(Path("runs/fp32/nano"), Path("runs/int4/nano"), "int4")  # doctest: +SKIP
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from export.bundle_writer import recipe_transform, write_graphs
from export.destination import replaced_folder
from export.quantize.calibration import Calibrator
from export.quantize.quantize import Calibration
from export.quantize.recipes import Recipe, recipe_named
from export.verify.parity import SampleInputs, generate, understand
from f2edge.bundle.bundle import TOKENIZER, Bundle, write_manifest
from f2edge.errors import InputError
from f2edge.spec.layout import TokenLayout


def fp32_graphs(bundle: Path) -> dict[str, ir.Model]:
    """Return the lowered graphs of a bundle by name, with constants mapped from its weights file.

    Raises:
        InputError: a graph of the bundle is already quantized.
    """
    graphs = {}
    for name, graph in Bundle.load(bundle).manifest.graphs.items():
        if graph.precision != "fp32":
            raise InputError(f"bundle {bundle}: graph {name!r} is {graph.precision}; export it with --recipe fp32 first")
        graphs[name] = ir.load(bundle / graph.file)
        graphs[name].graph.name = name
        passes.ShapeInferencePass()(graphs[name])  # a file keeps the shapes of inputs and outputs alone; faster forms need those between
    return graphs


#: Graphs of the transformer; those around it see pictures only.
TRANSFORMER = ("t2i_prefill", "t2i_step", "mmu_prefill", "mmu_extend")

#: Guidance of calibration's decodings for a model that is drawn with none.
_GUIDANCE = 1.0


def calibrate(graphs: Mapping[str, ir.Model], recipe: Recipe, layout: TokenLayout, inputs: SampleInputs) -> Calibration | None:
    """Measure the activation statistics that a recipe needs, on whole decodings, pictures and questions.

    Pictures are enough for a recipe that calibrates only graphs around the transformer.

    Returns:
        The statistics; None if the recipe needs none.

    Raises:
        InputError: no prompts, pictures or questions, or decodings without early and late steps.
    """
    if not recipe.calibrated:
        return None
    calibrated = {graph for graph in graphs if recipe.of(graph).reads_statistics}
    around = tuple(graph for graph in graphs if graph not in TRANSFORMER)
    if calibrated <= set(around) and len(inputs.pixels):  # then whole decodings and answers would tell nothing
        with Calibrator(graphs, recipe) as calibrator:
            understand(calibrator, around, layout, inputs)
        return calibrator.statistics
    if not (len(inputs.prompts) and len(inputs.questions) and len(inputs.pixels)):
        raise InputError(
            f"recipe {recipe.name!r} needs calibration data: prompts, questions and pictures (got {len(inputs.prompts)}, "
            f"{len(inputs.questions)} and {len(inputs.pixels)}); give at least one of each, or choose 'int8' or 'int4'"
        )
    with Calibrator(graphs, recipe) as calibrator:
        schedule = inputs.schedule
        if not schedule.guidance:  # a student draws without, and can be guided all the same
            schedule = replace(schedule, guidance=_GUIDANCE)
        generate(calibrator, layout, replace(inputs, schedule=schedule))
        understand(calibrator, tuple(graphs), layout, inputs)
    calibrator.check()
    return calibrator.statistics


def requantize(bundle: Path, out: Path, recipe: str, inputs: SampleInputs | None = None) -> Path:
    """Quantize an fp32 bundle by ``recipe`` and write it to ``out``, without quality and parity metrics.

    Args:
        bundle: folder of a bundle exported with ``--recipe fp32``.
        out: folder of the new bundle; an existing bundle is replaced when the new one is complete.
        recipe: a name of :data:`export.quantize.recipes.RECIPES`.
        inputs: calibration data, for recipes that need it.

    Raises:
        InputError: an unknown recipe, a bundle that is not fp32, or missing calibration data.
        OutputError: the folder cannot be written.
    """
    chosen, loaded, graphs = recipe_named(recipe), Bundle.load(bundle), fp32_graphs(bundle)
    nothing = SampleInputs([], [], np.zeros((0, 3, 1, 1), dtype=np.float32), [])
    calibration = calibrate(graphs, chosen, loaded.layout, inputs or nothing)
    with replaced_folder(out) as folder:
        shutil.copyfile(bundle / TOKENIZER, folder / TOKENIZER)
        document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        own = ("files", "parity", "experts", "smoke", "quality", "graphs")
        rest = {name: value for name, value in document.items() if name not in own}
        graph_rows = write_graphs(folder, graphs, recipe_transform(chosen, calibration))
        write_manifest(folder, rest | {"name": out.name, "graphs": graph_rows})
    return out
