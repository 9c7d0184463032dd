"""Distillation: the target is the guided teacher's, the student comes near it, its weights say what for; refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from export.data.text.dialogues import TextMaker
from export.data.text.tokenizer import train_text_tokenizer
from export.data.tokens import TokenCache, cache_tokens
from export.graph.sampling import guide
from export.model.transformer import UnifiedTransformer
from export.training import unified
from export.training.checkpoint import save_weights, trained_for_of
from export.training.loop import Batch, TrainOptions, train
from export.training.student import StudentTask, defaults, run, teacher_of
from export.training.unified import Mixture, UnifiedTask
from f2edge.bundle.trained_for import TrainedFor
from f2edge.decoding.schedule import Schedule, plan
from f2edge.errors import InputError
from f2edge.spec.configuration import PAPER, ModelConfiguration, TokenExperts
from tests.export.training.test_unified_training import TINY, Cells, Faces, Pool, cache, texts

__all__ = ["cache", "texts"]  # fixtures

#: Both levels of experts as the paper's size has them: one FFN for all, its routed experts beside it.
PAPER_LIKE = replace(
    PAPER, name="like", width=48, layers=2, heads=4, rotary=8, token_experts=TokenExperts(96, 4, 16, 2, common=True), resampler_width=16,
    text_vocabulary=TINY.text_vocabulary, prompt_tokens=TINY.prompt_tokens, image_offset=TINY.image_offset,
    tokenizer=replace(TINY.tokenizer, codes_per_cell=1), semantic=TINY.semantic, identity=TINY.identity, specials=TINY.specials,
)  # fmt: skip


def student(cache: TokenCache, texts: TextMaker, teacher: UnifiedTransformer, *, halve: int | None = None, **schedule: Any) -> StudentTask:
    steps: dict[str, Any] = {} if halve is None else {"steps": halve}
    mixture = Mixture(text_columns=48, faces_share=0.2, masked=0.1, score=0.001, draws=2 if halve is None else -(-halve // 2))
    return StudentTask(
        cache, texts, 20, configuration=teacher.configuration, mixture=mixture, validation_rows=16, teacher=teacher,
        schedule=replace(Schedule(guidance=3.0), **steps, **schedule), halve=halve is not None,
    )  # fmt: skip


def quick(out: Path, steps: int, **options: Any) -> TrainOptions:
    return TrainOptions(out=out, steps=steps, batch=20, learning_rate=3e-3, warmup=5, ema=0.0, bf16=False, **options)


@pytest.fixture(scope="module")
def teacher(cache: TokenCache, texts: TextMaker, tmp_path_factory: pytest.TempPathFactory) -> UnifiedTransformer:
    """A model that knows what its prompts mean, so that guidance does something."""
    task = UnifiedTask(cache, texts, 20, configuration=TINY, mixture=Mixture(text_columns=48, faces_share=0.2), validation_rows=16)
    task.validate = lambda *_: {}  # type: ignore[method-assign]
    train(task, quick(tmp_path_factory.mktemp("teacher"), 60))
    return task.model.eval()


def scores(model: UnifiedTransformer, batch: Batch, ids: Tensor, lengths: Tensor) -> Tensor:
    """Logits (B, G, N, V) by the whole-sequence form."""
    seen = torch.where(batch["masked"], model.configuration.codes, batch["codes"][:, None])
    return model.image_scores(model.generation_states(ids, lengths, seen, batch["masked"].float().mean(-1))[0])


def alone(texts: TextMaker, count: int) -> tuple[Tensor, Tensor]:
    empty = torch.tensor(texts.layout.unconditional)
    return empty.expand(count, -1), torch.full((count,), len(empty))


def divergence(target: Tensor, logits: Tensor) -> float:
    p = target.log_softmax(-1)
    return float((p.exp() * (p - logits.log_softmax(-1))).sum(-1).mean())


@pytest.mark.parametrize("configuration", [TINY, PAPER_LIKE])
@torch.no_grad()
def test_the_target_is_what_the_guided_teacher_says(
    tmp_path: Path, cache: TokenCache, texts: TextMaker, teacher: UnifiedTransformer, configuration: ModelConfiguration
) -> None:
    if configuration is not TINY:
        cache_tokens(Faces(40), OneCode(), Pool(4, 8), Pool(1, 5), tmp_path)
        cache, texts = TokenCache(tmp_path), TextMaker(texts._tokenizer, configuration)
        teacher = UnifiedTransformer(configuration).eval()
    task = student(cache, texts, teacher)
    batch = task.batch(0, 0)
    found = task.teacher.head(task._said(batch)["taught"])
    conditional = scores(teacher, batch, batch["prompt_ids"], batch["prompt_lengths"])
    unconditional = scores(teacher, batch, *alone(texts, len(batch["codes"])))
    wanted = guide(conditional.flatten(1, 2), unconditional.flatten(1, 2), torch.full((len(conditional),), 3.0)).view_as(found)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)
    losses, metrics = task.losses(batch, 0)
    masked = batch["masked"]
    assert bool(losses["model"].isfinite())
    weight = batch["weight"][masked]
    p, q = wanted[masked].log_softmax(-1), conditional[masked].log_softmax(-1)  # it begins with the teacher's weights
    assert float(metrics["taught"]) == pytest.approx(float(((p.exp() * (p - q)).sum(-1) * weight).sum() / weight.sum()), rel=1e-3, abs=1e-6)


class OneCode(Cells):
    """One code per cell."""

    def encode(self, pixels: Tensor) -> Tensor:
        return super().encode(pixels)[:, ::2]


def test_a_student_draws_without_guidance_what_its_teacher_draws_with_it(
    tmp_path: Path, cache: TokenCache, texts: TextMaker, teacher: UnifiedTransformer
) -> None:
    task = student(cache, texts, teacher)
    task.validate = lambda *_: {}  # type: ignore[method-assign]
    train(task, quick(tmp_path, 60))
    batch = {**task.batch(1000, 0)}
    with torch.no_grad():
        target = task.teacher.head(task._said(batch)["taught"])[batch["masked"]]
        said, empty = (
            [scores(model, batch, *prompt)[batch["masked"]] for model in (teacher, task.model.eval())]
            for prompt in ((batch["prompt_ids"], batch["prompt_lengths"]), alone(texts, len(batch["codes"])))
        )
    assert divergence(target, said[1]) < 0.4 * divergence(target, said[0])
    assert divergence(empty[0], empty[1]) < 0.5 * divergence(target, empty[1]), "the empty prompt keeps its meaning"


@torch.no_grad()
def test_the_teacher_draws_and_the_student_sees_every_other_state(cache: TokenCache, texts: TextMaker, teacher: UnifiedTransformer) -> None:
    task = student(cache, texts, teacher, halve=5, order="halton")
    batch = task.batch(0, 0)
    start, G = batch["masked"], 3
    assert start.shape[1] == G
    assert bool((start == start[:, :1]).all())
    whole = start[:, 0].all(-1)
    assert bool(whole.any())
    torch.manual_seed(3)
    lesson = task._drawn(batch)
    masked, codes = lesson["masked"], lesson["codes"]
    assert torch.equal(codes[~start[:, 0]], batch["codes"][~start[:, 0]]), "what was not masked stays"
    assert torch.equal(masked[:, 0], start[:, 0])
    counts = plan(task.schedule, np.ones(start.shape[2], bool), 0).masked_after
    assert all(row.sum(-1).tolist() == [start.shape[2], counts[1], counts[3]] for row in masked[whole])
    # A token that the next step decodes has the teacher's words of this step, one that stays masked those of the next.
    seen = {**batch, "codes": codes, "masked": masked}
    prompts = ((batch["prompt_ids"], batch["prompt_lengths"]), alone(texts, len(codes)))
    asked, empty = (scores(teacher, seen, *prompt).flatten(1, 2) for prompt in prompts)
    now = guide(asked, empty, torch.full((len(codes),), 3.0))
    now = now.view(*masked.shape, -1)
    found = task.teacher.head(lesson["taught"])
    same = torch.isclose(found, now, atol=1e-3).all(-1)
    first = int(counts[0])
    assert (masked[whole][:, 0] & same[whole][:, 0]).sum(-1).tolist() == [start.shape[2] - first] * int(whole.sum())
    assert bool(same[:, 2][masked[:, 2]].all()), "the fifth of five steps has no next one"
    losses, metrics = task.losses(batch, 0)
    assert bool(losses["model"].isfinite())
    assert float(metrics["taught"]) > 0


def test_weights_say_what_they_were_trained_for(cache: TokenCache, texts: TextMaker, teacher: UnifiedTransformer, tmp_path: Path) -> None:
    tokens, text, weights = tmp_path / "tokens", tmp_path / "tokenizer.json", tmp_path / "teacher.safetensors"
    cache_tokens(Faces(40), Cells(), Pool(4, 8), Pool(1, 5), tokens)
    train_text_tokenizer(text)
    save_weights(weights, teacher, {"configuration": json.dumps(TINY.to_json())})
    options = replace(defaults(tmp_path / "one", smoke=True), steps=2)
    one = run(str(weights), tokens, text, options, configuration=PAPER, validation_rows=16)
    assert trained_for_of(one / "unified.safetensors") == TrainedFor(0.0, (12,), 3.0)
    taught = teacher_of(str(one), PAPER)
    assert taught.model.configuration == TINY
    assert (taught.schedule.steps, taught.schedule.guidance) == (12, 0.0)
    two = run(str(one), tokens, text, replace(options, out=tmp_path / "two"), configuration=PAPER, halve=7, validation_rows=16)
    assert trained_for_of(two / "unified.safetensors") == TrainedFor(0.0, (4,), 3.0)
    again = run(str(one), tokens, text, replace(options, out=tmp_path / "two"), configuration=PAPER, halve=7, validation_rows=16)
    assert again == two
    for arguments, message in (({}, "--halve STEPS"), ({"halve": 1}, "2 or more"), ({"halve": 4, "data_weight": 0.0}, "--data-weight 0.0")):
        with pytest.raises(InputError, match=message):
            run(str(one), tokens, text, replace(options, out=tmp_path / "none"), configuration=PAPER, **arguments)
    with pytest.raises(InputError, match="holds a run of 'student'"):
        unified.run(tokens, text, replace(options, out=one, steps=3), configuration=TINY, validation_rows=16)
