"""Checks that the parser and builder of a TensorRT version can read a graph, without libnvinfer.

The rules are a table with sources (:mod:`export.tensorrt.parser_operators`) and limits on attributes from the parser's code and release
notes.  A message names the node, the rule, the version and the cure.

>>> refuse_unreadable(model, "10.3")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.graph.lower import constant
from export.tensorrt.parser_operators import (
    BUILT_IN,
    CONSTANT_INPUTS,
    CONTROL_FLOW,
    DATA_DEPENDENT,
    DATA_INPUTS,
    FLOATS,
    LATER,
    ONE_TYPE,
    OPERATORS,
    VERSIONS,
    Types,
    Version,
    opset_of,
)  # fmt: skip
from f2edge.errors import F2EdgeError, InputError

#: TopK's limit (operators.md).
_LARGEST_K = 3840
_INT4_ND: Version = (10, 7)
#: Sizes of INT4's blocks (NVIDIA's guide, "Quantization Schemes"), and of FP4's; FP4's first version.
_INT4_BLOCKS, _FP4_BLOCK = (64, 128), 16
_FP4: Version = (10, 8)
_SCATTER_NONE: Version = (10, 9)
_FUNCTIONS: Version = (10, 7)
_TYPES_OF_INTERFACE = FLOATS | {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.UINT8, ir.DataType.INT8}
_QUANTISERS = ("QuantizeLinear", "DequantizeLinear", "TRT_INT4QuantizeLinear", "TRT_INT4DequantizeLinear")


class UnreadableGraphError(F2EdgeError, RuntimeError):
    """The target TensorRT cannot read a graph."""


@dataclass(frozen=True)
class Problem:
    """One violated rule: node, rule and cure."""

    node: str
    rule: str
    cure: str

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}; {self.cure}"


def check_version(text: str) -> str:
    """Return ``text`` if it is a supported TensorRT version "major.minor"; otherwise raise :class:`InputError`."""
    if text not in known_versions():
        raise InputError(f"unknown TensorRT version {text!r}; choose one of: {', '.join(known_versions())}")
    return text


def known_versions() -> list[str]:
    """Return all supported versions, oldest first."""
    return [f"{major}.{minor}" for major, minor in VERSIONS]


def version_name(version: Version) -> str:
    """Return "major.minor"."""
    return f"{version[0]}.{version[1]}"


def refuse_unreadable(model: ir.Model, version: str, *, static: bool = False) -> None:
    """Raise :class:`UnreadableGraphError` with the first problems of a graph, if there are any.

    Args:
        model: graph with the dtype of every value known.
        version: target version, "major.minor".
        static: whether every size must be known, for a CUDA graph without optimization profiles.
    """
    found = list(problems(model, version, static=static))
    if found:
        shown = "\n".join(f"  {problem}" for problem in found[:5])
        more = f"\n  and {len(found) - 5} more" if len(found) > 5 else ""
        raise UnreadableGraphError(f"TensorRT {version} cannot read graph {model.graph.name!r}:\n{shown}{more}")


def problems(model: ir.Model, version: str, *, static: bool = False) -> Iterator[Problem]:
    """Yield every violated rule in graph order; arguments as :func:`refuse_unreadable`."""
    check_version(version)
    major, minor = version.split(".")
    target = (int(major), int(minor))
    yield from _of_graph(model, target, static=static)
    for node in model.graph:
        label = f"{node.op_type} {node.name or (node.outputs[0].name if node.outputs else '')!r}"
        for rule, cure in _of_node(node, target):
            yield Problem(label, f"{rule} (TensorRT {version})", cure)


def _of_graph(model: ir.Model, target: Version, *, static: bool) -> Iterator[Problem]:
    graph, opset = model.graph, model.graph.opset_imports.get("", 0)
    if not 9 <= opset <= opset_of(target):
        yield Problem("graph", f"opset {opset}, the parser reads 9 to {opset_of(target)}", f"export with opset {opset_of(target)} or less")
    if model.functions and target < _FUNCTIONS:
        yield Problem("graph", "local functions, which override plug-ins of the same name", "inline or strip them")
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype not in _TYPES_OF_INTERFACE:
            yield Problem(f"tensor {value.name!r}", f"type {_name(value.dtype)} cannot be bound", "use float, half, int32, int64 or bool")
        axes = () if value.shape is None else tuple(axis for axis in value.shape if not isinstance(axis, int))
        if static and (axes or value.shape is None):
            yield Problem(
                f"tensor {value.name!r}", f"axes {', '.join(map(str, axes))} are dynamic", "pin them: export.graph.static_shapes.pin"
            )
    for value in graph.initializers.values():
        array = constant(value)
        if array is not None and array.dtype in (np.float32, np.float16) and not np.isfinite(array).all():
            cure = "use a finite mask (-30000), since fully masked rows give NaN otherwise"
            yield Problem(f"constant {value.name!r}", "values that are not finite", cure)


Finding = tuple[str, str]


def _of_node(node: ir.Node, target: Version) -> Iterator[Finding]:
    if node.domain not in ("", "ai.onnx"):
        yield from _of_other_domain(node, target)
        return
    op = node.op_type
    if op in DATA_DEPENDENT:
        yield "output sizes depend on data: each call synchronizes, no CUDA graph", "choose with TopK, Where or a mask"
    if op in CONTROL_FLOW:
        yield "control flow prevents fusion and CUDA graphs", "unroll it, or compute both sides and choose with Where"
    types = OPERATORS.get(op)
    if types is None and op in LATER:
        first, types = LATER[op]
        if target < first:
            yield f"the operator needs {first[0]}.{first[1]}", "write it with elementary operators"
    if types is None:
        if op not in DATA_DEPENDENT:
            yield "the parser has no such operator", "write it with operators of export.tensorrt.parser_operators.OPERATORS"
        return
    yield from _of_types(node, types)
    yield from _of_attributes(node, target)


def _of_other_domain(node: ir.Node, target: Version) -> Iterator[Finding]:
    """Check an operator outside ONNX; before 10.10 the parser ignores the domain and uses the name only."""
    op = node.op_type
    if op in BUILT_IN:
        if target < BUILT_IN[op]:
            yield f"the operator needs {BUILT_IN[op][0]}.{BUILT_IN[op][1]}", "use another recipe"
        yield from _of_attributes(node, target)
    elif op in OPERATORS or op in LATER:
        yield f"{node.domain}.{op} would be read as ONNX's {op}: the parser ignores domains", "rename the operator or use ONNX's"
    elif "plugin_namespace" not in node.attributes or "plugin_version" not in node.attributes:
        yield (
            f"{node.domain}.{op} is not built in, and as a plug-in it lacks plugin_namespace and plugin_version",
            "set both attributes on the node (the domain is used from 10.10 on), or avoid contrib operators",
        )


def _of_types(node: ir.Node, types: Types) -> Iterator[Finding]:
    op = node.op_type
    for output in node.outputs:
        if output.dtype is None and output.uses():
            yield f"the type of {output.name!r} is unknown", "run export.graph.static_shapes.infer, or set it where the node is created"
    places = DATA_INPUTS.get(op, (0,))
    for value in (node.inputs[place] for place in places if place < len(node.inputs)):
        if value is not None and value.dtype is not None and value.dtype not in types:
            yield f"data {value.name!r} is {_name(value.dtype)}, allowed are {_names(types)}", "cast it, or use another operator"
    if op == "Cast" and node.outputs[0].dtype not in (*types, None):
        yield f"casts to {_name(node.outputs[0].dtype)}, allowed are {_names(types)}", "stay within those types"
    if op in ONE_TYPE:
        seen = {value.dtype for value in node.inputs if value is not None and value.dtype is not None}
        if len(seen) > 1:
            yield f"operands of types {_names(frozenset(seen))} in a strongly typed network", "cast one of them"


def _of_attributes(node: ir.Node, target: Version) -> Iterator[Finding]:
    op = node.op_type
    place = CONSTANT_INPUTS.get(op)
    if place is not None and place < len(node.inputs) and node.inputs[place] is not None and constant(node.inputs[place]) is None:
        yield f"input {place} (axes or the like) must be a constant", "fold it"
    match op:
        case "ScatterND":
            yield from _of_scatter(node, target)
        case "TopK":
            yield from _of_top(node)
        case "LayerNormalization":
            yield from _of_norm(node)
        case "ArgMax" | "ArgMin":
            if "select_last_index" in node.attributes and node.attributes["select_last_index"].as_int():
                yield "select_last_index must be 0", "reverse the axis"
        case "TRT_FP4DynamicQuantize":
            yield from _of_dynamic_fp4(node)
        case "Attention":
            yield from _of_attention(node)
        case _ if op in _QUANTISERS:
            yield from _of_quantizer(node, target)


def _of_scatter(node: ir.Node, target: Version) -> Iterator[Finding]:
    if "reduction" not in node.attributes:
        return
    if node.attributes["reduction"].as_string() != "none":
        yield "no version reads ScatterND with a reduction", "sum over an axis instead"
    elif target < _SCATTER_NONE:
        yield "a reduction attribute on ScatterND, even 'none', is an error before 10.9", "remove the attribute"


def _of_top(node: ir.Node) -> Iterator[Finding]:
    k = constant(node.inputs[1])
    if k is not None and int(k.reshape(-1)[0]) >= _LARGEST_K:
        yield f"K = {int(k.reshape(-1)[0])}, must be below {_LARGEST_K}", "count ranks by comparison"
    if "sorted" in node.attributes and node.attributes["sorted"].as_int() != 1:
        yield "sorted must be 1", "set it"


def _of_norm(node: ir.Node) -> Iterator[Finding]:
    if len(node.inputs) < 3 or node.inputs[1] is None or node.inputs[2] is None:
        yield "scale and bias are required (the importer's default scale is 0 for some types)", "use ones and zeros"
    if any(output.uses() for output in node.outputs[1:]):
        yield "only the first output is supported", "compute mean and deviation separately"


def _of_attention(node: ir.Node) -> Iterator[Finding]:
    if any(value is not None for value in node.inputs[4:]) or any(output.uses() for output in node.outputs[1:]):
        yield "Attention takes queries, keys, values and a mask, and has one output", "join earlier columns before it"
    if "softcap" in node.attributes and node.attributes["softcap"].as_float():
        yield "Attention has no softcap", "write it with elementary operators"
    flag = node.attributes.get("TRT_decomposable")
    if flag is None or flag.as_int() != 1:
        yield "a build fails where no fused kernel exists", "set TRT_decomposable to 1"
    query, mask = node.inputs[0], node.inputs[3] if len(node.inputs) > 3 else None
    rows = [None if value is None or value.shape is None else value.shape[-2] for value in (query, mask)]
    if mask is not None and rows[1] == 1 != rows[0]:
        yield "the mask has one row for all queries, IAttention needs one for each", "expand it"
    data = [value for value in node.inputs if value is not None]
    if len({value.dtype for value in data if value.dtype != ir.DataType.BOOL}) > 1:
        yield f"operands of types {_names(frozenset(value.dtype for value in data))} in a strongly typed network", "cast one of them"


def _of_dynamic_fp4(node: ir.Node) -> Iterator[Finding]:
    data, scale = node.inputs[0], constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if scale is None or scale.size != 1 or not (scale > 0).all():
        yield "the tensor's scale must be a positive constant scalar", "calibrate it"
    numbers = {name: node.attributes[name].as_int() for name in ("block_size", "scale_type") if name in node.attributes}
    if numbers != {"block_size": _FP4_BLOCK, "scale_type": int(ir.DataType.FLOAT8E4M3FN)}:
        yield f"blocks of {_FP4_BLOCK} with scales of type FP8 only, both stated", "set block_size and scale_type"
    shape = None if data is None else data.shape
    if shape is None or len(shape) not in (2, 3):
        yield "the data must have two or three axes", "reshape it"
    elif not isinstance(shape[-1], int) or shape[-1] % _FP4_BLOCK:
        yield f"the last axis is {shape[-1]}, must be a constant divisible by {_FP4_BLOCK}", "keep this layer in fp16"


def _of_fp4(node: ir.Node) -> Iterator[Finding]:
    """Check a DequantizeLinear of E2M1 codes: scales in blocks, of constants or of a dynamic quantization."""
    data, scale = node.inputs[0], node.inputs[1]
    blocks = scale.producer() if scale is not None else None
    if (
        blocks is None
        or blocks.op_type != "DequantizeLinear"
        or blocks.inputs[0] is None
        or blocks.inputs[0].dtype != ir.DataType.FLOAT8E4M3FN
    ):
        yield "the scales of FP4 are FP8 with a scale of their own", "dequantize them before"
        return
    codes, scales = constant(data), constant(blocks.inputs[0])
    if codes is not None and (scales is None or codes.ndim != scales.ndim or codes.size != _FP4_BLOCK * scales.size):
        yield f"the blocks of FP4 weights have {_FP4_BLOCK} codes along one axis", "quantize by export.tensorrt.nvfp4"


def _of_quantizer(node: ir.Node, target: Version) -> Iterator[Finding]:
    data, scale, zero = node.inputs[0], constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if data is not None and data.dtype == ir.DataType.FLOAT4E2M1:
        if target < _FP4:
            yield "FP4 needs 10.8", "use another recipe"
        yield from _of_fp4(node)
        return
    if scale is None:
        yield "the scale is computed", "calibrate a constant, which every version supports"
        return
    if not (np.isfinite(scale.astype(np.float32)) & (scale > 0)).all():
        yield "scales must be positive and finite", "clip the scale from below (fp16's smallest is 6e-8)"
    if len(node.inputs) > 2 and (zero is None or zero.astype(np.float32).any()):
        yield "only symmetric quantization: the zero point must be a constant 0", "center the codes"
    if zero is not None and zero.dtype == np.uint8:
        yield "zero points of type uint8 are read as int8", "use signed codes"
    if zero is not None and zero.size != scale.size:
        yield "scale and zero point must have the same size", "omit the zero point"
    if constant(data) is None and scale.size != 1:
        yield "activations have one scale per tensor", "smooth channels into the weights instead"
    if data is not None and data.dtype == ir.DataType.INT4:
        yield from _of_int4(data, scale.shape, target)


def _of_int4(data: ir.Value, scales: tuple[int, ...], target: Version) -> Iterator[Finding]:
    codes = constant(data)
    if codes is None:
        yield "INT4 is for weights", "quantize activations to INT8 or FP8"
        return
    if codes.ndim != 2 and target < _INT4_ND:
        yield f"INT4 blocks of a tensor of {codes.ndim} axes need 10.7", "use one matrix per expert, or the plug-in"
    block = codes.size // max(1, int(np.prod(scales)))
    if len(scales) != codes.ndim or block not in _INT4_BLOCKS:
        yield f"blocks of {block} codes, TensorRT has kernels for 64 and 128", "choose such a block, or keep this layer in fp16"
    if codes.shape[-1] % 2:
        yield "two INT4 codes share a byte: the last axis must be even", "keep this layer in fp16"
    if len(scales) == codes.ndim and sum(a != b for a, b in zip(codes.shape, scales, strict=True)) > 1:
        yield "only one axis may have blocks", "block along the input axis"


def _name(dtype: ir.DataType | None) -> str:
    return "unknown" if dtype is None else dtype.name.lower()


def _names(types: Types | frozenset[ir.DataType | None]) -> str:
    return ", ".join(sorted(map(_name, types)))
