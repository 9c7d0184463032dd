"""Check that ONNX Runtime has a CUDA kernel for every operator of a graph, without a GPU.

ONNX Runtime runs an operator without one on the CPU and says nothing: ``MatMulIntegerToFloat`` (int8 bundles), ``BitShift`` and
``BitwiseXor`` (the sampler) are such operators, so a CPU bundle on a GPU crosses to the host in every layer.

Source: docs/OperatorKernels.md of microsoft/onnxruntime at commit 001d12d, section CUDAExecutionProvider, rows of opset 20 to 23; only
operators that this project exports.  Shape arithmetic is left out: ONNX Runtime computes it on the CPU by intention
(core/framework/fallback_cpu_capability.cc).

>>> refuse_cpu_operators(model)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import onnx_ir as ir

from f2edge.errors import F2EdgeError

_T = ir.DataType
_FLOATS = frozenset({_T.FLOAT, _T.FLOAT16})
_NUMBERS = _FLOATS | {_T.INT32, _T.INT64}
_MOVED = _NUMBERS | {_T.BOOL, _T.INT8, _T.UINT8}
_CODES = frozenset({_T.INT8, _T.UINT8, _T.FLOAT8E4M3FN})


def _each(names: str, types: frozenset[ir.DataType]) -> dict[str, frozenset[ir.DataType]]:
    return dict.fromkeys(names.split(), types)


#: Operator → types of its first input.
CUDA_KERNELS: Mapping[str, frozenset[ir.DataType]] = MappingProxyType(
    {
        **_each(
            """Attention ArgMin ArgMax Conv ConvTranspose Cos DepthToSpace Erf Exp Floor Gelu Gemm InstanceNormalization LayerNormalization
            Log MatMul Pow QuantizeLinear ReduceL2 ReduceMean Relu Sigmoid Sin Softmax Sqrt Tanh""",
            _FLOATS,
        ),
        **_each(
            "Abs Add Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Neg ReduceMax ReduceSum Sign Sub TopK", _NUMBERS
        ),
        **_each(
            """Cast Concat ConstantOfShape Expand Flatten Gather GatherElements Identity Reshape ScatterElements Shape Slice Split Squeeze
            Transpose Trilu Unsqueeze""",
            _MOVED,
        ),
        "And": frozenset({_T.BOOL}),
        "Or": frozenset({_T.BOOL}),
        "Not": frozenset({_T.BOOL}),
        "Clip": _FLOATS | {_T.INT64},
        "DequantizeLinear": _CODES | {_T.INT4},
        "GatherND": _FLOATS | {_T.INT64, _T.BOOL},
        "Pad": _FLOATS | {_T.BOOL},
        "Range": frozenset({_T.FLOAT, _T.INT32, _T.INT64}),
        "Where": frozenset({_T.BOOL}),
    }
)


class CpuOperatorError(F2EdgeError, RuntimeError):
    """A graph for GPUs has operators that ONNX Runtime runs on the CPU."""


def cpu_operators(model: ir.Model) -> Iterator[str]:
    """Yield each operator of a graph with known types that has no CUDA kernel, with the type of its data."""
    for node in model.graph:
        data = next((value for value in node.inputs if value is not None), None)
        types = CUDA_KERNELS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if types is None or (data is not None and data.dtype is not None and data.dtype not in types):
            kind = "" if data is None or data.dtype is None else f" of {data.dtype.name.lower()}"
            yield f"{node.domain + '.' if node.domain else ''}{node.op_type}{kind}"


def refuse_cpu_operators(model: ir.Model) -> None:
    """Raise :class:`CpuOperatorError` naming the operators of a graph that would run on the CPU, if there are any."""
    found = list(dict.fromkeys(cpu_operators(model)))
    if found:
        raise CpuOperatorError(
            f"graph {model.graph.name!r}: ONNX Runtime has no CUDA kernel for {', '.join(found)}; export it with --flavour cuda"
        )
