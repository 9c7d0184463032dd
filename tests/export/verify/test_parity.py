"""The parity matrix: every implementation of the model against PyTorch as it is exported, each with a written tolerance.

One recorded run of the runtime (drawing, reading, questions) gives the inputs; every implementation gets the same.  The references go
token by token, expert by expert and position by position.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from export.bundle_writer import layout_of
from export.graph.lower import Array, constant
from export.graph.trace import Models
from export.model import reference
from export.model.experts import TokenExpertLayer
from export.model.sequence_experts import SequenceExpertLayer
from export.quantize.calibration import Calibrator
from export.quantize.quantize import RECIPES, layer_name, linear_layers, quantize
from export.verify.census import LostExpertError, census
from export.verify.comparison import FloatDifference
from export.verify.parity import SampleInputs, TorchBackend, generate, measure, understand
from f2edge.backends.base import Backend, host
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.bundle.bundle import Bundle
from f2edge.decoding.presets import QUALITIES
from f2edge.decoding.schedule import Schedule
from f2edge.spec.graphs import SIGNATURES
from f2edge.spec.layout import TokenLayout
from tests.support.recorder import Recorder
from tests.support.reference_sampler import reference_step


@dataclass(frozen=True)
class Tolerance:
    """Largest and mean error of float outputs in parts of the reference's spread, and the least share of equal integer outputs."""

    largest: float
    mean: float
    equal: float


TOLERANCES: Mapping[str, Tolerance] = {
    "torch reference": Tolerance(2e-4, 2e-5, 1.0),
    "torch fused": Tolerance(2e-4, 2e-5, 1.0),
    "onnx fp32": Tolerance(2e-4, 2e-5, 1.0),
    "onnx int8": Tolerance(2.0, 0.06, 0.93),  # random weights route near ties, so single values move far
}


@pytest.fixture(scope="module")
def layout(tiny_bundle: Path, tiny_models: Models) -> TokenLayout:
    return layout_of(tiny_models.configuration, tiny_bundle / "tokenizer.json")


@pytest.fixture(scope="module")
def inputs(layout: TokenLayout) -> SampleInputs:
    rng = np.random.default_rng(0)

    def sentence(least: int, most: int) -> list[int]:
        return [int(i) for i in rng.integers(2, layout.text_vocabulary, rng.integers(least, most))]

    return SampleInputs(
        prompts=[sentence(1, 30) for _ in range(3)],
        questions=[sentence(3, 12) for _ in range(3)],
        pixels=rng.uniform(-1, 1, (1, 3, 128, 128)).astype(np.float32),
        seeds=[11, 12, 13],
        schedule=Schedule(steps=3, guidance=2.0, temperature=1.0),
    )


@pytest.fixture(scope="module")
def recorded(tiny_models: Models, layout: TokenLayout, inputs: SampleInputs) -> Recorder:
    recorder = Recorder(TorchBackend(tiny_models))
    generate(recorder, layout, inputs)
    understand(recorder, tiny_models.graphs, layout, inputs)
    return recorder


def graphs_in(folder: Path) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(lambda graph: folder / f"{graph}.onnx")


def slow(models: Models) -> Models:
    """A copy whose experts are the written definition, one token and one expert at a time."""
    result = copy.deepcopy(models)
    assert result.transformer is not None
    for module in result.transformer.modules():
        if isinstance(module, TokenExpertLayer):

            def tokens(self: TokenExpertLayer, x: Tensor, _exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                _, probability, chosen = self.router(x)
                return reference.token_experts(self, x), probability, chosen

            module.forward = MethodType(tokens, module)  # type: ignore[method-assign]
        elif isinstance(module, SequenceExpertLayer):

            def sequences(
                self: SequenceExpertLayer, x: Tensor, mean: Tensor, sources: Mapping[str, Tensor]
            ) -> tuple[Tensor, Tensor, Tensor]:
                _, probability, chosen = self.router(mean)
                return reference.sequence_experts(self, x, sources), probability, chosen

            module.forward = MethodType(sequences, module)  # type: ignore[method-assign]
    return result


@pytest.fixture(scope="module", params=list(TOLERANCES))
def implementation(request: pytest.FixtureRequest, tiny_models: Models, tiny_bundles: dict[str, Path]) -> tuple[str, Backend]:
    name: str = request.param
    if name == "torch reference":
        return name, TorchBackend(slow(tiny_models))
    if name == "torch fused":
        models = copy.deepcopy(tiny_models)
        assert models.transformer is not None
        models.transformer.use_fused_attention(fused=True)
        return name, TorchBackend(models)
    folder = tiny_bundles[name.removeprefix("onnx ")]
    return name, graphs_in(folder)


def difference(wanted: Array, found: Array, tolerance: Tolerance) -> str:
    """What is wrong with an output, or nothing."""
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return f"{found.dtype}{found.shape} instead of {wanted.dtype}{wanted.shape}"
    if np.issubdtype(wanted.dtype, np.integer):
        equal = float((wanted == found).mean()) if wanted.size else 1.0
        return "" if equal >= tolerance.equal else f"{equal:.4f} of the values are equal"
    error, spread = np.abs(wanted - found), float(wanted.std()) or 1.0
    within = error.max(initial=0) <= tolerance.largest * spread and (not error.size or error.mean() <= tolerance.mean * spread)
    return "" if within else f"errors {error.max() / spread:.2g} (largest) and {error.mean() / spread:.2g} (mean) of the spread"


@pytest.mark.parametrize("graph", list(SIGNATURES))
def test_every_graph_of_every_implementation(graph: str, implementation: tuple[str, Backend], recorded: Recorder) -> None:
    name, backend = implementation
    calls = recorded.calls[graph][:2]
    assert calls
    for feeds, wanted in calls:
        found = backend.run(graph, feeds)
        for output, value in wanted.items():
            assert difference(value, host(found[output]), TOLERANCES[name]) == "", f"{name}, {graph}, {output}"


def test_whole_decodings_end_in_the_same_tokens(
    tiny_models: Models, tiny_bundle: Path, layout: TokenLayout, inputs: SampleInputs, recorded: Recorder
) -> None:
    assert recorded.calls
    engine = graphs_in(tiny_bundle)
    wanted = generate(TorchBackend(tiny_models), layout, inputs)
    assert np.array_equal(wanted, generate(engine, layout, inputs))
    assert np.array_equal(wanted, generate(engine, layout, inputs, rows=1))  # alone or together
    assert ((wanted >= 0) & (wanted < layout.codes)).all()


@pytest.mark.parametrize("quality", QUALITIES)
def test_every_preset_of_the_embedded_bundle_ends_in_the_same_tokens(
    quality: str, tiny_models: Models, tiny_bundles: dict[str, Path], layout: TokenLayout, inputs: SampleInputs
) -> None:
    preset = replace(inputs, schedule=Bundle.load("nano").presets[quality].schedule)
    exact, quantized = (graphs_in(tiny_bundles[precision]) for precision in ("fp32", "int8"))
    assert np.array_equal(generate(TorchBackend(tiny_models), layout, preset), generate(exact, layout, preset))
    assert np.array_equal(generate(quantized, layout, preset), generate(quantized, layout, preset, rows=1))


def test_int8_tokens_do_not_depend_on_batch_mates(tiny_int8_bundle: Path, layout: TokenLayout, inputs: SampleInputs) -> None:
    engine = graphs_in(tiny_int8_bundle)
    assert np.array_equal(generate(engine, layout, inputs), generate(engine, layout, inputs, rows=1))


def test_the_step_follows_the_law_position_by_position(tiny_models: Models, recorded: Recorder) -> None:
    """The whole step in plain numbers: guidance on each branch's own logits, then noise, confidence and re-masking one by one."""
    transformer = tiny_models.transformer
    assert transformer is not None
    feeds, wanted = recorded.calls["t2i_step"][1]
    branches = [0, int(feeds["unconditional_branch"][0])]  # of the first row; the others cost as much again
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in feeds.items()}
    rows = tensors["branch_row"][branches]
    with torch.inference_mode():
        logits = transformer.image_logits(
            tensors["codes"][rows],
            tensors["prefix_key"][:, branches],
            tensors["prefix_value"][:, branches],
            tensors["prefix_lengths"][branches],
            tensors["mask_ratio"][rows],
        )
    first = {name: value[:1] for name, value in feeds.items()} | {"unconditional_branch": np.array([1])}
    next_codes, proposal = reference_step(logits.numpy(), first)
    assert np.array_equal(next_codes, wanted["next_codes"][:1])
    assert np.array_equal(proposal, wanted["proposal"][:1])


def test_measured_figures_say_what_was_found(
    tiny_bundles: dict[str, Path], tiny_models: Models, layout: TokenLayout, inputs: SampleInputs
) -> None:
    exact, coarse = (
        measure(tiny_bundles[recipe], tiny_models, layout, inputs, precision=recipe, recorded_steps=2) for recipe in ("fp32", "int8")
    )
    decoding: dict[str, Any] = exact["parity"]["decoding"]
    assert (decoding["identical"], decoding["tokens"], decoding["prompts"]) == (3, 1.0, 3)
    assert exact["parity"]["routing"]["agreement"] == 1.0
    assert 0.9 < coarse["parity"]["routing"]["agreement"] <= 1.0
    assert set(exact["parity"]["graphs"]) == set(SIGNATURES)
    logits = [figures["parity"]["graphs"]["t2i_step"]["logits"] for figures in (exact, coarse)]
    assert logits[0]["max"] < 1e-3 < logits[1]["mean"]
    assert logits[1]["cosine"] > 0.99
    usage = exact["experts"]["usage"]["t2i_step"]
    assert all(abs(sum(shares) - 2) < 1e-2 for shares in usage.values())  # two experts for each decision
    assert not list(tiny_bundles["fp32"].glob(".probe*"))


def test_calibration_sees_every_linear_layer_and_smoothing_keeps_tokens_close(
    tiny_bundle: Path, tiny_models: Models, recorded: Recorder, tmp_path: Path
) -> None:
    transformer, recipe = tiny_models.transformer, RECIPES["int8-smooth"]
    assert transformer is not None
    graphs = {name: ir.load(tiny_bundle / f"{name}.onnx") for name in ("t2i_prefill", "t2i_step")}
    with Calibrator(graphs, recipe) as calibrator:
        for name in graphs:
            for feeds, answers in recorded.calls[name]:
                outputs = calibrator.run(name, feeds)
                assert all(np.allclose(host(outputs[key]), value, atol=1e-3) for key, value in answers.items())
    calibrator.check()
    calibration = calibrator.statistics
    assert {0.5, 1.0} <= calibrator.mask_ratios
    assert calibrator.branches[0] == calibrator.branches[1] == 9  # three prompts, three steps, both branches
    for model in graphs.values():
        for _, _, weight, values in linear_layers(model.graph, recipe):
            largest = calibration[layer_name(model.graph, weight)]
            assert largest.shape == values.shape[:1]
            assert largest.max() > 0
    step = quantize(graphs["t2i_step"], recipe, calibration)
    assert all(len(row.alive) == row.experts for row in census(step.graph, "t2i_step", transformer))
    ir.save(step, tmp_path / "step.onnx", external_data="weights.bin")
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
    feeds, wanted = recorded.calls["t2i_step"][0]
    proposal = session.run(["proposal"], feeds)[0]
    assert (proposal == wanted["proposal"]).mean() >= TOLERANCES["onnx int8"].equal


def test_a_graph_that_routes_otherwise_fails_the_export(
    tiny_bundle: Path, tiny_models: Models, layout: TokenLayout, inputs: SampleInputs, tmp_path: Path
) -> None:
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken")
    model = ir.load(broken / "t2i_step.onnx")
    router = model.graph.initializers["stem.blocks.0.experts.t2i.router.weight.T"]
    router.const_value = ir.tensor(-np.asarray(constant(router)))  # chooses the least probable experts instead
    ir.save(model, broken / "t2i_step.onnx")
    with pytest.raises(LostExpertError, match=r"graph 't2i_step' .* routing decisions agree with PyTorch"):
        measure(broken, tiny_models, layout, inputs, recorded_steps=2)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 40), min_size=1, max_size=5), st.floats(-1e3, 1e3))
def test_sums_of_differences_are_those_of_all_values_together(seed: int, sizes: list[int], centre: float) -> None:
    rng = np.random.default_rng(seed)
    wanted = [(rng.normal(size=size) + centre).astype(np.float32) for size in sizes]
    found = [part + rng.normal(size=part.size).astype(np.float32) * 0.1 for part in wanted]
    difference = FloatDifference()
    for a, b in zip(wanted, found, strict=True):
        difference.add(a, b)
    metrics = difference.metrics()
    x, y = (np.concatenate(parts).astype(np.float64) for parts in (wanted, found))
    if not x.size:
        assert metrics == {"max": 0.0, "mean": 0.0, "cosine": 1.0, "spread": 0.0}
        return
    assert metrics["max"] == np.abs(x - y).max()
    for name, value in (("mean", np.abs(x - y).mean()), ("spread", x.std()), ("cosine", x @ y / np.linalg.norm(x) / np.linalg.norm(y))):
        assert metrics[name] == pytest.approx(value, rel=1e-9, abs=1e-9)
