"""Highest rates of this machine, measured in the same run as the results that are compared with them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Rows, depth and columns of the matrix products.
PEAK_SHAPE = (512, 2048, 2048)
#: Bytes read by all threads together; larger than any cache.
_READ_BYTES = 1 << 29


def gemm_peak(precision: str, threads: int, repeats: int = 7) -> float:
    """Return the best rate of ``PEAK_SHAPE`` products in ONNX Runtime in Gop/s: "fp32" ``MatMul`` or "int8" ``MatMulIntegerToFloat``."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    M, K, N = PEAK_SHAPE
    rng = np.random.default_rng(0)
    x: NDArray[Any]
    if precision == "fp32":
        x = rng.normal(size=(M, K)).astype(np.float32)
        constants = [numpy_helper.from_array(rng.normal(size=(K, N)).astype(np.float32), "w")]
        node, kind = helper.make_node("MatMul", ["x", "w"], ["y"]), TensorProto.FLOAT
    else:
        x = rng.integers(0, 255, size=(M, K), dtype=np.uint8)
        constants = [
            numpy_helper.from_array(rng.integers(-127, 127, size=(K, N), dtype=np.int8), "w"),
            numpy_helper.from_array(np.float32(0.01), "x_scale"),
            numpy_helper.from_array(np.full(N, 0.01, dtype=np.float32), "w_scale"),
            numpy_helper.from_array(np.uint8(128), "x_zero"),
        ]
        inputs = ["x", "w", "x_scale", "w_scale", "x_zero"]
        node, kind = helper.make_node("MatMulIntegerToFloat", inputs, ["y"], domain="com.microsoft"), TensorProto.UINT8
    graph = helper.make_graph(
        [node],
        "peak",
        [helper.make_tensor_value_info("x", kind, [M, K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [M, N])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)])
    model.ir_version = 9
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    times = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        session.run(None, {"x": x})
        times.append(time.perf_counter() - start)
    return 2 * M * K * N / min(times[2:]) / 1e9


def gemm_peaks(threads: int) -> dict[str, float]:
    """Return "fp32_gops" and "int8_gops", see :func:`gemm_peak`."""
    return {f"{precision}_gops": gemm_peak(precision, threads) for precision in ("fp32", "int8")}


def read_rate(threads: int, repeats: int = 5) -> float:
    """Return the best rate at which ``threads`` threads together read uncached memory, in GB/s."""
    parts = np.array_split(np.ones(_READ_BYTES // 8, dtype=np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            total = sum(int(part) for part in pool.map(np.max, parts))
            times.append(time.perf_counter() - start)
            assert total == threads
    return _READ_BYTES / min(times) / 1e9
