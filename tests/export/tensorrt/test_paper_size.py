"""One layer of the paper's size in every recipe: passes the checker of each version that it is for, and moves what the roofline says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from bench.hardware.roofline_model import head_bytes, token_cache_bytes
from export.graph.static_shapes import infer
from export.graph.trace import Models, trace
from export.model.transformer import UnifiedTransformer
from export.quantize.quantize import layer_name, linear_layers, products_of
from export.tensorrt.graphs import TensorRTOptions, tensorrt_graph
from export.tensorrt.parser_rules import problems
from export.tensorrt.recipes import RECIPES, layers_of, recipes_of
from export.tensorrt.traffic import traffic
from f2edge.spec.configuration import PAPER

ONE = replace(PAPER, layers=1)
#: Recipe and experts → oldest version.
FORMS = {"fp16": "10.3", "fp16 plugin": "10.3", "int8": "10.3", "int4": "10.3", "fp8": "10.3", "nvfp4": "10.13", "fp16 operator": "11.4"}


@pytest.fixture(scope="module")
def traced() -> dict[str, ir.Model]:
    torch.manual_seed(0)
    models = Models(ONE, UnifiedTransformer(ONE))
    graphs = {name: trace(name, models) for name in ("t2i_step", "mmu_extend")}
    for model in graphs.values():
        infer(model)
    return graphs


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("graph", ["t2i_step", "mmu_extend"])
def test_one_layer_passes_the_checker_in_every_recipe(traced: dict[str, ir.Model], graph: str, form: str) -> None:
    recipe, *rest = form.split()
    statistics = {}
    for _, _, weight, values in linear_layers(traced[graph].graph, layers_of(RECIPES["int8"])):
        name = layer_name(traced[graph].graph, weight)
        statistics |= {name: np.full(len(values), 3, np.float32), products_of(name): np.eye(len(values), dtype=np.float32)}
    options = TensorRTOptions(FORMS[form], "plugin" if "plugin" in rest else "plain", recipes_of(recipe))
    model = tensorrt_graph(graph, traced[graph], ONE, options, statistics)
    for version in ("10.3", "10.13", "11.4"):
        if tuple(map(int, version.split("."))) >= options.target:
            assert list(problems(model, version)) == [], version
    if graph == "mmu_extend" and "plugin" not in rest:
        moved = traffic(model, {"B": 1, "I": 1, "S": 1, "T": 64})
        assert moved.caches == token_cache_bytes(ONE, 64)
        if recipe == "int4":
            head = [value for value in model.graph.initializers.values() if str(value.name).startswith("model.text_head.weight")]
            stored = sum(value.const_value.nbytes for value in head if value.const_value is not None and value.uses())
            assert stored == pytest.approx(head_bytes(ONE, "int4"), rel=0.02)
