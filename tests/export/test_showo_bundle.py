"""A small Show-o with the published names, imported and exported: the bundle says and draws what the plain implementation does."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from export.checkpoints.import_showo import import_show_o
from export.defaults import defaults_of
from export.export_request import ExportRequest
from export.model.magvit2 import encoder_blocks
from export.onnx_export import export_models, load_models
from f2edge.decoding.noise import gumbel, noise_key
from f2edge.imaging.laws import LAWS
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions
from f2edge.spec.configuration import NANO, PAPER, SHOW_O
from tests.support import plain_magvit2
from tests.support.plain_showo import PlainShowO
from tests.support.small_showo import END, SMALL, SMALL_TOKENIZER, START, V, folders, magvit_state, show_o_state

pytestmark = pytest.mark.slow

#: Prompts as long as the published model's, so that real captions fit, and more tokens than steps.
MODEL = replace(
    SMALL,
    layers=2,
    prompt_tokens=SHOW_O.prompt_tokens,
    image_offset=SHOW_O.image_offset,
    tokenizer=replace(SMALL_TOKENIZER, image_size=128),
)
N = MODEL.image_tokens
STATE, MAGVIT = show_o_state(MODEL, seed=4), magvit_state()
WORDS = ["[UNK]", "USER:", "ASSISTANT:", "a", "young", "woman", "with", "red", "hair", "what", "is", "this"]
PROMPT, QUESTION = "a woman with red hair", "what is this"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> FacePipeline:
    root = tmp_path_factory.mktemp("show-o-bundle")
    words = [*WORDS, *(f"w{i}" for i in range(END - len(WORDS))), "<|endoftext|>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(root / "tokenizer.json"))
    showo, magvit = folders(root, STATE, MAGVIT, num_vq_tokens=N)
    import_show_o(showo, magvit, root / "weights", base=MODEL, progress=lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.onnx_export._LANDMARK_FACES", 1)
        model = load_models(root / "weights", root / "weights", None, "show-o")
        bundle = export_models(model, ExportRequest(root / "small-show-o", root / "tokenizer.json", prompts=2, faces=1), "fp32")
    return FacePipeline.load(bundle, threads=1)


def plain() -> PlainShowO:
    return PlainShowO(STATE, MODEL.layers, MODEL.heads, MODEL.rotary, MODEL.text_vocabulary, N, MODEL.image_offset)


def noise(seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gumbel noise of the codes (N, V) and of the confidence (N,); tests/f2edge/decoding/test_noise.py holds the law to plain numbers."""
    table = torch.from_numpy(gumbel(noise_key(seed, step, np.arange(N))[:, None], np.arange(V + 1)))
    return table[:, :V], table[:, V]


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def test_the_manifest_carries_the_published_manner(pipeline: FacePipeline) -> None:
    schedule, bundle = pipeline.bundle.generation, pipeline.bundle
    assert (schedule.steps, schedule.guidance, schedule.temperature) == (16, 1.75, 1.0)
    assert (schedule.order, schedule.mask_law, schedule.temperature_law) == ("maskgit", "show-o", "show-o")
    assert bundle.layout.question_template.format(question="what?") == "USER: \nwhat? ASSISTANT:"
    assert bundle.manifest.pictures is LAWS["show-o"]
    assert bundle.layout.long_prompts == "truncate"
    assert pipeline.describe_question == "Please describe this image in detail."
    decoding = bundle.manifest.document["parity"]["decoding"]
    assert decoding["identical"] == decoding["prompts"] == 2


def test_larger_pictures_take_more_steps_and_guidance_and_nano_keeps_its_own() -> None:
    large = defaults_of(replace(SHOW_O, tokenizer=replace(SHOW_O.tokenizer, image_size=512))).generation
    assert (large["steps"], large["guidance"]) == (50, 5.0)
    assert defaults_of(PAPER) == defaults_of(SHOW_O)
    assert defaults_of(NANO).generation["temperature_law"] == "linear"
    assert defaults_of(NANO).question_template == "{question}\n"


@pytest.mark.parametrize("steps", [None, 18])
def test_pictures_are_the_published_loops_token_for_token(pipeline: FacePipeline, steps: int | None) -> None:
    """16 steps, and 18, a multiple of three, where single precision decides a token."""
    (face,) = pipeline.generate(PROMPT, seeds=11, options=GenerateOptions(steps=steps))
    wanted = plain().draw(ids(PROMPT), START, END, steps=steps or 16, guidance=1.75, temperature=1.0, noise=partial(noise, 11))
    assert face.codes.tolist() == wanted.tolist()
    assert len(set(wanted.tolist())) > 4


def test_edits_are_the_published_loops_token_for_token(pipeline: FacePipeline) -> None:
    """A picture that needs resizing, and a mask whose cells are found as published."""
    picture = pipeline.generate(PROMPT, seeds=2)[0].image.resize((300, 210))
    mask = Image.new("L", picture.size)
    mask.paste(255, (60, 40, 190, 150))
    edited = pipeline.edit(picture, PROMPT, mask, seed=5)
    cells = torch.from_numpy(edited.region).flatten()
    known = plain_magvit2.encoded(MAGVIT, torch.from_numpy(pipeline.pixels(picture)[None]), encoder_blocks(SMALL_TOKENIZER))[0]
    codes = torch.where(cells, V, known)
    wanted = plain().draw(
        ids(PROMPT), START, END, steps=16, guidance=1.75, temperature=1.0, noise=partial(noise, 5), codes=codes
    )  # fmt: skip
    assert 4 < int(cells.sum()) < N - 4
    assert edited.codes.tolist() == wanted.tolist()


def test_long_prompts_are_cut_after_a_warning(pipeline: FacePipeline, caplog: pytest.LogCaptureFixture) -> None:
    whole = " ".join([PROMPT] * 40)
    with caplog.at_level(logging.WARNING, logger="f2edge"):
        (face,) = pipeline.generate(whole, seeds=1)
    assert "the prompt has 200 tokens, the model reads the first 126 of them" in caplog.text
    (cut,) = pipeline.generate(" ".join(whole.split()[:126]), seeds=1)
    assert face.codes.tolist() == cut.codes.tolist()


def test_answers_are_the_published_greedy_ones_token_for_token(pipeline: FacePipeline) -> None:
    answers = []
    for seed in (1, 2, 3):
        (face,) = pipeline.generate(PROMPT, seeds=seed)
        pixels = pipeline.pixels(face.image)
        codes = plain_magvit2.encoded(MAGVIT, torch.from_numpy(pixels[None]), encoder_blocks(SMALL_TOKENIZER))[0]
        assert pipeline.encode(face.image)[0].tolist() == codes.tolist()
        wanted = plain().answer(codes, ids(f"USER: {QUESTION} ASSISTANT:"), START, END, longest=10)
        got = list(pipeline.ask(face.image, QUESTION, max_tokens=10).tokens)
        assert got == wanted[: len(got)]
        assert wanted[len(got) :] in ([], [END])
        answers.append(wanted)
    assert len({tuple(answer) for answer in answers}) > 1  # the picture matters
    assert any(np.unique(answer).size > 1 for answer in answers)
