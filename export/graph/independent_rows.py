"""Products that are summed alike however many branches run together, so that a single one needs no second beside it.

ONNX Runtime sums the product of one row in another order than that of the same row in a batch, and a mean over columns likewise; int8
rounding amplifies the difference.  Nearly all products of a decoding step have one row per column of a picture; those named here have one
per branch.  Each of their rows is given twice, so that none is ever alone; the result is bit for bit what a pair of equal branches gives.

>>> independent_rows(model)  # doctest: +SKIP
"""

from __future__ import annotations

import re

import onnx_ir as ir

from export.graph.lower import Inserter
from f2edge.backends.ports import INDEPENDENT_ROWS

#: Weights that are multiplied with one row per branch: sequence-level routers, the embedding of the mask ratio and its maps.
_BY_BRANCH = re.compile(r"(?:.*\.)?(?:sequence\.t2i\.(?:router|maps\.noise)|noise\.(?:up|down))\.weight(?:\.T)?")


def independent_rows(model: ir.Model) -> ir.Model:
    """Change ``t2i_step`` in place and say so in its metadata; return the model.  Other graphs, and one that says so, stay as they are."""
    graph = model.graph
    if graph.name != "t2i_step" or INDEPENDENT_ROWS in model.metadata_props:
        return model
    for node in [node for node in graph if node.op_type == "MatMul" and _BY_BRANCH.fullmatch(_name(node.inputs[1]))]:
        mean = node.inputs[0].producer() if node.inputs[0] is not None else None
        first = node if mean is None or mean.op_type != "ReduceMean" else mean  # a mean of one row is summed in another order, too
        twice = Inserter(graph, first, _name(node.outputs[0]))("Concat", first.inputs[0], first.inputs[0], axis=0)
        first.replace_input_with(0, twice)
        product, users = node.outputs[0], [(usage.node, usage.idx) for usage in node.outputs[0].uses()]
        half = ir.node("Split", [product], {"axis": 0, "num_outputs": 2}, num_outputs=2, name=f"{product.name}/once")
        half.outputs[0].name, half.outputs[1].name = f"{product.name}/once", f"{product.name}/again"
        half.outputs[0].type, half.outputs[0].shape = product.type, product.shape
        product.shape = None
        graph.insert_after(node, half)
        for user, place in users:
            user.replace_input_with(place, half.outputs[0])
    model.metadata_props[INDEPENDENT_ROWS] = "1"
    return model


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name
