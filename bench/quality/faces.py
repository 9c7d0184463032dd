"""Held-out renders with their ground truth and prompts, rendered on demand and equal on every machine.

    faces = held_out_faces(500, seed=1)
    prompts = held_out_prompts(faces, seed=1)

A face of the split "heldout" has a combination of hair color, eyewear and clothing color that no training picture has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bench.quality.scores import mention_table
from f2edge.spec.attributes import F2EDGE_SCHEMA

T = TypeVar("T")

FEWEST_ATTRIBUTES, MOST_ATTRIBUTES = 4, 18
_SEEDS_APART = 1_000_000
_MOST_TRIES = 400


@dataclass(frozen=True)
class HeldOutFaces:
    """n rendered faces of the held-out split.

    Attributes:
        images: uint8 ``(n, 128, 128, 3)``.
        visible: visible attributes of each, slot → value.
    """

    images: NDArray[np.uint8]
    visible: tuple[Mapping[str, str], ...]

    def __len__(self) -> int:
        return len(self.visible)

    def __getitem__(self, rows: slice) -> HeldOutFaces:
        return HeldOutFaces(self.images[rows], self.visible[rows])

    @property
    def slots(self) -> NDArray[np.int8]:
        """Return the value index of every slot of the f2edge schema, -1 where hidden, ``(n, K)``."""
        return mention_table(self.visible, F2EDGE_SCHEMA).astype(np.int8)


@dataclass(frozen=True)
class Prompt:
    """A prompt and the attributes that it mentions, slot → value."""

    text: str
    mentioned: Mapping[str, str]


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Yield ``items`` with a progress bar on stderr, if that is a terminal."""
    bar: Iterable[T] = tqdm(items, desc=what, total=total, disable=None, leave=False, dynamic_ncols=True)
    return bar


def held_out_faces(count: int, seed: int, size: int = 128) -> HeldOutFaces:
    """Render ``count`` faces of the split "heldout"; other seeds give other faces."""
    from export.data.render.renderer import sample_face

    faces = [sample_face(seed * _SEEDS_APART + index, "heldout", size) for index in progress(range(count), "rendering", count)]
    return HeldOutFaces(np.stack([face.image for face in faces]), tuple(dict(face.slots) for face in faces))


def held_out_prompts(
    visible: Sequence[Mapping[str, str]],
    seed: int,
    caption: Callable[[Mapping[str, str], np.random.Generator, int], Prompt] | None = None,
    combination: Sequence[str] | None = None,
) -> list[Prompt]:
    """Return one prompt per face, of 4 to 18 attributes; it names the combination that training never saw, if visible.

    Args:
        visible: attributes of each face.
        seed: of the random choices.
        caption: writes a prompt with the given number of attributes; by default ``export.data.text.captions.caption``.
        combination: slots that the prompt must name; by default those that distinguish the renderer's splits.
    """
    write = caption or _caption
    if combination is None:
        from export.data.slots import SPLIT_SLOTS

        combination = SPLIT_SLOTS
    return [_prompt(shown, np.random.default_rng([seed, row]), write, combination) for row, shown in enumerate(visible)]


def _prompt(
    shown: Mapping[str, str],
    rng: np.random.Generator,
    write: Callable[[Mapping[str, str], np.random.Generator, int], Prompt],
    combination: Sequence[str],
) -> Prompt:
    count = int(rng.integers(FEWEST_ATTRIBUTES, MOST_ATTRIBUTES + 1))
    needed = {name for name in combination if name in shown}
    best = write(shown, rng, count)
    for _ in range(_MOST_TRIES):
        if needed <= set(best.mentioned):
            break
        other = write(shown, rng, count)
        if len(needed & set(other.mentioned)) > len(needed & set(best.mentioned)):
            best = other
    return best


def _caption(shown: Mapping[str, str], rng: np.random.Generator, attributes: int) -> Prompt:
    from export.data.text.captions import caption

    made = caption(shown, rng, attributes=attributes)
    return Prompt(made.text, {name: shown[name] for name in made.mentioned})
