"""Four-bit weights: what the blocks stand for, what the kernel makes of them, and that minding the data pays."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.graph.lower import Array, add_constant
from export.quantize.quantize import products_of, quantize
from export.quantize.recipes import RECIPES, recipe_named
from export.quantize.weight_only import METHODS, from_blocks, to_blocks
from f2edge.errors import InputError
from tests.export.quantize.test_quantize import linear, operators, run


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 150), st.integers(1, 9)), st.sampled_from([16, 32, 128]), st.floats(1e-3, 1e3),
    st.sampled_from(METHODS),
)  # fmt: skip
def test_blocks_stand_for_weights_within_a_step(seed: int, shape: tuple[int, int], block: int, size: float, method: str) -> None:
    rng, (K, N) = np.random.default_rng(seed), shape
    weight = (rng.standard_t(5, size=(K, N)) * size).astype(np.float32)
    weight[: rng.integers(0, K + 1)] *= rng.integers(0, 2)  # whole blocks of zeros
    blocks = to_blocks(weight, block, method, np.eye(K, dtype=np.float32))
    G = -(-K // block)
    assert (blocks.codes.shape, blocks.scales.shape, blocks.zeros.shape) == ((N, G, block // 2), (N, G), (N, (G + 1) // 2))
    found = from_blocks(blocks, K)
    assert found.shape == weight.shape
    assert np.isfinite(found).all()
    steps = np.repeat(blocks.scales, block, axis=1)[:, :K].T
    clipped = 0.36 * 15 * steps if method == "gptq" else 0  # a narrower grid cuts the ends of a block off
    assert (np.abs(found - weight) <= 1.01 * steps + clipped + 1e-6 * size).all()


def correlated(rng: np.random.Generator, count: int, K: int) -> Array:
    mixing = rng.normal(size=(K, K)) * np.exp(rng.normal(size=K))
    return (rng.normal(size=(count, K)) @ mixing).astype(np.float32)


@pytest.mark.parametrize("block", [32, 128])
def test_gptq_halves_the_error_on_what_really_flows(block: int) -> None:
    rng = np.random.default_rng(0)
    weight, seen, fresh = rng.normal(size=(256, 96)).astype(np.float32), *np.split(correlated(rng, 4000, 256), 2)
    error = {}
    for method in METHODS:
        found = from_blocks(to_blocks(weight, block, method, seen.T @ seen), 256)
        error[method] = np.linalg.norm(fresh @ (found - weight)) / np.linalg.norm(fresh @ weight)
    assert error["gptq"] < 0.6 * error["rtn"] < 0.1


@pytest.mark.parametrize(("recipe", "bound"), [("int4", 0.1), ("int4-gptq", 0.06), ("int4-128", 0.11)])
def test_a_linear_layer_runs_on_four_bits_and_rows_keep_to_themselves(recipe: str, bound: float) -> None:
    rng = np.random.default_rng(1)
    weight, x = rng.normal(size=(256, 96)).astype(np.float32), correlated(rng, 600, 256).reshape(2, 300, 256)
    flat = x.reshape(-1, 256)
    model = quantize(linear(weight), RECIPES[recipe], {products_of("g/w"): flat.T @ flat})
    assert operators(model) == {"MatMulNBits"}
    wanted, found = x @ weight, run(model, x=x)
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < bound
    for row in (0, 1, 150, 299):
        alone = run(model, x=x[:1, row : row + 1])
        assert np.allclose(alone[0, 0], found[0, row], rtol=1e-4, atol=1e-4 * np.abs(found[0, row]).max())


def test_the_bias_is_added_by_the_product() -> None:
    rng = np.random.default_rng(3)
    x, weight, bias = (rng.normal(size=size).astype(np.float32) for size in ((2, 5, 64), (64, 96), (96,)))
    alone = run(quantize(linear(weight), RECIPES["int4"]), x=x)
    for last in ("y", "logits"):
        model = linear(weight)
        graph, (product,) = model.graph, model.graph
        total = ir.node("Add", [product.outputs[0], add_constant(graph, "bias", bias)])
        graph.append(total)
        graph.outputs[:] = [total.outputs[0]]
        total.outputs[0].name, total.outputs[0].type = last, ir.TensorType(ir.DataType.FLOAT)
        assert operators(quantize(model, RECIPES["int4"])) == {"MatMulNBits"}
        assert graph.outputs[0].name == last
        assert np.allclose(run(model, x=x), alone + bias, atol=1e-6)


def test_layers_that_must_stay_higher_are_int8() -> None:
    weight = np.random.default_rng(2).normal(size=(64, 64)).astype(np.float32)
    careful = RECIPES["int4-careful"].higher
    assert careful is not None
    for layer, raised in (("blocks.3.attention.input.weight.T", True), ("t2i_step/head.weight.T", True), ("text_head.weight.T", True),
                          ("blocks.3.attention.output.weight.T", False), ("blocks.1.experts.t2i.up.weight.T", False)):  # fmt: skip
        assert (re.search(careful, layer) is not None) == raised
    recipe = replace(RECIPES["int4"], higher=r"/w$")
    assert "MatMulIntegerToFloat" in operators(quantize(linear(weight), recipe))
    assert "MatMulNBits" in operators(quantize(linear(weight, "v"), recipe))


def test_missing_calibration_unknown_methods_and_blocks_are_refused() -> None:
    weight = np.zeros((64, 64), dtype=np.float32)
    with pytest.raises(InputError, match=r"recipe 'int4-gptq': no calibration statistics for g/w of graph 'g'; .* \('int8', 'int4'\)"):
        quantize(linear(weight), RECIPES["int4-gptq"])
    with pytest.raises(InputError, match="gptq needs calibration statistics"):
        to_blocks(weight, 32, "gptq")
    for block, method in ((33, "rtn"), (32, "awq")):
        with pytest.raises(InputError, match="unknown method"):
            to_blocks(weight, block, method)


def test_recipes_name_others_for_some_graphs() -> None:
    mixed = recipe_named("mixed")
    assert [mixed.of(graph).label for graph in ("t2i_step", "mmu_prefill", "mmu_extend", "image_decode")] == [
        "int8",
        "int8",
        "int4",
        "int8",
    ]
    assert RECIPES["int4"].of("semantic").label == "int8"
    calibrated = {name for name, recipe in RECIPES.items() if recipe.calibrated}
    fixed, computed = {"int8-fixed", "int8-step"}, {"int8-computed", "int8-decoder", "int4-128-computed"}
    assert calibrated == {*fixed, *computed, "int8-smooth", "int4-gptq", "int4-careful"}
    for recipe in RECIPES.values():
        assert all(other in RECIPES for other in recipe.graphs.values())
        assert recipe.to_json()["name"] == recipe.name
    graph = quantize(linear(np.ones((64, 64), dtype=np.float32)), mixed).graph
    assert any(node.op_type == "MatMulIntegerToFloat" for node in graph)


def test_a_session_takes_scales_that_are_stored_as_halves() -> None:
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(512, 512)).astype(np.float32)
    model = quantize(linear(weight), RECIPES["int4"])
    stored = {name: value.const_value.dtype for name, value in model.graph.initializers.items() if value.const_value is not None}
    assert stored["w.int4.scales.float16"] == ir.DataType.FLOAT16
    x = rng.normal(size=(1, 3, 512)).astype(np.float32)
    found = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    assert np.linalg.norm(found - x @ weight) / np.linalg.norm(x @ weight) < 0.1
