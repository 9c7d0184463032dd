"""Nano and one layer of the paper's size, in every recipe.

The checker of each version that a recipe is for takes the graph, on ONNX Runtime it is near the fp32 graph, and it moves what the roofline
says.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from bench.hardware.roofline_model import cache_bytes, head_bytes, token_cache_bytes
from export.graph.lower import Array
from export.graph.static_shapes import infer
from export.graph.trace import Models, trace
from export.model.transformer import UnifiedTransformer
from export.quantize.quantize import Calibration, layer_name, linear_layers, products_of
from export.tensorrt.fallbacks import runnable
from export.tensorrt.graphs import TensorRTOptions, tensorrt_graph
from export.tensorrt.parser_rules import problems
from export.tensorrt.recipes import RECIPES, layers_of, recipes_of
from export.tensorrt.traffic import traffic
from f2edge.spec.configuration import NANO, PAPER, ModelConfiguration

CONFIGURATIONS = {"nano": NANO, "1.8b": replace(PAPER, layers=1)}
#: Recipe and form → oldest version, and mean error of the logits in parts of their spread (random weights, so four bits drift far).
FORMS = {
    "fp16": ("10.3", 0.01),
    "fp16 plugin": ("10.3", 0.01),
    "fp16 operator": ("11.4", 0.01),
    "int8": ("10.3", 0.1),
    "int4": ("10.3", 0.5),
    "int4-gptq": ("10.3", 0.5),
    "fp8": ("10.3", 0.2),
    "nvfp4": ("10.13", 0.6),
}
VERSIONS = ("10.3", "10.13", "11.4")


@dataclass(frozen=True)
class Case:
    """One traced ``mmu_extend`` with inputs, its answers and its activation statistics."""

    configuration: ModelConfiguration
    model: ir.Model
    feeds: Mapping[str, Array]
    logits: Array
    calibration: Calibration


def run(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    opened = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in opened.get_outputs()], opened.run(None, dict(feeds)), strict=True))


def measured(model: ir.Model, feeds: Mapping[str, Array]) -> tuple[Array, Calibration]:
    """Return the logits, and the inputs' statistics of every linear layer."""
    watched = model.clone()
    layers = linear_layers(watched.graph, layers_of(RECIPES["int4-gptq"]))
    watched.graph.outputs.extend(dict.fromkeys(x for _, x, _, _ in layers))
    seen = run(watched, feeds)
    statistics: dict[str, Array] = {}
    for _, x, weight, values in layers:
        rows, name = seen[str(x.name)].reshape(-1, len(values)), layer_name(watched.graph, weight)
        statistics |= {name: np.abs(rows).max(axis=0), products_of(name): rows.T @ rows}
    return seen["logits"], statistics


@functools.cache
def case_of(size: str) -> Case:
    c = CONFIGURATIONS[size]
    torch.manual_seed(0)
    model = trace("mmu_extend", Models(c, UnifiedTransformer(c)))
    infer(model)
    rng = np.random.default_rng(0)
    image, text = ((c.layers, rows, c.heads, columns, c.head_width) for rows, columns in ((1, c.understanding_columns), (2, 0)))
    feeds = {"text_ids": rng.integers(0, c.text_vocabulary, (2, 6)), "text_lengths": np.array([6, 6])}
    feeds |= {name: rng.normal(size=image).astype(np.float32) for name in ("image_key", "image_value")}
    feeds |= {name: np.zeros(text, np.float32) for name in ("text_key", "text_value")}
    return Case(c, model, feeds, *measured(model, feeds))


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "form"), [*(("nano", form) for form in FORMS), *(("1.8b", form) for form in FORMS if form != "int4-gptq")]
)
def test_every_recipe_is_taken_and_near(size: str, form: str) -> None:
    recipe, *rest = form.split()
    case = case_of(size)
    version, tolerance = FORMS[form]
    options = TensorRTOptions(version, "plugin" if "plugin" in rest else "plain", recipes_of(recipe))
    model = tensorrt_graph("mmu_extend", case.model, case.configuration, options, case.calibration)
    for other in VERSIONS[VERSIONS.index(version) :]:
        assert list(problems(model, other)) == [], other
    found = run(runnable(model), case.feeds)["logits"]
    assert np.abs(found - case.logits).mean() <= tolerance * case.logits.std()
    if rest:
        return
    moved = traffic(model, {"B": 1, "I": 1, "S": 1, "T": 64})
    c = case.configuration
    alone = cache_bytes(c, c.understanding_columns + 3 * 64 + 2)  # the state of a single layer is not stacked
    assert moved.caches == (token_cache_bytes(c, 64) if c.layers > 1 else alone)
    if recipe == "int4" and case.configuration.text_vocabulary % 2:
        head = [value for name, value in model.graph.initializers.items() if name.startswith("model.text_head.weight") and value.uses()]
        stored = sum(value.const_value.nbytes for value in head if value.const_value is not None)
        assert stored == pytest.approx(head_bytes(case.configuration, "int4"), rel=0.02)
