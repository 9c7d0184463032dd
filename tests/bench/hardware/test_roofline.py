"""Roofline predictions: what must hold of them whatever the constants are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench.cli import app
from bench.hardware.roofline import cpu_step_ms, decoder_flops, run
from bench.hardware.roofline_model import (
    LOOKUPS,
    PUBLISHED,
    SHARES,
    WEIGHT_BYTES,
    CallCost,
    cache_bytes,
    head_bytes,
    predict,
    published_errors,
    resident_bytes,
    step_work,
    time_of,
    token_cache_bytes,
    token_work,
)  # fmt: skip
from engines.profile import load_profile, profile_names
from export.graph.static_shapes import infer
from export.tensorrt.graphs import TensorRTOptions, tensorrt_graph
from export.tensorrt.sampling import tensorrt_sampling_model
from export.tensorrt.traffic import traffic
from f2edge.errors import InputError
from f2edge.spec.configuration import NANO, PAPER, SHOW_O
from tests.support.tiny_model import TINY


def test_a_call_is_bound_by_its_longest_part() -> None:
    device = load_profile("orin-nano")
    bandwidth, arithmetic = SHARES
    slow = 1e3 * 16.7e12 / (16.7e12 * arithmetic)
    assert time_of(CallCost(16.7e12, 1.0, 1.0, 1, "fp16"), device).bound == "compute"
    assert time_of(CallCost(16.7e12, 1.0, 1.0, 1, "fp16"), device).ms == pytest.approx(slow)
    assert time_of(CallCost(1.0, 102e9, 0.0, 1, "fp16"), device).ms == pytest.approx(1e3 / bandwidth)
    assert time_of(CallCost(1.0, 1.0, 1.0, 1000, "fp16"), device).bound == "launch"
    assert time_of(CallCost(1.0, 102e9, 0.0, 1, "fp16"), device, ideal=True).ms == pytest.approx(1e3)


def test_shares_are_what_the_published_figures_amount_to() -> None:
    """The geometric mean leaves errors whose product is 1, kind by kind."""
    assert 0 < SHARES[1] < SHARES[0] < 1
    for kind in ("tokens/s", "prefill ms"):
        product = 1.0
        for _, figure, published, predicted in published_errors():
            product *= predicted / published if figure == kind else 1.0
        assert product == pytest.approx(1.0)
    assert len(published_errors()) == 2 * len(PUBLISHED)


def test_published_devices_are_counted_with_their_profiles_figures() -> None:
    for row in PUBLISHED:
        profile = load_profile(row.device)
        assert row.gb_s == profile.memory.bandwidth_gb_s
        assert row.fp16 == profile.rates["fp16"]


def test_weights_of_the_paper_size_are_near_its_parameter_count() -> None:
    """One task's layers and head in fp16: about a billion parameters (model.md: ≈1.05 B active for one task)."""
    step = step_work(PAPER, "fp16", "plain")
    assert 0.95e9 < step.weights / WEIGHT_BYTES["fp16"] < 1.15e9
    assert token_work(SHOW_O, "fp16", "plain").weights / 2 == pytest.approx(1.31e9, rel=0.05)  # 1.448 B less its table


@given(name=st.sampled_from(profile_names()), factor=st.floats(1.1, 10))
@settings(max_examples=25, deadline=None)
def test_a_better_device_is_never_slower(name: str, factor: float) -> None:
    device = load_profile(name)
    rates = {kind: rate * factor for kind, rate in device.rates.items()}
    memory = replace(device.memory, bandwidth_gb_s=device.memory.bandwidth_gb_s * factor, total_gb=device.memory.total_gb * factor)
    better = replace(device, rates=rates, memory=memory)
    before, after = (predict(PAPER, each, "plain", 18, 1e12) for each in (device, better))
    assert after.step.ms <= before.step.ms
    assert after.token.ms <= before.token.ms
    assert after.face_ms <= before.face_ms
    assert after.fits >= before.fits
    assert before.step_ideal_ms <= before.step.ms


def test_the_plugin_saves_arithmetic_and_for_one_token_reads_fewer_experts() -> None:
    for recipe in ("fp16", "int8"):
        plain, plugin = (step_work(PAPER, recipe, moe) for moe in ("plain", "plugin"))
        assert plugin.flops < plain.flops
    assert token_work(PAPER, "fp16", "plugin").weights < token_work(PAPER, "fp16", "plain").weights
    assert token_work(PAPER, "int4", "plugin").weights > token_work(PAPER, "int4", "plain").weights  # the plug-in's experts are half
    assert step_work(SHOW_O, "int8", "plugin") == step_work(SHOW_O, "int8", "plain")  # no routed experts


def test_an_answer_token_moves_what_the_exported_graph_moves(tiny_bundle: Path) -> None:
    """Keys and values by the graph's own shapes; fp32 stacks moved three times as much."""
    model = ir.external_data.load_to_model(ir.load(tiny_bundle / "mmu_extend.onnx"))
    infer(model)
    for earlier in (16, 64):
        graph = tensorrt_graph("mmu_extend", model, TINY, TensorRTOptions())
        counted = traffic(graph, {"B": 1, "I": 1, "S": 1, "T": earlier}).caches
        assert counted == token_cache_bytes(TINY, earlier)


def test_the_paper_sizes_token_moves_a_third_of_fp32_stacks() -> None:
    stacks = cache_bytes(PAPER, 4 * PAPER.understanding_columns + 11 * 64 + 7)  # counted by traffic() on the graphs of the first release
    assert token_cache_bytes(PAPER, 64) < stacks / 2.9


def test_the_sampler_is_counted_as_exported() -> None:
    graph = tensorrt_sampling_model(4, 64)
    infer(graph)
    wide = [node for node in graph.graph if node.outputs[0].shape is not None and list(node.outputs[0].shape)[-2:] == [4, 64]]
    assert sum(node.op_type == "Gather" for node in wide) == LOOKUPS
    assert {node.outputs[0].dtype for node in wide} == {ir.DataType.INT32, ir.DataType.FLOAT}


def test_a_head_of_odd_width_costs_what_its_recipe_says() -> None:
    assert head_bytes(PAPER, "int4") == PAPER.width * 50304 * WEIGHT_BYTES["int4"]


def test_small_recipes_take_less_memory() -> None:
    device = load_profile("orin-nx")
    sizes = [
        resident_bytes(PAPER, replace(device, recipes=dict.fromkeys(device.recipes, recipe)), "plain")
        for recipe in ("fp16", "int8", "int4")
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_the_cpus_parts_scale_with_its_ceilings() -> None:
    ceilings = {"int8_gops": 800.0, "fp32_gops": 200.0, "memory_gb_s": 20.0}
    parts = cpu_step_ms(NANO, 99, ceilings)
    assert all(ms > 0 for ms in parts.values())
    for kind, part in (("int8_gops", "linear"), ("fp32_gops", "attention"), ("memory_gb_s", "sampler"), ("memory_gb_s", "activations")):
        faster = cpu_step_ms(NANO, 99, ceilings | {kind: ceilings[kind] * 2})
        assert faster[part] == pytest.approx(parts[part] / 2)


def test_the_decoder_is_counted() -> None:
    assert 1e8 < decoder_flops(NANO) < 1e10
    assert decoder_flops(PAPER) > 100 * decoder_flops(NANO)


def test_the_command_prints_json_for_chosen_devices_and_models() -> None:
    done = CliRunner().invoke(app, ["roofline", "--device", "h200", "--device", "t4", "--model", "nano", "--moe", "plugin", "--json"])
    assert done.exit_code == 0
    results = json.loads(done.stdout)
    assert [row["device"] for row in results["rows"]] == ["h200", "t4"]
    assert results["run_on_a_device"] is False
    assert {row["moe"] for row in results["rows"]} == {"plugin"}


@pytest.mark.parametrize(("devices", "models", "moe"), [(["x"], ["nano"], "plain"), ([], ["x"], "plain"), ([], ["nano"], "x")])
def test_unknown_names_are_refused(devices: list[str], models: list[str], moe: str) -> None:
    with pytest.raises(InputError, match="choose one of"):
        run(devices, models, moe)
