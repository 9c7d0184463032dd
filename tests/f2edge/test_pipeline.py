"""FacePipeline over a model of paper: what is computed, how often, and what comes out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from f2edge.bundle.bundle import Bundle
from f2edge.decoding.parallel import StepEvent
from f2edge.errors import (
    BackendError,
    BundleNotFoundError,
    CancelledError,
    InputError,
    PromptError,
    UnknownAttributeError,
    UnknownRegionError,
)
from f2edge.pipeline import FACES_AT_ONCE, ROWS_AT_ONCE, FacePipeline
from f2edge.results import GenerateOptions
from tests.support.paper_model import END, MODEL, START, PaperBackend, paper_bundle, text_logits

pytestmark = pytest.mark.runtime

RED, OLD = "a woman with red hair", "an old man"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return paper_bundle(tmp_path_factory.mktemp("bundles") / "paper")


@pytest.fixture
def backend() -> PaperBackend:
    return PaperBackend()


@pytest.fixture
def pipeline(bundle: Bundle, backend: PaperBackend) -> FacePipeline:
    return FacePipeline(bundle, backend)


def face(seed: int = 0, size: tuple[int, int] = (128, 128)) -> Image.Image:
    """A picture of flat cells, different for each seed."""
    cells = np.random.default_rng(seed).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)


# Generate ----------------------------------------------------------------------------------------------------------------------------


def test_a_seed_is_a_face_alone_and_among_eight(pipeline: FacePipeline) -> None:
    prompts, seeds = [RED, OLD] * 4, list(range(8))
    faces = pipeline.generate(prompts, seeds=seeds)
    assert [(f.prompt, f.seed) for f in faces] == list(zip(prompts, seeds, strict=True))
    assert len({f.codes.tobytes() for f in faces}) == 8
    for f in faces:
        again = pipeline.generate(f.prompt, seeds=f.seed)[0]
        assert np.array_equal(again.codes, f.codes)
        assert again.image.tobytes() == f.image.tobytes()
        assert f.image.size == (128, 128)
        assert np.array_equal(pipeline.encode(f.image)[0], f.codes)


def test_more_faces_than_fit_at_once_are_the_same_faces(pipeline: FacePipeline) -> None:
    count = ROWS_AT_ONCE + 2
    many = pipeline.generate(OLD, seeds=list(range(count)), options=GenerateOptions(steps=2))
    assert len(many) == count
    last = pipeline.generate(OLD, seeds=count - 1, options=GenerateOptions(steps=2))[0]
    assert np.array_equal(last.codes, many[-1].codes)


def test_one_prompt_goes_with_many_seeds_and_one_seed_with_many_prompts(pipeline: FacePipeline) -> None:
    assert [(f.prompt, f.seed) for f in pipeline.generate(RED, seeds=[3, 4])] == [(RED, 3), (RED, 4)]
    assert [(f.prompt, f.seed) for f in pipeline.generate([RED, OLD], seeds=5)] == [(RED, 5), (OLD, 5)]
    for prompts, seeds in (([RED, OLD], [1, 2, 3]), ([], [1]), (RED, [])):
        with pytest.raises(InputError, match="prompts and"):
            pipeline.generate(prompts, seeds=seeds)


def test_generate_runs_its_own_graphs_only_and_prefills_each_prompt_once(pipeline: FacePipeline, backend: PaperBackend) -> None:
    pipeline.generate([RED, RED, OLD], seeds=[1, 2, 3])
    assert backend.runs == {"t2i_prefill": 3, "t2i_step": 4, "image_decode": 3}  # two prompts and the empty one
    pipeline.generate(RED, seeds=9)
    assert backend.runs["t2i_prefill"] == 3


def test_without_guidance_the_empty_prompt_is_never_prefilled(pipeline: FacePipeline, backend: PaperBackend) -> None:
    pipeline.generate(RED, options=GenerateOptions(guidance=0.0))
    assert backend.runs["t2i_prefill"] == 1


def test_options_override_the_bundles_defaults_one_by_one(pipeline: FacePipeline) -> None:
    generated = pipeline.generate(RED, options=GenerateOptions(steps=3, order="halton"))[0]
    assert (generated.options.steps, generated.options.order, generated.options.guidance) == (3, "halton", 2.0)
    assert len(generated.step_ms) == 3
    plain = pipeline.generate(RED)[0]
    assert (plain.options.steps, plain.options.temperature) == (4, 2.0)
    for changed in (GenerateOptions(guidance=0.0), GenerateOptions(temperature=0.0), GenerateOptions(token_temperature=0.5)):
        assert not np.array_equal(pipeline.generate(RED, options=changed)[0].codes, plain.codes)


@pytest.mark.parametrize("options", [GenerateOptions(steps=0), GenerateOptions(order="up"), GenerateOptions(guidance=-1)])
def test_bad_options_are_refused_before_anything_runs(pipeline: FacePipeline, backend: PaperBackend, options: GenerateOptions) -> None:
    with pytest.raises(InputError, match="generation options"):
        pipeline.generate(RED, options=options)
    assert not backend.runs


@pytest.mark.parametrize(("prompt", "message"), [("", "empty"), ("x" * 97, "97 tokens"), ("a\x00b", "control")])
def test_bad_prompts_are_refused_before_anything_runs(pipeline: FacePipeline, backend: PaperBackend, prompt: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        pipeline.generate(prompt)
    assert not backend.runs


def test_a_listener_sees_each_step_and_cancelling_stops_between_two(pipeline: FacePipeline, backend: PaperBackend) -> None:
    events: list[StepEvent] = []
    final = pipeline.generate(RED, seeds=[1, 2], on_step=events.append)
    assert [(e.step, e.steps, e.codes.shape) for e in events] == [(k, 4, (2, 128)) for k in (1, 2, 3, 4)]
    assert np.array_equal(events[-1].codes, np.stack([f.codes for f in final]))
    before = backend.runs["t2i_step"]
    with pytest.raises(CancelledError):
        pipeline.generate(RED, on_step=events.append, cancelled=lambda: len(events) == 6)
    assert backend.runs["t2i_step"] == before + 2


# Edit --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", ["hair", (0, 0, 128, 32), np.arange(64).reshape(8, 8) < 16], ids=["name", "box", "cells"])
def test_an_edit_keeps_everything_outside_its_region(pipeline: FacePipeline, region: object) -> None:
    picture = face()
    edited = pipeline.edit(picture, RED, region, seed=3)  # type: ignore[arg-type]
    inside = np.arange(128) < 32  # two tokens for each cell
    assert np.array_equal(np.repeat(edited.region.ravel(), 2), inside)
    assert np.array_equal(edited.original_codes, pipeline.encode(picture)[0])
    assert np.array_equal(edited.codes[~inside], edited.original_codes[~inside])
    assert (edited.codes[inside] != edited.original_codes[inside]).any()
    assert np.array_equal(np.array(edited.image)[32:], np.array(picture)[32:])
    again = pipeline.edit(picture, RED, region, seed=3)  # type: ignore[arg-type]
    assert np.array_equal(again.codes, edited.codes)
    drawn = pipeline.edit(picture, RED, region, seed=3, keep_outside=False)  # type: ignore[arg-type]
    assert drawn.image.tobytes() == pipeline.decode(edited.codes[None])[0].tobytes()


def test_a_box_counts_pixels_of_the_picture_given(pipeline: FacePipeline) -> None:
    wide = face(size=(512, 256))  # its centred square begins at x = 128
    edited = pipeline.edit(wide, OLD, (128, 0, 128, 256))
    assert edited.region.tolist() == [[True] * 4 + [False] * 4] * 8
    assert edited.image.size == (128, 128)


def test_regions_that_are_not_there_are_refused(pipeline: FacePipeline, backend: PaperBackend) -> None:
    with pytest.raises(UnknownRegionError, match="known: hair, eyes"):
        pipeline.edit(face(), RED, "tail")
    with pytest.raises(InputError, match="eyes"):
        pipeline.edit(face(), RED, "eyes")
    with pytest.raises(InputError, match="centred square"):
        pipeline.edit(face(), RED, (500, 500, 10, 10))
    assert backend.runs["t2i_step"] == 0


# Understanding -----------------------------------------------------------------------------------------------------------------------


def greedy_answer(pipeline: FacePipeline, image: Image.Image, question: str, limit: int) -> str:
    """The literal process: the whole text again for each token."""
    codes = pipeline.encode(image)[0].tolist()
    text = [START, *pipeline.tokenizer.encode(f"{question}\n")]
    said: list[int] = []
    while len(said) < limit:
        token = int(text_logits(codes, text + said).argmax())
        if token == END:
            break
        said.append(token)
    return pipeline.tokenizer.decode(said).strip()


def test_answers_equal_decoding_without_any_cache(pipeline: FacePipeline) -> None:
    answered = [(q, face(s)) for s in range(6) for q in ("what color is the hair?", "why?")]
    for question, image in answered:
        heard: list[str] = []
        result = pipeline.ask(image, question, max_tokens=12, on_token=heard.append)
        assert result.text == greedy_answer(pipeline, image, question, 12)
        assert "".join(heard).strip() == result.text
        assert pipeline.tokenizer.decode(result.tokens).strip() == result.text
        assert result.first_token_ms > 0
    lengths = {len(pipeline.ask(image, q, max_tokens=12).tokens) for q, image in answered}
    assert len(lengths) > 1, "the scripted answers all have one length: the end of text is not tested"


def test_every_question_about_a_face_shares_its_prefix(pipeline: FacePipeline, backend: PaperBackend) -> None:
    image = face(1)
    pipeline.ask(image, "what?", max_tokens=2)
    pipeline.ask(image.copy(), "why?", max_tokens=2)
    pipeline.describe(image, max_tokens=2)
    pipeline.analyze(image, attributes=["hat"])
    assert [backend.runs[g] for g in ("image_encode", "semantic", "identity", "mmu_prefill")] == [1, 1, 1, 1]
    pipeline.ask(face(2), "what?", max_tokens=2)
    assert backend.runs["mmu_prefill"] == 2


def test_describe_asks_the_bundles_own_question(pipeline: FacePipeline) -> None:
    image = face(5)
    assert pipeline.describe(image, max_tokens=20).tokens == pipeline.ask(image, "describe it", max_tokens=20).tokens


def test_analyze_gives_the_probabilities_of_the_allowed_answers(pipeline: FacePipeline, backend: PaperBackend) -> None:
    """Against the literal process: letter by letter, renormalised over the letters that lead to an allowed answer."""
    image = face(3)
    (report,) = pipeline.analyze(image)
    assert backend.runs["mmu_extend"] == 1
    assert list(report.probabilities) == list(pipeline.bundle.schema)
    codes = pipeline.encode(image)[0].tolist()
    for name in ("hair_texture", "bangs", "action", "hat"):
        slot = pipeline.bundle.schema[name]
        question = [START, *pipeline.tokenizer.encode(f"{slot.question}\n")]
        answers = [[*pipeline.tokenizer.encode(words), END] for words in slot.answers]
        for value, tokens in zip(slot.values, answers, strict=True):
            expected = 1.0
            for depth, token in enumerate(tokens):
                allowed = sorted({a[depth] for a in answers if a[:depth] == tokens[:depth]})
                odds = np.exp(text_logits(codes, question + tokens[:depth]).astype(np.float64))
                expected *= odds[token] / odds[allowed].sum()
            assert report.probabilities[name][value] == pytest.approx(expected, rel=1e-5)
        assert sum(report.probabilities[name].values()) == pytest.approx(1.0)
        assert report.best[name] == max(slot.values, key=lambda v: report.probabilities[name][v])


def test_several_new_faces_pass_the_encoders_together_and_known_ones_not_again(pipeline: FacePipeline, backend: PaperBackend) -> None:
    alone = [pipeline.analyze(face(number))[0].probabilities for number in (1, 2)]
    backend.runs.clear()
    faces = [face(number) for number in (1, 3, 2, 4, 3)]
    together = pipeline.analyze(faces)
    assert backend.runs["image_encode"] == 1
    assert backend.runs["mmu_prefill"] == 2  # of faces 3 and 4
    assert [together[0].probabilities, together[2].probabilities] == alone
    assert together[1].probabilities == together[4].probabilities
    assert pipeline.analyze([]) == []
    backend.runs.clear()
    many = pipeline.analyze([face(number) for number in range(10, 10 + 2 * FACES_AT_ONCE + 1)], attributes=["hat"])
    assert len(many) == 2 * FACES_AT_ONCE + 1
    assert backend.runs["image_encode"] == 3


def test_analyze_reports_the_attributes_asked_for_in_their_order(pipeline: FacePipeline) -> None:
    first, second = pipeline.analyze([face(1), face(2)], attributes=["hat", "age"])
    assert list(first.probabilities) == ["hat", "age"]
    assert first.probabilities != second.probabilities
    whole = pipeline.analyze(face(1))[0]
    assert first.probabilities["hat"] == pytest.approx(whole.probabilities["hat"])
    with pytest.raises(UnknownAttributeError, match="shoe_size"):
        pipeline.analyze(face(1), attributes=["shoe_size"])


@pytest.mark.parametrize(
    ("question", "limit", "message"), [(" ", 5, "question is empty"), ("x" * 200, 5, "tokens"), ("why?", 0, "max_tokens")]
)
def test_bad_questions_are_refused_before_anything_runs(
    pipeline: FacePipeline, backend: PaperBackend, question: str, limit: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pipeline.ask(face(), question, max_tokens=limit)
    assert not backend.runs


# Tokens and loading ------------------------------------------------------------------------------------------------------------------


def test_tokens_of_several_pictures_are_those_of_each(pipeline: FacePipeline) -> None:
    pictures = [face(seed) for seed in range(3)]
    codes = pipeline.encode(pictures)
    assert codes.shape == (3, 128)
    assert np.array_equal(codes[1], pipeline.encode(pictures[1])[0])


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((1, 127), dtype=np.int64),
        np.zeros(128, dtype=np.int64),
        np.zeros((1, 128)),
        np.full((1, 128), MODEL.codes),
        np.full((1, 128), -1),
    ],
    ids=["short", "flat", "float", "masked", "negative"],
)
def test_tokens_that_are_no_picture_are_refused(pipeline: FacePipeline, codes: np.ndarray) -> None:
    with pytest.raises(InputError, match="codes"):
        pipeline.decode(codes)


def test_loading_says_what_is_missing(bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="f2edge"):
        loaded = FacePipeline.load(bundle.folder, threads=1)
    assert loaded.backend.name == "onnxruntime"
    assert "onnxruntime" in caplog.text
    with pytest.raises(BackendError, match="graph 't2i_prefill' cannot be loaded"):  # its graphs are paper
        loaded.generate(RED)
    with pytest.raises(BundleNotFoundError):
        FacePipeline.load(tmp_path / "nowhere")
    with pytest.raises(BackendError, match="abacus"):
        FacePipeline.load(bundle, backend="abacus")
