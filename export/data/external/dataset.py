"""External data sets: images with captions, conversations, or questions and answers, in many layouts.

    dataset = open_external("faces/metadata.jsonl")
    print(dataset.explain())
    for example in dataset: ...

Supported are folders of images with ``.txt`` or ``.json`` files beside them, and JSON, JSONL, CSV or parquet tables with detected columns.
Unusable rows are counted and reported; too many of them are an error.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from export.data.external.columns import Column, Pair, find_image, pairs_of, sniff, texts_of, turns_of
from export.data.external.rows import Row, Table, open_table
from f2edge.errors import ImageError, InputError
from f2edge.imaging.guard import ImageLimits
from f2edge.imaging.images import load_image

_SAMPLE_ROWS = 32
_REASONS_KEPT = 5
_LIMITS = ImageLimits(largest_bytes=64 << 20, largest_side=16384, largest_pixels=64_000_000)  # photographs straight from a camera


@dataclass(frozen=True)
class Example:
    """One face: an upright RGB picture with captions, question-answer pairs, or both."""

    image: Image.Image
    captions: tuple[str, ...]
    questions: tuple[Pair, ...]


class ExternalDataset:
    """Examples of a table; each iteration reads the table from the start.

    Attributes:
        columns: detected columns.
        broken: unusable rows of the latest iteration.
        reasons: reasons of the first few of them.
    """

    def __init__(self, path: Path, table: Table, columns: tuple[Column, ...], most_broken: int) -> None:
        self._path, self._table, self._most_broken = path, table, most_broken
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
        return "\n".join([f"{self._path}: {self._table.kind}", *lines])

    def report(self) -> str:
        """Return the number of unusable rows of the latest iteration, with reasons."""
        return f"{self.broken} unusable rows" + (f": {'; '.join(self.reasons)}" if self.reasons else "")

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples; raises :class:`InputError` if more than ``most_broken`` rows are unusable."""
        self.broken, self.reasons = 0, []
        for place, row in self._table.rows():
            try:
                if isinstance(row, InputError):
                    raise row
                example = self._example(row)
            except InputError as error:
                self._count(place, error)
                continue
            yield example

    def _count(self, place: str, error: InputError) -> None:
        self.broken += 1
        if len(self.reasons) < _REASONS_KEPT:
            self.reasons.append(f"{place}: {error}")
        if self.broken > self._most_broken:
            raise InputError(f"{self._path}: {self.report()}; fix them, or allow more with most_broken") from error

    def _example(self, row: Row) -> Example:
        captions: list[str] = []
        pairs: list[Pair] = []
        asked: list[str] = []
        answered: list[str] = []
        source = None
        for column in self.columns:
            value = row.get(column.name)
            if column.role == "image":
                source = find_image(value, self._table.base)
                if source is None:
                    raise ImageError(_missing(value))
            elif column.role == "captions":
                captions.extend(texts_of(value))
            elif column.role == "conversation":
                pairs.extend(turns_of(value))
            elif column.role == "pairs":
                pairs.extend(pairs_of(value))
            elif column.role in {"question", "answer"}:
                (asked if column.role == "question" else answered).extend(texts_of(value))
        if len(asked) != len(answered):
            raise InputError(f"{len(asked)} questions with {len(answered)} answers")
        pairs.extend(zip(asked, answered, strict=True))
        if source is None or not (captions or pairs):
            raise InputError("neither a caption nor a question with its answer")
        return Example(load_image(source, limits=_LIMITS), tuple(captions), tuple(pairs))


def _missing(value: object) -> str:
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        return f"{value[:200]}: is a web address; download the images first"
    return f"image {str(value)[:200]!r} not found beside the table or in its folder of images"


def open_external(path: str | os.PathLike[str], *, most_broken: int = 100) -> ExternalDataset:
    """Open a data set and detect its columns.

    Args:
        path: a folder of images, a folder with a table, or a .json, .jsonl, .csv, .tsv or .parquet file.
        most_broken: maximum number of unusable rows.

    Raises:
        InputError: the path is missing, or there are no rows, no images or no text; the message names the columns found.
    """
    path = Path(path)
    table = open_table(path)
    sample = [row for _, row in itertools.islice(table.rows(), _SAMPLE_ROWS) if not isinstance(row, InputError)]
    if not sample:
        raise InputError(f"{path}: no readable row among the first {_SAMPLE_ROWS}; expected one image with its text in each")
    columns = sniff(sample, table.base)
    found = ", ".join(f"{column.name} ({column.reason})" for column in columns)
    if not any(column.role == "image" for column in columns):
        raise InputError(
            f"{path}: no column holds images; found: {found}; expected image, image_path, file_name or id, with paths or bytes"
        )
    if all(column.role in {"image", "ignored"} for column in columns):
        raise InputError(f"{path}: no column holds text; found: {found}; expected caption, text, conversations, or question with answer")
    image = next(column.name for column in columns if column.role == "image")
    if all(find_image(row.get(image), table.base) is None for row in sample):
        first = next((row[image] for row in sample if row.get(image)), "")
        raise InputError(f"{path}: none of the first {len(sample)} images can be opened; {_missing(first)}; found: {found}")
    return ExternalDataset(path, table, columns, most_broken)
