"""FacePipeline over real graphs: the embedded bundle where there is one, and a tiny one of random weights where PyTorch can trace it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from PIL import Image

from f2edge.bundle.bundle import embedded_folder
from f2edge.decoding import drafts
from f2edge.decoding.presets import QUALITIES
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions
from f2edge.spec.layout import tokens_of_cells

pytestmark = pytest.mark.runtime

BUNDLES = [
    *(["nano"] if (embedded_folder() / "nano" / "manifest.json").is_file() else []),
    *(["tiny"] if importlib.util.find_spec("torch") else []),
]
PROMPTS = ["a woman with long red hair", "an old man", "a smiling young man with a full beard, eyeglasses and a blue hat"]
OPTIONS = GenerateOptions(steps=5, guidance=1.5)


@pytest.fixture(scope="module", params=BUNDLES)
def pipeline(request: pytest.FixtureRequest) -> FacePipeline:
    bundle = request.getfixturevalue("tiny_bundle") if request.param == "tiny" else request.param
    return FacePipeline.load(bundle, threads=1, watermark=None)


@pytest.fixture(scope="module")
def face(pipeline: FacePipeline) -> Image.Image:
    return pipeline.generate(PROMPTS[0], seeds=7, options=OPTIONS)[0].image


def test_a_seed_is_a_face_twice_and_alone_or_among_eight(pipeline: FacePipeline) -> None:
    prompts = [PROMPTS[i % 3] for i in range(8)]  # of different length, so that prefixes are padded
    eight = pipeline.generate(prompts, seeds=list(range(8)), options=OPTIONS)
    assert len({f.codes.tobytes() for f in eight}) == 8
    for number in (0, 1, 2):
        alone = pipeline.generate(prompts[number], seeds=number, options=OPTIONS)[0]
        assert np.array_equal(alone.codes, eight[number].codes)
        assert alone.image.tobytes() == eight[number].image.tobytes()
    restarted = FacePipeline.load(pipeline.bundle, threads=1).generate(prompts[2], seeds=2, options=OPTIONS)[0]
    assert np.array_equal(restarted.codes, eight[2].codes)


def test_rows_of_different_guidance_and_length_share_a_batch(pipeline: FacePipeline) -> None:
    """Within an interval guidance sets in and ends, so branches come and go while the batch runs."""
    options = GenerateOptions(steps=6, guidance=2.0, guidance_interval=(0.3, 0.8), order="halton")
    pair = pipeline.generate(PROMPTS[:2], seeds=[3, 4], options=options)
    assert np.array_equal(pair[1].codes, pipeline.generate(PROMPTS[1], seeds=4, options=options)[0].codes)


def test_unguided_faces_have_the_same_tokens_alone_and_among_others(pipeline: FacePipeline) -> None:
    """A step of one branch alone would be rounded in another way than the same branch beside a second."""
    options = GenerateOptions(steps=6, guidance=0.0)
    prompts = (PROMPTS * 2)[:3]
    for prompt, seed, face in zip(prompts, (3, 4, 5), pipeline.generate(prompts, seeds=[3, 4, 5], options=options), strict=True):
        assert np.array_equal(face.codes, pipeline.generate(prompt, seeds=seed, options=options)[0].codes)


@pytest.mark.parametrize("quality", QUALITIES)
def test_every_preset_draws_a_face_twice_alone_and_among_others(pipeline: FacePipeline, quality: str) -> None:
    options = GenerateOptions(quality=quality)
    together = pipeline.generate(PROMPTS, seeds=[3, 4, 5], options=options)
    again = FacePipeline.load(pipeline.bundle, threads=2, watermark=None).generate(PROMPTS[1], seeds=4, options=options)[0]
    presets = pipeline.bundle.presets  # of the tiny bundle two are alike
    assert {presets[face.preset].schedule for face in together} == {presets[quality].schedule}
    assert again.image.tobytes() == together[1].image.tobytes()
    for prompt, seed, face in zip(PROMPTS, (3, 4, 5), together, strict=True):
        assert np.array_equal(face.codes, pipeline.generate(prompt, seeds=seed, options=options)[0].codes)


@pytest.mark.parametrize("region", [(0, 0, 64, 64), (32, 64, 64, 32)])
def test_an_edit_keeps_every_token_outside(pipeline: FacePipeline, face: Image.Image, region: tuple[int, int, int, int]) -> None:
    edited = pipeline.edit(face, PROMPTS[2], region, seed=5, options=OPTIONS)
    outside = ~tokens_of_cells(edited.region, pipeline.bundle.configuration.tokenizer)
    assert 0 < outside.sum() < len(outside)
    assert np.array_equal(edited.original_codes, pipeline.encode(face)[0])
    assert np.array_equal(edited.codes[outside], edited.original_codes[outside])
    cell = face.width // len(edited.region)
    pixels = ~np.kron(edited.region, np.ones((cell, cell), dtype=bool))
    assert np.array_equal(np.array(edited.image)[pixels], np.array(face)[pixels])


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 9])
def test_a_face_is_read_alike_alone_and_among_others(pipeline: FacePipeline, count: int) -> None:
    """To the last bit: no rounding of a batch reaches a neighbour's answers."""
    noise = np.random.default_rng(count)
    faces = [Image.fromarray(noise.integers(0, 256, size=(9, 9, 3), dtype=np.uint8)).resize((128, 128)) for _ in range(count)]
    for image, report in zip(faces, FacePipeline.load(pipeline.bundle, threads=2).analyze(faces), strict=True):
        fresh = FacePipeline(pipeline.bundle, pipeline.backend)  # remembers no segment
        assert fresh.analyze(image)[0].probabilities == report.probabilities


def test_a_shared_prefix_gives_the_answers_of_an_own_one(pipeline: FacePipeline, face: Image.Image) -> None:
    questions = ["what color is the hair?", "how old does the person look?"]
    shared = [pipeline.ask(face, q, max_tokens=6).tokens for q in questions]
    for question, tokens in zip(questions, shared, strict=True):
        assert FacePipeline.load(pipeline.bundle, threads=1).ask(face, question, max_tokens=6).tokens == tokens


def test_a_slot_is_the_same_alone_and_in_the_whole_schema(pipeline: FacePipeline, face: Image.Image) -> None:
    (whole,) = pipeline.analyze(face)
    for values in whole.probabilities.values():
        assert sum(values.values()) == pytest.approx(1.0)
    for name in ("hair_color", "action", "eyewear"):
        (alone,) = pipeline.analyze(face, attributes=[name])
        assert alone.probabilities[name] == pytest.approx(whole.probabilities[name], abs=1e-3)


def test_streamed_text_is_the_answer(pipeline: FacePipeline, face: Image.Image) -> None:
    heard: list[str] = []
    answer = pipeline.describe(face, max_tokens=12, on_token=heard.append)
    assert "".join(heard).strip() == answer.text


@pytest.mark.skipif("tiny" not in BUNDLES, reason="needs PyTorch to trace the tiny model")
def test_drafts_change_no_token_of_an_answer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses are verified in one pass: right ones save passes, wrong ones leave no trace in keys and values."""
    monkeypatch.setattr(drafts, "CLOSE", 0.01)  # random weights give logits that are close to one another, in kernels of little difference
    bundle = request.getfixturevalue("tiny_int8_bundle")
    drafting, plain = (FacePipeline.load(bundle, threads=1) for _ in range(2))
    plain.inference.drafts = None
    assert drafting.inference.drafts is not None
    described, *rest = drafting.tokenizer.encode("an old man with a big nose.")
    told = drafting.inference.drafts.propose([*drafting.questions.ids(drafting.describe_question), described])
    assert told == tuple(rest[: len(told)]), "the bundle's typical answers are known from the start"
    assert told
    passes = {"drafting": 0, "plain": 0}

    def count(pipeline: FacePipeline, name: str) -> None:
        run = pipeline.backend.run

        def counted(graph: str, feeds: object) -> object:
            passes[name] += graph == "mmu_extend"
            return run(graph, feeds)  # type: ignore[arg-type]

        pipeline.backend.run = counted  # type: ignore[method-assign,assignment]

    count(drafting, "drafting")
    count(plain, "plain")
    rng = np.random.default_rng(5)
    faces = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).resize((128, 128)) for _ in range(2)]
    for image, question in [(image, question) for question in ("what color is the hair?", "describe the face") for image in faces] * 3:
        assert drafting.ask(image, question, max_tokens=24).tokens == plain.ask(image, question, max_tokens=24).tokens
    assert passes["drafting"] < passes["plain"]
