"""The losses against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.model import reference
from export.training.losses import (
    SCORE_WEIGHT,
    balance_loss,
    cosine_mask_ratio,
    cosine_rate,
    expert_usage,
    generation_loss,
    score_entropy,
    score_entropy_closed,
    score_time_weight,
    text_loss,
)


@given(seed=st.integers(0, 10_000), codes=st.integers(2, 40), ratio=st.floats(0.01, 0.99), scale=st.floats(0.1, 10))
@settings(max_examples=80, deadline=None)
def test_score_entropy_equals_its_closed_form(seed: int, codes: int, ratio: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.log_softmax(torch.randn(4, codes, generator=generator, dtype=torch.float64) * scale, dim=-1)
    target = torch.randint(codes, (4,), generator=generator)
    ratios = torch.full((4,), ratio, dtype=torch.float64)
    general = score_entropy(log_p, target, ratios)
    closed = score_entropy_closed(-log_p.gather(1, target[:, None])[:, 0], ratios)
    assert torch.allclose(general, closed, rtol=1e-9, atol=1e-9)
    assert (general >= -1e-9).all()


def test_score_entropy_is_zero_for_the_true_score_only() -> None:
    target, ratio = torch.tensor([2]), torch.tensor([0.4], dtype=torch.float64)
    sure = torch.full((1, 5), 1e-300, dtype=torch.float64)
    sure[0, 2] = 1
    assert float(score_entropy(sure.log(), target, ratio)) == pytest.approx(0, abs=1e-12)
    assert float(score_entropy(torch.full((1, 5), 0.2, dtype=torch.float64).log(), target, ratio)) > 1


@given(ratio=st.floats(0.02, 0.98))
@settings(deadline=None)
def test_time_weight_is_rate_times_odds(ratio: float) -> None:
    r = torch.tensor(ratio, dtype=torch.float64)
    assert float(score_time_weight(r)) == pytest.approx(float(cosine_rate(r) * score_entropy_closed(torch.ones(()), r)))


@given(t=st.floats(0.05, 0.95))
@settings(deadline=None)
def test_rate_is_the_schedule_s_derivative(t: float) -> None:
    def kept(time: float) -> float:
        return 1 - math.sin(math.pi / 2 * time)

    step = 1e-5
    slope = (kept(t + step) - kept(t - step)) / (2 * step)
    ratio = torch.tensor(1 - kept(t), dtype=torch.float64)
    assert float(cosine_rate(ratio)) == pytest.approx(-slope / kept(t), rel=1e-4)


def test_a_fully_masked_row_has_no_score_term() -> None:
    assert float(score_time_weight(torch.ones(()))) == 0
    assert cosine_mask_ratio(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_generation_loss_is_d3diff() -> None:
    torch.manual_seed(0)
    N, rows = 8, 2
    logits, target = torch.randn(10, 6), torch.randint(6, (10,))
    ratio = torch.tensor([0.75] * 6 + [0.5] * 4)  # a row of six and a row of four masked positions
    loss = generation_loss(logits, target, ratio, rows=rows, image_tokens=N)
    nll = [-float(torch.log_softmax(logits, -1)[k, target[k]]) for k in range(10)]
    weight = [math.pi / 2 * math.sqrt(1 - float(r) ** 2) / float(r) for r in ratio]
    masked, score = sum(nll) / 10, sum(w * n for w, n in zip(weight, nll, strict=True)) / (rows * N)
    assert float(loss.masked) == pytest.approx(masked, rel=1e-5)
    assert float(loss.score) == pytest.approx(score, rel=1e-5)
    assert float(loss.total) == pytest.approx(masked + SCORE_WEIGHT * score, rel=1e-5)
    assert float(generation_loss(logits, target, ratio, rows=rows, image_tokens=N, smoothing=0.1).score) == pytest.approx(score, rel=1e-5)


def test_text_loss_weighs_tokens() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    each = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))]
    loss = text_loss(logits, torch.tensor([0, 0]), torch.tensor([1.0, 0.25]))
    assert float(loss) == pytest.approx((each[0] + 0.25 * each[1]) / 1.25, rel=1e-5)


@given(seed=st.integers(0, 10_000), experts=st.integers(2, 6), active=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_balance_loss_equals_the_loop(seed: int, experts: int, active: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probability = torch.softmax(torch.randn(2, 3, 4, experts, generator=generator), dim=-1)
    index = probability.topk(min(active, experts)).indices
    chosen = torch.zeros_like(probability).scatter(-1, index, 1.0)
    valid = torch.rand(3, 4, generator=generator) < 0.7
    valid[0, 0] = True
    wanted = sum(reference.balance(probability[layer], chosen[layer], valid) for layer in range(2)) / 2
    assert float(balance_loss(probability, chosen, valid)) == pytest.approx(wanted, rel=1e-5)
    assert torch.allclose(expert_usage(chosen, valid).sum(-1), torch.ones(2))


def test_balance_loss_is_one_when_even_and_grows_when_not() -> None:
    even = torch.full((1, 2, 4, 4), 0.25)
    turns = torch.eye(4)[None, None].expand(1, 2, 4, 4)
    assert float(balance_loss(even, turns)) == pytest.approx(1)
    lopsided = torch.softmax(torch.tensor([4.0, 0, 0, 0]), 0).expand(1, 2, 4, 4)
    always = torch.tensor([1.0, 0, 0, 0]).expand(1, 2, 4, 4)
    assert float(balance_loss(lopsided, always)) > 3
