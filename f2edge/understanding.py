"""Face → words and attributes: the image segment is prefilled once per face, questions share it.

L layers, H heads, W head width, B questions, S text columns, N image tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2edge.backends.base import Backend, Value, host
from f2edge.bundle.bundle import Bundle
from f2edge.decoding.autoregressive import TextStream, answer
from f2edge.decoding.choice import Tokens, answer_probabilities, branching_nodes, tempered
from f2edge.errors import PromptError
from f2edge.lru_cache import LRUCache
from f2edge.prefix_cache import pixel_hash
from f2edge.results import Answer, FaceReport
from f2edge.spec.attributes import AttributeSchema, Slot
from f2edge.spec.layout import Ids, left_pad
from f2edge.text import TextTokenizer

Pixels = NDArray[np.float32]
#: Keys and values of the text columns, each (L, B, H, T, W).
TextCache = tuple[Value, Value]


@dataclass(frozen=True)
class ImagePrefix:
    """Keys and values (L, 1, H, N + 3, W) of one face's segment ``<|mmu|> <|soi|> image <|eoi|>``; packed, those of B faces.

    ``unfamiliar`` is one face's :attr:`f2edge.results.FaceReport.unfamiliar`.
    """

    key: Value
    value: Value
    unfamiliar: float | None = None


@dataclass(frozen=True)
class SlotQuestions:
    """A slot with the tokens of its answers, each ended by the end of text, and where they part; "hidden" is the last one."""

    slot: Slot
    question: tuple[int, ...]
    answers: tuple[Tokens, ...]
    paths: tuple[Tokens, ...]


class Understanding:
    """Answers questions about faces; remembers the image segments of the last few (``prefixes``, by :func:`pixel_hash`)."""

    def __init__(self, backend: Backend, bundle: Bundle, tokenizer: TextTokenizer, remembered_faces: int = 8) -> None:
        self._backend = backend
        self._configuration = bundle.configuration
        self._layout = bundle.layout
        self._tokenizer = tokenizer
        self._reading = bundle.manifest.reading
        self._domain = bundle.domain()
        self.prefixes: LRUCache[bytes, ImagePrefix] = LRUCache(remembered_faces)
        self._slots: LRUCache[Slot, SlotQuestions] = LRUCache(256)

    def prefix(self, pixels: Pixels, key: bytes | None = None) -> ImagePrefix:
        """The image segment of pixels (3, Y, X), RGB in [-1, 1]; ``key`` is their :func:`pixel_hash` where that is known."""
        return self.prefixes.get(key or pixel_hash(pixels), lambda: self._prefill([pixels])[0])

    def segments(self, faces: Sequence[Pixels]) -> list[ImagePrefix]:
        """The image segments of several faces, each (3, Y, X); those not remembered pass the encoders together."""
        keys = [pixel_hash(pixels) for pixels in faces]
        new = {key: pixels for key, pixels in zip(keys, faces, strict=True) if key not in self.prefixes}
        made = dict(zip(new, self._prefill(list(new.values())), strict=True)) if new else {}

        def make(key: bytes, pixels: Pixels) -> ImagePrefix:
            return made[key] if key in made else self._prefill([pixels])[0]  # remembered a moment ago, pushed out since

        return [self.prefixes.get(key, partial(make, key, pixels)) for key, pixels in zip(keys, faces, strict=True)]

    def ask(self, pixels: Pixels, question: str, max_tokens: int, on_token: Callable[[str], None] | None = None) -> Answer:
        """Answer one question; ``on_token`` hears each piece of text as soon as it is certain."""
        start = perf_counter()
        times: list[float] = []
        stream = TextStream(self._tokenizer.decode)

        def hear(_row: int, token: int) -> None:
            times.append(perf_counter())
            piece = stream.push(token)
            if on_token and piece:
                on_token(piece)

        ids, lengths = left_pad([self.question_ids(question)], self._layout.pad)
        prefix = self.prefix(pixels)
        (tokens,) = answer(
            lambda text, valid, cache: self.extend(prefix, text, valid, cache),
            self.no_text(1),
            ids,
            lengths,
            end_of_text=self._layout.end_of_text,
            max_tokens=max_tokens,
            on_token=hear,
        )
        rest = stream.finish()
        if on_token and rest:
            on_token(rest)
        seconds = times[-1] - times[0] if times else 0.0
        return Answer(
            text=self._tokenizer.decode(tokens).strip(),
            tokens=tuple(tokens),
            first_token_ms=1e3 * ((times[0] if times else perf_counter()) - start),
            tokens_per_second=(len(times) - 1) / seconds if seconds > 0 else 0.0,
        )

    def analyze(self, prefix: ImagePrefix, schema: AttributeSchema) -> FaceReport:
        """Probabilities of every slot's values, from one batch over the face's segment.

        A row of the batch is a question with the part of an answer up to a point where answers part; most slots have one such point,
        right behind the question.  Rows of several faces are not put into one batch: only a segment that all rows share need not be copied
        for each row (on one core, 35 questions about four faces: 56 ms one by one, 87 ms and 165 MB of copies together).
        """
        slots = [self._slots.get(slot, partial(self._questions, slot)) for slot in schema.values()]
        rows = [slot.question + path for slot in slots for path in slot.paths]
        ids, lengths = left_pad(rows, self._layout.pad)
        logits, _ = self.extend(prefix, ids, lengths, self.no_text(len(rows)))
        report, hidden, row = {}, {}, 0
        for slot in slots:
            at = dict(zip(slot.paths, logits[row:], strict=False))
            row += len(slot.paths)
            name, values = slot.slot.name, slot.slot.values
            chances = tempered(answer_probabilities(slot.answers, at), self._reading.temperatures.get(name, 1.0))
            if len(chances) > len(values):
                hidden[name] = float(chances[-1])
                chances = chances[:-1] / max(float(chances[:-1].sum()), 1e-300)
            report[name] = dict(zip(values, chances.tolist(), strict=True))
        return FaceReport(report, hidden, prefix.unfamiliar)

    def analyze_all(self, prefixes: Sequence[ImagePrefix], schema: AttributeSchema) -> list[FaceReport]:
        """:meth:`analyze` of several faces, side by side where the device gains by it."""
        return self._backend.each(lambda prefix: self.analyze(prefix, schema), prefixes)

    def question_ids(self, question: str) -> list[int]:
        """``<sot> question``, written as the model was trained on it."""
        text = self._tokenizer.encode(self._layout.question_template.format(question=question))
        if len(text) > self._configuration.prompt_tokens:
            raise PromptError(f"the question has {len(text)} tokens, the model reads {self._configuration.prompt_tokens}; shorten it")
        return self._layout.question(text)

    def _questions(self, slot: Slot) -> SlotQuestions:
        told = (*slot.answers, self._reading.unsure) if self._reading.unsure else slot.answers
        answers = tuple((*self._tokenizer.encode(words), self._layout.end_of_text) for words in told)
        paths = tuple(node.path for node in branching_nodes(answers))
        return SlotQuestions(slot, tuple(self.question_ids(slot.question)), answers, paths)

    def _prefill(self, faces: Sequence[Pixels]) -> list[ImagePrefix]:
        """The encoders that give many vectors see all faces at once; what multiplies one vector for each face sees each alone.

        A product of one row does not round as one of several: 1.9e-6 in nano's segment, now and then a whole quantisation step.
        Nor would a batch save anything there: on one core the transformer takes 2.4 ms for one face, 10.3 ms for four.
        """
        batch = {"pixels": np.stack(faces)}
        feeds: dict[str, NDArray[Any]] = {}
        if self._configuration.understanding == "codes":
            feeds["codes"] = host(self._backend.run("image_encode", batch)["codes"])
        if self._configuration.semantic is not None:
            feeds["semantic"] = host(self._backend.run("semantic", batch)["features"])
        rows = [{name: value[row : row + 1] for name, value in feeds.items()} for row in range(len(faces))]
        return self._backend.each(self._segment, list(zip(faces, rows, strict=True)))

    def _segment(self, face: tuple[Pixels, Mapping[str, Value]]) -> ImagePrefix:
        pixels, feeds = face
        identity = {}
        if self._configuration.identity is not None:
            identity = {"identity": self._backend.run("identity", {"pixels": pixels[None]})["features"]}
        outputs = self._backend.run("mmu_prefill", {**feeds, **identity})
        unfamiliar = None if self._domain is None or "semantic" not in feeds else self._domain.score(host(feeds["semantic"])[0])
        return ImagePrefix(outputs["image_key"], outputs["image_value"], unfamiliar)

    def extend(self, prefix: ImagePrefix, text: Ids, lengths: Ids, cache: TextCache) -> tuple[NDArray[np.float32], TextCache]:
        """Pass new text columns (B, S), left-padded, through the model: logits (B, V) behind the last one, and the longer cache.

        Args:
            prefix: of one image for all B rows, or packed, of B.
            text: int64 (B, S).
            lengths: int64 (B,), valid text columns, earlier and new ones.
            cache: of the earlier columns; :meth:`no_text` where there are none.
        """
        outputs = self._backend.run(
            "mmu_extend",
            {
                "text_ids": text,
                "text_lengths": lengths,
                "image_key": prefix.key,
                "image_value": prefix.value,
                "text_key": cache[0],
                "text_value": cache[1],
            },
        )
        return host(outputs["logits"]), (outputs["next_text_key"], outputs["next_text_value"])

    def no_text(self, rows: int) -> TextCache:
        """The cache before any text."""
        shape = (self._configuration.layers, rows, self._configuration.heads, 0, self._configuration.head_width)
        empty = np.zeros(shape, dtype=np.float32)
        return empty, empty
