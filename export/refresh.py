"""Newer forms of the decoding step for a bundle that was exported before, with the same tokens and the same weights file.

>>> refresh(Path("f2edge/bundles/nano"))  # doctest: +SKIP
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir

from export.bundle_writer import shorten
from export.graph.masked_rows import draw_masked
from f2edge.bundle.bundle import Bundle, write_manifest
from f2edge.errors import InputError
from f2edge.spec.graphs import T2I_STEP


def refresh(folder: Path) -> None:
    """Rewrite ``t2i_step`` of a bundle so that it draws masked positions alone, and seal the bundle again.

    Raises:
        InputError: the bundle is for another runtime, or its step is standard ONNX in fp32.
    """
    bundle = Bundle.load(folder)
    graph = bundle.manifest.graphs[T2I_STEP.name]
    if bundle.manifest.flavour != "onnxruntime" or graph.precision == "fp32":
        raise InputError(f"bundle {folder}: only quantized graphs for ONNX Runtime on a CPU have newer forms; export it again instead")
    file = folder / graph.file
    model = ir.load(file)
    model.graph.name = T2I_STEP.name
    model = draw_masked(model)
    shorten(model)
    unfinished = file.with_name(f".{file.name}")
    ir.save(model, unfinished)
    unfinished.replace(file)
    write_manifest(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
