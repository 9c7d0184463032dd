"""The checker of what TensorRT's parser takes: a sound graph passes, and each forbidden thing put into it is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.graph.lower import Array, add_constant
from export.tensorrt.parser_operators import BUILT_IN, LATER, OPERATORS, VERSIONS, opset_of
from export.tensorrt.parser_rules import UnreadableGraphError, check_version, known_versions, problems, refuse_unreadable
from f2edge.errors import InputError

F, H, I = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT64


def value(name: str, dtype: ir.DataType, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def sound(layers: int = 3) -> ir.Model:
    """A few layers of what the flavour is made of: cast, product in half, norm in single, quantized product."""
    x = value("x", F, (2, 8))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="sound")
    state = x
    for layer in range(layers):
        state = append(graph, "Cast", [state], H, to=H, shape=(2, 8))
        weight = add_constant(graph, f"w{layer}", np.ones((8, 8), np.float16))
        state = append(graph, "MatMul", [state, weight], H, shape=(2, 8))
        state = append(graph, "Cast", [state], F, to=F, shape=(2, 8))
        scale, bias = (add_constant(graph, name, np.full(8, number, np.float32)) for name, number in (("one", 1), ("zero", 0)))
        state = append(graph, "LayerNormalization", [state, scale, bias], F, shape=(2, 8))
    state.name = "y"
    graph.outputs.append(state)
    return ir.Model(graph, ir_version=10)


def append(
    graph: ir.Graph,
    op: str,
    inputs: list[ir.Value | None],
    dtype: ir.DataType | None,
    *,
    domain: str = "",
    shape: tuple[int, ...] = (),
    **attributes: Any,
) -> ir.Value:
    """Add a node whose result has this type."""
    node = ir.node(op, inputs, attributes, domain=domain, name=f"{op}_{len(graph)}")
    graph.append(node)
    node.outputs[0].name = f"v{len(graph)}"
    if dtype is not None:
        node.outputs[0].type = ir.TensorType(dtype)
        node.outputs[0].shape = ir.Shape(shape)
    return node.outputs[0]


def used(graph: ir.Graph, made: ir.Value) -> None:
    """Let something read ``made``, so that it counts."""
    append(graph, "Identity", [made], made.dtype)


def weights(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    return add_constant(graph, f"broken/{name}", array)


Breaker = Callable[[ir.Model], None]


def breaking(op: str, dtype: ir.DataType, *constants: Array, given: ir.DataType = F, domain: str = "", **attributes: Any) -> Breaker:
    """A breaker that adds one node reading a value of type ``given`` and constants."""

    def break_it(model: ir.Model) -> None:
        graph = model.graph
        data = append(graph, "Cast", [graph.inputs[0]], given, to=given, shape=(2, 8)) if given != F else graph.inputs[0]
        more = [weights(graph, f"{op}{place}", array) for place, array in enumerate(constants)]
        append(graph, op, [data, *more], dtype, domain=domain, **attributes)

    return break_it


def quantizer(op: str, codes: Array | None, *arrays: Array, domain: str = "", **attributes: Any) -> Breaker:
    """A breaker with a Q/DQ node on constant codes, or on the input where there are none."""

    def break_it(model: ir.Model) -> None:
        graph = model.graph
        data = graph.inputs[0] if codes is None else weights(graph, "codes", codes)
        more = [weights(graph, f"q{place}", array) for place, array in enumerate(arrays)]
        append(graph, op, [data, *more], F if op.startswith(("Deq", "TRT")) else ir.DataType.INT8, domain=domain, **attributes)

    return break_it


def dynamic_fp4(scale: np.float32 | None, block_size: int = 16) -> Breaker:
    """A breaker with a dynamic quantization of the input, which has eight columns."""

    def break_it(model: ir.Model) -> None:
        data = model.graph.inputs[0]
        given = append(model.graph, "ReduceMax", [data], F, keepdims=0) if scale is None else weights(model.graph, "fp4", np.array(scale))
        kind, e4m3 = ir.DataType.FLOAT4E2M1, int(ir.DataType.FLOAT8E4M3FN)
        append(model.graph, "TRT_FP4DynamicQuantize", [data, given], kind, domain="trt", axis=-1, block_size=block_size, scale_type=e4m3)

    return break_it


def one_row_of_mask(model: ir.Model) -> None:
    data = model.graph.inputs[0]
    mask = weights(model.graph, "mask", np.zeros((1, 8), np.float32))
    append(model.graph, "Attention", [data, data, data, mask], F, TRT_decomposable=1)


def fp4_weights(model: ir.Model) -> None:
    codes = weights(model.graph, "e2m1", np.ones((16, 8)).astype(ml_dtypes.float4_e2m1fn))
    append(model.graph, "DequantizeLinear", [codes, weights(model.graph, "one scale", np.array(1, np.float32))], F)


def computed_scale(model: ir.Model) -> None:
    scale = append(model.graph, "ReduceMax", [model.graph.inputs[0]], F, keepdims=0)
    append(model.graph, "QuantizeLinear", [model.graph.inputs[0], scale], ir.DataType.INT8)


def opset_21(model: ir.Model) -> None:
    model.graph.opset_imports[""] = 21


def infinite(model: ir.Model) -> None:
    used(model.graph, append(model.graph, "Add", [model.graph.inputs[0], weights(model.graph, "mask", np.full(8, -np.inf, np.float32))], F))


def untyped(model: ir.Model) -> None:
    append(model.graph, "Identity", [append(model.graph, "Neg", [model.graph.inputs[0]], None)], F)


def mixed(model: ir.Model) -> None:
    append(model.graph, "Mul", [model.graph.inputs[0], weights(model.graph, "half", np.ones(8, np.float16))], F)


def bare_norm(model: ir.Model) -> None:
    append(model.graph, "LayerNormalization", [model.graph.inputs[0], weights(model.graph, "scale", np.ones(8, np.float32))], F)


def computed_axes(model: ir.Model) -> None:
    axes = append(model.graph, "Cast", [model.graph.inputs[0]], I, to=I)
    append(model.graph, "ReduceSum", [model.graph.inputs[0], axes], F)


def function(model: ir.Model) -> None:
    inner = ir.Graph([], [], nodes=[], opset_imports={"": 20})
    body = ir.Function("f2edge", "F2FusedMoE", "", graph=inner, attributes=[])
    model.functions[body.identifier()] = body


def open_size(model: ir.Model) -> None:
    model.graph.inputs[0].shape = ir.Shape(["B", 8])


def unsigned_input(model: ir.Model) -> None:
    model.graph.inputs.append(value("bits", ir.DataType.UINT32, (2,)))


_K = np.array([3840], np.int64)
_HALF, _CODES = np.array(0.5, np.float32), np.ones((8, 8), np.int8)
_SCATTERED = (np.zeros((1, 1), np.int64), np.ones((1, 8), np.float32))
_INT4 = np.ones((128, 8)).astype(ml_dtypes.int4)

#: What is broken, how, in which version, and a word of the message.
BROKEN: Mapping[str, tuple[Breaker, str, str]] = {
    "bitwise": (breaking("BitwiseXor", I, np.ones(8, np.int64), given=I), "11.4", "no such operator"),
    "shift": (breaking("BitShift", I, np.ones(8, np.int64), given=I), "10.3", "no such operator"),
    "dynamic quantization": (breaking("DynamicQuantizeLinear", ir.DataType.UINT8), "11.4", "no such operator"),
    "integer product": (breaking("MatMulInteger", I, np.ones((8, 8), np.int8)), "11.4", "no such operator"),
    "unsigned": (breaking("Cast", ir.DataType.UINT32, to=ir.DataType.UINT32), "11.4", "uint32"),
    "float floor": (breaking("Floor", I, given=I), "10.3", "is int64"),
    "half of bool": (breaking("Add", F, np.ones(8, bool), given=ir.DataType.BOOL), "10.3", "is bool"),
    "contrib": (breaking("MatMulNBits", F, domain="com.microsoft"), "11.4", "plugin_namespace"),
    "contrib named as a built-in": (breaking("Attention", F, domain="com.microsoft"), "11.4", "ignores domains"),
    "plug-in without namespace": (breaking("F2FusedMoE", H, domain="f2edge", active=2, plugin_version="1"), "10.3", "plugin_namespace"),
    "attention": (breaking("Attention", F, TRT_decomposable=1), "10.13", "needs 10.14"),
    "rotary": (breaking("RotaryEmbedding", F), "10.14", "needs 10.15"),
    "norm by roots": (breaking("RMSNormalization", F, np.ones(8, np.float32)), "10.3", "needs 10.15"),
    "four-bit floats": (breaking("TRT_FP4DynamicQuantize", F, domain="trt"), "10.7", "needs 10.8"),
    "scatter none": (breaking("ScatterND", F, *_SCATTERED, reduction="none"), "10.8", "before 10.9"),
    "scatter add": (breaking("ScatterND", F, *_SCATTERED, reduction="add"), "11.4", "no version"),
    "many of the largest": (breaking("TopK", F, _K, axis=-1), "11.4", "3840"),
    "unsorted": (breaking("TopK", F, np.array([2]), axis=-1, sorted=0), "10.3", "sorted must be 1"),
    "last index": (breaking("ArgMax", I, axis=-1, select_last_index=1), "10.3", "select_last_index"),
    "data-dependent": (breaking("NonZero", I), "11.4", "depend on data"),
    "unique": (breaking("Unique", F), "10.3", "depend on data"),
    "opset": (opset_21, "10.14", "opset 21"),
    "infinite mask": (infinite, "11.4", "not finite"),
    "type not known": (untyped, "10.3", "is unknown"),
    "mixed types": (mixed, "11.4", "strongly typed"),
    "norm without bias": (bare_norm, "10.3", "scale and bias"),
    "computed axes": (computed_axes, "10.3", "constant"),
    "local function": (function, "10.6", "local functions"),
    "unsigned input": (unsigned_input, "10.3", "cannot be bound"),
    "scale of zero": (quantizer("DequantizeLinear", _CODES, np.zeros((), np.float32)), "10.3", "positive"),
    "computed scale": (computed_scale, "10.3", "computed"),
    "off centre": (quantizer("DequantizeLinear", _CODES, _HALF, np.array(3, np.int8)), "11.4", "symmetric"),
    "unsigned zero": (quantizer("QuantizeLinear", None, _HALF, np.array(0, np.uint8)), "11.4", "uint8"),
    "activation by channel": (quantizer("QuantizeLinear", None, np.ones(8, np.float32), axis=1), "11.4", "one scale per tensor"),
    "zero points of another size": (
        quantizer("DequantizeLinear", _CODES, np.ones(8, np.float32), np.array(0, np.int8), axis=1), "10.3", "same size",
    ),
    "blocks of three axes": (
        quantizer("TRT_INT4DequantizeLinear", np.stack([_INT4] * 2), np.ones((2, 2, 8), np.float16), domain="trt"),
        "10.6",
        "need 10.7",
    ),
    "odd columns": (quantizer("TRT_INT4DequantizeLinear", _INT4[:, :7], np.ones((2, 7), np.float16), domain="trt"), "11.4", "even"),
    "blocks of 32": (quantizer("TRT_INT4DequantizeLinear", _INT4, np.ones((4, 8), np.float16), domain="trt"), "11.4", "64 and 128"),
    "FP4 with a computed scale": (dynamic_fp4(None), "11.4", "constant scalar"),
    "FP4 in blocks of 32": (dynamic_fp4(np.float32(1), block_size=32), "11.4", "blocks of 16"),
    "FP4 of eight columns": (dynamic_fp4(np.float32(1)), "10.13", "divisible by 16"),
    "FP4 weights before 10.8": (fp4_weights, "10.7", "needs 10.8"),
    "FP4 weights with one scale": (fp4_weights, "11.4", "of their own"),
    "attention without decomposition": (breaking("Attention", F), "10.15", "TRT_decomposable"),
    "attention with one row of mask": (one_row_of_mask, "11.4", "one for each"),
    "attention with a past": (breaking("Attention", F, *[np.ones((2, 8), np.float32)] * 4, TRT_decomposable=1), "11.4", "join earlier"),
    "blocks both ways": (quantizer("TRT_INT4DequantizeLinear", _INT4, np.ones((2, 2), np.float16), domain="trt"), "11.4", "only one axis"),
}  # fmt: skip


@pytest.mark.parametrize("version", known_versions())
def test_a_sound_graph_passes_in_every_version(version: str) -> None:
    assert list(problems(sound(), version, static=True)) == []


@pytest.mark.parametrize("what", BROKEN)
def test_each_forbidden_thing_is_refused_with_node_rule_version_and_cure(what: str) -> None:
    breaker, version, word = BROKEN[what]
    model = sound()
    breaker(model)
    with pytest.raises(UnreadableGraphError, match=word) as caught:
        refuse_unreadable(model, version)
    message = str(caught.value)
    assert f"TensorRT {version}" in message
    assert all("; " in line for line in message.splitlines()[1:])  # a cure behind every rule


@pytest.mark.parametrize(
    ("what", "version"),
    [
        ("attention", "10.14"),
        ("rotary", "10.15"),
        ("norm by roots", "11.0"),
        ("scatter none", "10.9"),
        ("opset", "10.15"),
        ("local function", "10.7"),
        ("blocks of three axes", "10.7"),
    ],
)
def test_what_came_later_passes_from_then_on(what: str, version: str) -> None:
    model = sound()
    BROKEN[what][0](model)
    assert list(problems(model, version)) == []


@given(chosen=st.sets(st.sampled_from(sorted(BROKEN)), min_size=1, max_size=3), layers=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_graph_with_forbidden_things_is_never_passed(chosen: set[str], layers: int) -> None:
    """Whatever else is broken, the oldest version that any of them needs refuses each one of them."""
    model = sound(layers)
    for number, what in enumerate(sorted(chosen)):
        BROKEN[what][0](model)
        for name in [name for name in model.graph.initializers if name.startswith("broken/")]:
            model.graph.initializers[name].name = f"{number}/{name}"
    oldest = min((BROKEN[what][1] for what in chosen), key=lambda text: VERSIONS.index(tuple(map(int, text.split(".")))))
    text = "\n".join(map(str, problems(model, oldest)))
    assert text
    for what in chosen:
        if what not in ("opset", "local function"):  # one graph-wide rule each, checked above
            assert BROKEN[what][2] in text, what


def test_open_sizes_are_refused_where_a_graph_must_be_static() -> None:
    model = sound()
    open_size(model)
    assert list(problems(model, "10.3")) == []
    with pytest.raises(UnreadableGraphError, match=r"'x'.*dynamic"):
        refuse_unreadable(model, "10.3", static=True)


@pytest.mark.parametrize("version", ["10.2", "12.0", "10", "", "8.6"])
def test_unknown_versions_are_refused(version: str) -> None:
    with pytest.raises(InputError, match="choose one of"):
        check_version(version)


def test_the_tables_do_not_contradict_each_other() -> None:
    assert not set(OPERATORS) & set(LATER)
    assert all(name.startswith("TRT_") for name in BUILT_IN)
    assert list(VERSIONS) == sorted(VERSIONS)
    assert [opset_of(version) for version in ((10, 3), (10, 14), (10, 15), (11, 4))] == [20, 20, 24, 24]
