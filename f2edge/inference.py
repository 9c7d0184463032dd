"""Prefill, step and extend: how the graphs of a bundle are run for decoding, by the pipeline, the engine, benches and parity checks alike.

Nothing in a prompt looks at the image, and nothing in the image segment looks at the question, so the keys and values of a prefix are
computed once and reused exactly.  State is a value: every function takes keys and values and returns new ones, nothing is changed in
place, so a forward pass that failed can be run again for each row alone.

>>> inference = Inference(backend, layout)                                                              # doctest: +SKIP
>>> decode(inference.step([inference.prompt_prefix(ids)]), masked, [plan], [seed])                      # doctest: +SKIP
>>> answer(inference.extend([inference.image_prefix(pixels)]), None, *left_pad([question], layout.pad), …)  # doctest: +SKIP

Axes: B rows, L layers, H heads, P prompt columns, N image tokens, S new and T earlier text columns, W head width, V text vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2edge.backends.base import Backend, Value, host
from f2edge.backends.ports import SCORED, columns
from f2edge.bundle.bundle import Bundle
from f2edge.decoding.drafts import Drafts
from f2edge.decoding.grids import GridsValue
from f2edge.decoding.parallel import UNCONDITIONAL, Feeds, StepFunction
from f2edge.domain import Domain
from f2edge.lru_cache import LRUCache
from f2edge.spec.layout import Ids, TokenLayout, left_pad

Pixels = NDArray[np.float32]
#: What the prefix of an image may be made of: its tokens, and the features of two encoders.
IMAGE_INPUTS = ("codes", "semantic", "identity")


@dataclass(frozen=True, eq=False)
class PromptPrefix:
    """Keys and values (L, 1, H, P, W) of a prompt of ``length`` tokens, specials included; P is that of the longest prompt."""

    key: Value
    value: Value
    length: int


@dataclass(frozen=True, eq=False)
class ImagePrefix:
    """Keys and values (L, B, H, N + 3, W) of the segment ``<|mmu|> <|soi|> image <|eoi|>`` of one face, or packed, of B.

    ``unfamiliar`` is one face's :attr:`f2edge.results.FaceReport.unfamiliar`.
    """

    key: Value
    value: Value
    unfamiliar: float | None = None


@dataclass(frozen=True, eq=False)
class TextState:
    """Keys and values (L, B, H, T, W) of the text columns of B rows, right-aligned."""

    key: Value
    value: Value


@dataclass(frozen=True, eq=False)
class TextRow:
    """The text of one answer: the last ``length`` columns of row ``row`` of a state that it shares with the rows it was batched with."""

    state: TextState
    row: int
    length: int

    def alone(self, value: Value) -> Value:
        """Return the valid columns of this row, (L, 1, H, length, W), of the state's keys or values."""
        return columns(value, slice(self.row, self.row + 1), slice(value.shape[3] - self.length, None))


class Extend:
    """Function that extends texts about one packed image, or one image for each row."""

    def __init__(self, backend: Backend, image: ImagePrefix) -> None:
        self._backend, self._image = backend, image

    def __call__(self, text: Ids, lengths: Ids, state: TextState | None) -> tuple[NDArray[np.float32], TextState]:
        """Return the logits (B, V) behind the last column, and the texts with the new columns.

        Args:
            text: int64 (B, S), left-padded.
            lengths: int64 (B,), valid columns of each text, the new ones included.
            state: None before any text.
        """
        return self._run(text, lengths, state, {})

    def columns(self, text: Ids, lengths: Ids, state: TextState) -> tuple[NDArray[np.float32], TextState]:
        """Return the same with the logits (B, S, V) of every new column; for graphs that score columns."""
        return self._run(text, lengths, state, {SCORED: np.arange(-text.shape[1], 0)})

    @staticmethod
    def without_last(state: TextState, count: int) -> TextState:
        """Return the texts without their last ``count`` columns."""
        if not count:
            return state
        kept = slice(0, -count)
        return TextState(columns(state.key, slice(None), kept), columns(state.value, slice(None), kept))

    def _run(self, text: Ids, lengths: Ids, state: TextState | None, more: Mapping[str, Value]) -> tuple[NDArray[np.float32], TextState]:
        L, _, H, _, W = self._image.key.shape
        empty = np.zeros((L, len(text), H, 0, W), dtype=self._image.key.dtype)
        feeds = {
            "text_ids": text,
            "text_lengths": lengths,
            "image_key": self._image.key,
            "image_value": self._image.value,
            "text_key": empty if state is None else state.key,
            "text_value": empty if state is None else state.value,
        }
        outputs = self._backend.run("mmu_extend", {**feeds, **more})
        return host(outputs["logits"]), TextState(outputs["next_text_key"], outputs["next_text_value"])


class Inference:
    """Forward passes over one backend.

    Args:
        backend: runs the graphs.
        layout: token layout of the model.
        image_inputs: those of :data:`IMAGE_INPUTS` that the model has; needed for :meth:`image_prefix` only.
        domain: scores how unfamiliar a picture is by its semantic features; None where the bundle has no statistics.
        drafts: guesses tokens of answers; None where the graphs cannot verify them.

    Attributes:
        prompts: prefixes of the prompts used last, by their ids; that of the empty prompt is kept for good.
        images: prefixes of the faces used last, by :func:`pixel_hash`.
    """

    def __init__(
        self,
        backend: Backend,
        layout: TokenLayout,
        image_inputs: Sequence[str] = IMAGE_INPUTS,
        domain: Domain | None = None,
        drafts: Drafts | None = None,
    ) -> None:
        self.backend, self.layout, self.drafts = backend, layout, drafts
        self.prompts: LRUCache[tuple[int, ...], PromptPrefix] = LRUCache(32)
        self.images: LRUCache[bytes, ImagePrefix] = LRUCache(8)
        self._image_inputs = image_inputs
        self._domain = domain
        self._unconditional: PromptPrefix | None = None

    @classmethod
    def of(cls, backend: Backend, bundle: Bundle) -> Inference:
        """Return the inference of a bundle's model."""
        absent = bundle.configuration.absent_inputs("mmu_prefill")
        drafts = Drafts() if bundle.scores_columns else None
        return cls(backend, bundle.layout, [name for name in IMAGE_INPUTS if name not in absent], bundle.domain(), drafts)

    # Prefixes ------------------------------------------------------------------------------------------------------------------------

    def prompt_prefix(self, text: Sequence[int]) -> PromptPrefix:
        """Return the prefix of a prompt's text tokens; one that is too long raises :class:`~f2edge.errors.PromptError`."""
        ids = tuple(self.layout.prompt(text))
        return self.prompts.get(ids, lambda: self._prefill_prompt(ids))

    @property
    def unconditional(self) -> PromptPrefix:
        """The prefix of the empty prompt, guidance's other branch."""
        if self._unconditional is None:
            self._unconditional = self._prefill_prompt(tuple(self.layout.unconditional))
        return self._unconditional

    def image_prefix(self, pixels: Pixels, key: bytes | None = None) -> ImagePrefix:
        """Return the prefix of pixels (3, Y, X), RGB in [-1, 1]; ``key`` is their :func:`pixel_hash` where that is known."""
        return self.images.get(key or pixel_hash(pixels), lambda: self._prefill_faces([pixels])[0])

    def image_prefixes(self, faces: Sequence[Pixels]) -> list[ImagePrefix]:
        """Return the prefixes of several faces, each (3, Y, X); those not cached pass the encoders together."""
        keys = [pixel_hash(pixels) for pixels in faces]
        new = {key: pixels for key, pixels in zip(keys, faces, strict=True) if key not in self.images}
        made = dict(zip(new, self._prefill_faces(list(new.values())), strict=True)) if new else {}

        def make(key: bytes, pixels: Pixels) -> ImagePrefix:
            return made[key] if key in made else self._prefill_faces([pixels])[0]  # cached a moment ago, evicted since

        return [self.images.get(key, partial(make, key, pixels)) for key, pixels in zip(keys, faces, strict=True)]

    def prefill_image(self, feeds: Mapping[str, Value]) -> ImagePrefix:
        """Return the prefix of one image from its :data:`IMAGE_INPUTS`: ``codes`` (1, N), features (1, M, F)."""
        outputs = self.backend.run("mmu_prefill", feeds)
        unfamiliar = None if self._domain is None or "semantic" not in feeds else self._domain.score(host(feeds["semantic"])[0])
        return ImagePrefix(outputs["image_key"], outputs["image_value"], unfamiliar)

    # Decoding ------------------------------------------------------------------------------------------------------------------------

    def step(self, prefixes: Sequence[PromptPrefix]) -> StepFunction:
        """Return the step function of rows with these prefixes, for :func:`f2edge.decoding.parallel.decode`."""
        packed: LRUCache[tuple[int, ...], dict[str, Value]] = LRUCache(2)  # the branches change when guidance sets in or a row finishes

        def pack(branches: tuple[int, ...]) -> dict[str, Value]:
            chosen = [self.unconditional if b == UNCONDITIONAL else prefixes[b] for b in branches]
            return {
                "prefix_key": self.backend.pack([p.key for p in chosen]),
                "prefix_value": self.backend.pack([p.value for p in chosen]),
                "prefix_lengths": np.array([p.length for p in chosen], dtype=np.int64),
            }

        def run(feeds: Feeds, branches: tuple[int, ...]) -> tuple[GridsValue, GridsValue]:
            outputs = self.backend.run("t2i_step", {**feeds, **packed.get(branches, lambda: pack(branches))})
            return outputs["next_codes"], outputs["proposal"]

        return run

    def extend(self, images: Sequence[ImagePrefix]) -> Extend:
        """Return the function that extends texts about these images, for :func:`f2edge.decoding.autoregressive.answer`.

        Args:
            images: one that all rows share, or one for each row; different ones are packed once.
        """
        image = images[0]
        if any(other is not image for other in images):
            image = ImagePrefix(self.backend.pack([i.key for i in images]), self.backend.pack([i.value for i in images]))
        return Extend(self.backend, image)

    def gather(self, rows: Sequence[TextRow]) -> TextState:
        """Return the texts of rows as one state; the state itself where the rows are all of its rows, in order."""
        state = rows[0].state
        if len(rows) == state.key.shape[1] and all(row.state is state and row.row == i for i, row in enumerate(rows)):
            return state
        keys, values = [row.alone(row.state.key) for row in rows], [row.alone(row.state.value) for row in rows]
        return TextState(self.backend.pack(keys), self.backend.pack(values))

    # Prefill -------------------------------------------------------------------------------------------------------------------------

    def _prefill_prompt(self, ids: tuple[int, ...]) -> PromptPrefix:
        # Alone, and always as wide as the longest prompt: a sum over another number of columns rounds otherwise, and the other requests in
        # the batch would change a face.
        prompt_ids, lengths = left_pad([ids], self.layout.pad, self.layout.prompt_tokens + len(self.layout.unconditional))
        outputs = self.backend.run("t2i_prefill", {"prompt_ids": prompt_ids, "prompt_lengths": lengths})
        return PromptPrefix(outputs["prefix_key"], outputs["prefix_value"], len(ids))

    def _prefill_faces(self, faces: Sequence[Pixels]) -> list[ImagePrefix]:
        """The encoders that give many vectors see all faces at once; what multiplies one vector for each face sees each alone.

        A product of one row does not round as one of several: 1.9e-6 in nano's segment, now and then a whole quantisation step.
        Nor would a batch save anything there: on one core the transformer takes 2.4 ms for one face, 10.3 ms for four.
        """
        batch = {"pixels": np.stack(faces)}
        feeds: dict[str, NDArray[Any]] = {}
        if "codes" in self._image_inputs:
            feeds["codes"] = host(self.backend.run("image_encode", batch)["codes"])
        if "semantic" in self._image_inputs:
            feeds["semantic"] = host(self.backend.run("semantic", batch)["features"])

        def prefill(row: int) -> ImagePrefix:
            own: dict[str, Value] = {name: value[row : row + 1] for name, value in feeds.items()}
            if "identity" in self._image_inputs:
                own["identity"] = self.backend.run("identity", {"pixels": faces[row][None]})["features"]
            return self.prefill_image(own)

        return self.backend.each(prefill, range(len(faces)))


def pixel_hash(pixels: Pixels) -> bytes:
    """Return the hash of an image's pixels, the key of its prefix."""
    return blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
