r"""Export of a bundle of the "tensorrt" or "cuda" flavour: implementation of ``python -m export onnx --flavour tensorrt``.

    python -m export onnx --flavour tensorrt --recipe int8,mmu_extend=int4 --unified runs/unified --tokenizer runs/tokenizer \
        --encoders runs/encoders --text tokenizer.json --out bundles/nano-orin

Needs neither a GPU nor TensorRT.  The graphs are checked against the parser's rules (:mod:`export.tensorrt.parser_rules`), and parity with
PyTorch is measured on ONNX Runtime's CPU provider, with fallbacks for TensorRT's own operators (:mod:`export.tensorrt.fallbacks`).

"cuda" is the same graphs for ONNX Runtime's CUDA provider: standard operators only, each checked to have a CUDA kernel
(:mod:`export.verify.cuda_kernels`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from export.bundle_writer import GraphTransform, Traced, trace_all, write_bundle
from export.destination import check_destination
from export.export_request import ExportRequest
from export.graph.static_shapes import infer
from export.graph.trace import Models
from export.onnx_export import min_bundle_bytes, prepare_export, with_system_prompt
from export.quantize.calibration import save_scratch
from export.quantize.quantize import Calibration
from export.quantize.requantize import calibrate
from export.tensorrt.fallbacks import runnable
from export.tensorrt.graphs import CUDA, TensorRTOptions, tensorrt_graph
from export.tensorrt.recipes import calibrating
from export.verify.census import census_rows
from export.verify.cuda_kernels import refuse_cpu_operators
from export.verify.parity import SampleInputs, measure
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.layout import TokenLayout


def tensorrt_transform(
    configuration: ModelConfiguration, options: TensorRTOptions, calibration: Calibration | None = None
) -> GraphTransform:
    """Return the transform of this flavour for :func:`export.bundle_writer.write_bundle`."""

    def transform(name: str, traced: ir.Model) -> tuple[ir.Model, str, dict[str, Any]]:
        model = tensorrt_graph(name, traced, configuration, options, calibration)
        if options.flavour == CUDA:
            model = runnable(model, widen=False)
            infer(model)
            refuse_cpu_operators(model)
        return model, options.recipes[name].name, options.to_json(name)

    return transform


def write_runnable(folder: Path, traced: Traced, transform: GraphTransform) -> dict[str, str]:
    """Write the transformed graphs for ONNX Runtime, with fallbacks for TensorRT's own operators; return each graph's precision."""
    precision = {}
    for name, original in traced.items():
        model, precision[name], _ = transform(name, original)
        save_scratch(runnable(model), folder / f"{name}.onnx")
    return precision


def measure_parity(models: Models, traced: Traced, transform: GraphTransform, layout: TokenLayout, inputs: SampleInputs) -> dict[str, Any]:
    """Measure parity and census for the manifest on graphs with dynamic sizes; fixing sizes changes no values."""
    with tempfile.TemporaryDirectory(prefix="f2edge-tensorrt-") as scratch:
        precision = write_runnable(Path(scratch), traced, transform)
        metrics = measure(Path(scratch), models, layout, inputs, precision=precision)
    metrics["parity"]["measured_on"] = "ONNX Runtime, CPU; fallbacks for operators of TensorRT; not run on a GPU"
    if models.transformer is not None:
        metrics["experts"]["alive"] = {name: census_rows(model.graph, name, models.transformer) for name, model in traced.items()}
    return metrics


def export_tensorrt(
    models: Models,
    request: ExportRequest,
    options: TensorRTOptions,
    *,
    traced: Traced | None = None,
    progress: Callable[[str], None] = print,
) -> Path:
    """Export one model as a bundle of this flavour.

    Args:
        models: the trained parts.
        request: see :class:`export.export_request.ExportRequest`.
        options: see :class:`export.tensorrt.graphs.TensorRTOptions`.
        traced: the traced graphs of ``models``, if they exist already.
        progress: called with short messages.

    Raises:
        InputError: a part is missing or does not fit, or the bundle is too large.
        UnreadableGraphError: the target TensorRT cannot read a graph.
        LostExpertError: a graph routes differently from PyTorch.
        OutputError: the folder cannot be written.
    """
    check_destination(request.out, min_bundle_bytes(models, [options.recipes[graph].name for graph in models.graphs]))
    models = with_system_prompt(models, request.text)
    card, layout, inputs = prepare_export(models, request)
    graphs, calibration = traced or trace_all(models, progress), None
    if (recipe := calibrating(options.recipes.values())) is not None:
        progress("calibrating")
        calibration = calibrate(graphs, recipe, layout, inputs)

    def metrics(_folder: Path, _document: dict[str, Any]) -> Mapping[str, Any]:
        dynamic = tensorrt_transform(models.configuration, replace(options, images=None), calibration)
        return measure_parity(models, graphs, dynamic, layout, inputs)

    return write_bundle(
        request.out,
        models=models,
        text_tokenizer_path=request.text,
        card=card,
        traced=graphs,
        transform=tensorrt_transform(models.configuration, options, calibration),
        flavour=options.flavour,
        largest_bytes=request.largest_bytes,
        measure=metrics,
        progress=progress,
    )
