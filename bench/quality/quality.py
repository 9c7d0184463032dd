"""Quality of a bundle: an attribute judge scores generated faces, ground truth scores answers.

    python -m bench quality --bundle nano --images 500 --steps 12 --out runs/quality

Every section is a function of a :class:`Bench` that returns results for the JSON:

=========  ==========================================================================================================
tokenizer  judge's accuracy on pictures encoded and decoded by the image tokenizer: the ceiling of the other sections
generate   judge's accuracy on mentioned slots, that of chance and on renders; Fréchet distance
realism    kernel distance, precision and recall, discriminator, sharpness, eyes that match (``bench/quality/realism.py``)
unsaid     values of what short prompts leave open, against those of renders (``bench/quality/words.py``)
analyze    balanced accuracy of every slot on held-out renders
ask        exact match per kind of question
describe   precision and recall of attributes in descriptions
robustness analyze under shift, zoom, turn, dark, blur and more, with its calibration (``bench/quality/robustness.py``)
domain     faces told from noise, textures and photographs (``bench/quality/robustness.py``)
telephone  describe and generate in turn, five rounds (``bench/quality/telephone.py``)
edit       requested attribute by the judge, tokens outside the region, other slots (``bench/quality/edit.py``)
instruct   the same edits asked for as instructions (``bench/quality/edit.py``)
everyday   everyday words, twelve seeds each (``bench/quality/words.py``)
typed      prompts typed by hand, never trained on (``bench/quality/words.py``)
check      what ``check=True`` gains, and its time (``bench/quality/check.py``)
layout     how far faces lie as a map or another face wants them (``bench/quality/layout.py``)
=========  ==========================================================================================================

Axes: n pictures, K slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.quality import scores
from bench.quality.contact_sheet import contact_sheet
from bench.quality.faces import HeldOutFaces, Prompt, held_out_faces, held_out_prompts, progress
from bench.quality.frechet import frechet_distance
from bench.quality.judge import IMAGE_SIZE, Images, Judge
from bench.results import Results
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions
from f2edge.spec.attributes import AttributeSchema

SHEET_PICTURES = 64
_GROUP = 16


@dataclass(frozen=True)
class Question:
    """A question about a face and the answer from its ground truth."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Texts:
    """Functions for prompts, questions and the parsing of descriptions; by default those of the renderer (``export/data``)."""

    prompts: Callable[[Sequence[Mapping[str, str]], int], list[Prompt]] = held_out_prompts
    questions: Callable[[Mapping[str, str], int, int], list[Question]] = field(default_factory=lambda: _questions)
    mentioned: Callable[[str], Mapping[str, str]] = field(default_factory=lambda: _mentioned)


@dataclass
class Bench:
    """Inputs of the sections.

    Attributes:
        pipeline, judge: the measured model and its judge.
        images: pictures to generate; the other sections use a fraction or a multiple of it.
        options: steps and guidance.
        seed: of faces, texts and pictures.
        out: folder for contact sheets, or None.
    """

    pipeline: FacePipeline
    judge: Judge
    images: int = 500
    options: GenerateOptions = field(default_factory=GenerateOptions)
    seed: int = 1
    out: Path | None = None
    texts: Texts = field(default_factory=Texts)
    render: Callable[[int, int], HeldOutFaces] = held_out_faces

    @property
    def schema(self) -> AttributeSchema:
        return self.judge.schema

    @cached_property
    def faces(self) -> HeldOutFaces:
        """Render twice ``images`` held-out faces."""
        return self.render(2 * self.images, self.seed)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Prompts of the first ``images`` faces."""
        return self.texts.prompts(self.faces[: self.images].visible, self.seed)

    @cached_property
    def generated(self) -> list[Image.Image]:
        """A generated picture of each prompt."""
        return self.draw([p.text for p in self.prompts], [self.seed * 1_000_000 + row for row in range(len(self.prompts))], "generate")

    @cached_property
    def reconstructed(self) -> list[Image.Image]:
        """The first ``images`` faces, encoded and decoded again."""
        faces, decoded = self.faces[: self.images], list[Image.Image]()
        for begin in progress(range(0, len(faces), _GROUP), "tokenizer", -(-len(faces) // _GROUP)):
            decoded += self.pipeline.decode(self.pipeline.encode(as_images(faces.images[begin : begin + _GROUP])))
        return decoded

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], name: str) -> list[Image.Image]:
        """Generate a picture of each prompt with its seed."""
        made: list[Image.Image] = []
        for begin in progress(range(0, len(prompts), _GROUP), name, -(-len(prompts) // _GROUP)):
            group = slice(begin, begin + _GROUP)
            made += [f.image for f in self.pipeline.generate(list(prompts[group]), seeds=list(seeds[group]), options=self.options)]
        return made

    def sheet(self, name: str, images: Sequence[Image.Image], captions: Sequence[str]) -> None:
        """Write a contact sheet of the first pictures into ``out``."""
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            contact_sheet(images[:SHEET_PICTURES], captions[:SHEET_PICTURES]).save(self.out / f"{name}.png")


def as_array(images: Iterable[Image.Image]) -> Images:
    """Return pictures as uint8 ``(n, Y, Y, 3)`` for the judge, resized to 128 pixels where it cannot take them."""

    def one(image: Image.Image) -> NDArray[np.uint8]:
        rgb = image.convert("RGB")
        fits = rgb.width == rgb.height and rgb.width % IMAGE_SIZE == 0
        return np.asarray(rgb if fits else rgb.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS))

    return np.stack([one(image) for image in images])


def as_images(array: Images) -> list[Image.Image]:
    """Return uint8 ``(n, Y, X, 3)`` as pictures."""
    return [Image.fromarray(picture) for picture in array]


def tokenizer(bench: Bench) -> Results:
    """Score pictures that are encoded and decoded again."""
    faces, decoded = bench.faces[: bench.images], bench.reconstructed
    pictures, truth = as_array(decoded), faces.slots
    originals, copies = bench.judge.predict(faces.images), bench.judge.predict(pictures)
    pairs = [image for pair in zip(as_images(faces.images), decoded, strict=True) for image in pair]
    bench.sheet("tokenizer", pairs, ["original", "after the tokenizer"] * len(faces))
    error = pictures.astype(np.float64) - faces.images
    return {
        "faces": len(faces),
        "accuracy": scores.slot_shares(copies, truth, bench.schema).overall,
        "judge_on_renders": scores.slot_shares(originals, truth, bench.schema).overall,
        "psnr_db": float(10 * np.log10(255**2 / max((error**2).mean(), 1e-12))),
        "by_slot": scores.slot_shares(copies, truth, bench.schema).by_slot,
    }


def generate(bench: Bench) -> Results:
    """Score faces generated from held-out prompts."""
    faces, others = bench.faces[: bench.images], bench.faces[bench.images :]
    prompts = bench.prompts
    bench.sheet("generate", bench.generated, [p.text for p in prompts])
    pictures = as_array(bench.generated)
    said = scores.mention_table([p.mentioned for p in prompts], bench.schema)
    shares = scores.slot_shares(bench.judge.predict(pictures), said, bench.schema)
    chance = scores.slot_shares(scores.majority_answers(said), said, bench.schema)
    ceiling = scores.slot_shares(bench.judge.predict(faces.images), said, bench.schema)
    features = bench.judge.features(faces.images)
    return {
        "prompts": len(prompts),
        "mentions": int((said >= 0).sum()),
        "accuracy": shares.overall,
        "chance": chance.overall,
        "judge_on_renders": ceiling.overall,
        "frechet": frechet_distance(bench.judge.features(pictures), features),
        "frechet_of_renders": frechet_distance(bench.judge.features(others.images), features),
        "by_slot": {
            name: {"mentions": shares.count[name], "accuracy": share, "chance": chance.by_slot[name], "renders": ceiling.by_slot[name]}
            for name, share in shares.by_slot.items()
        },
    }


def analyze(bench: Bench) -> Results:
    """Score the analysis of twice ``images`` faces."""
    faces = bench.faces
    reports = [bench.pipeline.analyze(image)[0].best for image in progress(as_images(faces.images), "analyze", len(faces))]
    answers, truth = scores.mention_table(reports, bench.schema), faces.slots
    table = scores.balanced_accuracies(answers, truth, bench.schema)
    return {
        "faces": len(faces),
        "balanced_accuracy": float(np.mean(list(table.values()))),
        "accuracy": scores.slot_shares(answers, truth, bench.schema).overall,
        "by_slot": table,
    }


def ask(bench: Bench) -> Results:
    """Score two questions about each of ``images`` faces."""
    faces = bench.faces[: bench.images]
    answers, expected, kinds = list[str](), list[str](), list[str]()
    for row, image in progress(enumerate(as_images(faces.images)), "ask", len(faces)):
        for question in bench.texts.questions(faces.visible[row], bench.seed * 1_000_000 + row, 2):
            answers.append(bench.pipeline.ask(image, question.text).text)
            expected.append(question.answer)
            kinds.append(question.kind)
    table = scores.exact_match(answers, expected, kinds)
    return {"questions": len(answers), "exact_match": table.pop("all"), "by_kind": table}


def describe(bench: Bench) -> Results:
    """Score descriptions of two fifths of ``images`` faces."""
    faces = bench.faces[: max(bench.images * 2 // 5, 1)]
    texts = [bench.pipeline.describe(image).text for image in progress(as_images(faces.images), "describe", len(faces))]
    said = scores.mention_table([bench.texts.mentioned(text) for text in texts], bench.schema)
    precision, recall = scores.description_scores(said, faces.slots)
    bench.sheet("describe", as_images(faces.images), texts)
    return {"faces": len(faces), "precision": precision, "recall": recall, "attributes_said": float((said >= 0).sum(axis=1).mean())}


def _questions(visible: Mapping[str, str], seed: int, count: int) -> list[Question]:
    from export.data.text.questions import questions

    made = questions(visible, np.random.default_rng(seed), count)
    return [Question(q.question, q.answer, q.kind) for q in made]


def _mentioned(text: str) -> Mapping[str, str]:
    from export.data.text.captions import mentioned_in

    return mentioned_in(text)
