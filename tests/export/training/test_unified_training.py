"""Training of the unified model on faces whose codes and features follow from their slots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

from export.data.cache_format import write_shard
from export.data.encoding import Encoding, encode_images
from export.data.external.index import Texts
from export.data.text.dialogues import TextMaker, pack
from export.data.text.questions import CANNOT_TELL
from export.data.text.tokenizer import train_text_tokenizer
from export.data.tokens import TokenCache, cache_tokens, write_meta
from export.training.checkpoint import load_weights
from export.training.loop import TrainOptions, train
from export.training.preview import _next_codes, measure_texts, sample
from export.training.unified import Mixture, UnifiedTask, draw_masks, draw_region_mask, row_shares, run
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema, Slot
from f2edge.spec.configuration import NANO, FeatureShape, ImageTokenizerConfiguration, TokenExperts

TINY = replace(
    NANO, width=48, layers=2, heads=4, rotary=8, token_experts=TokenExperts(32, 4, 16, 2), resampler_width=16,
    tokenizer=ImageTokenizerConfiguration(image_size=32, bits=4, channels=(8, 8, 8, 8), blocks=1, codes_per_cell=2),
    semantic=FeatureShape(4, 8), identity=FeatureShape(1, 5),
)  # fmt: skip
N, ROWS = 32, 96


class Faces:
    """Pictures whose left half is bright where the person is feminine; that slot is the only visible one."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self.values = np.full((count, len(F2EDGE_SCHEMA)), -1, np.int8)
        self.values[:, 0] = rng.integers(2, size=count)
        self.pixels = rng.integers(100, 156, size=(count, 32, 32, 3)).astype(np.uint8)
        self.pixels[:, :, :16] = np.where(self.values[:, 0] == 0, 250, 5)[:, None, None, None]

    region_names = ("eyes", "mouth", "background")

    def __len__(self) -> int:
        return len(self.values)

    def regions(self, rows: Any) -> NDArray[np.uint8]:
        """Eyes in the second row, a mouth in two cells of the third (one hardly), background around."""
        found = np.zeros((len(self.values[rows]), 3, 4, 4), np.uint8)
        found[:, 0, 1], found[:, 1, 2, 1:3], found[:, 2, 0] = 255, (200, 30), 255
        return found

    def images(self, rows: Any) -> NDArray[np.uint8]:
        return np.asarray(self.pixels[rows])

    def slots(self, rows: Any) -> NDArray[np.int8]:
        return np.asarray(self.values[rows])


class Cells:
    """An image tokenizer of paper: the brightness of each cell in sixteen steps, and its darkness."""

    def encode(self, pixels: Tensor) -> Tensor:
        light = ((pixels.mean(1).unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2)) + 1) * 7.99).long().flatten(1)
        return torch.stack((light, 15 - light), dim=-1).flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        light = codes[:, 0::2].reshape(-1, 1, 4, 4) / 7.5 - 1
        return light.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)


class Pool(nn.Module):
    def __init__(self, vectors: int, width: int) -> None:
        super().__init__()
        self.vectors, self.width = vectors, width

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1)[:, : self.vectors * self.width].reshape(-1, self.vectors, self.width)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    folder = tmp_path_factory.mktemp("tokens") / "cache"
    seen: list[int] = []
    cache_tokens(Faces(ROWS), Cells(), Pool(4, 8), Pool(1, 5), folder, batch=40, progress=seen.append)
    assert seen == [40, 80, 96]
    return TokenCache(folder)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> TextMaker:
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    train_text_tokenizer(path)
    return TextMaker(Tokenizer.from_file(str(path)), TINY)


def task(cache: TokenCache, texts: TextMaker, **mixture: Any) -> UnifiedTask:
    return UnifiedTask(
        cache, texts, 20, configuration=TINY, mixture=replace(Mixture(text_columns=48, faces_share=0.2), **mixture), validation_rows=16
    )


def test_cache_holds_what_the_networks_gave(cache: TokenCache) -> None:
    faces = Faces(ROWS)
    assert len(cache) == ROWS
    assert [str(a.dtype) for a in (cache.codes, cache.semantic, cache.slots)] == ["int16", "float16", "int8"]
    pixels = torch.from_numpy(faces.pixels[50:51]).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert cache.codes[50].tolist() == Cells().encode(pixels)[0].tolist()
    assert np.allclose(cache.semantic[50], Pool(4, 8)(pixels)[0], atol=1e-3)
    assert cache.face(3) == {"gender_presentation": F2EDGE_SCHEMA["gender_presentation"].values[int(faces.values[3, 0])]}


def test_a_missing_or_foreign_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="python -m export cache"):
        TokenCache(tmp_path)
    cache_tokens(Faces(4), Cells(), Pool(4, 8), Pool(1, 5), tmp_path / "c")
    (tmp_path / "c" / "meta.json").write_text(json.dumps({"format": 1, "count": 4, "schema": []}))
    with pytest.raises(InputError, match="another version"):
        TokenCache(tmp_path / "c")


def test_a_cache_that_does_not_fit_is_refused(cache: TokenCache, texts: TextMaker) -> None:
    with pytest.raises(InputError, match="semantic"):
        UnifiedTask(cache, texts, 20, configuration=replace(TINY, semantic=FeatureShape(5, 8)), validation_rows=16)
    with pytest.raises(InputError, match="none for training"):
        UnifiedTask(cache, texts, 20, configuration=TINY, validation_rows=ROWS)
    with pytest.raises(InputError, match="both need at least one"):
        UnifiedTask(cache, texts, 2, configuration=TINY, validation_rows=16)


def test_batches_are_functions_of_their_counters(cache: TokenCache, texts: TextMaker) -> None:
    one, two = task(cache, texts), task(cache, texts)
    forward = [one.batch(step, 0) for step in range(6)]
    for step in (5, 2, 0):  # another order, another object
        again = two.batch(step, 0)
        assert again.keys() == forward[step].keys()
        assert all(torch.equal(again[key], forward[step][key]) for key in again)
    for other in (one.batch(0, 1), one.batch(0, 2), one.batch(1, 0)):
        assert not torch.equal(other["masked"], forward[0]["masked"])


def test_mask_law(cache: TokenCache) -> None:
    masks = draw_masks(300, 2, 64, np.random.default_rng(0))
    assert masks.shape == (300, 2, 64)
    assert masks.sum(-1).min() >= 1
    assert masks.mean() == pytest.approx(2 / np.pi, abs=0.01)  # the mean of cos(π/2 · u)
    assert masks.mean((0, 1)).std() < 0.05  # every position alike


def test_region_masks_stay_in_one_or_two_shown_regions() -> None:
    coverage = Faces(1).regions(np.arange(1))[0] / np.float32(255)
    names = ("eyes", "mouth", "background")
    cells = [share > 0.08 for share in coverage]  # the mouth's second cell too: 30 / 255
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(names, 0)
    shares = []
    for _ in range(400):
        mask = draw_region_mask(coverage, TINY.tokenizer, rng).reshape(4, 4, 2)
        assert mask.any()
        touched = [name for name, inside in zip(names, cells, strict=True) if mask[inside].any()]
        assert 1 <= len(touched) <= 2
        assert not mask[~np.logical_or.reduce(cells)].any()
        if touched == ["eyes"]:
            shares.append(mask[cells[0]].mean())
        for name in touched:
            seen[name] += 1
    assert min(seen.values()) > 80
    assert np.mean(shares) == pytest.approx(2 / np.pi, abs=0.08)
    hidden = coverage.copy()
    hidden[1] = 0.01  # below what counts as shown
    masks = np.array([draw_region_mask(hidden, TINY.tokenizer, rng) for _ in range(100)]).reshape(-1, 4, 4, 2)
    assert not masks[:, 2].any()


def test_sought_pictures_are_drawn_more_often() -> None:
    slots = np.full((1000, len(F2EDGE_SCHEMA)), -1, np.int8)
    action = list(F2EDGE_SCHEMA).index("action")
    slots[::10, action] = F2EDGE_SCHEMA["action"].index("smile")
    shares = row_shares(slots)
    rows = np.searchsorted(shares, np.random.default_rng(0).random(20_000), side="right")
    assert 0 <= rows.min() <= rows.max() <= 999
    assert (rows % 10 == 0).mean() == pytest.approx(8 * 100 / (8 * 100 + 900), abs=0.02)
    assert np.searchsorted(shares, 1 - 1e-12, side="right") == 999


def test_region_draws_and_features_weigh_more(cache: TokenCache, texts: TextMaker) -> None:
    plain = task(cache, texts, region_share=0.0, feature_weight=2.0).batch(0, 0)
    weight = plain["weight"].reshape(-1, 2, 4, 4, 2)
    assert torch.equal(weight[:, :, 1], torch.full_like(weight[:, :, 1], 3.0)), "eyes"
    assert torch.equal(weight[:, :, 3], torch.ones_like(weight[:, :, 3])), "nothing there"
    assert torch.allclose(weight[:, :, 2, 1], torch.tensor(1 + 2 * 200 / 255))
    regional = task(cache, texts, region_share=1.0, feature_weight=0.0, region_weight=5.0).batch(0, 0)
    assert torch.equal(regional["weight"], torch.full_like(regional["weight"], 5.0))
    assert not regional["masked"].reshape(-1, 2, 4, 4, 2)[:, :, 3].any()


def test_thorough_prompts_name_many_slots_plain_ones_too(texts: TextMaker) -> None:
    rng = np.random.default_rng(5)
    slots = {name: slot.values[0] for name, slot in F2EDGE_SCHEMA.items()}
    assert (
        np.mean([len(texts.prompt(slots, rng, 1.0)) for _ in range(60)]) > np.mean([len(texts.prompt(slots, rng)) for _ in range(60)]) + 5
    )


def test_packing_keeps_answers_and_targets_together() -> None:
    rows = [[([1, 2, 3], [4, 5], 1.0), ([6] * 9, [7] * 9, 1.0), ([8, 9], [5], 0.5)], []]
    talk = pack(rows, 8, pad=99)
    assert talk.ids.tolist() == [[1, 2, 3, 4, 8, 9, 99, 99], [99] * 8]
    assert talk.positions.tolist()[0] == [0, 1, 2, 3, 0, 1, 0, 0]
    assert talk.segments.tolist()[0] == [0, 0, 0, 0, 2, 2, -1, -1]
    assert talk.targets.tolist()[0] == [0, 0, 4, 5, 0, 5, 0, 0]
    assert talk.weights.tolist()[0] == [0, 0, 1, 1, 0, 0.5, 0, 0]


def test_prompts_are_dropped_and_cut(cache: TokenCache, texts: TextMaker) -> None:
    always = task(cache, texts, prompt_dropout=1.0).batch(0, 0)
    assert always["prompt_ids"][0].tolist() == texts.layout.unconditional
    never = task(cache, texts, prompt_dropout=0.0).batch(0, 0)
    assert int(never["prompt_lengths"].min()) > 3


@pytest.mark.slow
def test_losses_fall_and_the_model_learns_both_tasks(cache: TokenCache, texts: TextMaker, tmp_path: Path) -> None:
    unified = task(cache, texts)
    unified.image_decoder = Cells().decode
    before = unified.validate(unified.modules, 0, tmp_path)
    options = TrainOptions(out=tmp_path / "run", steps=60, batch=20, learning_rate=3e-3, warmup=5, ema=0.5, bf16=False, log_every=10)
    train(unified, options)
    after = unified.validate(unified.modules, 60, tmp_path)
    assert after["t2i/loss@1.0"] < before["t2i/loss@1.0"] - 0.5
    assert after["slots/right"] > 0.9
    with Image.open(tmp_path / "unified-000060.png") as grid:
        assert grid.size == (4 * 32, 4 * 32)
    report = json.loads((tmp_path / "unified-000060.json").read_text())
    for group in ("t2i", "mmu"):
        assert np.array(report[group]["token"]).shape == (2, 4)
        assert np.allclose(np.array(report[group]["sequence"]).sum(-1), 1, atol=1e-5)


def test_the_command_writes_weights_that_load(cache: TokenCache, texts: TextMaker, tmp_path: Path) -> None:
    tokens, text = tmp_path / "tokens", tmp_path / "tokenizer.json"
    cache_tokens(Faces(40), Cells(), Pool(4, 8), Pool(1, 5), tokens)
    train_text_tokenizer(text)
    options = TrainOptions(out=tmp_path / "run", steps=2, batch=10, ema=0.5, bf16=True)
    out = run(tokens, text, options, configuration=TINY, mixture=Mixture(text_columns=40), validation_rows=16)
    model = task(cache, texts).model
    assert load_weights(out / "unified.safetensors", model) == {"configuration": json.dumps(TINY.to_json())}
    with pytest.raises(InputError, match="text tokenizer"):
        run(tokens, tmp_path / "none.json", options, configuration=TINY)
    still = replace(options, out=tmp_path / "more", steps=1, learning_rate=0.0, bf16=False)
    more = run(tokens, text, still, start_from=out, configuration=TINY, mixture=Mixture(text_columns=40), validation_rows=16)
    first, second = task(cache, texts).model, task(cache, texts).model
    load_weights(out, first, ema=False)
    load_weights(more / "unified.safetensors", second)
    assert all(torch.allclose(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_draws_behind_one_prompt_train_like_separate_rows(cache: TokenCache, texts: TextMaker) -> None:
    """The gradient of two draws behind a shared prompt is the mean of the two rows' own gradients."""
    unified = task(cache, texts, token_balance=0.0, sequence_balance=0.0, region_share=0.0, feature_weight=0.0)
    batch = unified.batch(0, 0)
    batch["masked"] = batch["masked"][:, :, torch.randperm(N)]
    batch["masked"][:, 1] = batch["masked"][:, 0].roll(3, -1)  # as many masked positions in both, so both count alike
    loss, _ = unified._generation(batch)
    torch.autograd.backward(loss)
    shared = {n: p.grad.clone() for n, p in unified.model.named_parameters() if p.grad is not None}
    unified.model.zero_grad()
    for draw in range(2):
        part, _ = unified._generation({**batch, **{key: batch[key][:, draw : draw + 1] for key in ("masked", "weight")}})
        torch.autograd.backward(part / 2)
    for name, p in unified.model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(p.grad, shared[name], atol=1e-5, rtol=1e-3), name


def test_samples_are_complete_and_repeatable(cache: TokenCache, texts: TextMaker) -> None:
    model = task(cache, texts).model.eval()
    prompts = [texts.prompt(cache.face(row), np.random.default_rng(row)) for row in range(3)]
    with torch.no_grad():
        codes = sample(model, texts.layout, prompts)
        assert torch.equal(codes, sample(model, texts.layout, prompts))
        assert torch.equal(codes[:1], sample(model, texts.layout, prompts[:1])), "the same face alone"
    assert codes.shape == (3, N)
    assert 0 <= int(codes.min()) <= int(codes.max()) < 16


def test_a_step_keeps_what_is_known_and_masks_the_least_sure() -> None:
    logits = torch.zeros(1, 4, 3)
    logits[0, :, 1] = torch.tensor([9.0, 2.0, 5.0, 0.5])
    feeds = {
        "codes": np.array([[2, 3, 3, 3]]), "unconditional_branch": np.array([0]), "guidance": np.zeros(1, np.float32),
        "temperature": np.zeros(1, np.float32), "token_temperature": np.full(1, 0.01, np.float32),
        "noise_key": np.array([[1, 2, 3, 4]]), "priority": np.zeros((1, 4), np.float32), "masked_after": np.array([2]),
    }  # fmt: skip
    codes, proposal = _next_codes(logits, feeds)
    assert proposal.tolist() == [[2, 1, 1, 1]]
    assert codes[0, 0] == 2
    assert (codes == 3).sum() == 2


def test_faces_are_asked_about_as_they_were_seen(cache: TokenCache, texts: TextMaker) -> None:
    assert not np.array_equal(cache.seen_codes, cache.codes)
    rows, seen = np.array([3, 4, 5]), np.array([True, False, True])
    batch = task(cache, texts).features(rows, seen)
    for index, (row, changed) in enumerate(zip(rows, seen, strict=True)):
        source = cache.seen_codes if changed else cache.codes
        assert batch["face_codes"][index].tolist() == source[row].tolist()
        features = cache.seen_semantic if changed else cache.semantic
        assert np.array_equal(batch["semantic"][index].numpy().astype(np.float16), features[row])


def test_some_questions_ask_for_what_is_not_to_be_seen(cache: TokenCache, texts: TextMaker) -> None:
    rng, slots = np.random.default_rng(0), cache.face(0)
    assert not isinstance(slots, Texts)
    asked = [texts.unanswerable(slots, rng) for _ in range(50)]
    assert all(item is not None and item.answer == CANNOT_TELL and item.slot not in slots for item in asked)
    everything = {name: slot.values[0] for name, slot in F2EDGE_SCHEMA.items()}
    assert texts.unanswerable(everything, rng) is None
    unsure = torch.tensor(texts.encode(CANNOT_TELL))
    talk = texts.dialogues([slots] * 20, rng, 200, 0.0, unsure_share=0.5)
    answers = [row[weights > 0].tolist() for row, weights in zip(talk.targets, talk.weights, strict=True)]
    assert any(answer[i : i + len(unsure)] == unsure.tolist() for answer in answers for i in range(len(answer)))


BRIGHT = Slot("bright", ("yes", "no"), "is the face bright?", "light")


def own_cache(out: Path, schema: AttributeSchema | None = None) -> TokenCache:
    """The faces of ``Faces`` with texts of their own, sixteen held out; with a schema of one slot, that too."""
    schema = schema or AttributeSchema([])
    faces = Faces(ROWS)
    networks = Encoding(Cells(), Pool(4, 8), Pool(1, 5), None, 40, bf16=False, device=torch.device("cpu"), grid=4)
    encoded = encode_images(faces.pixels, networks)
    words = ["a bright face" if value == 0 else "a dark face" for value in faces.values[:, 0]]
    told = [Texts((text,), (("is it bright?", "yes" if "bright" in text else "no"),)).to_json().encode() for text in words]
    halves = {name: value.astype(np.float16) if value.dtype == np.float32 else value for name, value in encoded.items()}
    write_shard(out / "shard-000000", {**halves, "slots": faces.values[:, : len(schema)]}, {"texts": told})
    np.save(out / "order.npy", np.random.default_rng(0).permutation(ROWS))
    write_meta(out, {"schema": schema.to_json(), "regions": [], "shards": [ROWS], "texts": True, "validation": 16})
    return TokenCache(out)


def test_own_texts_are_learned_without_any_slot(texts: TextMaker, tmp_path: Path) -> None:
    cache = own_cache(tmp_path / "own")
    job = UnifiedTask(cache, texts, 20, configuration=TINY, mixture=Mixture(text_columns=48, faces_share=0.4), validation_rows=1)
    assert job.trained_rows == ROWS - 16, "the split of the data, not the option"
    with torch.no_grad():
        before = measure_texts(job.model, cache, job.validation, texts)
    assert set(before) == {"texts/describe", "texts/answer"}
    train(job, TrainOptions(out=tmp_path / "run", steps=40, batch=20, learning_rate=5e-3, warmup=5, ema=0.0, validate_every=40, threads=1))
    with torch.no_grad():
        after = measure_texts(job.model, cache, job.validation, texts)
    assert after["texts/describe"] < 0.3 * before["texts/describe"]
    assert after["texts/answer"] < 0.3 * before["texts/answer"]
    assert (tmp_path / "run" / "samples").exists() or list((tmp_path / "run").glob("**/unified-*.json"))


def test_slots_of_the_users_schema_are_asked_and_measured(tmp_path: Path, texts: TextMaker) -> None:
    cache = own_cache(tmp_path / "own", AttributeSchema([BRIGHT]))
    maker = TextMaker(texts._tokenizer, TINY, cache.schema)
    face = cache.face(0)
    assert isinstance(face, Texts)
    asked = maker.own_items(face, np.random.default_rng(0), describe_share=0.0)
    assert {(item.question, item.answer) for item in asked if item.slot} == {(BRIGHT.question, face.slots and face.slots["bright"])}
    job = UnifiedTask(cache, maker, 20, configuration=TINY, mixture=Mixture(text_columns=48, faces_share=0.4))
    found = job.validate({"model": job.model}, 0, tmp_path)
    assert {"slots/right", "slots/balanced", "texts/describe", "texts/answer", "t2i/prompt_gain"} <= set(found)


def test_prompts_and_questions_of_own_texts(texts: TextMaker) -> None:
    rng = np.random.default_rng(0)
    talk = Texts(("one", "two"), (("hat?", "no"), ("describe it", "a long answer " * 8)))
    assert {tuple(texts.prompt(talk, rng)) for _ in range(40)} == {
        tuple(texts.layout.prompt(texts.encode(text))) for text in ("one", "two")
    }
    assert texts.prompt(Texts((), (("hat?", "no"),)), rng) == texts.layout.unconditional
    described = texts.own_items(talk, rng, describe_share=1.0)
    assert [item.question for item in described] == [texts.describe_question, "hat?"]
    assert described[0].answer.startswith("a long answer")
    (only,) = texts.own_items(Texts(("one",)), rng, describe_share=0.0)
    assert (only.question, only.answer) == (texts.describe_question, "one")
    packed = texts.dialogues([talk], rng, 24, describe_share=1.0)
    assert int((packed.segments >= 0).sum()) > 12, "a long answer is cut, not left out"
