"""Answers in progress, row by row: any of them may take their next token together, whoever took the last one together.

An answer is a row of a packed cache that it shares with the answers it was last batched with.  While the same answers go on together the
cache is passed on as it is; when one joins or leaves, the rows are gathered into a new one.  Nothing is changed in place, so a failed
forward pass can be run again, row by row.

L layers, B answers, H heads, T text columns, W head width, V text vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from f2edge.backends.base import Backend, Value, host
from f2edge.spec.layout import left_pad
from f2edge.understanding import ImagePrefix, TextCache, Understanding


@dataclass(frozen=True)
class TextRow:
    """One answer's place: row ``row`` of ``cache``, the last ``length`` columns."""

    cache: TextCache
    row: int
    length: int


class AnswerRows:
    """Forward passes over the texts of several answers.

    Args:
        backend: packs rows.
        understanding: extends texts.
        pad: id of the padding.
    """

    def __init__(self, backend: Backend, understanding: Understanding, pad: int) -> None:
        self._backend = backend
        self._understanding = understanding
        self._pad = pad
        self._packed: tuple[tuple[ImagePrefix, ...], ImagePrefix] | None = None

    def question(self, images: Sequence[ImagePrefix], questions: Sequence[Sequence[int]]) -> tuple[NDArray[np.float32], list[TextRow]]:
        """Prefill questions, each about an image of its own or a shared one: logits (B, V) of the first tokens, and the rows."""
        ids, lengths = left_pad(questions, self._pad)
        logits, cache = self._understanding.extend(self._images(images), ids, lengths, self._understanding.no_text(len(questions)))
        return logits, [TextRow(cache, i, len(question)) for i, question in enumerate(questions)]

    def token(
        self, images: Sequence[ImagePrefix], rows: Sequence[TextRow], tokens: Sequence[int]
    ) -> tuple[NDArray[np.float32], list[TextRow]]:
        """Add a token to each row: logits (B, V) of the next ones, and the longer rows."""
        ids = np.array(tokens, dtype=np.int64)[:, None]
        lengths = np.array([row.length + 1 for row in rows], dtype=np.int64)
        logits, cache = self._understanding.extend(self._images(images), ids, lengths, self._gather(rows))
        return logits, [TextRow(cache, i, row.length + 1) for i, row in enumerate(rows)]

    def forget(self) -> None:
        """Drop the packed image segments; for when nothing is in progress."""
        self._packed = None

    def _images(self, images: Sequence[ImagePrefix]) -> ImagePrefix:
        """One segment where all rows share it, else one for each row, packed once for as long as the rows stay the same."""
        if all(image is images[0] for image in images):
            return images[0]
        wanted = tuple(images)
        if (
            self._packed is None
            or len(self._packed[0]) != len(wanted)
            or any(a is not b for a, b in zip(self._packed[0], wanted, strict=True))
        ):
            key, value = self._backend.pack([i.key for i in wanted]), self._backend.pack([i.value for i in wanted])
            self._packed = wanted, ImagePrefix(key, value)
        return self._packed[1]

    def _gather(self, rows: Sequence[TextRow]) -> TextCache:
        """The texts of rows as one cache (L, B, H, longest, W), right-aligned."""
        cache = rows[0].cache
        if len(rows) == cache[0].shape[1] and all(row.cache is cache and row.row == i for i, row in enumerate(rows)):
            return cache
        keys = [_row(row.cache[0], row) for row in rows]
        values = [_row(row.cache[1], row) for row in rows]
        return self._backend.pack(keys), self._backend.pack(values)


def _row(value: Value, row: TextRow) -> Value:
    """The valid columns of one row, (L, 1, H, T, W)."""
    return host(value)[:, row.row : row.row + 1, :, value.shape[3] - row.length :]
