"""Forms of a quantized decoding step: masked positions alone give the same tokens, fewer operators the same logits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from export.bundle_writer import recipe_transform
from export.graph.compact import bit_table, compact
from export.graph.masked_rows import draw_masked
from export.graph.runtime_forms import runtime_forms
from export.graph.stored_weights import stored_weight
from export.graph.trace import trace
from export.quantize.calibration import Calibrator, save_scratch
from export.quantize.quantize import quantize
from export.quantize.recipes import recipe_named
from f2edge.backends.base import host
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.errors import InputError
from tests.support.tiny_model import TINY, random_models

N, V, P = TINY.image_tokens, TINY.codes, 6


@pytest.fixture(scope="module")
def traced() -> ir.Model:
    return trace("t2i_step", random_models())


def feeds_of(masked: int, rows: int = 1, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Inputs of a guided step in which the first row has ``masked`` masked positions and every further one a third of them."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, V, (rows, N))
    for row, count in enumerate([masked, *[masked // 3] * (rows - 1)]):
        codes[row, rng.permutation(N)[:count]] = V
    cache = (TINY.layers, 2 * rows, TINY.heads, P, TINY.head_width)
    return {
        "codes": codes,
        "branch_row": np.arange(2 * rows) % rows,
        "unconditional_branch": np.arange(rows, 2 * rows),
        "prefix_key": rng.normal(size=cache).astype(np.float32),
        "prefix_value": rng.normal(size=cache).astype(np.float32),
        "prefix_lengths": np.array([P] * rows + [3] * rows),
        "mask_ratio": np.full(rows, masked / N, np.float32),
        "guidance": np.full(rows, 3, np.float32),
        "token_temperature": np.ones(rows, np.float32),
        "temperature": np.ones(rows, np.float32),
        "noise_key": rng.integers(0, 2**32, (rows, N)),
        "priority": np.zeros((rows, N), np.float32),
        "masked_after": np.array([masked // 2] + [0] * (rows - 1)),
    }


class Step:
    """A graph that can be run, with its logits."""

    def __init__(self, model: ir.Model, folder: Path) -> None:
        model = model.clone()
        logits = next(value for node in model.graph for value in node.outputs if value.name == "logits")
        logits.dtype = ir.DataType.FLOAT
        model.graph.outputs.append(logits)
        folder.mkdir(parents=True)
        save_scratch(model, folder / "graph.onnx")
        self.backend = OnnxRuntimeBackend(lambda _: folder / "graph.onnx", 1, split=False)

    def __call__(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {name: host(value) for name, value in self.backend.run("t2i_step", feeds).items()}


def test_masked_positions_alone_give_the_same_tokens(traced: ir.Model, tmp_path: Path) -> None:
    """Also where one position is masked, or none: int8 products do not depend on the other rows."""
    whole = quantize(traced.clone(), recipe_named("int8"))
    alone = draw_masked(whole.clone())
    assert [node.op_type for node in draw_masked(alone.clone()).graph] == [node.op_type for node in alone.graph], "a second time: no change"
    before, after = Step(whole, tmp_path / "whole"), Step(alone, tmp_path / "alone")
    formed = Step(quantize(draw_masked(traced.clone()), recipe_named("int8")), tmp_path / "formed")
    for masked in (0, 1, N // 2, N):
        for rows in (1, 2):
            feeds = feeds_of(masked, rows, masked)
            wanted = before(feeds)
            for found in (after(feeds), formed(feeds)):
                for name in ("next_codes", "proposal"):
                    assert np.array_equal(found[name], wanted[name])
                assert np.array_equal(found["logits"], wanted["logits"][feeds["codes"] == V])


def test_fewer_operators_give_the_same_logits(traced: ir.Model, tmp_path: Path) -> None:
    formed = runtime_forms(traced.clone())
    fewer = compact(formed.clone())
    kinds, before = Counter(node.op_type for node in fewer.graph), Counter(node.op_type for node in formed.graph)
    assert (kinds["MultiHeadAttention"], kinds["ScatterElements"]) == (TINY.layers, 2 * TINY.layers + 1)
    assert kinds["Sum"] == 2 * TINY.layers + 1, "residuals, gates, the embedding"
    assert kinds["Transpose"] <= before["Transpose"] - 4 * TINY.layers
    assert sum(kinds.values()) < 0.8 * sum(before.values())
    plain, short, feeds = Step(formed, tmp_path / "plain"), Step(fewer, tmp_path / "short"), feeds_of(N // 2, 2)
    wanted, found = (np.asarray(step(feeds)["logits"], dtype=np.float64) for step in (plain, short))
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_the_table_of_bits_is_what_the_model_embeds() -> None:
    table = bit_table(4)
    assert table[5].tolist() == [1, -1, 1, -1]
    assert table[16].tolist() == [0, 0, 0, 0]
    assert len(table) == 17


def test_fixed_scales_come_from_calibration_and_join_products(traced: ir.Model, tmp_path: Path) -> None:
    recipe = recipe_named("int8-fixed")
    with pytest.raises(InputError, match="calibrate with prompts"):
        quantize(traced.clone(), recipe)
    with Calibrator({"t2i_step": traced}, recipe) as calibrator:
        for share in (4, 2, 1):
            calibrator.run("t2i_step", feeds_of(N // share, 2, share))
    fixed = quantize(runtime_forms(traced.clone()), recipe, calibrator.statistics)
    joined = recipe_transform(recipe, calibrator.statistics)("t2i_step", traced)[0]
    counts = [Counter(node.op_type for node in model.graph) for model in (fixed, joined)]
    assert counts[0]["ReduceMax"] == counts[1]["ReduceMax"] == 0
    assert counts[0]["MatMulIntegerToFloat"] - counts[1]["MatMulIntegerToFloat"] == 2 * TINY.layers - 1, "queries … with experts; maps"
    for name in ("blocks.0.attention.input.weight", "blocks.0.experts.t2i.up.weight"):
        alone, beside = (stored_weight(model.graph, name, TINY.width) for model in (fixed, joined))
        assert alone is not None
        assert beside is not None, f"{name}: the census of experts reads it from the file"
        np.testing.assert_array_equal(alone.values, beside.values)
    float32, steps = Step(traced, tmp_path / "float32"), [Step(model, tmp_path / str(i)) for i, model in enumerate((fixed, joined))]
    feeds = feeds_of(N // 2, 2)
    wanted = float32(feeds)["logits"][feeds["codes"] == V]
    for step in steps:
        found = step(feeds)["logits"]
        assert np.corrcoef(found.reshape(-1), wanted.reshape(-1))[0, 1] > 0.98
