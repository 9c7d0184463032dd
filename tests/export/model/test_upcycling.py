"""A dense FFN as shared and routed experts: the same output where that is possible, a stated error where it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.model.experts import DenseFeedForward, TokenExpertLayer
from export.model.transformer import UnifiedTransformer
from export.model.upcycling import is_exact, relative_error, upcycle, upcycle_layer
from f2edge.errors import InputError
from f2edge.spec.configuration import PAPER, SHOW_O, TokenExperts
from tests.support.small_showo import SMALL, N, imported, prefix, show_o_state

D = 24


def layers(dense_width: int, shape: TokenExperts, seed: int = 0) -> tuple[DenseFeedForward, TokenExpertLayer]:
    torch.manual_seed(seed)
    dense, layer = DenseFeedForward(D, dense_width), TokenExpertLayer(D, shape)
    torch.nn.init.normal_(dense.up.weight, std=0.5)
    layer.load_state_dict({**upcycle_layer(dense.state_dict(), shape), "router.weight": layer.router.weight})
    return dense, layer


@given(shared=st.integers(1, 40), routed=st.integers(1, 6), width=st.integers(1, 20), data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_dense_layer_that_fits_is_carried_exactly(shared: int, routed: int, width: int, data: st.DataObject) -> None:
    shape = TokenExperts(shared, routed, width, data.draw(st.integers(1, routed)))
    dense, layer = layers(data.draw(st.integers(1, shared + width)), shape)
    assert is_exact(dense.up.out_features, shape)
    assert relative_error(dense, layer, torch.randn(2, 7, D)) < 1e-5


def test_all_experts_at_work_and_equal_gates_give_all_units_back() -> None:
    """K = E and a router that tells no expert from another: every unit counts once, also in a layer that is too wide."""
    shape = TokenExperts(8, 4, 6, 4)
    dense, layer = layers(32, shape)
    assert not is_exact(32, shape)
    torch.nn.init.zeros_(layer.router.weight)
    assert relative_error(dense, layer, torch.randn(2, 7, D)) < 1e-5


def test_what_does_not_fit_is_nearer_than_the_shared_expert_alone_or_silence() -> None:
    """The proportions of Show-o and "1.8b": 8192 into 2048 + 8 x 512, four at work."""
    big, shape = PAPER.token_experts, TokenExperts(32, 8, 8, 4)
    assert not is_exact(SHOW_O.token_experts.shared_width, big)
    assert big.shared_width / shape.shared_width == big.routed_width / shape.routed_width == 64
    errors = []
    for seed in range(5):
        dense, layer = layers(128, shape, seed)
        x = torch.randn(4, 16, D)
        errors.append(relative_error(dense, layer, x))
        with torch.no_grad():
            layer.down.weight[:, shape.shared_width :] = 0
        assert errors[-1] < relative_error(dense, layer, x)
    assert 0.5 < max(errors) < 0.95  # a start for training, and said to be no more


def test_a_whole_model_upcycled_gives_the_same_logits() -> None:
    dense = imported(show_o_state())
    configuration = replace(SMALL, name="experts", token_experts=TokenExperts(40, 4, 24, 2))
    weights = upcycle(dense.state_dict(), configuration)
    model = UnifiedTransformer(configuration).eval().requires_grad_(requires_grad=False)
    model.load_state_dict(weights)
    codes, none, prompts = torch.arange(2 * N).reshape(2, N) % 33, torch.zeros(2), [[3, 7], [1]]
    before, after = (m.image_logits(codes, *prefix(m, prompts), none) for m in (dense, model))
    assert float(before.std()) > 0.1
    assert float((before - after).abs().max()) < 1e-5
    routers = [model.get_parameter(f"blocks.0.experts.{group}.router.weight") for group in ("t2i", "mmu")]
    assert not torch.equal(*routers)
    again = upcycle(dense.state_dict(), configuration)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_the_sequence_level_begins_anew() -> None:
    """Names that a model with both levels lacks after upcycling are those of the sequence level only."""
    dense = imported(show_o_state())
    configuration = replace(
        PAPER, text_vocabulary=40, prompt_tokens=8, image_offset=11, width=32, layers=3, heads=4, rotary=4, resampler_width=8,
        token_experts=TokenExperts(16, 4, 12, 2), tokenizer=SMALL.tokenizer,
    )  # fmt: skip
    missing, unexpected = UnifiedTransformer(configuration).load_state_dict(upcycle(dense.state_dict(), configuration), strict=False)
    assert not unexpected
    assert missing
    assert all(".sequence." in name or name.startswith(("noise.", "semantic.", "identity.")) for name in missing)


def test_what_cannot_be_upcycled_is_refused() -> None:
    state = imported(show_o_state()).state_dict()
    experts = replace(SMALL, token_experts=TokenExperts(40, 4, 24, 2))
    with pytest.raises(InputError, match="with routed experts"):
        upcycle(state, SMALL)
    with pytest.raises(InputError, match="from a dense model"):
        upcycle(upcycle(state, experts), experts)
    with pytest.raises(InputError, match="3 layers of width 32"):
        upcycle(state, replace(experts, layers=4))
    with pytest.raises(InputError, match="query_key_norm must be the same"):
        upcycle(state, replace(experts, query_key_norm=False))
