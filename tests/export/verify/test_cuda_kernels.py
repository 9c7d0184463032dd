"""Operators without a CUDA kernel are found without a GPU, and the "cuda" flavour has none."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from export.graph.static_shapes import infer
from export.tensorrt.graphs import TensorRTOptions
from export.tensorrt.recipes import recipes_of
from export.tensorrt_export import tensorrt_transform
from export.verify.cuda_kernels import CpuOperatorError, cpu_operators, refuse_cpu_operators
from f2edge.errors import InputError
from tests.support.tiny_model import TINY


def graph(bundle: Path, name: str) -> ir.Model:
    model = ir.external_data.load_to_model(ir.load(bundle / f"{name}.onnx"))
    model.graph.name = name
    infer(model)
    return model


def test_a_cpu_bundle_has_operators_without_a_kernel(tiny_int8_bundle: Path) -> None:
    found = set(cpu_operators(graph(tiny_int8_bundle, "t2i_step")))
    assert "com.microsoft.MatMulIntegerToFloat of uint8" in found
    assert {"BitShift of uint32", "BitwiseXor of uint32"} <= found
    with pytest.raises(CpuOperatorError, match=r"graph 't2i_step': .*BitwiseXor.*--flavour cuda"):
        refuse_cpu_operators(graph(tiny_int8_bundle, "t2i_step"))


@pytest.mark.parametrize("recipe", ["fp16", "int4"])
@pytest.mark.parametrize("name", ["t2i_step", "mmu_extend", "image_decode"])
def test_the_cuda_flavour_has_none(tiny_bundle: Path, recipe: str, name: str) -> None:
    options = TensorRTOptions(recipes=recipes_of(recipe), flavour="cuda")
    model, precision, row = tensorrt_transform(TINY, options)(name, graph(tiny_bundle, name))
    assert list(cpu_operators(model)) == []
    assert not [node for node in model.graph if node.domain]
    assert row["flavour"] == "cuda"
    assert precision == ("fp16" if name == "image_decode" else recipe)


@pytest.mark.parametrize("options", [{"moe": "plugin"}, {"recipes": recipes_of("nvfp4"), "version": "10.13"}])
def test_what_has_no_kernel_is_refused_before_an_export(options: dict[str, str]) -> None:
    with pytest.raises(InputError, match="flavour 'cuda'"):
        TensorRTOptions(flavour="cuda", **options)  # type: ignore[arg-type]
