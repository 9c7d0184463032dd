"""The transformer's two forms give the same numbers: caches or not, padded or not, alone or in a batch, trained or exported."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from export.model.embedding import code_bits
from export.model.transformer import UnifiedTransformer
from f2edge.errors import InputError
from f2edge.spec.configuration import NANO, PAPER, SHOW_O, FeatureShape, ImageTokenizerConfiguration, ModelConfiguration, TokenExperts

_GRID = ImageTokenizerConfiguration(image_size=32, bits=5, channels=(8, 8, 8, 8), blocks=1)
SMALL = replace(
    NANO, text_vocabulary=50, prompt_tokens=20, image_offset=23, width=32, layers=3, heads=4, rotary=4, tokenizer=_GRID, resampler_width=8,
    token_experts=TokenExperts(16, 4, 8, 2), semantic=FeatureShape(6, 12), identity=FeatureShape(1, 5),
)  # fmt: skip
DENSE = replace(
    SMALL, name="dense", token_experts=TokenExperts(64), sequence_experts=False, semantic=None, identity=None, image_input="table",
    specials=SHOW_O.specials,
)  # fmt: skip
N, V = 16, 32
TOLERANCE = 1e-5


PAIRED = replace(
    SMALL, name="paired", tokenizer=replace(_GRID, image_size=16, codes_per_cell=4)
)  # as many tokens in a quarter of the cells


@pytest.fixture(params=[SMALL, PAIRED, DENSE], ids=["experts", "several codes per cell", "dense"])
def model(request: pytest.FixtureRequest) -> UnifiedTransformer:
    return build(request.param)


def build(configuration: ModelConfiguration) -> UnifiedTransformer:
    """A model with weights large enough that every part matters."""
    torch.manual_seed(0)
    model = UnifiedTransformer(configuration).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 / parameter.shape[-1] ** 0.5))
    return model.requires_grad_(requires_grad=False)


def drawn(rows: int, draws: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(V, (rows, draws, N))
    masked = torch.rand(rows, draws, N) < 0.6
    return torch.where(masked, V, codes), masked.float().mean(-1)


def features(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 6, 12), torch.randn(rows, 1, 5)


def test_cached_prompt_equals_the_whole_sequence(model: UnifiedTransformer) -> None:
    torch.manual_seed(1)
    ids, lengths = torch.randint(50, (4, 9)), torch.tensor([9, 6, 3, 1])
    codes, ratio = drawn(4, 3)
    hidden, _ = model.generation_states(ids, lengths, codes, ratio)
    whole = model.image_scores(hidden)
    key, value = model.prefill_prompt(ids, lengths)
    for draw in range(3):
        cached = model.image_logits(codes[:, draw], key, value, lengths, ratio[:, draw])
        assert cached.shape == (4, N, V)
        assert (cached - whole[:, draw]).abs().max() < TOLERANCE


def test_padding_of_prompts_changes_nothing(model: UnifiedTransformer) -> None:
    torch.manual_seed(2)
    ids, lengths = torch.randint(50, (2, 8)), torch.tensor([8, 5])
    codes, ratio = drawn(2, 1)
    key, value = model.prefill_prompt(ids, lengths)
    together = model.image_logits(codes[:, 0], key, value, lengths, ratio[:, 0])
    for row, length in enumerate(lengths.tolist()):
        bare = ids[row : row + 1, 8 - length :]
        key, value = model.prefill_prompt(bare, torch.tensor([length]))
        alone = model.image_logits(codes[row : row + 1, 0], key, value, torch.tensor([length]), ratio[row : row + 1, 0])
        assert (alone[0] - together[row]).abs().max() < TOLERANCE


def test_the_prompt_reaches_the_image_and_draws_do_not_reach_each_other(model: UnifiedTransformer) -> None:
    torch.manual_seed(3)
    ids, lengths = torch.randint(50, (1, 6)), torch.tensor([6])
    codes, ratio = drawn(1, 2)
    hidden, _ = model.generation_states(ids, lengths, codes, ratio)
    other = codes.clone()
    other[:, 1] = (other[:, 1] + 1) % V
    changed, _ = model.generation_states(ids, lengths, other, ratio)
    assert torch.equal(changed[:, 0], hidden[:, 0])
    assert (changed[:, 1] - hidden[:, 1]).abs().max() > 1e-2
    words, _ = model.generation_states((ids + 1) % 50, lengths, codes, ratio)
    assert (words - hidden).abs().max() > 1e-2


def ask(model: UnifiedTransformer, questions: list[list[int]], image: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The graph form: all questions as one right-aligned batch behind the cached image."""
    width = max(map(len, questions))
    ids = torch.tensor([[7] * (width - len(q)) + q for q in questions])
    layers, heads = model.configuration.layers, model.configuration.heads
    empty = torch.zeros(layers, len(questions), heads, 0, model.configuration.head_width)
    return model.extend_text(ids, torch.tensor([len(q) for q in questions]), *image, empty, empty)


def test_cached_image_equals_the_whole_sequence(model: UnifiedTransformer) -> None:
    torch.manual_seed(4)
    codes, (semantic, identity) = torch.randint(V, (1, N)), features(1)
    questions = [torch.randint(50, (length,)).tolist() for length in (5, 2, 7)]
    text = torch.tensor([[token for question in questions for token in question]])
    positions = torch.cat([torch.arange(len(q)) for q in questions])[None]
    segments = torch.cat([torch.full((len(q),), i) for i, q in enumerate(questions)])[None]
    padding = (text[:, :3] * 0 + 9, positions[:, :3] * 0, segments[:, :3] * 0 - 1)  # must change nothing
    packed = [torch.cat(pair, dim=1) for pair in zip((text, positions, segments), padding, strict=True)]
    hidden, _ = model.understanding_states(codes, semantic, identity, *packed)
    whole = model.text_scores(hidden[0, [4, 6, 13]])
    image = model.prefill_image(codes, semantic, identity)
    for fused in (True, False):
        model.use_fused_attention(fused)
        logits, key, _ = ask(model, questions, image)
        assert key.shape[3] == 7
        assert (logits - whole).abs().max() < TOLERANCE
        key, value = (part.expand(-1, 3, -1, -1, -1) for part in image)
        assert (ask(model, questions, (key, value))[0] - whole).abs().max() < TOLERANCE


def test_one_token_at_a_time_equals_all_at_once(model: UnifiedTransformer) -> None:
    torch.manual_seed(5)
    codes, (semantic, identity) = torch.randint(V, (1, N)), features(1)
    image = model.prefill_image(codes, semantic, identity)
    questions = [torch.randint(50, (length,)).tolist() for length in (6, 4)]
    wanted, _, _ = ask(model, questions, image)
    _, key, value = ask(model, [q[:-2] for q in questions], image)
    for back in (2, 1):
        lengths = torch.tensor([len(q) - back + 1 for q in questions])
        new = torch.tensor([[q[-back]] for q in questions])
        logits, key, value = model.extend_text(new, lengths, *image, key, value)
    assert (logits - wanted).abs().max() < TOLERANCE


def test_batch_mates_do_not_matter(model: UnifiedTransformer) -> None:
    torch.manual_seed(6)
    codes, (semantic, identity) = torch.randint(V, (3, N)), features(3)
    together, _ = model.prefill_image(codes, semantic, identity)
    alone, _ = model.prefill_image(codes[1:2], semantic[1:2], identity[1:2])
    assert (together[:, 1:2] - alone).abs().max() < TOLERANCE


def test_questions_do_not_see_each_other_but_see_the_face() -> None:
    model = build(SMALL)
    torch.manual_seed(7)
    codes, (semantic, identity) = torch.randint(V, (1, N)), features(1)
    image = model.prefill_image(codes, semantic, identity)
    first, _, _ = ask(model, [[1, 2, 3], [4, 5, 6]], image)
    second, _, _ = ask(model, [[1, 2, 3], [9, 8, 7]], image)
    assert torch.allclose(first[0], second[0], atol=TOLERANCE)
    codes, (semantic, identity) = torch.randint(V, (6, N)), features(6)  # six, because not every image is routed to every expert
    before, _ = model.prefill_image(codes, semantic, identity)
    for change in ((codes + 1) % V, semantic, identity), (codes, semantic.flip(-1), identity), (codes, semantic, identity.flip(-1)):
        after, _ = model.prefill_image(*change)
        assert (after - before).abs().max() > 1e-3


def test_the_first_token_of_understanding_is_text() -> None:
    model = build(DENSE)
    codes = torch.randint(V, (2, N))
    key, _ = model.prefill_image(codes, torch.zeros(0), torch.zeros(0))
    assert torch.equal(key[:, 0, :, 0], key[:, 1, :, 0]), "<|mmu|> must not see the image"
    assert not torch.allclose(key[-1, 0, :, 1], key[-1, 1, :, 1]), "<|soi|> sees all of it"


def test_groups_share_no_expert() -> None:
    model = build(SMALL).requires_grad_(requires_grad=True)
    torch.manual_seed(8)
    codes, ratio = drawn(2, 1)
    hidden, _ = model.generation_states(torch.randint(50, (2, 4)), torch.tensor([4, 4]), codes, ratio)
    torch.autograd.backward(model.image_scores(hidden).sum())
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert not any(".mmu." in name or name.startswith(("semantic", "identity", "text_head")) for name in reached)
    assert {"noise.up.weight", "blocks.0.experts.t2i.router.weight", "blocks.0.sequence.t2i.router.weight"} <= reached


def test_routing_covers_every_column() -> None:
    model = build(SMALL)
    codes, ratio = drawn(2, 3)
    _, routing = model.generation_states(torch.randint(50, (2, 4)), torch.tensor([4, 2]), codes, ratio)
    assert routing.token_chosen.shape == (3, 2, 4 + 3 * (N + 2), 4)
    assert routing.sequence_chosen.shape == (3, 6, 4)
    assert bool((routing.token_chosen.sum(-1) == 2).all())
    assert bool((routing.sequence_chosen.sum(-1) == 2).all())


def test_image_head_folds_to_one_matrix() -> None:
    model = build(SMALL)
    x = torch.randn(5, 32)
    assert torch.allclose(model.norm(x) @ model.image_head_weight().T + model.image_head.bias, model.image_scores(x), atol=1e-5)
    assert code_bits(torch.tensor([0, 5, 8191]), 13)[:, :4].tolist() == [[-1, -1, -1, -1], [1, -1, 1, -1], [1, 1, 1, 1]]


def test_codes_of_a_cell_are_told_apart() -> None:
    model = build(PAIRED)
    codes, ratio = drawn(1, 1)
    codes[:] = V
    codes[0, 0, 0] = 3  # one code of the first cell is known
    hidden, _ = model.generation_states(torch.tensor([[1]]), torch.tensor([1]), codes, ratio)
    assert hidden.shape == (1, 1, N, 32)
    assert not torch.allclose(hidden[0, 0, 1], hidden[0, 0, 2])
    for moved in (codes.roll(1, -1), codes.roll(4, -1), torch.full_like(codes, V)):
        other, _ = model.generation_states(torch.tensor([[1]]), torch.tensor([1]), moved, ratio)
        assert (other - hidden).abs().max() > 1e-2


def test_autocast_stays_close() -> None:
    model = build(SMALL)
    ids, lengths = torch.randint(50, (2, 5)), torch.tensor([5, 3])
    codes, ratio = drawn(2, 2)
    exact, _ = model.generation_states(ids, lengths, codes, ratio)
    with torch.autocast("cpu", torch.bfloat16):
        close, _ = model.generation_states(ids, lengths, codes, ratio)
    assert close.dtype == torch.float32
    assert float((exact - close).norm() / exact.norm()) < 0.05


def test_nano_fits_its_bundle_and_big_ones_have_the_published_size() -> None:
    assert sum(p.numel() for p in UnifiedTransformer(NANO).parameters()) < 9.5e6
    with torch.device("meta"):
        show_o, paper = UnifiedTransformer(SHOW_O), UnifiedTransformer(PAPER)
    embeddings = 2 * 2048 * 58498  # counted in Show-o's 1.448 B
    assert abs(sum(p.numel() for p in show_o.parameters()) - 1.448e9) < 5e6
    assert embeddings < 1.448e9
    assert 1.7e9 < sum(p.numel() for p in paper.parameters()) < 1.95e9


def test_contradictions_are_refused() -> None:
    with pytest.raises(InputError, match="semantic and identity"):
        UnifiedTransformer(replace(SMALL, semantic=None))
    with pytest.raises(InputError, match="image_input"):
        UnifiedTransformer(replace(SMALL, image_input="pixels"))
