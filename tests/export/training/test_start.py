"""Training that begins with a dense model: the exact kind keeps its logits, the narrow kind most of its loss, and every expert moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.data.text.dialogues import TextMaker
from export.data.tokens import TokenCache
from export.model.experts import TokenExpertLayer
from export.model.transformer import UnifiedTransformer
from export.model.upcycling import dense_width, is_exact, upcycle
from export.model.variants import with_experts
from export.training.checkpoint import save_weights
from export.training.loop import TrainOptions, train
from export.training.start import losses, start
from export.training.unified import Mixture, UnifiedTask
from f2edge.errors import InputError
from f2edge.spec.configuration import PAPER, PAPER_EXACT, SHOW_O, ModelConfiguration, TokenExperts
from tests.export.training.test_unified_training import TINY, cache, texts

__all__ = ["cache", "texts"]  # fixtures

DENSE = replace(TINY, name="dense", token_experts=TokenExperts(96), sequence_experts=False)
EXACT = replace(TINY, name="exact", token_experts=TokenExperts(96, 4, 16, 2, common=True), sequence_scale=True)
NARROW = replace(TINY, name="narrow", token_experts=TokenExperts(32, 4, 8, 2), sequence_scale=True)


def made(cache: TokenCache, texts: TextMaker, configuration: ModelConfiguration) -> UnifiedTask:
    mixture = Mixture(text_columns=48, faces_share=0.2)
    return UnifiedTask(cache, texts, 20, configuration=configuration, mixture=mixture, validation_rows=16)


@pytest.fixture(scope="module")
def dense(cache: TokenCache, texts: TextMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model that was trained a little."""
    task, out = made(cache, texts, DENSE), tmp_path_factory.mktemp("dense")
    options = TrainOptions(out=out / "run", steps=40, batch=20, learning_rate=3e-3, warmup=5, ema=0.0, bf16=False, validate_every=0)
    task.validate = lambda *_: {}  # type: ignore[method-assign]
    train(task, options)
    save_weights(out / "unified.safetensors", task.model, {"configuration": "show-o"})
    return out / "unified.safetensors"


def logits(model: UnifiedTransformer, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    ratio = batch["masked"].float().mean(-1)
    seen = torch.where(batch["masked"], model.configuration.codes, batch["codes"][:, None])
    drawn, _ = model.generation_states(batch["prompt_ids"], batch["prompt_lengths"], seen, ratio)
    names = ("face_codes", "semantic", "identity", "text_ids", "text_positions", "text_segments")
    read, _ = model.understanding_states(*(batch[name] for name in names))
    return [model.image_scores(drawn), model.text_scores(read)]


@pytest.mark.parametrize("configuration", [EXACT, replace(EXACT, token_experts=TokenExperts(96, 4, 16, 2))])
def test_exact_kind_begins_with_the_dense_logits_and_every_expert_moves(
    cache: TokenCache, texts: TextMaker, dense: Path, tmp_path: Path, configuration: ModelConfiguration
) -> None:
    task, plain, lines = made(cache, texts, configuration), made(cache, texts, DENSE), list[str]()
    start(plain.model, dense, plain.parts, lines.append)
    assert not lines  # the same configuration: weights are only read
    start(task.model, dense, task.parts, lines.append)
    assert "exact kind" in lines[0]
    with torch.no_grad():
        for one, other in zip(logits(plain.model, task.batch(0, 0)), logits(task.model, task.batch(0, 0)), strict=True):
            assert (one - other).abs().max() < 1e-4
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    task.validate = lambda *_: {}  # type: ignore[method-assign]
    train(task, TrainOptions(out=tmp_path, steps=4, batch=20, warmup=0, ema=0.0, bf16=False, device="cpu"))
    for block in range(configuration.layers):
        for group in ("t2i", "mmu"):
            layer = task.model.get_submodule(f"blocks.{block}.experts.{group}")
            assert isinstance(layer, TokenExpertLayer)
            for expert in range(4):
                for name, rows in (("up.weight", layer.slice_of(expert)), ("down.weight", (slice(None), layer.slice_of(expert)))):
                    key = f"blocks.{block}.experts.{group}.{name}"
                    assert not torch.equal(before[key][rows], task.model.state_dict()[key][rows]), (key, expert)
            if (block, group) == (configuration.layers - 1, "mmu"):
                continue  # nothing reads the last block's states of the image in MMU
            key = f"blocks.{block}.sequence.{group}.scale"
            assert not torch.equal(before[key], task.model.state_dict()[key]), key


def test_narrow_kind_begins_nearer_than_slicing_and_chance(cache: TokenCache, texts: TextMaker, dense: Path) -> None:
    plain, lines = made(cache, texts, DENSE), list[str]()
    start(plain.model, dense, plain.parts, lines.append)
    before = losses(plain.model, plain.parts)
    found = {}
    for name in ("measured", "sliced", "random"):
        task = made(cache, texts, NARROW)
        if name == "measured":
            start(task.model, dense, task.parts, lines.append)
        elif name == "sliced":  # the first units, in the order in which they are stored
            width = NARROW.token_experts.shared_width + 4 * 8
            state = {key: value.clone() for key, value in plain.model.state_dict().items()}
            for block in range(NARROW.layers):
                state[f"blocks.{block}.dense.down.weight"][:, width:] = 0.0
            sliced = UnifiedTransformer(replace(DENSE))
            sliced.load_state_dict(state)
            found[name] = losses(sliced, task.parts)
            continue
        found[name] = losses(task.model, task.parts)
    assert "narrow kind" in lines[-1]
    total = {name: sum(values.values()) for name, values in found.items()}
    assert sum(before.values()) < total["measured"] < total["random"]
    print(before, found)


def test_kinds_and_refusals(cache: TokenCache, texts: TextMaker, dense: Path) -> None:
    assert is_exact(8192, PAPER_EXACT.token_experts)
    assert not is_exact(8192, PAPER.token_experts)
    assert (PAPER_EXACT.width, PAPER_EXACT.layers, PAPER_EXACT.specials) == (SHOW_O.width, SHOW_O.layers, SHOW_O.specials)
    with torch.device("meta"):
        counted = sum(p.numel() for p in UnifiedTransformer(PAPER_EXACT).parameters())
        plain = UnifiedTransformer(SHOW_O).state_dict()
    assert 1.8e9 < counted < 2.0e9
    assert dense_width(plain) == 8192
    task = made(cache, texts, replace(EXACT, token_experts=TokenExperts(48, 4, 16, 2, common=True)))
    with pytest.raises(InputError, match="has 96 units, the common shared expert 48"):
        start(task.model, dense, task.parts, lambda _: None)
    with pytest.raises(InputError, match="lacks experts of level 'token'"):
        with_experts(DENSE, "token")
    assert with_experts(TINY, "none").token_experts == TokenExperts(64)


def test_experts_of_a_common_shared_expert_are_seen_in_all_forms() -> None:
    torch.manual_seed(0)
    dense = UnifiedTransformer(DENSE)
    model = UnifiedTransformer(EXACT)
    model.load_state_dict(upcycle(dense.state_dict(), EXACT), strict=False)
    codes, ids, lengths = torch.randint(16, (2, 32)), torch.randint(1000, (2, 7)), torch.tensor([7, 5])
    with torch.no_grad():
        for one in (dense, model):
            key, value = one.prefill_prompt(ids, lengths)
            found = one.image_logits(codes, key, value, lengths, torch.ones(2))
            whole, _ = one.generation_states(ids, lengths, codes[:, None], torch.ones(2, 1))
            assert (one.image_scores(whole[:, 0]) - found).abs().max() < 1e-4
