"""TensorRT optimization profiles of each graph, from the device profile and the token layout.

* ``t2i_step``: one static profile for each batch size of the device profile, for guided requests (two branches each), whose runs can be
  captured as one CUDA graph; and one dynamic profile for all other batches (unguided steps, batch sizes in between).
* ``mmu_extend``: one profile for questions (S columns, no earlier text) and one for a single token.  Earlier text has at least
  ``FIRST_TEXT`` columns, padded where it is shorter, so that no engine gets an empty tensor.
* every other graph: optimized for one row, more allowed.

Axes are those of :mod:`f2edge.spec.graphs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.profile import Build
from f2edge.backends.tensorrt.plans import Range
from f2edge.errors import InputError
from f2edge.spec.graph_checks import GraphEntry
from f2edge.spec.graphs import MMU_EXTEND, SIGNATURES, T2I_STEP
from f2edge.spec.layout import TokenLayout

#: Minimum columns of earlier text; bucket sizes double from here.
FIRST_TEXT = 16
#: Maximum tokens of the answer prefix that ``analyze`` appends to a question.
BEGUN_ANSWER = 32


@dataclass(frozen=True)
class BuildSizes:
    """Batch sizes and lengths that engines are built for.

    Attributes:
        images: batch sizes of decoding steps that get a static profile, ascending.
        questions: maximum rows of ``mmu_extend``.
        answer_tokens: maximum tokens of an answer.
    """

    images: tuple[int, ...]
    questions: int
    answer_tokens: int = 128

    def __post_init__(self) -> None:
        whole = all(1 <= size <= 1024 for size in (*self.images, self.questions)) and 1 <= self.answer_tokens <= 1 << 14
        if not whole or not self.images or list(self.images) != sorted(set(self.images)):
            raise InputError(
                f"build sizes: images must ascend within 1 … 1024, questions lie in 1 … 1024, answer tokens in 1 … 16384; got {self}"
            )

    @classmethod
    def of(cls, build: Build, image_rows: int | None = None, answer_rows: int | None = None, answer_tokens: int = 128) -> BuildSizes:
        """Return the sizes of a device profile, lowered to ``image_rows`` and ``answer_rows`` where given."""
        images = tuple(sorted({min(rows, image_rows or rows) for rows in build.images}))
        return cls(images, answer_rows or build.questions, answer_tokens)


@dataclass(frozen=True)
class GraphShapes:
    """Optimization profiles in order, each with (min, opt, max) of every named axis, and the sizes that text axes are padded to."""

    profiles: tuple[Mapping[str, Range], ...]
    buckets: Mapping[str, tuple[int, ...]]


def graph_shapes(entry: GraphEntry, layout: TokenLayout, sizes: BuildSizes) -> GraphShapes:
    """Return the optimization profiles of one graph; raises :class:`InputError` for a dynamic axis of unknown size."""
    letters = _letters(entry)
    prompt = layout.prompt_tokens + len(layout.unconditional)
    question = layout.prompt_tokens + BEGUN_ANSWER
    text = question + sizes.answer_tokens
    images, rows = sizes.images[-1], sizes.questions if entry.name == MMU_EXTEND.name else sizes.images[-1]
    common = {"P": (prompt, prompt, prompt), "B": (1, 1, rows)}
    if entry.name == T2I_STEP.name:
        fitted = [{"R": (r, r, r), "B": (2 * r, 2 * r, 2 * r)} for r in sizes.images]
        choices = [{**common, **own} for own in (*fitted, {"R": (1, images, images), "B": (1, 2 * images, 2 * images)})]
    elif entry.name == MMU_EXTEND.name:
        asked = {"S": (1, min(32, question), question), "T": (FIRST_TEXT, FIRST_TEXT, text), "B": (1, rows, rows)}
        choices = [{**common, **asked}, {**common, "S": (1, 1, 1), "T": (FIRST_TEXT, min(64, text), text)}]
    else:
        choices = [common]
    profiles = []
    for choice in choices:
        named = {axis: choice.get(letter) for axis, letter in letters.items()}
        unknown = [axis for axis, bounds in named.items() if bounds is None]
        if unknown:
            raise InputError(f"graph {entry.name!r}: the size of axis {', '.join(unknown)} is unknown; export it with that size fixed")
        profiles.append({axis: bounds for axis, bounds in named.items() if bounds is not None})
    buckets = {axis: _doubled({"S": question, "T": text}[letter]) for axis, letter in letters.items() if letter in "ST"}
    # a batch axis with another name (the shared image of mmu_extend) is optimized for one row
    for axis, letter in letters.items():
        if letter == "B" and axis != "B":
            for profile in profiles:
                profile[axis] = (1, 1, profile[axis][2])
    return GraphShapes(tuple(profiles), buckets)


def input_shapes(entry: GraphEntry, profile: Mapping[str, Range]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return (min, opt, max) shapes of every input with a named axis."""
    return {
        port.name: tuple(tuple(axis if isinstance(axis, int) else profile[axis][bound] for axis in port.shape) for bound in range(3))
        for port in entry.inputs
        if any(isinstance(axis, str) for axis in port.shape)
    }


def _letters(entry: GraphEntry) -> dict[str, str]:
    """Return the named axes of the inputs with their letters in the graph's signature."""
    signature = {tensor.name: tensor.axes for tensor in SIGNATURES[entry.name].inputs}
    return {
        axis: letter
        for port in entry.inputs
        for axis, letter in zip(port.shape, signature[port.name], strict=True)
        if isinstance(axis, str)
    }


def _doubled(largest: int) -> tuple[int, ...]:
    """Return 16, 32, 64 … below ``largest``, then ``largest``."""
    sizes = []
    size = FIRST_TEXT
    while size < largest:
        sizes.append(size)
        size *= 2
    return (*sizes, largest)
