"""The fused experts on a GPU: compiled kernels against the reference, in a CUDA graph, and inside an engine where TensorRT is installed.

pytest -m gpu tests/engines/test_plugin_gpu.py
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.hardware import kernels as bench
from engines.plugins import reference
from engines.plugins.fused_moe import INPUTS, MoEShape
from tests.support.tensorrt.plugin_cases import random_rows, random_weights, row_errors

pytest.importorskip("triton", reason="the kernels are compiled by Triton: pip install f2edge[plugins]")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and PyTorch with CUDA")]
CASES = [(130, 70, False), (33, 17, True), (256, 128, False)]


def on_gpu(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).cuda() for name, array in arrays.items()}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[MoEShape], bench.Fused]:
    return lambda shape: bench.Fused(shape, tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize(("experts", "active"), list(product((4, 8), (1, 2, 4))))
@pytest.mark.parametrize("sizes", CASES)
def test_compiled_kernels_equal_the_reference(
    make: Callable[[MoEShape], bench.Fused], sizes: tuple[int, int, bool], experts: int, active: int
) -> None:
    width, expert_width, gated = sizes
    shape = MoEShape(width, experts, expert_width, active, gated)
    fused, weights = make(shape), random_weights(shape)
    tensors = on_gpu(weights)
    for tokens in (1, 7, 64, 258, 516):
        x = random_rows(tokens, width)
        for rows in (x, x.astype(np.float16)):
            y = torch.full((tokens, width), float("nan"), dtype=torch.float16, device="cuda")
            fused(torch.from_numpy(rows).cuda(), tensors, y)
            torch.cuda.synchronize()
            assert row_errors(y.cpu().numpy(), reference.fused_moe(rows, weights, active, gated=gated)).max() < 1e-3


def test_at_paper_size_results_repeat_to_the_bit(make: Callable[[MoEShape], bench.Fused]) -> None:
    shape = MoEShape(2048, 8, 512, 4)
    fused, weights = make(shape), bench.random_layer(shape, torch.device("cuda"))
    for tokens in (1, 516):
        x = torch.randn(tokens, 2048, device="cuda")
        first, again = (torch.empty(tokens, 2048, dtype=torch.float16, device="cuda") for _ in range(2))
        fused(x, weights, first)
        for _ in range(20):
            fused(x, weights, again)
            assert torch.equal(first, again)
        wanted = bench.exact(x, weights, shape)
        assert float(((first.double() - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) < 1e-3


def test_a_captured_graph_takes_new_rows(make: Callable[[MoEShape], bench.Fused]) -> None:
    shape = MoEShape(256, 4, 128, 2)
    fused, weights = make(shape), bench.random_layer(shape, torch.device("cuda"))
    x, y = torch.randn(64, 256, device="cuda"), torch.empty(64, 256, dtype=torch.float16, device="cuda")
    fused(x, weights, y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fused(x, weights, y)
    for seed in range(3):
        torch.manual_seed(seed)
        x.copy_(torch.randn(64, 256, device="cuda"))
        graph.replay()
        torch.cuda.synchronize()
        wanted = bench.exact(x, weights, shape)
        assert float(((y.double() - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) < 1e-3


def test_the_bench_measures(make: Callable[[MoEShape], bench.Fused]) -> None:
    shape = MoEShape(2048, 8, 512, 4)
    row = bench.measure(shape, 258, make(shape), bench.random_layer(shape, torch.device("cuda")))
    assert row.row_error < 1e-3
    assert min(row.fused_us, row.dense_us, row.loop_us) > 0


def test_an_engine_with_the_node(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt", reason="TensorRT itself is needed to build an engine")
    onnx = pytest.importorskip("onnx", reason="the graph is written by the onnx package")
    from engines.plugins.compile_kernels import compile_shape
    from engines.plugins.tensorrt_class import register

    shape = MoEShape(64, 4, 32, 2)
    weights, x = random_weights(shape), random_rows(14, 64)
    major, minor = torch.cuda.get_device_capability()
    compile_shape(shape, tmp_path, (10 * major + minor,))
    log = trt.Logger(trt.Logger.ERROR)
    trt.init_libnvinfer_plugins(log, "")
    register(trt, tmp_path)
    node = onnx.helper.make_node(
        "F2FusedMoE", list(INPUTS), ["y"], domain="f2edge", active=2, gated=0, plugin_namespace="f2edge", plugin_version="1"
    )
    value, half = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT16
    constants = [onnx.numpy_helper.from_array(weights[name], name) for name in INPUTS[1:]]
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [14, 64])], [value("y", half, [14, 64])], initializer=constants)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("f2edge", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    builder = trt.Builder(log)
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    source, target = torch.from_numpy(x).cuda(), torch.empty(14, 64, dtype=torch.float16, device="cuda")
    context.set_tensor_address("x", source.data_ptr())
    context.set_tensor_address("y", target.data_ptr())
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    assert row_errors(target.cpu().numpy(), reference.fused_moe(x, weights, 2)).max() < 1e-3
