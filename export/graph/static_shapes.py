"""Pinning dynamic axes: a graph whose sizes are known has no arithmetic on shapes left, and one run of it is one CUDA graph.

>>> pin(model, {"R": 1, "B": 2, "P": 99})  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer

#: Constants up to this size may be made by folding; larger ones would only repeat weights.
_LARGEST_FOLDED = 1 << 20


def infer(model: ir.Model) -> None:
    """Dtypes and shapes of all values that ONNX can tell."""
    passes.ShapeInferencePass()(model)


def pin(model: ir.Model, sizes: Mapping[str, int]) -> ir.Model:
    """Give named axes of the inputs and outputs their sizes, and fold what then is constant; the same object, edited in place.

    Args:
        model: a lowered graph of standard operators.
        sizes: axis name to size; names that the graph does not have are ignored.
    """
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([sizes.get(str(axis), axis) if not isinstance(axis, int) else axis for axis in value.shape])
    inner = [output for node in model.graph for output in node.outputs if not output.is_graph_output()]
    for value in inner:  # what was inferred with names says less than what follows from sizes
        value.shape = None
    infer(model)
    optimizer.fold_constants(model, onnx_shape_inference=True, input_size_limit=1 << 16, output_size_limit=_LARGEST_FOLDED)
    for tidy in (
        passes.IdentityEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
    ):
        tidy(model)
    infer(model)
    return model


def symbolic(model: ir.Model) -> set[str]:
    """Names of the axes of inputs and outputs that are still dynamic."""
    values = (*model.graph.inputs, *model.graph.outputs)
    return {str(axis) for value in values if value.shape is not None for axis in value.shape if not isinstance(axis, int)}
