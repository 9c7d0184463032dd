"""Replacement of dynamic axes by fixed sizes, which removes shape arithmetic and lets a run be captured as one CUDA graph.

>>> pin(model, {"R": 1, "B": 2, "P": 99})  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer

#: Maximum bytes of a folded constant; larger ones would duplicate weights.
_LARGEST_FOLDED = 1 << 20


def infer(model: ir.Model) -> None:
    """Infer dtypes and shapes of all values, in place."""
    passes.ShapeInferencePass()(model)


def pin(model: ir.Model, sizes: Mapping[str, int]) -> ir.Model:
    """Fix named axes of inputs and outputs and fold constants, in place; return the model.

    Args:
        model: lowered graph of standard operators.
        sizes: axis name → size; unknown names are ignored.
    """
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([sizes.get(str(axis), axis) if not isinstance(axis, int) else axis for axis in value.shape])
    inner = [output for node in model.graph for output in node.outputs if not output.is_graph_output()]
    for value in inner:  # infer shapes again, now from sizes instead of names
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
