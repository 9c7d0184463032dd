"""Tracing, lowering and writing of graphs: names and axes, values, sampling, experts, shared weights, interrupted exports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from export.bundle_writer import write_bundle
from export.destination import replaced_folder
from export.graph.lower import LoweringError, add_constant, constant, lower
from export.graph.sampling import guide, gumbel, sample, sampling_model, streams, uniform
from export.graph.trace import Models, _check_dynamic, _export, trace
from export.model.transformer import UnifiedTransformer
from export.verify.census import LostExpertError, RoutingAgreement, census, find_routers, routing_agreement
from export.verify.parity import TorchBackend, check_routing
from f2edge.backends.base import host
from f2edge.bundle.bundle import Bundle
from f2edge.decoding import noise
from f2edge.errors import InputError, OutputError
from f2edge.spec.configuration import DRAWS, SHOW_O, TokenExperts
from f2edge.spec.graphs import SCORED_SIGNATURES, SIGNATURES
from f2edge.spec.graphs import Tensor as Port
from tests.support.tiny_model import TINY

N, V = 16, 97


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def sampler() -> onnxruntime.InferenceSession:
    return session(sampling_model(N, V))


def ports_of(tensors: tuple[Port, ...], *, by_layer: bool) -> list[tuple[str, object, int]]:
    """Names, dtypes and ranks of ports; a cache that is passed layer by layer is one for each layer."""
    rows: list[tuple[str, object, int]] = []
    for tensor in tensors:
        names, axes = [tensor.name], tensor.axes
        if by_layer and axes.startswith("L"):
            names, axes = [f"{tensor.name}.{layer}" for layer in range(TINY.layers)], axes[1:]
        rows += [(name, np.dtype(tensor.dtype), len(axes)) for name in names]
    return rows


def test_every_graph_has_the_names_dtypes_and_axes_of_the_contract(tiny_bundles: dict[str, Path]) -> None:
    """fp32 graphs are the standard ones; quantized ones that run often take their caches layer by layer."""
    for recipe, folder in tiny_bundles.items():
        assert set(SIGNATURES) == {path.stem for path in folder.glob("*.onnx")}
        for name, standard in SIGNATURES.items():
            formed = recipe != "fp32" and name in ("t2i_step", "mmu_extend")
            signature = SCORED_SIGNATURES.get(name, standard) if formed else standard
            graph = ir.load(folder / f"{name}.onnx").graph
            for values, tensors in ((graph.inputs, signature.inputs), (graph.outputs, signature.outputs)):
                found = [(value.name, value.dtype and value.dtype.numpy(), value.shape and len(value.shape)) for value in values]
                assert found == ports_of(tensors, by_layer=formed)


def test_a_bundle_loads_and_its_axes_are_the_models(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    prefix = bundle.manifest.graphs["t2i_prefill"].outputs[0]
    assert prefix.shape == (TINY.layers, "B", TINY.heads, "P", TINY.head_width)
    assert bundle.manifest.graphs["mmu_prefill"].inputs[0].shape == ("B", TINY.image_tokens)


@given(st.integers(0, 2**64 - 1), st.integers(0, 1000), st.integers(0, 2**20))
def test_noise_in_pytorch_is_the_published_law(seed: int, step: int, code: int) -> None:
    keys, codes = noise.noise_key(seed, step, np.arange(5)), np.array([code, code + 1])
    here = uniform(torch.from_numpy(keys)[:, None], torch.from_numpy(codes))
    assert np.array_equal(here.numpy(), noise.uniform(keys[:, None], codes))
    assert np.allclose(gumbel(torch.from_numpy(keys), torch.tensor(code)).numpy(), noise.gumbel(keys, np.array(code)), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    R=st.integers(1, 3),
    token=st.floats(0.3, 3),
    spread=st.floats(0, 5),
    ordered=st.booleans(),
    draw=st.sampled_from(DRAWS),
    masked_alone=st.booleans(),
    V=st.sampled_from((96, 97)),
    share=st.sampled_from((0.0, 0.6, 1.0)),
)
def test_sampling_graph_is_the_law_in_pytorch(
    *, seed: int, R: int, token: float, spread: float, ordered: bool, draw: str, masked_alone: bool, V: int, share: float
) -> None:
    """Every law, drawn for all positions or for the masked ones alone, of which there may be none."""
    rng, sampler = np.random.default_rng(seed), session(sampling_model(N, V, draw, masked=masked_alone))
    codes = np.where(rng.random((R, N)) < share, V, rng.integers(0, V, (R, N)))
    masked = (codes == V).sum(1)
    feeds = {
        "logits": rng.normal(size=(R, N, V)).astype(np.float32) * 3,
        "codes": codes,
        "token_temperature": np.full(R, token, np.float32),
        "temperature": np.full(R, spread, np.float32),
        "noise_key": np.stack([noise.noise_key(seed + r, 3, np.arange(N)) for r in range(R)]),
        "priority": (rng.permutation(N) * 1e4).astype(np.float32)[None].repeat(R, 0) * ordered,
        "masked_after": np.array([rng.integers(0, m + 1) for m in masked]),
    }
    next_codes, proposal = sampler.run(None, feeds)
    wanted = sample(**{name: torch.from_numpy(value) for name, value in feeds.items()}, draw=draw)
    assert np.array_equal(proposal, wanted[1].numpy())
    assert np.array_equal(next_codes, wanted[0].numpy())
    assert np.array_equal((next_codes == V).sum(1), feeds["masked_after"])
    assert np.array_equal(next_codes[codes != V], codes[codes != V])
    assert ((proposal >= 0) & (proposal < V)).all()


@pytest.mark.parametrize("draw", DRAWS)
def test_races_draw_from_the_softmax(draw: str) -> None:
    keys, z = torch.from_numpy(noise.noise_key(5, 1, np.arange(40_000))), torch.randn(64, generator=torch.Generator().manual_seed(0)) * 2
    rows = z.expand(1, len(keys), -1)
    drawn, _ = sample(
        rows,
        torch.full((1, len(keys)), 64),
        torch.ones(1),
        torch.zeros(1),
        keys[None],
        torch.zeros(1, len(keys)),
        torch.zeros(1, dtype=torch.int64),
        draw=draw,
    )
    expected = len(keys) * torch.softmax(z, dim=-1).double()
    counts = torch.bincount(drawn[0], minlength=64)
    assert float(((counts - expected) ** 2 / expected).sum()) < 120  # 63 degrees of freedom: more than 120 once in 50 000 seeds


def test_blocks_share_the_noise_of_codes_only_with_themselves() -> None:
    """The streams of a position: within a block, of the blocks, of the confidence."""
    for V in (4, 64, 97, 4096):
        width = noise.block_width(V)
        assert V % width == 0
        assert width * width <= V
        found = streams(V, "blocks").tolist()
        assert len(found) == len(set(found)) == width + V // width + 1
        assert found[-1] == V


def test_ties_in_confidence_leave_exactly_the_asked_number_masked(sampler: onnxruntime.InferenceSession) -> None:
    feeds = {
        "logits": np.zeros((1, N, V), np.float32),
        "codes": np.full((1, N), V),
        "token_temperature": np.ones(1, np.float32),
        "temperature": np.zeros(1, np.float32),  # all positions are equally confident
        "noise_key": noise.noise_key(1, 0, np.arange(N))[None],
        "priority": np.zeros((1, N), np.float32),
        "masked_after": np.array([5]),
    }
    next_codes, _ = sampler.run(None, feeds)
    assert (next_codes == V).sum() == 5
    assert np.array_equal(next_codes, sample(**{name: torch.from_numpy(value) for name, value in feeds.items()}, draw=DRAWS[0])[0].numpy())


@given(st.floats(0, 10), st.integers(0, 100))
def test_guidance_before_an_affine_head_is_guidance_of_its_logits(g: float, seed: int) -> None:
    torch.manual_seed(seed)
    head, states, strength = nn.Linear(8, 20).double(), torch.randn(4, 3, 8).double(), torch.tensor([g, 0.0]).double()
    with torch.no_grad():
        before = head(guide(states[:2], states[2:], strength))
        after = guide(head(states)[:2], head(states)[2:], strength)
    assert torch.allclose(before, after)


class _Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)


def test_an_axis_that_the_tracer_freezes_is_refused() -> None:
    axes: dict[str, tuple[int | str, ...]] = {"x": ("B", 2, 2), "y": ("B", 4)}
    model = _export(_Branching(), {"x": torch.zeros(3, 2, 2)}, axes, ["y"])
    with pytest.raises(LoweringError, match="axis B was frozen"):
        _check_dynamic(model, axes)


def test_lowering_keeps_values_and_leaves_one_form_of_linear_layer() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 600), nn.GELU(approximate="tanh"), nn.Linear(600, 5)).eval()
    x = torch.randn(3, 8)
    model = lower(_export(module, {"x": x}, {"x": ("B", 8), "y": ("B", 5)}, ["y"]))
    assert not {"Gemm", "Transpose"} & {node.op_type for node in model.graph}
    assert sum(node.op_type == "MatMul" for node in model.graph) == 2
    assert np.allclose(session(model).run(None, {"x": x.numpy()})[0], module(x).detach().numpy(), atol=1e-6)


def test_a_constant_cannot_stand_under_one_name_with_two_values() -> None:
    graph = ir.Graph([], [], nodes=[], name="g")
    first = add_constant(graph, "c", np.zeros(2, np.float32))
    assert add_constant(graph, "c", np.zeros(2, np.float32)) is first
    with pytest.raises(LoweringError, match="another constant 'c'"):
        add_constant(graph, "c", np.ones(2, np.float32))


def test_every_expert_is_alive_in_every_graph(tiny_bundles: dict[str, Path], tiny_models: Models) -> None:
    assert tiny_models.transformer is not None
    layers = {"t2i_prefill": 1, "t2i_step": 4, "mmu_prefill": 2, "mmu_extend": 2}  # a prefill's last block feeds nothing
    for folder in tiny_bundles.values():
        for name, count in layers.items():
            rows = census(ir.load(folder / f"{name}.onnx").graph, name, tiny_models.transformer)
            assert [row.alive for row in rows] == [(0, 1, 2, 3)] * count


def test_a_dropped_expert_fails_the_census(tiny_bundle: Path, tiny_models: Models) -> None:
    assert tiny_models.transformer is not None
    graph = ir.load(tiny_bundle / "t2i_step.onnx").graph
    value = graph.initializers["stem.blocks.1.experts.t2i.up.weight.T"]
    weight = np.array(constant(value))
    weight[:, TINY.token_experts.shared_width :][:, : TINY.token_experts.routed_width] = 0  # routed expert 0
    value.const_value = ir.tensor(weight)
    with pytest.raises(LostExpertError, match=r"blocks\.1\.experts\.t2i lost experts \[0\] of 4"):
        census(graph, "t2i_step", tiny_models.transformer)


def test_a_frozen_choice_fails_the_census(tiny_bundle: Path, tiny_models: Models) -> None:
    assert tiny_models.transformer is not None
    graph = ir.load(tiny_bundle / "mmu_extend.onnx").graph
    chosen = find_routers(graph)["blocks.0.experts.mmu"]
    chosen.replace_all_uses_with(add_constant(graph, "frozen", np.array([[[0, 2]]])))
    with pytest.raises(LostExpertError, match=r"blocks\.0\.experts\.mmu has no live router"):
        census(graph, "mmu_extend", tiny_models.transformer)


def test_routing_agreement_counts_sets_not_orders() -> None:
    mine, theirs = {"a": [np.array([[0, 1], [2, 3]])]}, {"a": [np.array([[1, 0], [2, 1]])]}
    agreement = routing_agreement(mine, theirs, {"a": 4})
    assert (agreement.decisions, agreement.same) == (2, 1)
    assert agreement.usage["a"] == (0.5, 1.0, 0.5, 0.0)
    with pytest.raises(LostExpertError, match="only one of PyTorch and the graph"):
        routing_agreement(mine, {}, {"a": 4})


def test_graphs_share_their_weights(tiny_bundle: Path) -> None:
    offsets = []
    for name in ("t2i_prefill", "t2i_step", "mmu_prefill", "mmu_extend"):
        found = ir.load(tiny_bundle / f"{name}.onnx").graph.initializers
        (weight,) = (v for k, v in found.items() if k.endswith("blocks.0.attention.input.weight.T"))
        assert isinstance(weight.const_value, ir.ExternalTensor)
        offsets.append(weight.const_value.offset)
    assert len(set(offsets)) == 1


def _small(models: Models) -> Models:
    """Only the region parser: a bundle in two seconds."""
    return Models(models.configuration, parser=models.parser, regions=models.regions)


@pytest.mark.slow
def test_an_interrupted_export_leaves_nothing_and_an_old_bundle_stands(tmp_path: Path, tiny_models: Models, tiny_bundle: Path) -> None:
    out, text = tmp_path / "bundle", tiny_bundle / "tokenizer.json"
    write_bundle(out, models=_small(tiny_models), text_tokenizer_path=text, recipe="fp32")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(_folder: Path, _document: object) -> dict[str, object]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(out, models=_small(tiny_models), text_tokenizer_path=text, recipe="int8", measure=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(InputError, match="allowed are"):
        write_bundle(tmp_path / "other", models=_small(tiny_models), text_tokenizer_path=text, largest_bytes=10_000)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file of that name exists"), replaced_folder(tmp_path / "file"):
        pass
    with pytest.raises(OutputError, match="cannot write the bundle"), replaced_folder(tmp_path / "file" / "below"):
        pass


def test_unknown_recipes_and_tokenizers_are_refused_before_anything_is_written(tmp_path: Path, tiny_models: Models) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for recipe, message in (("int3", "unknown quantization recipe 'int3'"), ("fp32", "cannot be read")):
        with pytest.raises(InputError, match=message):
            write_bundle(tmp_path / "b", models=_small(tiny_models), text_tokenizer_path=tmp_path / "tokenizer.json", recipe=recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_dense_model_without_encoders_has_the_same_graphs() -> None:
    """Show-o's shape: no experts, one table for image codes, a prefill from codes alone."""
    configuration = replace(
        SHOW_O, text_vocabulary=40, width=32, layers=1, heads=2, rotary=8, token_experts=TokenExperts(shared_width=48),
        tokenizer=replace(SHOW_O.tokenizer, image_size=64, bits=6),
    )  # fmt: skip
    torch.manual_seed(0)
    transformer = UnifiedTransformer(configuration)
    models = Models(configuration, transformer)
    assert models.graphs == ("t2i_prefill", "t2i_step", "mmu_prefill", "mmu_extend")
    codes = np.random.default_rng(0).integers(0, configuration.codes + 1, (2, configuration.image_tokens))
    graph = trace("mmu_prefill", models)
    assert [value.name for value in graph.graph.inputs] == ["codes"]
    assert census(graph.graph, "mmu_prefill", transformer) == []
    wanted = TorchBackend(models).run("mmu_prefill", {"codes": codes})
    for found, name in zip(session(graph).run(None, {"codes": codes}), ("image_key", "image_value"), strict=True):
        assert np.allclose(found, host(wanted[name]), atol=1e-5)


@pytest.mark.parametrize(
    ("share", "untrained", "passes"), [(0.96, False, True), (0.936, False, False), (0.936, True, True), (0.5, True, False)]
)
def test_random_weights_may_route_otherwise_more_often_but_lose_no_expert(share: float, *, untrained: bool, passes: bool) -> None:
    routing = RoutingAgreement(1000, round(1000 * share), {})
    if passes:
        check_routing("t2i_step", routing, "int8", untrained=untrained)
        return
    with pytest.raises(LostExpertError, match=r"t2i_step.* of 1000 routing decisions"):
        check_routing("t2i_step", routing, "int8", untrained=untrained)
