"""Fallbacks that make a graph of the TensorRT flavour runnable on ONNX Runtime, to measure its parity there.

Only TensorRT's own operators are replaced, by standard operators that implement its documentation or the plug-in's contract, and keys and
values enter and leave as fp32, as other flavours have them; everything else runs as exported.

* ``TRT_INT4DequantizeLinear`` becomes ``DequantizeLinear`` of opset 21, which has INT4 and blocks;
* ``Attention`` loses TensorRT's own attribute;
* ``TRT_FP4DynamicQuantize`` and E2M1 weights become reshapes, maxima and products in blocks of 16;
* ``F2FusedMoE`` becomes the products, softmax and top-K of ``engines/plugins/__init__.py``, every expert in fp32 from fp16 weights.

>>> session = onnxruntime.InferenceSession(ir.to_proto(runnable(model)).SerializeToString())  # doctest: +SKIP
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from export.graph.lower import Inserter, LoweringError, add_constant, constant, replace
from export.tensorrt import nvfp4
from export.tensorrt.fused_moe import OP as FUSED
from export.tensorrt.half_precision import retype
from export.tensorrt.recipes import INT4_OP

#: The first opset whose DequantizeLinear has INT4 and blocks.
_BLOCKED_OPSET = 21


def runnable(model: ir.Model, *, widen: bool = True) -> ir.Model:
    """Return a copy of ``model`` that ONNX Runtime runs.

    Args:
        model: graph of the flavour.
        widen: whether keys and values enter and leave as fp32.

    Raises:
        LoweringError: an operator of another domain has no fallback.
    """
    model = model.clone()
    graph = model.graph
    for node in list(graph):
        if node.op_type == FUSED:
            _experts(graph, node)
        elif node.op_type == INT4_OP:
            node.domain, node.op_type = "", "DequantizeLinear"
            graph.opset_imports[""] = max(graph.opset_imports[""], _BLOCKED_OPSET)
        elif node.op_type == "Attention":
            del node.attributes["TRT_decomposable"]
        elif node.op_type == nvfp4.OP:
            nvfp4.replace_by_standard(graph, node)
        elif node.domain:
            raise LoweringError(f"operator {node.domain}.{node.op_type} has no fallback on ONNX Runtime")
    _unfold_fp4(graph)
    passes.RemoveUnusedNodesPass()(model)
    if widen:
        _widen_caches(graph)
    for domain in [domain for domain in graph.opset_imports if domain]:
        del graph.opset_imports[domain]
    return model


def _unfold_fp4(graph: ir.Graph) -> None:
    """Replace constant E2M1 codes, which ONNX Runtime does not read, by products in blocks of 16."""
    for node in list(graph):
        codes = constant(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if codes is None or codes.dtype != nvfp4.E2M1 or node.inputs[1] is None:
            continue
        insert = Inserter(graph, node, f"{node.name}/unfolded")
        values = add_constant(graph, f"{node.inputs[0].name}.values", codes.astype(np.float32))  # type: ignore[union-attr]
        K, N = codes.shape
        blocks = insert("Reshape", values, add_constant(graph, f"fallback/blocks{K}x{N}", np.array([K // 16, 16, N], dtype=np.int64)))
        scaled = insert(
            "Mul", blocks, insert("Unsqueeze", node.inputs[1], add_constant(graph, "fallback/1", np.array([1], dtype=np.int64)))
        )
        made = insert("Reshape", scaled, add_constant(graph, f"fallback/whole{K}x{N}", np.array([K, N], dtype=np.int64)))
        replace(node, made)


def _widen_caches(graph: ir.Graph) -> None:
    """Let fp16 keys and values enter and leave the graph as fp32."""
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    for value in [value for value in graph.inputs if value.dtype == half]:
        readers = list(value.uses())
        narrowed = Inserter(graph, graph[0], f"{value.name}/narrowed")("Cast", value, to=half)
        for use in readers:
            use.node.replace_input_with(use.idx, narrowed)
        retype(narrowed, half)
        retype(value, single)
    for index, output in enumerate(list(graph.outputs)):
        if output.dtype == half:
            node = ir.node("Cast", [output], {"to": single}, name=f"{output.name}/widened")
            graph.append(node)
            node.outputs[0].name, output.name = output.name, f"{output.name}.half"
            node.outputs[0].shape = output.shape
            retype(node.outputs[0], single)
            graph.outputs[index] = node.outputs[0]


def _experts(graph: ir.Graph, node: ir.Node) -> None:
    """Replace ``F2FusedMoE`` by standard operators; inputs of the experts have axes (…, E, 1, D)."""
    insert, single = Inserter(graph, node, node.name or FUSED), ir.DataType.FLOAT
    if node.attributes["gated"].as_int():
        raise LoweringError("the fallback of F2FusedMoE supports GELU only, our layer's activation")
    x, up, up_bias, down, down_bias = (insert("Cast", node.inputs[place], to=single) for place in (0, 3, 4, 5, 6))
    router, router_bias = node.inputs[1], constant(node.inputs[2])

    def integers(name: str, *values: int) -> ir.Value:
        return add_constant(graph, f"fallback/{name}", np.array(values, dtype=np.int64))

    last, second_last = integers("last", -1), integers("second_last", -2)
    scores = insert("MatMul", x, router)
    if router_bias is None or router_bias.any():
        scores = insert("Add", scores, node.inputs[2])
    probability = insert("Softmax", scores, axis=-1)
    active, experts = node.attributes["active"].as_int(), np.arange(0 if router_bias is None else router_bias.size)
    top = ir.node("TopK", [probability, integers(f"active{active}", active)], {"axis": -1, "largest": 1, "sorted": 1}, num_outputs=2)
    top.outputs[0].name, top.outputs[1].name = f"{node.outputs[0].name}/top", f"{node.outputs[0].name}/index"
    graph.insert_before(node, top)
    same = insert("Equal", insert("Unsqueeze", top.outputs[1], last), integers(f"experts{experts.size}", *experts.tolist()))
    chosen = insert("ReduceSum", insert("Cast", same, to=single), second_last, keepdims=0)  # (…, E)
    gates = insert("Mul", probability, chosen)
    gates = insert("Div", gates, insert("ReduceSum", gates, last, keepdims=1))
    column = insert("Unsqueeze", x, integers("expert_axes", -2, -3))  # (…, 1, 1, D)
    hidden = insert("Add", insert("MatMul", column, up), insert("Unsqueeze", up_bias, second_last))  # (…, E, 1, I)
    hidden = insert("Gelu", hidden, approximate="tanh")
    answers = insert("Add", insert("MatMul", hidden, down), insert("Unsqueeze", down_bias, second_last))
    answers = insert("Squeeze", answers, second_last)  # (…, E, D)
    weighted = insert("Mul", answers, insert("Unsqueeze", gates, last))
    replace(node, insert("Cast", insert("ReduceSum", weighted, second_last, keepdims=0), to=ir.DataType.FLOAT16))
