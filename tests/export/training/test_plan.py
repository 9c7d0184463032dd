"""The plan of a training: memory that a run then takes, sizes and times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.model.transformer import UnifiedTransformer
from export.training.compute import Compute
from export.training.loop import TrainOptions
from export.training.optimization import Optimization
from export.training.plan import _Live, activation_bytes, cache_bytes, planned, state_bytes, step_flops
from export.training.unified import Mixture
from f2edge.spec.configuration import NANO, PAPER
from tests.export.training.test_unified_training import TINY

PLAIN = Compute("plain", experts="dense")


def test_state_is_what_the_optimizer_allocates() -> None:
    model = UnifiedTransformer(TINY)
    for method in ("adamw", "muon"):
        held = Optimization(model, method, 1e-3, betas=(0.9, 0.99), weight_decay=0.0, clip=1.0).state()
        moments = sum(t.numel() * t.element_size() for t in held.values() if t.ndim)
        found = state_bytes(TINY, optimizer=method)
        assert found.moments == moments
        assert found.weights == found.average == sum(p.numel() * 4 for p in model.parameters())
    assert found.each(4) == pytest.approx(found.each(1) / 4)


@pytest.mark.slow
def test_memory_follows_the_kernels() -> None:
    wide = replace(NANO, layers=6)
    found = {
        name: activation_bytes(wide, (8, 2), Mixture(), compute, device="cpu", bf16=False)
        for name, compute in {
            "plain": PLAIN,
            "fused": Compute("fused", experts="dense"),
            "recompute": replace(PLAIN, recompute=True),
        }.items()
    }
    assert found["fused"] < 0.95 * found["plain"]
    assert found["recompute"] < 0.6 * found["plain"]


def test_live_bytes_are_counted_until_they_are_freed() -> None:
    with _Live() as live:
        a = torch.zeros(1000)
        b = a + 1
        assert live.now == 8000
        c = b.view(10, 100)
        del a, b
        assert live.now == 4000
        del c
    assert (live.now, live.peak) == (0, 8000)


def test_plan_names_what_it_takes(tmp_path: Path) -> None:
    options = TrainOptions(out=tmp_path, steps=1000, batch=20, accumulate=2, shard=True)
    mixture = Mixture()
    text = planned(TINY, options, mixture, Compute(recompute=True), processes=8, tokens=tmp_path, faces=5000)
    for word in ("5,000 faces", "memory of each of 8 GPUs", "(sharded)", "tokens/s", "h200", "assumed"):
        assert word in text
    assert cache_bytes(PAPER, 130_000) / 1e9 == pytest.approx(137, abs=1)  # clean and as seen, 256 x 1024 features in fp16
    once = step_flops(PAPER, (9, 2), mixture, recompute=False)
    assert 1.2 < step_flops(PAPER, (9, 2), mixture, recompute=True) / once < 1.34
    assert step_flops(PAPER, (18, 4), mixture, recompute=False) == pytest.approx(2 * once)
