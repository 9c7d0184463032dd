"""Both levels of experts, the router and attention against the slow references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.model import reference
from export.model.attention import Attention, additive, attend_fused, attend_plain, rotary_table
from export.model.experts import Router, TokenExpertLayer
from export.model.sequence_experts import KINDS, SequenceExpertLayer
from f2edge.spec.configuration import TokenExperts

D, R = 16, 8


@given(seed=st.integers(0, 10_000), experts=st.integers(2, 6), active=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_router_chooses_what_the_reference_chooses(seed: int, experts: int, active: int) -> None:
    active = min(active, experts)
    torch.manual_seed(seed)
    router, x = Router(D, experts, active), torch.randn(5, D)
    gates, probability, chosen = (part.detach() for part in router(x))
    assert torch.allclose(probability.sum(-1), torch.ones(5))
    for row in range(5):
        wanted = reference.chosen_gates(router, x[row])
        assert set(chosen[row].nonzero()[:, 0].tolist()) == set(wanted)
        for expert, gate in wanted.items():
            assert abs(float(gates[row, expert]) - gate) < 1e-5
        assert int((gates[row] > 0).sum()) == active


def test_router_stays_in_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    router, x = Router(D, 4, 2), torch.randn(3, D)
    with torch.autocast("cpu", torch.bfloat16):
        gates, _, _ = router(x)
    assert gates.dtype == torch.float32
    assert torch.equal(gates, router(x)[0])


@pytest.mark.parametrize("shape", [TokenExperts(24, 4, 8, 2), TokenExperts(8, 3, 5, 3), TokenExperts(8, 5, 4, 1)])
def test_token_experts_equal_the_loop(shape: TokenExperts) -> None:
    torch.manual_seed(1)
    layer, x = TokenExpertLayer(D, shape), torch.randn(2, 7, D)
    torch.nn.init.normal_(layer.down.bias)
    output, _, chosen = layer(x, x)
    assert (output - reference.token_experts(layer, x)).abs().max() < 1e-5
    assert bool((chosen.sum(-1) == shape.active).all())


def test_an_expert_that_is_not_chosen_gets_no_gradient() -> None:
    torch.manual_seed(2)
    layer = TokenExpertLayer(D, TokenExperts(8, 3, 4, 1))
    x = torch.randn(1, 1, D)
    output, _, chosen = layer(x, x)
    (gradient,) = torch.autograd.grad(output.sum(), layer.up.weight)
    for expert in range(3):
        reached = bool(gradient[layer.slice_of(expert)].abs().sum() > 0)
        assert reached == bool(chosen[0, 0, expert])


@pytest.mark.parametrize("group", ["t2i", "mmu"])
def test_sequence_experts_equal_the_loop(group: str) -> None:
    torch.manual_seed(3)
    layer = SequenceExpertLayer(group, D, R, 2)
    x = torch.randn(6, 5, D) * 3
    sources = {"noise": torch.randn(6, 1, R), "semantic": torch.randn(6, 5, R), "identity": torch.randn(6, 5, R)}
    output, _, chosen = layer(x, x.mean(dim=1), sources)
    assert len(chosen.unique(dim=0)) > 1, "the rows should not all route alike"
    assert (output - reference.sequence_experts(layer, x, sources)).abs().max() < 1e-5


def test_kinds_are_those_of_the_paper() -> None:
    assert KINDS == {"t2i": ("copy", "copy", "zero", "noise"), "mmu": ("copy", "copy", "semantic", "identity")}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("norm_eps", [None, 1e-3])
def test_attention_equals_the_loop(fused: bool, norm_eps: float | None) -> None:
    torch.manual_seed(4)
    layer, x = Attention(D, 2, norm_eps), torch.randn(2, 6, D)
    for norm in (layer.query_norm, layer.key_norm) if layer.normed else ():
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    layer.fused = fused
    positions = torch.tensor([3, 4, 5, 9, 10, 40])
    allowed = torch.rand(2, 6, 6) < 0.5
    allowed |= torch.eye(6, dtype=torch.bool)
    output, _ = layer(x, rotary_table(positions[None], 4, 100.0), additive(allowed)[:, None])
    assert (output - reference.attention(layer, x, positions, allowed, rotary=4, base=100.0)).abs().max() < 1e-5


def test_one_shared_row_equals_its_copies() -> None:
    torch.manual_seed(5)
    query, own = torch.randn(3, 2, 4, 8), (torch.randn(3, 2, 4, 8), torch.randn(3, 2, 4, 8))
    image = (torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8))
    copies = (image[0].expand(3, -1, -1, -1), image[1].expand(3, -1, -1, -1))
    mask = additive(torch.rand(3, 1, 4, 9) < 0.7)
    wanted = attend_plain(query, [copies, own], mask)
    assert torch.allclose(attend_plain(query, [image, own], mask), wanted, atol=1e-6)
    assert torch.allclose(attend_fused(query, [image, own], mask), wanted, atol=1e-5)


def test_a_row_without_any_allowed_column_stays_finite() -> None:
    query = torch.randn(1, 1, 2, 4)
    assert attend_plain(query, [(query, query)], additive(torch.zeros(1, 1, 2, 2, dtype=torch.bool))).isfinite().all()
