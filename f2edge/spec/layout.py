"""Token layout: ids of text, specials, image codes and mask in the joint vocabulary, and the sequences of the two tasks.

Generation (T2I): ``<|t2i|> <sot> prompt <eot> <|soi|> imagexN <|eoi|>``
Understanding (MMU): ``<|mmu|> <|soi|> imagexN <|eoi|> <sot> question answer <eot>``

Image *ids* are codes ``0 … V-1`` plus the mask at ``V``.  Graphs see codes, never vocabulary ids: export cuts head and embedding to the
image codes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2edge.errors import InputError, PromptError
from f2edge.spec.configuration import ImageTokenizerConfiguration, ModelConfiguration

logger = logging.getLogger(__name__)

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class TokenLayout:
    """Token ids and sequences of the two tasks.

    Attributes:
        text_vocabulary: text ids are ``[0, text_vocabulary)``.
        specials: special tokens in id order; the first has id ``text_vocabulary``.
        codes: V, number of image codes.
        image_tokens: N, tokens of one image.
        image_offset: rotary position of ``<|soi|>`` in T2I; a prompt of P tokens takes positions ``image_offset - P … image_offset - 1``.
        prompt_tokens: longest prompt in text tokens.
        start_of_text, end_of_text: ids in the text vocabulary (CodeGen: the same id).
        question_template: how a question is written before its answer; contains ``{question}``.
        codes_per_cell: tokens that share one column of the transformer.
        question_start: whether ``<sot>`` stands before a question (in Show-o with CLIP-ViT it does not).
        long_prompts: what is done with a prompt above ``prompt_tokens``: "refuse", or "truncate" after a warning (Show-o).
        block: cells along each side of a block whose tokens lie together; the model's, so a manifest does not repeat it.
    """

    text_vocabulary: int
    specials: tuple[str, ...]
    codes: int
    image_tokens: int
    image_offset: int
    prompt_tokens: int
    start_of_text: int
    end_of_text: int
    question_template: str = "{question}\n"
    codes_per_cell: int = 1
    question_start: bool = True
    long_prompts: str = "refuse"
    block: int = 1

    def __post_init__(self) -> None:
        for name in ("start_of_text", "end_of_text"):
            if not 0 <= getattr(self, name) < self.text_vocabulary:
                raise InputError(f"token layout: {name} {getattr(self, name)} lies outside the text vocabulary")
        if self.long_prompts not in {"refuse", "truncate"}:
            raise InputError(f'token layout: long_prompts {self.long_prompts!r} is neither "refuse" nor "truncate"')
        if "{question}" not in self.question_template:
            raise InputError("token layout: question_template must contain {question}")

    @classmethod
    def of(
        cls,
        configuration: ModelConfiguration,
        start_of_text: int,
        end_of_text: int,
        question_template: str = "{question}\n",
        long_prompts: str = "refuse",
    ) -> TokenLayout:
        """Return the layout of a configuration."""
        return cls(
            text_vocabulary=configuration.text_vocabulary,
            specials=configuration.specials,
            codes=configuration.codes,
            image_tokens=configuration.image_tokens,
            image_offset=configuration.image_offset,
            prompt_tokens=configuration.prompt_tokens,
            start_of_text=start_of_text,
            end_of_text=end_of_text,
            question_template=question_template,
            question_start=configuration.understanding == "codes",
            long_prompts=long_prompts,
            codes_per_cell=configuration.tokenizer.codes_per_column,
            block=configuration.tokenizer.block,
        )

    def special(self, token: str) -> int:
        """Return the vocabulary id of a special token such as ``"<|soi|>"``; raises :class:`InputError` for an unknown one."""
        try:
            return self.text_vocabulary + self.specials.index(token)
        except ValueError:
            raise InputError(f"no special token {token!r}; known: {', '.join(self.specials)}") from None

    @property
    def pad(self) -> int:
        return self.special("[PAD]")

    @property
    def image_start(self) -> int:
        """Vocabulary id of image code 0."""
        return self.text_vocabulary + len(self.specials)

    @property
    def mask_code(self) -> int:
        """V: the code that stands for "not decoded yet" in a token grid."""
        return self.codes

    @property
    def vocabulary(self) -> int:
        return self.image_start + self.codes + 1

    def prompt(self, text: Sequence[int]) -> list[int]:
        """Return ``<|t2i|> <sot> prompt <eot>``; a prompt above ``prompt_tokens`` is cut with a warning or raises :class:`PromptError`."""
        if len(text) > self.prompt_tokens:
            if self.long_prompts == "refuse":
                raise PromptError(f"the prompt has {len(text)} tokens, the model reads {self.prompt_tokens}; shorten it")
            logger.warning("the prompt has %d tokens, the model reads the first %d of them", len(text), self.prompt_tokens)
            text = text[: self.prompt_tokens]
        return [self.special("<|t2i|>"), self.start_of_text, *text, self.end_of_text]

    @property
    def unconditional(self) -> list[int]:
        """Empty prompt ``<|t2i|> <sot> <eot>``: the unconditional branch of classifier-free guidance."""
        return self.prompt([])

    def question(self, text: Sequence[int]) -> list[int]:
        """Return ``<sot> question``; the answer and ``<eot>`` follow it."""
        return [self.start_of_text, *text] if self.question_start else list(text)

    def to_json(self) -> dict[str, Any]:
        """Return the form stored in a bundle's manifest."""
        row = {**self.__dict__, "specials": list(self.specials)}
        del row["block"]
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> TokenLayout:
        """Build a layout from the form of :meth:`to_json`."""
        try:
            return cls(**{**row, "specials": tuple(row["specials"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"token layout: {error}") from error


def tokens_of_cells(cells: NDArray[Any], tokenizer: ImageTokenizerConfiguration) -> NDArray[Any]:
    """Convert values of cells (…, G, G) to values of tokens (…, N), in the order of the transformer's columns."""
    side = tokenizer.block
    across = cells.shape[-1] // side
    blocks = cells.reshape(*cells.shape[:-2], across, side, across, side).swapaxes(-3, -2)
    return np.repeat(blocks.reshape(*cells.shape[:-2], -1), tokenizer.codes_per_cell, axis=-1)


def left_pad(sequences: Sequence[Sequence[int]], pad: int, length: int | None = None) -> tuple[Ids, NDArray[np.int64]]:
    """Stack sequences to ``(B, P)``, padded on the left; return the ids and the lengths ``(B,)``."""
    lengths = np.array([len(s) for s in sequences], dtype=np.int64)
    width = max(int(lengths.max(initial=0)), length or 0)
    ids = np.full((len(sequences), width), pad, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        if sequence:
            ids[row, width - len(sequence) :] = sequence
    return ids, lengths
