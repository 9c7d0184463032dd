"""Fallbacks that make a graph of the TensorRT flavour runnable on ONNX Runtime, to measure its parity there.

Only TensorRT's own operators are replaced, by standard operators that implement its documentation or the plug-in's contract; everything
else runs as exported.

* ``TRT_INT4DequantizeLinear`` becomes ``DequantizeLinear`` of opset 21, which has INT4 and blocks;
* ``F2FusedMoE`` becomes the products, softmax and top-K of ``engines/plugins/__init__.py``, every expert in fp32 from fp16 weights.

>>> session = onnxruntime.InferenceSession(ir.to_proto(runnable(model)).SerializeToString())  # doctest: +SKIP
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.graph.lower import Inserter, LoweringError, add_constant, constant, replace
from export.tensorrt.fused_moe import OP as FUSED
from export.tensorrt.recipes import INT4_OP

#: The first opset whose DequantizeLinear has INT4 and blocks.
_BLOCKED_OPSET = 21


def runnable(model: ir.Model) -> ir.Model:
    """Return a copy of ``model`` that ONNX Runtime's CPU provider runs.

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
        elif node.domain:
            raise LoweringError(f"operator {node.domain}.{node.op_type} has no fallback on ONNX Runtime")
    for domain in [domain for domain in graph.opset_imports if domain]:
        del graph.opset_imports[domain]
    return model


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
