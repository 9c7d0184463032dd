"""The noise law's statistics, and that ONNX computes it to the bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy import stats

from f2edge.decoding.noise import GOLDEN, MULTIPLIERS, gumbel, noise_key, uniform


@pytest.fixture(scope="module")
def block() -> NDArray[np.float32]:
    """Uniforms of 12 seeds, 3 steps, 64 positions, 2049 codes."""
    codes = np.arange(2049)
    return np.stack(
        [[uniform(noise_key(seed, step, np.arange(64))[:, None], codes) for step in range(3)] for seed in range(12)]
    )  # (seeds, steps, positions, codes)


def test_uniform(block: NDArray[np.float32]) -> None:
    assert 0 < block.min() < block.max() < 1
    assert stats.kstest(block.ravel(), "uniform").pvalue > 1e-3
    hashes = (block * 2.0**23).astype(np.int64)
    for shift in (0, 5, 10, 15, 19):  # every bit carries its weight, the low ones too
        assert stats.chisquare(np.bincount((hashes >> shift & 15).ravel(), minlength=16)).pvalue > 1e-3
    means = block.mean(axis=-1).ravel()
    assert stats.kstest((means - 0.5) * np.sqrt(12 * block.shape[-1]), "norm").pvalue > 1e-3


@pytest.mark.parametrize("axis", range(4), ids=["seed", "step", "position", "code"])
def test_neighbours_are_independent(block: NDArray[np.float32], axis: int) -> None:
    for lag in (1, 2, 8, 64, 1024):
        if lag >= block.shape[axis]:
            break
        ahead, behind = np.take(block, range(lag, block.shape[axis]), axis), np.take(block, range(block.shape[axis] - lag), axis)
        z = np.corrcoef(ahead.ravel(), behind.ravel())[0, 1] * np.sqrt(ahead.size)
        assert abs(z) < 4, f"lag {lag}: correlation of {z:.1f} standard errors"
        joint = np.histogram2d(ahead.ravel(), behind.ravel(), bins=8, range=((0, 1), (0, 1)))[0]
        assert stats.chisquare(joint.ravel()).pvalue > 1e-4, f"lag {lag}"


def test_every_code_wins_equally_often(block: NDArray[np.float32]) -> None:
    winners = block[..., :2048].argmax(axis=-1).ravel()
    assert stats.chisquare(np.bincount(winners // 128, minlength=16)).pvalue > 1e-3


def test_sampling_by_gumbel_follows_the_softmax() -> None:
    probabilities = np.array([0.6, 0.25, 0.1, 0.04, 0.01])
    noise = gumbel(noise_key(11, 2, np.arange(40_000))[:, None], np.arange(5))
    counts = np.bincount((np.log(probabilities) + noise).argmax(axis=-1), minlength=5)
    assert stats.chisquare(counts, probabilities * counts.sum()).pvalue > 1e-3


def test_onnx_computes_the_law_to_the_bit() -> None:
    def scalar(name: str, value: float, kind: int = TensorProto.UINT32) -> onnx.TensorProto:
        return helper.make_tensor(name, kind, [], [value])

    node = helper.make_node
    nodes = [
        node("Cast", ["key"], ["k"], to=TensorProto.UINT32),
        node("Cast", ["code"], ["c"], to=TensorProto.UINT32),
        node("Mul", ["c", "golden"], ["cg"]),
        node("Add", ["k", "cg"], ["h0"]),
        node("BitShift", ["h0", "s16"], ["h1"], direction="RIGHT"),
        node("BitwiseXor", ["h0", "h1"], ["h2"]),
        node("Mul", ["h2", "m0"], ["h3"]),
        node("BitShift", ["h3", "s13"], ["h4"], direction="RIGHT"),
        node("BitwiseXor", ["h3", "h4"], ["h5"]),
        node("BitwiseXor", ["h5", "k"], ["h6"]),
        node("Mul", ["h6", "m1"], ["h7"]),
        node("BitShift", ["h7", "s9"], ["h8"], direction="RIGHT"),
        node("Cast", ["h8"], ["f"], to=TensorProto.FLOAT),
        node("Add", ["f", "half"], ["g"]),
        node("Mul", ["g", "unit"], ["u"]),
    ]
    constants = [
        *(scalar(f"s{s}", s) for s in (16, 13, 9)),
        scalar("golden", GOLDEN),
        *(scalar(f"m{i}", m) for i, m in enumerate(MULTIPLIERS)),
        scalar("half", 0.5, TensorProto.FLOAT),
        scalar("unit", 2.0**-23, TensorProto.FLOAT),
    ]
    inputs = [
        helper.make_tensor_value_info("key", TensorProto.INT64, ["N", 1]),
        helper.make_tensor_value_info("code", TensorProto.INT64, ["V"]),
    ]
    outputs = [helper.make_tensor_value_info("u", TensorProto.FLOAT, ["N", "V"])]
    model = helper.make_model(helper.make_graph(nodes, "noise", inputs, outputs, constants), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    key, code = noise_key(2**63 + 9, 4, np.arange(64))[:, None], np.arange(8193)
    assert np.array_equal(session.run(None, {"key": key, "code": code})[0], uniform(key, code))
