"""Convolutions computed in int8: close to fp32 within their ranges, exact at the border, and only where the recipe says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.graph.lower import Array
from export.graph.trace import Models, trace
from export.model.magvit2 import Magvit2Tokenizer
from export.quantize.calibration import Calibrator
from export.quantize.convolutions import REACH, range_of, ranges
from export.quantize.quantize import layer_name, quantize
from export.quantize.recipes import Recipe
from f2edge.errors import InputError
from f2edge.spec.configuration import SHOW_O
from tests.export.quantize.test_quantize import model_of, operators, run
from tests.support.small_showo import SMALL_TOKENIZER

COMPUTED = Recipe("computed", convolutions="computed", weight_limit=127)


def convolution(weight: Array, bias: Array, stride: int = 1) -> ir.Model:
    K, C = weight.shape[:2]
    text = (
        f"g (float[B,{C},Y,X] x) => (float[B,{K},V,U] y) "
        f"{{ y = Conv <pads = [1, 1, 1, 1], strides = [{stride}, {stride}]> (x, w, b) }}"
    )  # fmt: skip
    return model_of(text, w=weight, b=bias)


def figures(model: ir.Model, x: Array, y: Array) -> dict[str, Array]:
    (node,) = model.graph
    assert node.inputs[1] is not None
    return {range_of(layer_name(model.graph, node.inputs[1])): ranges(x, y)}


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.sampled_from([1, 2]))
@settings(max_examples=25, deadline=None)
def test_a_convolution_errs_by_little(seed: int, size: float, stride: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(32, 32, 3, 3)).astype(np.float32) * np.geomspace(0.01, 1, 32, dtype=np.float32)[:, None, None, None]
    bias, x = rng.normal(size=32).astype(np.float32), (rng.normal(size=(1, 32, 12, 12)) * size).astype(np.float32)
    expected = run(convolution(weight, bias, stride), x=x)
    model = convolution(weight, bias, stride)
    found = run(quantize(model, COMPUTED, figures(model, x, expected)), x=x)
    assert found.shape == expected.shape
    error = np.square(found - expected).mean(axis=(0, 2, 3)) ** 0.5
    assert (error < 0.04 * expected.std(axis=(0, 2, 3)) + 0.01 * np.abs(bias)).all()  # in channels of very different size


def test_the_border_is_padded_with_zero() -> None:
    """Of inputs far from zero: padding with anything else would show at the border."""
    weight, bias = np.ones((32, 32, 3, 3), dtype=np.float32), np.zeros(32, dtype=np.float32)
    x = np.full((1, 32, 5, 5), 7.0, dtype=np.float32)
    model = convolution(weight, bias)
    found = run(quantize(model, COMPUTED, figures(model, x, run(convolution(weight, bias), x=x))), x=x)
    assert found[0, 0, 0, 0] == pytest.approx(7 * 32 * 4, rel=0.01)
    assert found[0, 0, 2, 2] == pytest.approx(7 * 32 * 9, rel=0.01)


def test_small_and_kept_convolutions_stay_as_they_are_stored() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(32, 32, 3, 3)).astype(np.float32), np.zeros(32, dtype=np.float32)
    for kept in (convolution(weight[:, :3], bias), convolution(weight[:13], bias[:13])):
        assert "Conv" in operators(quantize(kept, COMPUTED, {}))
    kept = convolution(weight, bias)
    assert operators(quantize(kept, replace(COMPUTED, keep_convolutions=r"^w$"), {})) >= {"Conv"}
    with pytest.raises(InputError, match="no calibration statistics for g/w"):
        quantize(convolution(weight, bias), COMPUTED, {})


def test_a_range_leaves_rare_values_out_and_grows_with_every_picture() -> None:
    values = np.random.default_rng(1).uniform(1, 2, (1, 10, 300, 300)).astype(np.float32)
    values[0, 0, 0, 5] = 1e6
    outputs = values[:, 1:3] * -2
    outputs[0, 0, 0, 0] = 50
    low, high, *reach = ranges(values, outputs).tolist()
    assert low == 0
    assert high == pytest.approx(2, abs=0.01)
    assert reach == pytest.approx([50, 3 + REACH * 2 / 12**0.5], rel=0.01)  # the largest, or so many deviations
    one, two = np.full((1, 1, 9, 9), -1, dtype=np.float32), np.full((1, 1, 9, 9), 3, dtype=np.float32)
    assert ranges(two, one, ranges(one, two)).tolist() == [-1, 3, 3]


@pytest.mark.slow
def test_an_image_tokenizer_is_calibrated_and_keeps_its_pictures() -> None:
    configuration = replace(SHOW_O, tokenizer=SMALL_TOKENIZER)
    torch.manual_seed(0)
    models = Models(configuration, image_tokenizer=Magvit2Tokenizer(SMALL_TOKENIZER))
    traced = {name: trace(name, models) for name in models.graphs}
    pixels = np.random.default_rng(0).uniform(-1, 1, (13, 1, 3, 64, 64)).astype(np.float32)
    with Calibrator(traced, COMPUTED) as calibrator:
        for picture in pixels[:12]:  # at the coarsest level a picture has 16 places only
            codes = calibrator.run("image_encode", {"pixels": picture})["codes"]
            calibrator.run("image_decode", {"codes": codes})
    exact = {name: model.clone() for name, model in traced.items()}
    small = {name: quantize(model, COMPUTED, calibrator.statistics) for name, model in traced.items()}
    assert all("QLinearConv" in operators(model) for model in small.values())
    codes = run(exact["image_encode"], pixels=pixels[12])
    assert (run(small["image_encode"], pixels=pixels[12]) == codes).mean() > 0.7
    drawn = run(exact["image_decode"], codes=codes)
    assert np.square(run(small["image_decode"], codes=codes) - drawn).mean() < 0.05 * drawn.var()
