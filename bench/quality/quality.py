"""How good the model is, by numbers: the judge reads what it draws, ground truth marks what it says.

    python -m bench quality --bundle nano --images 500 --steps 12 --out runs/quality

Every section is a function of one :class:`Bench` that returns plain figures for the JSON:

=========  ==========================================================================================================
tokenizer  judge's accuracy on pictures that only went through the image tokenizer: the ceiling of everything below
generate   judge's accuracy over the slots that each prompt mentions, beside chance and the judge on true renders; Fréchet distance
analyze    balanced accuracy of every slot on held-out renders
ask        exact match per kind of question
describe   precision and recall of attributes in descriptions
edit       the asked attribute by the judge, tokens outside the region, the other slots (``bench/quality/edit.py``)
everyday   everyday words over twelve seeds each (``bench/quality/words.py``)
typed      prompts typed by hand, never trained on (``bench/quality/words.py``)
=========  ==========================================================================================================

Axes: n pictures, K slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.quality import scores
from bench.quality.contact_sheet import contact_sheet
from bench.quality.faces import Faces, Prompt, held_out_faces, held_out_prompts, progress
from bench.quality.frechet import frechet_distance
from bench.quality.judge import IMAGE_SIZE, Images, Judge
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions
from f2edge.spec.attributes import AttributeSchema

Figures = dict[str, Any]

SHEET_PICTURES = 64
_GROUP = 16


@dataclass(frozen=True)
class Question:
    """A question about a face with the answer that its ground truth gives."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Texts:
    """Where prompts, questions and the reading of descriptions come from; the defaults are the renderer's own (``export/data``)."""

    prompts: Callable[[Sequence[Mapping[str, str]], int], list[Prompt]] = held_out_prompts
    questions: Callable[[Mapping[str, str], int, int], list[Question]] = field(default_factory=lambda: _questions)
    mentioned: Callable[[str], Mapping[str, str]] = field(default_factory=lambda: _mentioned)


@dataclass
class Bench:
    """What the sections share.

    Attributes:
        pipeline, judge: what is measured, and by whom.
        images: pictures to generate; the other sections take ``share`` of it (see :meth:`count`).
        options: steps and guidance.
        seed: of faces, texts and pictures.
        out: folder for contact sheets, or None for none.
    """

    pipeline: FacePipeline
    judge: Judge
    images: int = 500
    options: GenerateOptions = field(default_factory=GenerateOptions)
    seed: int = 1
    out: Path | None = None
    texts: Texts = field(default_factory=Texts)
    render: Callable[[int, int], Faces] = held_out_faces

    @property
    def schema(self) -> AttributeSchema:
        return self.judge.schema

    @cached_property
    def faces(self) -> Faces:
        """Twice ``images`` held-out renders."""
        return self.render(2 * self.images, self.seed)

    def sheet(self, name: str, images: Sequence[Image.Image], captions: Sequence[str]) -> None:
        """Write a contact sheet of the first pictures into ``out``."""
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            contact_sheet(images[:SHEET_PICTURES], captions[:SHEET_PICTURES]).save(self.out / f"{name}.png")


def as_array(images: Iterable[Image.Image]) -> Images:
    """Pictures → uint8 ``(n, 128, 128, 3)`` as the judge reads them, scaled where they have another size."""

    def one(image: Image.Image) -> NDArray[np.uint8]:
        rgb = image.convert("RGB")
        return np.asarray(rgb if rgb.size == (IMAGE_SIZE, IMAGE_SIZE) else rgb.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS))

    return np.stack([one(image) for image in images])


def as_images(array: Images) -> list[Image.Image]:
    """uint8 ``(n, Y, X, 3)`` → pictures."""
    return [Image.fromarray(picture) for picture in array]


def tokenizer(bench: Bench) -> Figures:
    """Pictures encoded and decoded, never generated."""
    faces = bench.faces[: bench.images]
    decoded: list[Image.Image] = []
    for begin in progress(range(0, len(faces), _GROUP), "tokenizer", -(-len(faces) // _GROUP)):
        decoded += bench.pipeline.decode(bench.pipeline.encode(as_images(faces.images[begin : begin + _GROUP])))
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


def generate(bench: Bench) -> Figures:
    """Faces from held-out prompts."""
    faces, others = bench.faces[: bench.images], bench.faces[bench.images :]
    prompts = bench.texts.prompts(faces.visible, bench.seed)
    made: list[Image.Image] = []
    for begin in progress(range(0, len(prompts), _GROUP), "generate", -(-len(prompts) // _GROUP)):
        group = prompts[begin : begin + _GROUP]
        seeds = [bench.seed * 1_000_000 + begin + index for index in range(len(group))]
        made += [face.image for face in bench.pipeline.generate([p.text for p in group], seeds=seeds, options=bench.options)]
    bench.sheet("generate", made, [p.text for p in prompts])
    pictures = as_array(made)
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


def analyze(bench: Bench) -> Figures:
    """Every slot of twice ``images`` faces."""
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


def ask(bench: Bench) -> Figures:
    """Two questions about each of ``images`` faces."""
    faces = bench.faces[: bench.images]
    answers, expected, kinds = list[str](), list[str](), list[str]()
    for row, image in progress(enumerate(as_images(faces.images)), "ask", len(faces)):
        for question in bench.texts.questions(faces.visible[row], bench.seed * 1_000_000 + row, 2):
            answers.append(bench.pipeline.ask(image, question.text).text)
            expected.append(question.answer)
            kinds.append(question.kind)
    table = scores.exact_match(answers, expected, kinds)
    return {"questions": len(answers), "exact_match": table.pop("all"), "by_kind": table}


def describe(bench: Bench) -> Figures:
    """Descriptions of two fifths of ``images`` faces."""
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
