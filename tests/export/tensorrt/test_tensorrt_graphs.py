"""Graphs of the "tensorrt" flavour: on ONNX Runtime each gives the reference's numbers within a written tolerance, in every form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.profile import RECIPE_SM
from export.bundle_writer import layout_of, trace_all
from export.cli import run
from export.graph.lower import Array, constant
from export.graph.sampling import sampling_model
from export.graph.static_shapes import infer
from export.graph.trace import Models, trace
from export.quantize.quantize import Calibration, layer_name, linear_layers, products_of
from export.tensorrt.fallbacks import runnable
from export.tensorrt.fused_moe import OP as FUSED
from export.tensorrt.graphs import ATTENTION, TensorRTOptions, tensorrt_graph
from export.tensorrt.parser_rules import known_versions, problems
from export.tensorrt.recipes import INT4_OP, RECIPES, TRANSFORMER_GRAPHS, layers_of, quantize_blocks, recipes_of
from export.tensorrt.sampling import tensorrt_sampling_model
from export.verify.parity import SampleInputs, generate, understand
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.decoding.schedule import Schedule
from f2edge.errors import InputError
from f2edge.spec.configuration import DRAWS, FeatureShape, ImageTokenizerConfiguration, TokenExperts
from f2edge.spec.graphs import CACHES
from f2edge.spec.layout import TokenLayout
from tests.support.recorder import Recorder
from tests.support.small_showo import SMALL, imported, show_o_state
from tests.support.tiny_model import TINY, random_models

pytestmark = pytest.mark.slow

Calls = Mapping[str, list[tuple[dict[str, Array], dict[str, Array]]]]


@dataclass(frozen=True)
class Tolerance:
    """Mean error of float outputs in parts of the reference's spread; least share of equal integer outputs."""

    mean: float
    equal: float


#: Random weights route near ties and have no structure that four bits could keep, so the coarse recipes drift far; trained ones do not.
TOLERANCES: Mapping[str, Tolerance] = {
    "fp16": Tolerance(0.005, 0.98),
    "fp16 plugin": Tolerance(0.005, 0.98),
    "fp16 single": Tolerance(0.005, 0.98),
    "fp16 joined": Tolerance(0.006, 0.98),
    "fp16 operator": Tolerance(0.006, 0.98),
    "fp16 operator joined": Tolerance(0.006, 0.98),
    "int8": Tolerance(0.06, 0.9),
    "int8 plugin": Tolerance(0.06, 0.9),
    "fp8": Tolerance(0.12, 0.8),
    "int4": Tolerance(0.4, 0.5),
    "int4-gptq": Tolerance(0.35, 0.5),
    "nvfp4": Tolerance(0.4, 0.5),
}
#: Oldest version for which a form is exported.
SINCE = {"operator": "10.15", "nvfp4": "10.13"}


def options_of(form: str) -> TensorRTOptions:
    recipe, *rest = form.split()
    version = next((SINCE[word] for word in form.split() if word in SINCE), "10.3")
    attention = next((word for word in rest if word in ATTENTION), None)
    return TensorRTOptions(version, "plugin" if "plugin" in rest else "plain", recipes_of(recipe), None, attention, "joined" in rest)


@pytest.fixture(scope="module")
def traced(tiny_bundle: Path) -> dict[str, ir.Model]:
    """The reference: fp32 graphs as they are written for ONNX Runtime, their types worked out again."""
    graphs = {path.stem: ir.external_data.load_to_model(ir.load(path)) for path in sorted(tiny_bundle.glob("*.onnx"))}
    for model in graphs.values():
        infer(model)
    return graphs


@pytest.fixture(scope="module")
def layout(tiny_bundle: Path) -> TokenLayout:
    return layout_of(TINY, tiny_bundle / "tokenizer.json")


@pytest.fixture(scope="module")
def inputs(layout: TokenLayout) -> SampleInputs:
    rng = np.random.default_rng(0)
    sentences = [[int(i) for i in rng.integers(2, layout.text_vocabulary, rng.integers(3, 20))] for _ in range(4)]
    pixels = rng.uniform(-1, 1, (1, 3, 128, 128)).astype(np.float32)
    return SampleInputs(sentences[:2], sentences[2:], pixels, [11, 12], Schedule(steps=3, guidance=2.0))


@pytest.fixture(scope="module")
def calls(traced: Mapping[str, ir.Model], tiny_bundle: Path, layout: TokenLayout, inputs: SampleInputs) -> Calls:
    """One run of the runtime on the reference: what each graph was fed and answered."""
    recorder = Recorder(OnnxRuntimeBackend(lambda graph: tiny_bundle / f"{graph}.onnx", 1))
    generate(recorder, layout, inputs)
    understand(recorder, tuple(traced), layout, inputs)
    return recorder.calls


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    """Every operator as written: no fusion may hide a rounding."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def answers(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    opened = session(model)
    return dict(zip([o.name for o in opened.get_outputs()], opened.run(None, dict(feeds)), strict=True))


@pytest.fixture(scope="module")
def calibration(traced: Mapping[str, ir.Model], calls: Calls) -> Calibration:
    """Largest activations over the recorded calls."""
    largest: dict[str, Array] = {}
    for graph in TRANSFORMER_GRAPHS:
        model = traced[graph].clone()
        layers = linear_layers(model.graph, layers_of(RECIPES["int4-gptq"]))
        watched = {str(x.name): x for _, x, _, _ in layers if not x.is_graph_input()}
        model.graph.outputs.extend(value for value in watched.values() if not value.is_graph_output())
        opened = session(model)
        for feeds, _ in calls[graph]:
            seen = dict(zip([o.name for o in opened.get_outputs()], opened.run(None, feeds), strict=True)) | feeds
            for _, x, weight, _ in layers:
                rows = np.abs(seen[str(x.name)]).reshape(-1, weight_rows(weight))
                name = layer_name(model.graph, weight)
                largest[name] = np.maximum(largest.get(name, 0), rows.max(axis=0))
                signed = seen[str(x.name)].reshape(rows.shape)
                largest[products_of(name)] = largest.get(products_of(name), 0) + signed.T @ signed
    return largest


def weight_rows(weight: ir.Value) -> int:
    array = constant(weight)
    assert array is not None
    return int(array.shape[0])


@pytest.mark.parametrize("form", TOLERANCES)
@pytest.mark.parametrize("graph", TRANSFORMER_GRAPHS)
def test_every_form_of_the_transformer_is_near_the_reference(
    traced: Mapping[str, ir.Model], calls: Calls, calibration: Calibration, graph: str, form: str
) -> None:
    model = tensorrt_graph(graph, traced[graph], TINY, options_of(form), calibration)
    feeds, wanted = calls[graph][-1]
    found = answers(runnable(model), feeds)
    if graph == "t2i_prefill":  # padding has nothing to attend to, and kernels fill it as they like
        found, wanted = ({n: v[..., -int(feeds["prompt_lengths"].max()) :, :] for n, v in each.items()} for each in (found, wanted))
    near(found, wanted, TOLERANCES[form])


def near(found: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: Tolerance) -> None:
    for name, reference in wanted.items():
        if np.issubdtype(reference.dtype, np.integer):
            assert (found[name] == reference).mean() >= tolerance.equal, name
        else:
            assert found[name].dtype == reference.dtype == np.float32
            assert np.abs(found[name] - reference).mean() <= tolerance.mean * reference.std(), name


@pytest.mark.parametrize("graph", ["image_encode", "image_decode", "semantic", "identity", "regions"])
def test_convolutions_are_near_the_reference_in_half_precision(traced: Mapping[str, ir.Model], calls: Calls, graph: str) -> None:
    model = tensorrt_graph(graph, traced[graph], TINY, TensorRTOptions())
    feeds, wanted = calls[graph][0]
    near(answers(runnable(model), feeds), wanted, Tolerance(0.005, 0.97))


def _dynamic_axes(model: ir.Model) -> set[str]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return {str(axis) for value in values if value.shape is not None for axis in value.shape if not isinstance(axis, int)}


def test_a_pinned_step_has_no_open_size_and_the_same_tokens(traced: Mapping[str, ir.Model], calls: Calls) -> None:
    dynamic, pinned = (tensorrt_graph("t2i_step", traced["t2i_step"], TINY, TensorRTOptions(images=images)) for images in (None, 2))
    assert _dynamic_axes(dynamic) == {"R", "B"}
    assert _dynamic_axes(pinned) == set()
    shapes = [output.shape for node in pinned.graph for output in node.outputs]
    assert all(shape is not None and shape.is_static() for shape in shapes)
    assert not {"Shape", "Range"} & {node.op_type for node in pinned.graph}
    feeds, _ = calls["t2i_step"][0]
    for name, value in answers(runnable(dynamic), feeds).items():
        np.testing.assert_array_equal(answers(runnable(pinned), feeds)[name], value)


@pytest.mark.parametrize("graph", TRANSFORMER_GRAPHS)
def test_keys_and_values_are_half_and_never_widened(traced: Mapping[str, ir.Model], graph: str) -> None:
    model = tensorrt_graph(graph, traced[graph], TINY, TensorRTOptions())
    half, found = ir.DataType.FLOAT16, set()
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in CACHES:
            assert value.dtype == half, value.name
            found.add(value.name)
    assert found
    for value in (value for value in model.graph.inputs if value.name in CACHES):
        waiting = [use.node for use in value.uses()]
        while waiting:  # as far as the products, nothing casts
            node = waiting.pop()
            assert node.op_type != "Cast", (value.name, node)
            if node.op_type not in ("MatMul", "Shape"):
                waiting += [use.node for output in node.outputs for use in output.uses()]


def test_half_precision_has_its_single_islands(traced: Mapping[str, ir.Model]) -> None:
    model = tensorrt_graph("t2i_step", traced["t2i_step"], TINY, TensorRTOptions())
    single, half = ir.DataType.FLOAT, ir.DataType.FLOAT16
    kinds: dict[str, set[ir.DataType | None]] = {}
    routers = 0
    for node in model.graph:
        kinds.setdefault(node.op_type, set()).update(value.dtype for value in node.inputs if value is not None)
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and "router" in str(weight.name):
            routers += 1
            assert {value.dtype for value in node.inputs if value is not None} == {single}
    assert routers == 2 * TINY.layers
    assert kinds["LayerNormalization"] == {single}
    assert kinds["Softmax"] == {single, half}  # the sampler's and the routers', and attention's
    assert kinds["Gelu"] == {half}
    heads = [node for node in model.graph if node.op_type == "MatMul" and node.inputs[0] and node.inputs[0].dtype == half]
    assert len(heads) >= 8 * TINY.layers


@pytest.mark.parametrize("fused", [False, True])
def test_norms_of_queries_and_keys_are_single_between_half_products(fused: bool) -> None:
    model = imported(show_o_state())
    traced = trace("t2i_prefill", Models(SMALL, model))
    infer(traced)
    half = tensorrt_graph("t2i_prefill", traced, SMALL, TensorRTOptions(attention="fused" if fused else "single"))
    norms = [node for node in half.graph if node.op_type == "LayerNormalization"]
    assert len(norms) == 3 * SMALL.layers - 1  # the last layer's queries are not read
    assert {value.dtype for node in norms for value in node.inputs if value is not None} == {ir.DataType.FLOAT}
    feeds = {"prompt_ids": np.array([[*[40] * 6, 45, 39, 3, 7, 39]]), "prompt_lengths": np.array([5])}
    expected = answers(traced, feeds)
    for name, value in answers(runnable(half), feeds).items():
        assert np.abs(value - expected[name]).mean() < TOLERANCES["fp16"].mean * expected[name].std()


def test_attention_that_may_fuse_is_half_throughout(traced: Mapping[str, ir.Model]) -> None:
    model = tensorrt_graph("mmu_prefill", traced["mmu_prefill"], TINY, TensorRTOptions())
    kinds = [node.inputs[0].dtype for node in model.graph if node.op_type == "Softmax" and node.inputs[0] is not None]
    assert ir.DataType.FLOAT16 in kinds
    assert ir.DataType.FLOAT in kinds  # the routers'


def test_the_plugin_node_holds_every_routed_expert(traced: Mapping[str, ir.Model]) -> None:
    model = tensorrt_graph("t2i_step", traced["t2i_step"], TINY, TensorRTOptions(moe="plugin"))
    nodes = [node for node in model.graph if node.op_type == FUSED]
    experts = TINY.token_experts
    assert len(nodes) == TINY.layers
    D, E, I = TINY.width, experts.routed, experts.routed_width
    whole = traced["t2i_step"].graph.initializers
    for layer, node in enumerate(nodes):
        arrays = [constant(value) for value in node.inputs[1:]]
        shapes = [
            ((D, E), "float32"),
            ((E,), "float32"),
            ((E, D, I), "float16"),
            ((E, I), "float16"),
            ((E, I, D), "float16"),
            ((E, D), "float16"),
        ]
        assert [(a.shape, a.dtype.name) for a in arrays if a is not None] == shapes
        assert {name: node.attributes[name].value for name in node.attributes} == {
            "active": experts.active, "gated": 0, "plugin_namespace": "f2edge", "plugin_version": "1",
        }  # fmt: skip
        up, down = (constant(whole[f"stem.blocks.{layer}.experts.t2i.{part}.weight.T"]) for part in ("up", "down"))
        assert up is not None
        assert down is not None
        for e in range(E):
            own = slice(experts.shared_width + e * I, experts.shared_width + (e + 1) * I)
            np.testing.assert_array_equal(arrays[2][e], up[:, own].astype(np.float16))  # type: ignore[index]
            np.testing.assert_array_equal(arrays[4][e], down[own].astype(np.float16))  # type: ignore[index]


def test_every_version_reads_what_was_made_for_the_oldest(traced: Mapping[str, ir.Model], calibration: Calibration) -> None:
    options = replace(options_of("fp8"), recipes=recipes_of("fp8,mmu_extend=int4"))
    for graph, model in traced.items():
        made = tensorrt_graph(graph, model, TINY, options, calibration)
        for version in known_versions():
            assert list(problems(made, version)) == []
    int4 = tensorrt_graph("mmu_extend", traced["mmu_extend"], TINY, options, calibration)
    assert INT4_OP in {node.op_type for node in int4.graph}


def test_making_a_graph_leaves_the_traced_one_alone(traced: Mapping[str, ir.Model], calls: Calls, calibration: Calibration) -> None:
    model = traced["mmu_extend"]
    before = [(node.op_type, [value.dtype for value in node.outputs]) for node in model.graph]
    for form in ("int8 plugin", "int4"):
        tensorrt_graph("mmu_extend", model, TINY, options_of(form), calibration)
    assert [(node.op_type, [value.dtype for value in node.outputs]) for node in model.graph] == before


def test_a_calibrated_recipe_asks_for_figures(traced: Mapping[str, ir.Model]) -> None:
    with pytest.raises(InputError, match="no calibration statistics for"):
        tensorrt_graph("mmu_extend", traced["mmu_extend"], TINY, options_of("int8"))


@pytest.mark.parametrize("text", ["fp32", "int8,nothing=int4", "semantic=int4", ""])
def test_unknown_recipes_and_graphs_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="choose one of"):
        recipes_of(text)


def test_recipes_may_differ_by_graph() -> None:
    chosen = {name: recipe.name for name, recipe in recipes_of("int8, mmu_extend=int4").items()}
    assert chosen["t2i_step"] == "int8"
    assert chosen["mmu_extend"] == "int4"
    assert chosen["image_decode"] == "fp16"


def test_profiles_and_recipes_know_the_same_names() -> None:
    assert set(RECIPE_SM) == set(RECIPES)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--flavour", "tensor-rt"], "choose one of: onnxruntime, tensorrt"),
        (["--moe", "plugin"], "--moe: for --flavour tensorrt only"),
        (["--tensorrt", "10.9", "--images", "2"], "--tensorrt, --images: for --flavour tensorrt only"),
        (["--flavour", "tensorrt", "--recipe", "fp32"], "choose one of: fp16"),
        (["--flavour", "tensorrt", "--tensorrt", "8.6"], "10.3"),
        (["--flavour", "tensorrt", "--moe", "dense"], "plain, plugin"),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    parts = [value for name in ("unified", "tokenizer", "encoders", "text", "out") for value in (f"--{name}", str(tmp_path / name))]
    assert run(["onnx", *parts, *arguments]) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [("version", "9.9"), ("moe", "dense"), ("images", 0)])
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError):
        TensorRTOptions(**{name: value})  # type: ignore[arg-type]


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(2, 40)),
    ties=st.booleans(),
    draw=st.sampled_from(DRAWS),
)
@settings(max_examples=40, deadline=None)
def test_the_sampler_is_the_other_flavours_bit_for_bit(seed: int, shape: tuple[int, int, int], ties: bool, draw: str) -> None:
    rng, (R, N, V) = np.random.default_rng(seed), shape
    feeds = {
        "logits": np.zeros((R, N, V), np.float32) if ties else rng.normal(size=(R, N, V)).astype(np.float32) * 4,
        "codes": np.where(rng.random((R, N)) < 0.7, V, rng.integers(0, V, (R, N))),
        "token_temperature": np.ones(R, np.float32),
        "temperature": np.full(R, 0 if ties else 3, np.float32),
        "noise_key": np.zeros((R, N), np.int64) if ties else rng.integers(0, 2**32, (R, N)),
        "priority": np.zeros((R, N), np.float32),
        "masked_after": rng.integers(0, N + 1, R),
    }
    wanted, found = answers(sampling_model(N, V, draw), feeds), answers(tensorrt_sampling_model(N, V, draw), feeds)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


@given(seed=st.integers(0, 2**31), blocks=st.integers(1, 4), block=st.sampled_from([16, 32, 128]), N=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_int4_blocks_are_symmetric_and_no_worse_than_plain_rounding(seed: int, blocks: int, block: int, N: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(blocks * block, N)).astype(np.float32)
    codes, scale = quantize_blocks(weight, block)
    assert codes.dtype == np.int8
    assert np.abs(codes).max() <= 7
    assert scale.shape == (blocks, N)
    assert np.array_equal(scale, scale.astype(np.float16).astype(np.float32))

    def error(scales: Array) -> Array:
        shaped = weight.reshape(blocks, block, N)
        rounded = np.clip(np.rint(shaped / scales[:, None]), -7, 7) * scales[:, None]
        return np.asarray(((shaped - rounded) ** 2).sum(axis=1))

    plain = (np.abs(weight.reshape(blocks, block, N)).max(axis=1) / 7).astype(np.float16).astype(np.float32)
    assert (error(scale) <= error(plain) + 1e-6).all()


def test_fp16_decodes_like_fp32(
    tmp_path: Path, traced: Mapping[str, ir.Model], tiny_bundle: Path, layout: TokenLayout, inputs: SampleInputs
) -> None:
    for graph in ("t2i_prefill", "t2i_step"):
        ir.save(runnable(tensorrt_graph(graph, traced[graph], TINY, TensorRTOptions())), tmp_path / f"{graph}.onnx")
    wanted = generate(OnnxRuntimeBackend(lambda graph: tiny_bundle / f"{graph}.onnx", 1), layout, inputs)
    found = generate(OnnxRuntimeBackend(lambda graph: tmp_path / f"{graph}.onnx", 1), layout, inputs)
    assert (found == wanted).mean() >= 0.9


OTHER = replace(
    TINY,
    name="other",
    width=96,
    heads=6,
    layers=1,
    token_experts=TokenExperts(shared_width=32, routed=8, routed_width=48, active=4),
    tokenizer=ImageTokenizerConfiguration(image_size=128, bits=5, channels=(8, 8, 8, 8, 8), blocks=1),
    semantic=FeatureShape(vectors=64, width=24),
    identity=FeatureShape(vectors=1, width=24),
    image_input="table",
)


@pytest.mark.long
@pytest.mark.parametrize("configuration", ["nano", "other"])
@pytest.mark.parametrize("moe", ["plain", "plugin"])
def test_other_sizes_and_nano_at_its_own(tmp_path: Path, tiny_bundle: Path, configuration: str, moe: str) -> None:
    """Random weights; numbers of experts and active ones, widths, codes a cell and kinds of image input all differ from TINY's."""
    from f2edge.spec.configuration import NANO

    chosen = NANO if configuration == "nano" else OTHER
    own = layout_of(chosen, tiny_bundle / "tokenizer.json")
    graphs = trace_all(random_models(chosen))
    folder = tmp_path / "fp32"
    folder.mkdir()
    for name, model in graphs.items():
        ir.save(model, folder / f"{name}.onnx", external_data=f"{name}.bin")
    recorder = Recorder(OnnxRuntimeBackend(lambda graph: folder / f"{graph}.onnx", 1))
    pixels = np.zeros((1, 3, chosen.tokenizer.image_size, chosen.tokenizer.image_size), np.float32)
    run = SampleInputs([[5, 6, 7]], [[8, 9]], pixels, [3], Schedule(steps=2, guidance=2.0))
    generate(recorder, own, run)
    understand(recorder, tuple(graphs), own, run)
    for name, model in graphs.items():
        made = runnable(tensorrt_graph(name, model, chosen, TensorRTOptions(moe=moe)))
        feeds, wanted = recorder.calls[name][-1]
        near(answers(made, feeds), wanted, Tolerance(0.01, 0.95))
