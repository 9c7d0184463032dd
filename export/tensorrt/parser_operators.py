"""Operators, types and opsets that the ONNX parser of each TensorRT version supports.

Sources.  10.x: ``docs/operators.md`` of onnx/onnx-tensorrt at release 10.1 (commit 96e7811, 17 June 2024), the last release of that
repository before 10.3; operators that it lists with N are absent here.  Additions and later opsets: the same file in NVIDIA/TensorRT 10.15
and 11.1, and the changelogs of the releases named beside each entry (collected in docs/tensorrt.md).  No removal is known for 10.16 to
11.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir

Version = tuple[int, int]
Types = frozenset[ir.DataType]

_T = ir.DataType
FLOATS: Types = frozenset({_T.FLOAT, _T.FLOAT16, _T.BFLOAT16})
_NUMBERS: Types = FLOATS | {_T.INT32, _T.INT64}
_ALL: Types = _NUMBERS | {_T.BOOL}
_HALF_OR_SINGLE: Types = frozenset({_T.FLOAT, _T.FLOAT16})
_CODES: Types = frozenset({_T.INT8, _T.FLOAT8E4M3FN, _T.INT4, _T.FLOAT4E2M1})


def _each(names: str, types: Types) -> dict[str, Types]:
    """Return the same types for every operator in a space-separated list."""
    return dict.fromkeys(names.split(), types)


#: Supported versions, oldest first.
VERSIONS: tuple[Version, ...] = (
    (10, 3), (10, 4), (10, 5), (10, 6), (10, 7), (10, 8), (10, 9), (10, 10), (10, 11), (10, 12), (10, 13), (10, 14), (10, 15), (10, 16),
    (11, 0), (11, 1), (11, 2), (11, 3), (11, 4),
)  # fmt: skip

#: First version → largest opset.  operators.md says 20 in 10.1, and 24 in 10.15 and 11.1; versions between state none, so 20 is kept.
OPSETS: Mapping[Version, int] = MappingProxyType({(10, 3): 20, (10, 15): 24})

#: Types of the operator's data by operators.md; indices, axes and conditions have the type that ONNX specifies.
OPERATORS: Mapping[str, Types] = MappingProxyType(
    {
        **_each(
            """Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh CumSum Dropout
            Einsum Elu Erf Exp Floor Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization GRU HardSigmoid HardSwish
            Hardmax InstanceNormalization IsInf LayerNormalization LeakyRelu Log LogSoftmax LRN LSTM LpNormalization LpPool MatMul
            MaxPool MeanVarianceNormalization Pow PRelu QuantizeLinear Reciprocal Resize RNN Round Scan Selu Sigmoid Sin Sinh Softmax
            Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample""",
            FLOATS,
        ),
        **_each(
            """Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod Mul Neg Pad Range
            ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
            Gelu ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK Mean""",
            _NUMBERS,
        ),
        **_each(
            """Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot Reshape
            ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where""",
            _ALL,
        ),
        **_each("DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign", _HALF_OR_SINGLE),
        **_each("And Not Or Xor", frozenset({_T.BOOL})),
        **_each("Cast CastLike", _ALL | {_T.UINT8}),
        "DequantizeLinear": _CODES,
    }
)

#: Later operators: first version and types.
LATER: Mapping[str, tuple[Version, Types]] = MappingProxyType(
    {
        "Attention": ((10, 14), FLOATS),  # no past, no softcap, mask only; builds fail without a fused kernel unless decomposable
        "RMSNormalization": ((10, 15), FLOATS),
        "RotaryEmbedding": ((10, 15), FLOATS),
        "TensorScatter": ((10, 15), FLOATS | {_T.INT32}),
    }
)

#: Built-in operators of other domains, by name: first version.  Any other operator outside ONNX is a plug-in or an error.
BUILT_IN: Mapping[str, Version] = MappingProxyType(
    {
        "TRT_INT4QuantizeLinear": (10, 3),
        "TRT_INT4DequantizeLinear": (10, 3),
        "TRT_FP8QuantizeLinear": (10, 3),
        "TRT_FP8DequantizeLinear": (10, 3),
        "TRT_FP4DynamicQuantize": (10, 8),
        "TRT_MXFP8DynamicQuantize": (10, 12),
        "TRT_MXFP8DequantizeLinear": (10, 12),
        "TRT_MoE": (11, 0),
        "TRT_Attention": (11, 0),
        "TRT_KVCacheUpdate": (11, 0),
    }
)

#: Operators whose output sizes depend on data: every call synchronizes, and CUDA graphs are impossible (NVIDIA/TensorRT 4194).
DATA_DEPENDENT = frozenset({"NonZero", "NonMaxSuppression", "Compress", "Unique"})
#: Control flow, which prevents fusion and CUDA graphs.
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
#: Operators whose operands must have one type in a strongly typed network.
ONE_TYPE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mod", "MatMul", "Gemm", "Concat", "Equal", "Less", "LessOrEqual", "Greater",
     "GreaterOrEqual", "Conv", "ConvTranspose", "LayerNormalization", "InstanceNormalization", "PRelu"}
)  # fmt: skip
#: Operator → index of the input that must be a constant.
CONSTANT_INPUTS: Mapping[str, int] = MappingProxyType(
    {"Squeeze": 1, "Unsqueeze": 1, "Slice": 3, "Pad": 3, "OneHot": 1, "CumSum": 1, **{op: 1 for op in OPERATORS if op.startswith("Reduce")}}
)
#: Operator → indices of the data inputs that the types of ``OPERATORS`` apply to; 0 unless listed.
DATA_INPUTS: Mapping[str, tuple[int, ...]] = MappingProxyType({"Where": (1, 2), "Range": (0, 1, 2), "ConstantOfShape": ()})


def opset_of(version: Version) -> int:
    """Return the largest opset that a version's parser supports."""
    return OPSETS[max(known for known in OPSETS if known <= version)]
