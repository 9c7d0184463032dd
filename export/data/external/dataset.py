"""External data sets: images with captions, conversations, or questions and answers, in many layouts.

    dataset = open_external("faces/metadata.jsonl")
    print(dataset.explain())
    for example in dataset: ...

Supported are folders of images with ``.txt`` or ``.json`` files beside them, JSON, JSONL, CSV or parquet tables with detected columns, and
WebDataset tars.  Unusable rows are counted and reported; too many of them are an error.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from export.data.external.columns import Column, Pair, find_image, overruled, pairs_of, sniff, texts_of, turns_of
from export.data.external.rows import Row, Table, open_table
from export.data.external.schema import Vocabulary
from export.data.external.stored import Source, content
from f2edge.errors import ImageError, InputError
from f2edge.imaging.guard import ImageLimits
from f2edge.imaging.images import load_image

_SAMPLE_ROWS = 32
_REASONS_KEPT = 5
#: Photographs straight from a camera.
LIMITS = ImageLimits(largest_bytes=64 << 20, largest_side=16384, largest_pixels=40_000_000, largest_decode_ms=4000.0)


@dataclass(frozen=True)
class ExternalRow:
    """One row of a table: where its picture is, its texts, and the slots that a schema found in its columns.

    Attributes:
        source: the picture.
        captions: of the picture.
        questions: pairs of a question and its answer.
        slots: slot → value.
        key: the row's id, if a column holds one.
    """

    source: Source
    captions: tuple[str, ...]
    questions: tuple[Pair, ...]
    slots: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None


@dataclass(frozen=True)
class Example:
    """One face: an upright RGB picture with captions, question-answer pairs, or both."""

    image: Image.Image
    captions: tuple[str, ...]
    questions: tuple[Pair, ...]


class ExternalDataset:
    """Examples of a table; each iteration reads the table from the start.

    Attributes:
        path: of the data set.
        columns: detected columns.
        broken: unusable rows of the latest iteration.
        reasons: reasons of the first few of them.
    """

    def __init__(
        self, path: Path, table: Table, columns: tuple[Column, ...], most_broken: int, vocabulary: Vocabulary | None = None
    ) -> None:
        self.path, self._table, self._most_broken, self._vocabulary = path, table, most_broken, vocabulary
        self.columns = columns
        self.broken = 0
        self.reasons: list[str] = []

    def explain(self) -> str:
        """Return the detected columns, one line each."""
        width = max(len(column.name) for column in self.columns)
        lines = [
            f"  {column.name:<{width}}  {'ignored: ' if column.role == 'ignored' else ''}{column.reason}"
            for column in sorted(self.columns, key=lambda column: column.role == "ignored")
        ]
        return "\n".join([f"{self.path}: {self._table.kind}", *lines])

    def report(self) -> str:
        """Return the number of unusable rows of the latest iteration, with reasons."""
        return f"{self.broken} unusable rows" + (f": {'; '.join(self.reasons)}" if self.reasons else "")

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples; raises :class:`InputError` if more than ``most_broken`` rows are unusable."""
        self.broken, self.reasons = 0, []
        for place, row in self.rows():
            try:
                if isinstance(row, InputError):
                    raise row
                example = Example(load_image(content(row.source), limits=LIMITS), row.captions, row.questions)
            except InputError as error:
                self._count(place, error)
                continue
            yield example

    def rows(self) -> Iterator[tuple[str, ExternalRow | InputError]]:
        """Yield the place of every row ("line 7") and the row, or what is wrong with it; pictures are not opened."""
        for place, row in self._table.rows():
            try:
                yield place, row if isinstance(row, InputError) else self._row(row)
            except InputError as error:
                yield place, error

    def _count(self, place: str, error: InputError) -> None:
        self.broken += 1
        if len(self.reasons) < _REASONS_KEPT:
            self.reasons.append(f"{place}: {error}")
        if self.broken > self._most_broken:
            raise InputError(f"{self.path}: {self.report()}; fix them, or allow more with most_broken") from error

    def _row(self, row: Row) -> ExternalRow:
        values: dict[str, list[Any]] = {}
        for column in self.columns:
            if row.get(column.name) is not None:
                values.setdefault(column.role, []).append(row[column.name])
        captions = [text for value in values.get("captions", ()) for text in texts_of(value)]
        pairs = [pair for value in values.get("conversation", ()) for pair in turns_of(value)]
        pairs += [pair for value in values.get("pairs", ()) for pair in pairs_of(value)]
        asked, answered = ([text for value in values.get(role, ()) for text in texts_of(value)] for role in ("question", "answer"))
        if len(asked) != len(answered):
            raise InputError(f"{len(asked)} questions with {len(answered)} answers")
        pairs += zip(asked, answered, strict=True)
        slots = {} if self._vocabulary is None else self._vocabulary.slots_of(row)
        image = next(iter(values.get("image", ())), None)
        source = find_image(image, self._table.base)
        if source is None:
            raise ImageError(_missing(image))
        if not (captions or pairs or slots):
            raise InputError("neither a caption nor a question with its answer")
        key = next(iter(values.get("id", ())), None)
        return ExternalRow(source, tuple(captions), tuple(pairs), slots, None if key is None else str(key))


def _missing(value: object) -> str:
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        return f"{value[:200]}: is a web address; download the images first"
    return f"image {str(value)[:200]!r} not found beside the table or in its folder of images"


def open_external(
    path: str | os.PathLike[str],
    *,
    most_broken: int = 100,
    columns: Mapping[str, Sequence[str]] | None = None,
    vocabulary: Vocabulary | None = None,
) -> ExternalDataset:
    """Open a data set and detect its columns.

    Args:
        path: a folder of images, a folder with a table, or a .json, .jsonl, .csv, .tsv, .parquet or .tar file.
        most_broken: maximum number of unusable rows.
        columns: role → names of its columns, overruling what is detected.
        vocabulary: schema whose slots are columns of the table.

    Raises:
        InputError: the path is missing, or there are no rows, no images or no text; the message names the columns found.
    """
    path = Path(path)
    table = open_table(path)
    sample = [row for _, row in itertools.islice(table.rows(), _SAMPLE_ROWS) if not isinstance(row, InputError)]
    if not sample:
        raise InputError(f"{path}: no readable row among the first {_SAMPLE_ROWS}; expected one image with its text in each")
    found = overruled(sniff(sample, table.base), columns or {})
    if vocabulary is not None:
        found = vocabulary.marked(found)
    _check(path, table, sample, found)
    return ExternalDataset(path, table, found, most_broken, vocabulary)


def _check(path: Path, table: Table, sample: Sequence[Row], columns: Sequence[Column]) -> None:
    """Raise :class:`InputError` where no column holds images or text, or none of the first images exists."""
    found = ", ".join(f"{column.name} ({column.reason})" for column in columns)
    if not any(column.role == "image" for column in columns):
        raise InputError(
            f"{path}: no column holds images; found: {found}; expected image, image_path, file_name or id, with paths or bytes, "
            "or name it: --columns image=NAME"
        )
    if all(column.role in {"image", "id", "ignored"} for column in columns):
        raise InputError(
            f"{path}: no column holds text; found: {found}; expected caption, text, conversations, or question with answer, "
            "or name it: --columns captions=NAME"
        )
    image = next(column.name for column in columns if column.role == "image")
    if all(find_image(row.get(image), table.base) is None for row in sample):
        first = next((row[image] for row in sample if row.get(image)), "")
        raise InputError(f"{path}: none of the first {len(sample)} images can be opened; {_missing(first)}; found: {found}")
