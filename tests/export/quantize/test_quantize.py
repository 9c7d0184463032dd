"""Quantization on hand-made graphs and tables: error bounds, rows that never see their neighbours, saturation, what stays fp32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.graph.lower import CONTRIB, OPSET, Array
from export.quantize.quantize import RECIPES, quantize, quantize_columns, quantize_rows, recipe_named, smoothing
from f2edge.errors import InputError


def model_of(text: str, **constants: Array) -> ir.Model:
    """A graph from ONNX text, with constants by name."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {OPSET}]> {text}')
    values = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in constants.items():
        value = values[name]
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    return model


def linear(weight: Array, name: str = "w") -> ir.Model:
    K, N = weight.shape
    return model_of(f"g (float[B,S,{K}] x) => (float[B,S,{N}] y) {{ y = MatMul (x, {name}) }}", **{name: weight})


def run(model: ir.Model, **feeds: Array) -> Array:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: Array = session.run(None, feeds)[0]
    return outputs


def operators(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph}


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6), st.sampled_from([64, 127]))
def test_column_codes_are_within_half_a_step(seed: int, size: float, limit: int) -> None:
    weight = (np.random.default_rng(seed).standard_cauchy((5, 7)) * size).astype(np.float32)
    codes, scale = quantize_columns(weight, limit)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= limit
    assert (np.abs(codes * scale - weight) <= scale * 0.5001).all()


def test_row_codes_keep_a_small_row_beside_a_large_one() -> None:
    table = np.array([[1e-3, -2e-3], [5e2, 1e2]], dtype=np.float32)
    codes, scale = quantize_rows(table)
    assert (np.abs(codes * scale - table) <= np.abs(table).max(axis=1, keepdims=True) / 250).all()


@pytest.mark.parametrize(("recipe", "bound"), [("int8", 0.02), ("int8-vnni", 0.015)])
def test_linear_layers_err_by_little_on_rows_of_very_different_size(recipe: str, bound: float) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(256, 192)).astype(np.float32)
    x = (rng.normal(size=(2, 33, 256)) * np.exp(rng.normal(size=(2, 33, 1)) * 3)).astype(np.float32)
    y = run(quantize(linear(weight), RECIPES[recipe]), x=x)
    wanted = x @ weight
    error = np.linalg.norm(y - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert error.max() < bound


def test_a_row_is_the_same_in_any_company_and_zero_stays_zero() -> None:
    rng = np.random.default_rng(1)
    model = quantize(linear(rng.normal(size=(64, 48)).astype(np.float32)), RECIPES["int8"])
    x = rng.normal(size=(3, 5, 64)).astype(np.float32)
    crowd = np.concatenate([x * 1e4, x, np.zeros_like(x)])
    together = run(model, x=crowd)
    assert np.array_equal(together[3:6], run(model, x=x))
    assert not together[6:].any()
    assert np.isfinite(together).all()


def test_seven_bits_cannot_saturate_sixteen() -> None:
    codes, _ = quantize_columns(np.random.default_rng(2).normal(size=(512, 64)).astype(np.float32) * 9, RECIPES["int8"].weight_limit)
    pairs = 255 * np.abs(codes.astype(np.int64)).reshape(256, 2, 64).sum(axis=1)  # two neighbouring products, the largest activation
    assert pairs.max() <= np.iinfo(np.int16).max
    full, _ = quantize_columns(np.ones((2, 1), dtype=np.float32), RECIPES["int8-vnni"].weight_limit)
    assert 255 * np.abs(full.astype(np.int64)).sum() > np.iinfo(np.int16).max  # why the default does not use them


def test_layers_that_share_an_input_share_its_rows() -> None:
    rng = np.random.default_rng(3)
    text = "g (float[B,64] x) => (float[B,32] y) { a = MatMul (x, v)  b = MatMul (x, w)  y = Add (a, b) }"
    v, w = (rng.normal(size=(64, 32)).astype(np.float32) for _ in range(2))
    model = quantize(model_of(text, v=v, w=w), RECIPES["int8"])
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 1
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in model.graph) == 2
    assert model.graph.opset_imports[CONTRIB] == 1
    x = rng.normal(size=(4, 64)).astype(np.float32)
    assert np.allclose(run(model, x=x), x @ v + x @ w, atol=0.5)


def test_routers_narrow_layers_and_activations_stay_fp32() -> None:
    rng = np.random.default_rng(4)
    for weight, name in (
        (rng.normal(size=(64, 64)), "block.router.weight"),
        (rng.normal(size=(64, 1)), "w"),
        (rng.normal(size=(8, 64)), "w"),
    ):
        safe = name.replace(".", "_")
        model = quantize(linear(weight.astype(np.float32), safe), RECIPES["int8"])
        assert operators(model) == {"MatMul"}
        x = rng.normal(size=(1, 2, weight.shape[0])).astype(np.float32)
        assert np.allclose(run(model, x=x), x @ weight, atol=1e-4)


def test_tables_are_stored_as_codes() -> None:
    rng = np.random.default_rng(5)
    table = (rng.normal(size=(100, 64)) * np.exp(rng.normal(size=(100, 1)))).astype(np.float32)
    model = quantize(model_of("g (int64[B] i) => (float[B,64] y) { y = Gather <axis = 0> (t, i) }", t=table), RECIPES["int8"])
    assert max(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value) == table.size
    i = np.array([0, 99, 5, 5])
    assert np.allclose(run(model, i=i), table[i], atol=np.abs(table[i]).max(axis=1, keepdims=True) / 254 * 1.01)


@pytest.mark.parametrize(("recipe", "bound"), [("int8", 0.02), ("int8-fp16conv", 0.001)])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_are_stored_small_and_computed_in_fp32(recipe: str, bound: float, *, transposed: bool) -> None:
    rng = np.random.default_rng(6)
    weight = (rng.normal(size=(8, 8, 3, 3)) * np.exp(rng.normal(size=(8, 8, 1, 1)))).astype(np.float32)
    op = "ConvTranspose" if transposed else "Conv"
    text = f"g (float[B,8,Y,X] x) => (float[B,8,Z,W] y) {{ y = {op} <pads = [1, 1, 1, 1]> (x, w) }}"
    x = rng.normal(size=(2, 8, 6, 6)).astype(np.float32)
    wanted = run(model_of(text, w=weight), x=x)
    model = quantize(model_of(text, w=weight), RECIPES[recipe])
    assert all(
        value.const_value.dtype != ir.DataType.FLOAT or value.const_value.size <= 8
        for value in model.graph.initializers.values()
        if value.const_value
    )
    assert np.abs(run(model, x=x) - wanted).max() / np.abs(wanted).max() < bound


def test_smoothing_helps_where_channels_differ_and_changes_no_function() -> None:
    rng = np.random.default_rng(7)
    reach = np.exp(rng.normal(size=64) * 2).astype(np.float32)
    weight, x = rng.normal(size=(64, 48)).astype(np.float32), (rng.normal(size=(1, 200, 64)) * reach).astype(np.float32)
    wanted = x @ weight
    errors = {}
    for recipe in ("int8", "int8-smooth"):
        model = quantize(linear(weight), RECIPES[recipe], {"g/w": np.abs(x).max(axis=(0, 1))})
        errors[recipe] = np.linalg.norm(run(model, x=x) - wanted) / np.linalg.norm(wanted)
    assert errors["int8-smooth"] < 0.8 * errors["int8"]


@settings(max_examples=30)
@given(st.lists(st.floats(0, 100, width=32), min_size=6, max_size=6), st.floats(0.1, 0.9))
def test_smoothing_divisors_are_positive_and_centred(values: list[float], alpha: float) -> None:
    largest = np.array(values, dtype=np.float32)
    weight = np.random.default_rng(8).normal(size=(6, 5)).astype(np.float32)
    divisor = smoothing(weight, largest, alpha)
    assert (divisor > 0).all()
    assert np.isfinite(divisor).all()
    assert np.allclose(divisor[largest == 0], 1)


def test_wrong_recipes_are_refused() -> None:
    with pytest.raises(InputError, match="unknown quantization recipe 'int2'; choose one of: fp32, int8"):
        recipe_named("int2")
    with pytest.raises(InputError, match="needs calibration statistics"):
        quantize(linear(np.zeros((64, 64), dtype=np.float32)), RECIPES["int8-smooth"])


def test_fp32_changes_nothing() -> None:
    weight = np.random.default_rng(9).normal(size=(64, 64)).astype(np.float32)
    model = quantize(linear(weight), RECIPES["fp32"])
    assert operators(model) == {"MatMul"}
    x = np.ones((1, 1, 64), dtype=np.float32)
    assert np.array_equal(run(model, x=x), run(linear(weight), x=x))
