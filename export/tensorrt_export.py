r"""From checkpoints to a measured bundle of the "tensorrt" flavour: the work behind ``python -m export onnx --flavour tensorrt``.

    python -m export onnx --flavour tensorrt --recipe int8,mmu_extend=int4 --unified runs/unified --tokenizer runs/tokenizer \
        --encoders runs/encoders --text tokenizer.json --out bundles/nano-orin

Neither a GPU nor TensorRT is needed.  What is written has passed the parser's rules (:mod:`export.tensorrt.parser_rules`), and its parity
with PyTorch was measured on ONNX Runtime's CPU provider, where TensorRT's own operators have stand-ins (:mod:`export.tensorrt.fallbacks`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from export.bundle_writer import GraphForm, Traced, check_place, trace_all, write_bundle
from export.export_request import ExportRequest
from export.graph.trace import Models
from export.onnx_export import least_bytes, prepared, with_system_prompt
from export.quantize.calibration import Calibrator, save_scratch
from export.quantize.quantize import Calibration
from export.tensorrt.fallbacks import runnable
from export.tensorrt.graphs import FLAVOUR, TensorRTOptions, tensorrt_graph
from export.tensorrt.recipes import layers_of
from export.verify.census import census_rows
from export.verify.parity import Inputs, generate, measure, understand
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.layout import TokenLayout


def tensorrt_form(configuration: ModelConfiguration, options: TensorRTOptions, calibration: Calibration | None = None) -> GraphForm:
    """What :func:`export.bundle_writer.write_bundle` writes for each graph of this flavour."""

    def form(name: str, traced: ir.Model) -> tuple[ir.Model, str, dict[str, Any]]:
        model = tensorrt_graph(name, traced, configuration, options, calibration)
        return model, options.recipes[name].name, options.to_json(name)

    return form


def calibrated(traced: Traced, options: TensorRTOptions, layout: TokenLayout, inputs: Inputs) -> Calibration | None:
    """Largest activations of the layers that ``options`` quantises, from whole decodings and answers; None where no recipe asks."""
    wanted = [recipe for recipe in options.recipes.values() if recipe.calibrated]
    if not wanted:
        return None
    with Calibrator(traced, layers_of(wanted[0])) as calibrator:
        generate(calibrator, layout, inputs)
        understand(calibrator, tuple(traced), layout, inputs)
    calibrator.check()
    return calibrator.figures


def write_runnable(folder: Path, traced: Traced, form: GraphForm) -> dict[str, str]:
    """The same graphs for ONNX Runtime, TensorRT's own operators by their stand-ins; returns each graph's precision."""
    precision = {}
    for name, original in traced.items():
        model, precision[name], _ = form(name, original)
        save_scratch(runnable(model), folder / f"{name}.onnx")
    return precision


def measured(models: Models, traced: Traced, form: GraphForm, layout: TokenLayout, inputs: Inputs) -> dict[str, Any]:
    """Parity and census for the manifest, of graphs whose sizes are open: pinning folds sizes and nothing else."""
    with tempfile.TemporaryDirectory(prefix="f2edge-tensorrt-") as scratch:
        precision = write_runnable(Path(scratch), traced, form)
        figures = measure(Path(scratch), models, layout, inputs, precision=precision)
    figures["parity"]["measured_on"] = "ONNX Runtime, CPU; operators of TensorRT by stand-ins; not run on a GPU"
    if models.transformer is not None:
        figures["experts"]["alive"] = {name: census_rows(model.graph, name, models.transformer) for name, model in traced.items()}
    return figures


def export_tensorrt(
    models: Models,
    request: ExportRequest,
    options: TensorRTOptions,
    *,
    traced: Traced | None = None,
    progress: Callable[[str], None] = print,
) -> Path:
    """Export one model in this flavour.

    Args:
        models: the trained parts.
        request: see :class:`export.export_request.ExportRequest`.
        options: see :class:`export.tensorrt.graphs.TensorRTOptions`.
        traced: the graphs of ``models`` where they are at hand.
        progress: told what happens.

    Raises:
        InputError: a part is missing or does not fit, or the bundle is too large.
        UnreadableGraphError: a graph that the target TensorRT would not take.
        LostExpertError: a graph routes otherwise than PyTorch.
        OutputError: the folder cannot be written.
    """
    check_place(request.out, least_bytes(models, [options.recipes[graph].name for graph in models.graphs]))
    models = with_system_prompt(models, request.text)
    card, layout, inputs = prepared(models.configuration, request)
    graphs = traced or trace_all(models, progress)
    if any(recipe.calibrated for recipe in options.recipes.values()):
        progress("calibrating")
    calibration = calibrated(graphs, options, layout, inputs)

    def figures(_folder: Path, _document: dict[str, Any]) -> Mapping[str, Any]:
        open_form = tensorrt_form(models.configuration, replace(options, images=None), calibration)
        return measured(models, graphs, open_form, layout, inputs)

    return write_bundle(
        request.out,
        models=models,
        text_tokenizer_path=request.text,
        card=card,
        traced=graphs,
        form=tensorrt_form(models.configuration, options, calibration),
        flavour=FLAVOUR,
        largest_bytes=request.largest_bytes,
        measure=figures,
        progress=progress,
    )
