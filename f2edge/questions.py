"""Questions about faces as the model reads them, and the attributes that it answers from the probabilities of its first tokens.

B questions, S text columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from f2edge.bundle.bundle import Bundle
from f2edge.decoding.choice import Tokens, answer_probabilities, branching_nodes, tempered
from f2edge.errors import PromptError
from f2edge.inference import ImagePrefix, Inference
from f2edge.lru_cache import LRUCache
from f2edge.results import FaceReport
from f2edge.spec.attributes import AttributeSchema, Slot
from f2edge.spec.layout import left_pad
from f2edge.text import TextTokenizer


@dataclass(frozen=True)
class SlotQuestion:
    """A slot's question, its answers, each ended by the end of text, and the paths at which these part; "hidden" is the last answer."""

    question: tuple[int, ...]
    answers: tuple[Tokens, ...]
    paths: tuple[Tokens, ...]


class Questions:
    """Asks a model for attributes.

    Args:
        inference: forward passes.
        bundle: says how answers become probabilities, and how long a question may be.
        tokenizer: of the bundle.
    """

    def __init__(self, inference: Inference, bundle: Bundle, tokenizer: TextTokenizer) -> None:
        self.inference = inference
        self._tokenizer = tokenizer
        self._reading = bundle.manifest.reading
        self._longest = bundle.configuration.prompt_tokens
        self._slots: LRUCache[Slot, SlotQuestion] = LRUCache(256)
        self._schema = bundle.schema
        self._describe_question, self._typical = bundle.manifest.describe_question, bundle.manifest.typical_answers

    def ids(self, question: str) -> list[int]:
        """Return ``<sot> question``, written as the model was trained on it; :class:`PromptError` where it is too long."""
        layout = self.inference.layout
        text = self._tokenizer.encode(layout.question_template.format(question=question))
        if len(text) > self._longest:
            raise PromptError(f"the question has {len(text)} tokens, the model reads {self._longest}; shorten it")
        return layout.question(text)

    def texts(self) -> Iterator[Tokens]:
        """Yield every question of the schema with each of its answers, which are likely in other answers too, and typical descriptions."""
        for slot in self._schema.values():
            asked = self._slots.get(slot, partial(self._question, slot))
            for tokens in asked.answers:
                yield asked.question + tokens
        described, end = tuple(self.ids(self._describe_question)) if self._typical else (), self.inference.layout.end_of_text
        for words in self._typical:
            yield (*described, *self._tokenizer.encode(words), end)

    def report(self, prefix: ImagePrefix, schema: AttributeSchema) -> FaceReport:
        """Return the probabilities of every slot's values, from one batch over the face's prefix.

        A row of the batch is a question with the part of an answer up to a point where answers part; most slots have one such point,
        right behind the question.  Rows of several faces are not put into one batch: only a segment that all rows share need not be copied
        for each row (on one core, 35 questions about four faces: 56 ms one by one, 87 ms and 165 MB of copies together).
        """
        if not schema:  # the model was trained without attributes
            return FaceReport({}, {}, prefix.unfamiliar)
        slots = {slot: self._slots.get(slot, partial(self._question, slot)) for slot in schema.values()}
        rows = [asked.question + path for asked in slots.values() for path in asked.paths]
        ids, lengths = left_pad(rows, self.inference.layout.pad)
        logits, _ = self.inference.extend([prefix])(ids, lengths, None)
        found, hidden, row = {}, {}, 0
        for slot, asked in slots.items():
            at = dict(zip(asked.paths, logits[row:], strict=False))
            row += len(asked.paths)
            chances = tempered(answer_probabilities(asked.answers, at), self._reading.temperatures.get(slot.name, 1.0))
            if len(chances) > len(slot.values):
                hidden[slot.name] = float(chances[-1])
                chances = chances[:-1] / max(float(chances[:-1].sum()), 1e-300)
            found[slot.name] = dict(zip(slot.values, chances.tolist(), strict=True))
        return FaceReport(found, hidden, prefix.unfamiliar)

    def reports(self, prefixes: Sequence[ImagePrefix], schema: AttributeSchema) -> list[FaceReport]:
        """Return :meth:`report` of several faces, computed side by side where the device gains by it."""
        return self.inference.backend.each(lambda prefix: self.report(prefix, schema), prefixes)

    def _question(self, slot: Slot) -> SlotQuestion:
        choices = (*slot.answers, self._reading.unsure) if self._reading.unsure else slot.answers
        answers = tuple((*self._tokenizer.encode(words), self.inference.layout.end_of_text) for words in choices)
        paths = tuple(node.path for node in branching_nodes(answers))
        return SlotQuestion(tuple(self.ids(slot.question)), answers, paths)
