"""Cost formulas against what PyTorch counts while the transformer runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from export.model.transformer import UnifiedTransformer
from f2edge.spec.configuration import NANO, TokenExperts
from f2edge.spec.flops import image_flops, prompt_flops, step_flops, text_flops, token_flops

#: Every routed expert is active, because the training form computes them all; no sequence level, which the formulas leave out.
MODEL = replace(
    NANO,
    name="counted",
    layers=2,
    width=64,
    heads=4,
    rotary=8,
    token_experts=TokenExperts(shared_width=96, routed=2, routed_width=32, active=2),
    sequence_experts=False,
    semantic=None,
    identity=None,
)
PROMPT, QUESTION = 11, 7


@pytest.fixture(scope="module")
def transformer() -> UnifiedTransformer:
    torch.manual_seed(0)
    model = UnifiedTransformer(MODEL).eval().requires_grad_(requires_grad=False)
    model.use_fused_attention(fused=False)
    return model


def counted(run: object) -> int:
    with FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return int(counter.get_total_flops())


def test_prompt_and_step(transformer: UnifiedTransformer) -> None:
    ids = torch.zeros((1, PROMPT), dtype=torch.int64)
    length = torch.tensor([PROMPT])
    assert counted(lambda: transformer.prefill_prompt(ids, length)) == pytest.approx(prompt_flops(MODEL, PROMPT), rel=0.02)
    key, value = transformer.prefill_prompt(ids, length)
    codes = torch.zeros((1, MODEL.image_tokens), dtype=torch.int64)
    step = counted(lambda: transformer.image_logits(codes, key, value, length, torch.ones(1)))
    head_weight = counted(transformer.image_head_weight)  # put together once, at export
    assert step - head_weight == pytest.approx(step_flops(MODEL, [PROMPT], 1), rel=0.03)


def test_image_and_question(transformer: UnifiedTransformer) -> None:
    codes = torch.zeros((1, MODEL.image_tokens), dtype=torch.int64)
    nothing = torch.zeros(0)
    assert counted(lambda: transformer.prefill_image(codes, nothing, nothing)) == pytest.approx(image_flops(MODEL), rel=0.03)
    image = transformer.prefill_image(codes, nothing, nothing)
    empty = torch.zeros((MODEL.layers, 1, MODEL.heads, 0, MODEL.head_width))
    text, length = torch.zeros((1, QUESTION), dtype=torch.int64), torch.tensor([QUESTION])
    ask = counted(lambda: transformer.extend_text(text, length, *image, empty, empty))
    assert ask == pytest.approx(text_flops(MODEL, [QUESTION]), rel=0.03)


def test_a_guided_step_is_two_branches_and_one_head() -> None:
    head = 2 * NANO.image_tokens * NANO.width * NANO.codes
    single = step_flops(NANO, [20], 1)
    assert step_flops(NANO, [20, 20], 1) == 2 * single - head


def test_routed_experts_count_as_far_as_they_are_active() -> None:
    more = replace(NANO, token_experts=replace(NANO.token_experts, routed=8))
    assert token_flops(more) == token_flops(NANO)
    busier = replace(NANO, token_experts=replace(NANO.token_experts, active=3))
    assert token_flops(busier) - token_flops(NANO) == NANO.layers * 4 * NANO.width * NANO.token_experts.routed_width
