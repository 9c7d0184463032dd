"""The bench of the fused experts as far as it runs without a GPU: what it compares with, what it counts, and its refusal."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bench.hardware import kernels
from engines.plugins import reference
from engines.plugins.fused_moe import MoEShape
from tests.support.tensorrt.plugin_cases import random_rows, random_weights, row_errors


@pytest.mark.parametrize("shape", [MoEShape(48, 4, 40, 2), MoEShape(40, 5, 24, 3, gated=True)], ids=lambda shape: shape.label)
def test_baselines_compute_the_same_layer(shape: MoEShape) -> None:
    weights, x = random_weights(shape), random_rows(21, shape.width)
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    wanted = reference.fused_moe(x, weights, shape.active, gated=shape.gated)
    rows = torch.from_numpy(x)
    assert row_errors(kernels.exact(rows, tensors, shape).numpy(), wanted).max() < 1e-12
    for baseline in (kernels.dense, kernels.loop):
        assert row_errors(baseline(rows, tensors, shape).numpy(), wanted).max() < 3e-3


def test_costs_count_what_routing_asks_for() -> None:
    shape = MoEShape(2048, 8, 512, 4)
    operations, size = kernels.costs(shape, tokens=1, experts=4)
    assert operations == 4 * 2 * (2048 * 512 + 512 * 2048)
    assert size == 4 * 2 * 2 * 2048 * 512 + 2048 * 6
    gated, _ = kernels.costs(MoEShape(2048, 8, 512, 4, gated=True), tokens=1, experts=4)
    assert gated == 1.5 * operations


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, so nothing is refused")
def test_without_a_gpu_the_bench_says_so() -> None:
    command = [sys.executable, "-m", "bench", "kernels"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: bench kernels needs an NVIDIA GPU")
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unknown_model_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "kernels", "--model", "big"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert "nano" in done.stderr
