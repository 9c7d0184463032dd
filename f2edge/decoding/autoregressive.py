"""Autoregressive decoding: answers to B questions over one image, one token per question and step.

Like the parallel loop, this one takes a step function and passes the caches through as an opaque value.

B questions, S new text columns, V text vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from f2edge.decoding.drafts import ColumnsFunction, Drafts, drafted_pass
from f2edge.decoding.sample import greedy
from f2edge.errors import CancelledError
from f2edge.spec.layout import Ids

State = TypeVar("State")

#: ``extend(text_ids (B, S), text_lengths (B,), state) -> (logits float32 (B, V) of the last column, state)``: new text columns,
#: right-aligned; ``text_lengths`` counts the valid columns so far, the new ones included.
ExtendFunction = Callable[[Ids, Ids, State], tuple[NDArray[np.float32], State]]


class DraftedExtend(ColumnsFunction[State], Protocol[State]):
    """The same that can also verify drafts; ``state`` is None before any text."""

    def __call__(self, text: Ids, lengths: Ids, state: State | None) -> tuple[NDArray[np.float32], State]: ...


def answer(
    extend: ExtendFunction[State],
    state: State,
    question_ids: Ids,
    question_lengths: Ids,
    *,
    end_of_text: int,
    max_tokens: int,
    on_token: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """Decode an answer to every question until its end of text or ``max_tokens``.

    Args:
        extend: forward pass over new text.
        state: caches before the first text column.
        question_ids: int64 (B, S), left-padded.
        question_lengths: int64 (B,).
        end_of_text: id that ends an answer; not part of the result.
        max_tokens: at most this many tokens per answer, >= 1.
        on_token: called with ``(row, token)`` for each new token.
        cancelled: polled before each forward pass; True stops.

    Returns:
        The tokens of each answer.

    Raises:
        CancelledError: ``cancelled`` returned True.
    """
    answers: list[list[int]] = [[] for _ in question_ids]
    finished = np.zeros(len(question_ids), dtype=bool)
    text, lengths = question_ids, question_lengths
    for step in range(max_tokens):
        if cancelled():
            raise CancelledError(f"the answer was stopped after {step} tokens")
        logits, state = extend(text, lengths, state)
        tokens = greedy(logits)  # (B,)
        finished |= tokens == end_of_text
        for row in np.flatnonzero(~finished):
            answers[row].append(int(tokens[row]))
            if on_token:
                on_token(int(row), int(tokens[row]))
        if finished.all():
            break
        # A finished row continues with its end of text, which is dropped; rows are independent.
        text, lengths = np.where(finished, end_of_text, tokens)[:, None], lengths + 1
    return answers


def drafted_answer(
    extend: DraftedExtend[State],
    drafts: Drafts,
    question: Sequence[int],
    *,
    end_of_text: int,
    max_tokens: int,
    on_token: Callable[[int], None],
    cancelled: Callable[[], bool] = lambda: False,
) -> list[int]:
    """Decode the answer to one question as :func:`answer` does, several tokens a pass where :class:`Drafts` guesses them.

    Args:
        extend: forward pass over new text.
        drafts: guesses tokens, and learns this answer.
        question: its tokens.
        end_of_text: see :func:`answer`.
        max_tokens: likewise.
        on_token: called with each new token.
        cancelled: likewise.
    """
    text, length = list(question), len(question)
    logits, state = extend(np.array([text]), np.array([length]), None)
    tokens, found = greedy(logits).tolist(), 0
    while True:
        for token in tokens:
            text.append(token)
            found += token != end_of_text
            if token == end_of_text:
                break
            on_token(token)
        if text[-1] == end_of_text or found >= max_tokens:
            drafts.remember(text)
            return text[len(question) : len(question) + found]
        if cancelled():
            raise CancelledError(f"the answer was stopped after {found} tokens")
        tokens, length, state = drafted_pass(extend, drafts, text, length, state, room=max_tokens - found)


class TextStream:
    """Incremental detokenizer that never emits half a character.

    Byte-level BPE may split one character over several tokens; an incomplete one decodes to U+FFFD and is held back.

    Args:
        decode: returns the text of token ids.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """Add a token and return the newly complete text, possibly empty."""
        self._tokens.append(token)
        return self._advance(self._decode(self._tokens).rstrip("\ufffd"))

    def finish(self) -> str:
        """Return the remaining text if the answer ended within a character."""
        return self._advance(self._decode(self._tokens))

    def _advance(self, text: str) -> str:
        piece = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return piece
