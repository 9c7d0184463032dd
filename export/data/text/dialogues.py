"""Slots as token sequences: a caption becomes a prompt, and questions with their answers are packed behind one image.

Axes: B rows, P prompt columns, S text columns.  A face's questions stand one behind the other in one row, each with the positions that it
would have alone; the attention mask keeps them apart (:meth:`export.model.transformer.UnifiedTransformer.understanding_states`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from export.data.external.index import Texts
from export.data.text.captions import caption
from export.data.text.instructions import EDITED_REGIONS, can_instruct, instruction
from export.data.text.questions import CANNOT_TELL, QuestionAnswer, describe_question, questions
from export.data.text.tokenizer import END_OF_TEXT, START_OF_TEXT
from export.data.text.wording import Dice, misspelt
from export.defaults import defaults_of
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.layout import TokenLayout

#: Loss weight of one answer token; a description has as many tokens as thirty short answers.
_WEIGHTS = {"describe": 0.25}
_DRAWN = 20
_LONG_ANSWER = 80  # letters
_THOROUGH = (10, 19)  # attributes of a thorough prompt, from and below
_MISSPELT_SHARE = 0.06


@dataclass(frozen=True)
class Dialogue:
    """Packed questions of B faces, each tensor (B, S).

    Attributes:
        ids: token ids, ``[PAD]`` at the end of a row.
        positions: place in the own question.
        segments: number of the question in the row; padding has the number -1.
        targets: the next token where it belongs to an answer (its ``<eot>`` included).
        weights: fp32 loss weight of ``targets``, 0 where there is none.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    targets: Tensor
    weights: Tensor


class TextMaker:
    """Draws the texts of training rows from the slots of faces.

    Args:
        tokenizer: the text tokenizer (``tokenizer.json``).
        configuration: gives the token layout, and with it how questions are written.
        schema: of the slots of faces with texts of their own.
    """

    def __init__(self, tokenizer: Tokenizer, configuration: ModelConfiguration, schema: AttributeSchema = F2EDGE_SCHEMA) -> None:
        start, end = tokenizer.token_to_id(START_OF_TEXT), tokenizer.token_to_id(END_OF_TEXT)
        if end is None:
            raise InputError(f"text tokenizer: lacks {END_OF_TEXT}; make it with: python -m export text-tokenizer")
        defaults = defaults_of(configuration)
        self.layout = TokenLayout.of(configuration, end if start is None else start, end, defaults.question_template)
        self.describe_question, self.schema = defaults.describe_question, schema
        self._tokenizer = tokenizer
        self.encode_fixed = lru_cache(maxsize=1 << 14)(self.encode)  # questions and short answers repeat

    def encode(self, text: str) -> tuple[int, ...]:
        """Text ids without specials."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt(self, face: Mapping[str, str] | Texts, rng: np.random.Generator, thorough_share: float = 0.0) -> list[int]:
        """``<|t2i|> <sot> caption <eot>``; what does not fit is cut off.

        A face with texts of its own gives one of its captions, or nothing where it has none.  Of a face with slots, ``thorough_share`` of
        the prompts name 10 to 18 of them, every one as likely as any other: what people seldom say (the shape of a nose) would otherwise
        be learned last.
        """
        if isinstance(face, Texts):
            if not face.captions:
                return self.layout.unconditional
            return self.layout.prompt(self.encode(face.captions[int(rng.integers(len(face.captions)))])[: self.layout.prompt_tokens])
        slots, thorough = face, rng.random() < thorough_share
        text = caption(slots, rng, attributes=int(rng.integers(*_THOROUGH)) if thorough else None, even=thorough).text
        if rng.random() < _MISSPELT_SHARE:
            text = misspelt(text, Dice(rng))
        return self.layout.prompt(self.encode(text)[: self.layout.prompt_tokens])

    def instruction(self, face: Mapping[str, str] | Texts, rng: np.random.Generator) -> tuple[list[int], str] | None:
        """A prompt that asks for one thing that the face has ("remove the beard" of one without), and the region that shows it.

        None for a face with texts of its own, and where nothing can be asked for.
        """
        if isinstance(face, Texts):
            return None
        askable = [slot for slot, value in face.items() if can_instruct(slot, value)]
        if not askable:
            return None
        slot = askable[int(rng.integers(len(askable)))]
        text = instruction(slot, face[slot], rng)
        return self.layout.prompt(self.encode_fixed(text)[: self.layout.prompt_tokens]), EDITED_REGIONS[slot]

    def exchange(self, item: QuestionAnswer) -> tuple[list[int], list[int]]:
        """``<sot> question`` and ``answer <eot>``."""
        encode = self.encode if item.kind == "describe" else self.encode_fixed
        question = self.layout.question(self.encode_fixed(self.layout.question_template.format(question=item.question)))
        return question, [*encode(item.answer), self.layout.end_of_text]

    def dialogues(
        self,
        faces: Sequence[Mapping[str, str] | Texts],
        rng: np.random.Generator,
        columns: int,
        describe_share: float,
        unsure_share: float = 0.0,
    ) -> Dialogue:
        """Fill ``columns`` text columns per face with questions.

        ``describe_share`` of the faces begin with a description; ``unsure_share`` of the questions ask for what is not to be seen.
        A face with texts of its own gives its own questions in random order, beside those of the schema that its slots answer.
        """
        rows = []
        for slots in faces:
            if isinstance(slots, Texts):
                own = [(*self.exchange(item), _WEIGHTS.get(item.kind, 1.0)) for item in self.own_items(slots, rng, describe_share)]
                rows.append([(question, answer[: max(1, columns - len(question))], weight) for question, answer, weight in own])
                continue
            items = [describe_question(slots, rng)] if rng.random() < describe_share else []
            asked = [self.unanswerable(slots, rng) if rng.random() < unsure_share else item for item in questions(slots, rng, _DRAWN)]
            rows.append([(*self.exchange(item), _WEIGHTS.get(item.kind, 1.0)) for item in (*items, *asked) if item is not None])
        return pack(rows, columns, self.layout.pad)

    @staticmethod
    def descriptions(face: Texts) -> tuple[str, ...]:
        """Return what answers "describe": a face's long answers, or its captions where there are none."""
        return tuple(answer for _, answer in face.questions if _is_long(answer)) or face.captions

    def own_items(self, face: Texts, rng: np.random.Generator, describe_share: float) -> list[QuestionAnswer]:
        """Questions of a face's own texts in random order, ``describe_share`` of the time, or if there are none, behind a description.

        A question with a long answer is weighted as a description, and its answer answers the question of ``describe`` too; captions do
        where there is none.
        """
        asked = [QuestionAnswer(q, a, "", "describe" if _is_long(a) else "own") for q, a in face.questions]
        descriptions = self.descriptions(face)
        slots = [(self.schema[name], value) for name, value in (face.slots or {}).items() if name in self.schema]
        asked += [QuestionAnswer(slot.question, slot.answers[slot.index(value)], slot.name, "slot") for slot, value in slots]
        asked = [asked[i] for i in rng.permutation(len(asked))[:_DRAWN]]
        if descriptions and (not asked or rng.random() < describe_share):
            text = descriptions[int(rng.integers(len(descriptions)))]
            described = QuestionAnswer(self.describe_question, text, "", "describe")
            asked = [described, *(item for item in asked if item.kind != "describe")]
        return asked

    @staticmethod
    def unanswerable(slots: Mapping[str, str], rng: np.random.Generator) -> QuestionAnswer | None:
        """The schema's question for a slot that is not to be seen; None where all are."""
        hidden = [slot for slot in F2EDGE_SCHEMA.values() if slot.name not in slots]
        if not hidden:
            return None
        slot = hidden[int(rng.integers(len(hidden)))]
        return QuestionAnswer(slot.question, CANNOT_TELL, slot.name, "unsure")


def _is_long(answer: str) -> bool:
    return len(answer) > _LONG_ANSWER


def pack(rows: Sequence[Sequence[tuple[Sequence[int], Sequence[int], float]]], columns: int, pad: int) -> Dialogue:
    """Lay (question, answer, weight) one behind the other, leaving out those that do not fit into ``columns`` any more."""
    shape = (len(rows), columns)
    ids, positions = np.full(shape, pad, np.int64), np.zeros(shape, np.int64)
    segments, targets, weights = np.full(shape, -1, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for row, items in enumerate(rows):
        start = 0
        for number, (question, answer, weight) in enumerate(items):
            tokens = [*question, *answer[:-1]]  # the last token is predicted, not read
            end = start + len(tokens)
            if end > columns:
                continue
            first = start + len(question) - 1
            ids[row, start:end] = tokens
            positions[row, start:end] = np.arange(len(tokens))
            segments[row, start:end] = number
            targets[row, first:end], weights[row, first:end] = answer, weight
            start = end
    return Dialogue(*(torch.from_numpy(array) for array in (ids, positions, segments, targets, weights)))
