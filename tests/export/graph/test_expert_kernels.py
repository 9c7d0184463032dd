"""Forms of the token-level experts: every form is the slow mixture, rows know nothing of each other, and a lost expert is found in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from bench.hardware.expert_kernels import expert_kernels, measure, mixture
from export.graph.expert_kernels import apply_expert_kernels, best_kernel, expert_layers
from export.graph.lower import Array, LoweringError, constant, lower
from export.graph.stored_weights import stored_expert
from export.graph.trace import Models, _export, restore_names
from export.model.experts import TokenExpertLayer
from export.model.reference import chosen_gates, token_experts
from export.quantize.quantize import quantize
from export.quantize.recipes import RECIPES, Recipe
from export.verify.census import LostExpertError, census, find_routers
from f2edge.errors import InputError
from f2edge.spec.configuration import TokenExperts
from tests.support.tiny_model import TINY

WIDTH = 64
SHAPE = TokenExperts(shared_width=64, routed=4, routed_width=32, active=2)

FP32 = Recipe("fp32", precision="float32", tables=False, convolutions="float32")
#: Recipe and form → largest relative error of a mixture against the slow one; the experts chosen are the same in all of them.
TOLERANCES: Mapping[str, tuple[Recipe, float]] = {
    "fp32 dense": (replace(FP32, experts="dense"), 1e-5),
    "fp32 gathered": (replace(FP32, experts="gathered"), 1e-5),
    "int8 dense": (replace(RECIPES["int8"], experts="dense"), 0.02),
    "int8 gathered": (replace(RECIPES["int8"], experts="gathered"), 0.02),
    "int8-vnni gathered": (replace(RECIPES["int8-vnni"], experts="gathered"), 0.015),
    "int4 dense": (replace(RECIPES["int4"], experts="dense"), 0.12),
    "int4 fused": (replace(RECIPES["int4"], experts="fused"), 0.12),
    "int4-128 gathered": (replace(RECIPES["int4-128"], experts="gathered"), 0.14),
}


class _Holder(nn.Module):
    """A mixture under the name that it has in a whole model."""

    def __init__(self, layer: TokenExpertLayer) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"experts": nn.ModuleDict({"t2i": layer})})])})
        self.layer = [layer]

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer[0](x, x)[0]
        return output


@pytest.fixture(scope="module")
def layer() -> TokenExpertLayer:
    torch.manual_seed(0)
    made = TokenExpertLayer(WIDTH, SHAPE).eval().requires_grad_(requires_grad=False)
    made.router.weight.mul_(4)
    return made


@pytest.fixture(scope="module")
def traced(layer: TokenExpertLayer) -> ir.Model:
    holder = _Holder(layer)
    model = _export(holder, {"x": torch.randn(3, 4, WIDTH)}, {"x": ("B", "S", WIDTH), "y": ("B", "S", WIDTH)}, ["y"])
    restore_names(model, holder)
    model = lower(model)
    model.graph.name = "t2i_step"
    return model


@pytest.fixture(scope="module")
def rows() -> Array:
    return np.random.default_rng(1).normal(size=(5, 7, WIDTH)).astype(np.float32)


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", list(TOLERANCES))
def test_every_form_is_the_slow_mixture(name: str, traced: ir.Model, layer: TokenExpertLayer, rows: Array) -> None:
    recipe, tolerance = TOLERANCES[name]
    model = quantize(traced.clone(), recipe)
    taken_apart = {"Split", "Concat"} <= {node.op_type for node in model.graph}
    assert taken_apart == (name == "fp32 dense"), "gates are multiplied at once, or by expert"
    (choice,) = find_routers(model.graph).values()
    choice.dtype = ir.DataType.INT64
    model.graph.outputs.append(choice)
    found, chosen = session(model).run(None, {"x": rows})
    x = torch.from_numpy(rows)
    wanted = token_experts(layer, x).numpy()
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < tolerance
    for token, experts in zip(x.reshape(-1, WIDTH), np.asarray(chosen).reshape(-1, 2), strict=True):
        assert set(experts.tolist()) == set(chosen_gates(layer.router, token))


@pytest.mark.parametrize("name", list(TOLERANCES))
def test_a_row_is_the_same_in_any_company(name: str, traced: ir.Model, rows: Array) -> None:
    recipe, _ = TOLERANCES[name]
    run = session(quantize(traced.clone(), recipe)).run
    together = run(None, {"x": rows})[0]
    for row in range(len(rows)):
        alone = run(None, {"x": rows[row : row + 1]})[0]
        if recipe.precision == "int8":  # sums of integers: nothing rounds otherwise in another company
            assert np.array_equal(together[row : row + 1], alone)
        assert np.allclose(together[row : row + 1], alone, atol=1e-5)


@pytest.mark.parametrize("name", list(TOLERANCES))
def test_experts_that_nobody_chooses_cost_no_answer(name: str, traced: ir.Model, layer: TokenExpertLayer, rows: Array) -> None:
    recipe, tolerance = TOLERANCES[name]
    one = rows[:1, :1]  # two of four experts have no row at all
    found = session(quantize(traced.clone(), recipe)).run(None, {"x": one})[0]
    wanted = token_experts(layer, torch.from_numpy(one)).numpy()
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 2 * tolerance


@pytest.mark.parametrize("name", list(TOLERANCES))
@pytest.mark.parametrize("part", ["up", "down"])
def test_an_expert_is_read_back_from_every_form_and_missed_when_lost(
    name: str, part: str, traced: ir.Model, layer: TokenExpertLayer
) -> None:
    recipe, axis, hidden = TOLERANCES[name][0], 1 if part == "up" else 0, layer.slice_of(2)
    graph = quantize(traced.clone(), recipe).graph
    weight = (layer.up if part == "up" else layer.down).weight.numpy().T
    wanted = weight[:, hidden] if axis else weight[hidden]
    stored = stored_expert(graph, f"blocks.0.experts.t2i.{part}.weight", 2, hidden, axis)
    assert stored is not None
    assert stored.coarse == (recipe.precision == "int4")
    assert np.abs(stored.values - wanted).max() < (0.15 if stored.coarse else 0.01) * np.abs(weight).max()


def test_the_table_gathers_wide_int8_and_fuses_wide_int4(traced: ir.Model) -> None:
    (narrow,) = expert_layers(traced.graph)
    assert (narrow.experts, narrow.active, narrow.shared, narrow.routed, narrow.width) == (4, 2, 64, 32, 64)
    (wide,) = expert_layers(mixture(1024, SHAPE).graph)
    for recipe, form in (("fp32", "dense"), ("int8", "gathered"), ("int4", "fused")):
        for graph in ("t2i_step", "mmu_extend"):
            assert best_kernel(narrow, graph, RECIPES[recipe]) == "dense"
            assert best_kernel(wide, graph, RECIPES[recipe]) == form
    assert best_kernel(wide, "mmu_extend", RECIPES["int4-128"]) == "dense"  # QMoE wants whole blocks
    with pytest.raises(InputError, match="unknown expert kernel 'sparse'; choose one of: dense, gathered, fused"):
        best_kernel(narrow, "t2i_step", replace(FP32, experts="sparse"))
    assert apply_expert_kernels(traced.clone(), RECIPES["int8"], lambda *_: pytest.fail("packs")) == {"model.blocks.0.experts.t2i": "dense"}


def test_forms_are_timed_and_a_model_without_experts_is_refused() -> None:
    rows = measure(WIDTH, SHAPE, [1, 5], threads=1, seconds=0)
    assert {(row["recipe"], row["kernel"]) for row in rows} >= {("int8", "gathered"), ("int4", "fused"), ("fp32", "dense")}
    assert all(ms > 0 for row in rows for ms in row["ms"].values())
    with pytest.raises(InputError, match="configuration 'show-o' has no routed experts; choose one of: nano"):
        expert_kernels(config="show-o")
    with pytest.raises(InputError, match="--rows 'x': write whole numbers"):
        expert_kernels(rows=["1,x"])


def test_experts_of_another_shape_are_refused(traced: ir.Model) -> None:
    model = traced.clone()
    gelu = next(node for node in model.graph if node.op_type == "Gelu")
    model.graph.outputs.append(gelu.outputs[0])
    relu = ir.node("Relu", [gelu.inputs[0]])
    model.graph.insert_before(gelu, relu)
    gelu.outputs[0].replace_all_uses_with(relu.outputs[0], replace_graph_outputs=True)
    with pytest.raises(LoweringError, match="expected one Gelu; the experts were traced in an unknown pattern"):
        list(expert_layers(model.graph))


@pytest.mark.parametrize(("recipe", "form"), [("int8", None), ("int8", "gathered"), ("int4", None), ("int4", "fused"), ("int4-128", None)])
@pytest.mark.parametrize("graph", ["t2i_step", "mmu_extend"])
def test_every_expert_is_alive_in_every_form_and_a_lost_one_fails_the_census(
    recipe: str, form: str | None, graph: str, tiny_bundle: Path, tiny_models: Models
) -> None:
    transformer = tiny_models.transformer
    assert transformer is not None
    model = ir.load(tiny_bundle / f"{graph}.onnx")
    model.graph.name = graph
    written = quantize(model, replace(RECIPES[recipe], experts=form)).graph
    rows = census(written, graph, transformer)
    assert all(row.alive == (0, 1, 2, 3) for row in rows)
    group = graph.split("_", maxsplit=1)[0]
    lost = _lose(written, f"blocks.1.experts.{group}", 3)
    with pytest.raises(LostExpertError, match=rf"blocks\.1\.experts\.{group} lost experts \[3\] of 4"):
        census(written, graph, transformer)
    assert lost


def _lose(graph: ir.Graph, mixture: str, expert: int) -> str:
    """Make an expert's up-projection zero, as tracing without it would; returns the constant's name."""
    I, first = TINY.token_experts.routed_width, TINY.token_experts.shared_width
    for name, value in graph.initializers.items():
        held = constant(value)
        if held is None or f"{mixture}.up.weight.T" not in name or name.split("weight.T")[1].split(".")[-1] not in ("int8", "scales"):
            continue
        array, form = np.array(held), name.split("weight.T.")[1]
        if form.startswith("fused"):
            array[expert] = 0
        elif form.startswith(f"e{expert}."):
            array[...] = 0
        elif form == "int8":
            array[:, first + I * expert : first + I * (expert + 1)] = 0
        elif form == "int4.scales":
            array[first + I * expert : first + I * (expert + 1)] = 0
        else:
            continue
        value.const_value = ir.tensor(array)
        return name
    return ""
