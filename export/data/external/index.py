"""Index of an external data set on disk: one numbered entry per picture, with all its texts, in the order of the table.

    index = build_index(open_external("faces.jsonl"), Path("own/index.sqlite"))
    index.entries(0, 512)

A table may name a picture in many rows (LLaVA files have one row per conversation): their texts come together here.  The table is read once
as a stream, and workers read their part of the index, so that memory does not grow with the data.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.data.external.dataset import ExternalDataset, ExternalRow
from export.data.external.stored import Source, located, locator
from f2edge.errors import InputError

_TABLES = """
CREATE TABLE pictures(number INTEGER PRIMARY KEY, source TEXT UNIQUE, place TEXT, texts TEXT);
CREATE TABLE ids(id TEXT PRIMARY KEY, source TEXT, place TEXT) WITHOUT ROWID;
CREATE TABLE skipped(place TEXT, reason TEXT);
CREATE TABLE about(document TEXT);
"""
_REPORTED = 1000


@dataclass(frozen=True)
class Texts:
    """What a data set says about one picture.

    Attributes:
        captions: prompts, and answers to "describe".
        questions: pairs of a question and its answer.
        slots: slot → value, by the schema of the data set.
    """

    captions: tuple[str, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    slots: Mapping[str, str] | None = None

    def joined(self, other: Texts) -> Texts:
        """Return both; a text that is in both is there once."""
        captions, questions = dict.fromkeys((*self.captions, *other.captions)), dict.fromkeys((*self.questions, *other.questions))
        return Texts(tuple(captions), tuple(questions), {**(self.slots or {}), **(other.slots or {})})

    def to_json(self) -> str:
        """Return one line; the same texts give the same line."""
        row = {"captions": self.captions, "questions": self.questions, "slots": dict(self.slots or {})}
        return json.dumps(row, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> Texts:
        """Return what :meth:`to_json` wrote."""
        row = json.loads(line)
        return cls(tuple(row["captions"]), tuple((q, a) for q, a in row["questions"]), row["slots"])


@dataclass(frozen=True)
class Entry:
    """One picture: its number, where it is, the place in the table that named it first, and its texts."""

    number: int
    source: Source
    place: str
    texts: Texts


class Index:
    """An index written by :func:`build_index`; may be read by many processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(self._open()) as db:
            self.about: dict[str, Any] = json.loads(db.execute("SELECT document FROM about").fetchone()[0])

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return int(self.about["pictures"])

    def entries(self, first: int, last: int) -> list[Entry]:
        """Return the entries ``first … last - 1``."""
        with closing(self._open()) as db:
            rows = db.execute(
                "SELECT number, source, place, texts FROM pictures WHERE number >= ? AND number < ? ORDER BY number", (first, last)
            )
            return [Entry(number, located(source), place, Texts.from_json(texts)) for number, source, place, texts in rows]

    def skipped(self) -> Iterator[tuple[str, str]]:
        """Yield place and reason of the rows that could not be used."""
        with closing(self._open()) as db:
            yield from db.execute("SELECT place, reason FROM skipped ORDER BY rowid")


def build_index(
    dataset: ExternalDataset, path: Path, *, most_skipped: int = 100, progress: Callable[[int], None] = lambda _: None
) -> Index:
    """Read the whole table and write ``path``, which appears when it is complete.

    Raises:
        InputError: more than ``most_skipped`` rows cannot be used, or none can; the message lists the first.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(draft)) as db:
            db.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {_TABLES}")
            counts = _fill(db, dataset, most_skipped, progress)
            if not counts["pictures"]:
                raise InputError(f"{dataset.path}: no usable row; {_reasons(db)}")
            db.execute("INSERT INTO about VALUES (?)", (json.dumps(counts),))
            db.commit()
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return Index(path)


def _fill(db: sqlite3.Connection, dataset: ExternalDataset, most_skipped: int, progress: Callable[[int], None]) -> dict[str, int]:
    counts = {"rows": 0, "pictures": 0, "joined": 0, "skipped": 0}
    for place, row in dataset.rows():
        counts["rows"] += 1
        try:
            if isinstance(row, InputError):
                raise row
            counts[_add(db, counts["pictures"], place, row)] += 1
        except InputError as error:
            counts["skipped"] += 1
            db.execute("INSERT INTO skipped VALUES (?, ?)", (place, str(error)))
            if counts["skipped"] > most_skipped:
                raise InputError(
                    f"{dataset.path}: {counts['skipped']} of the first {counts['rows']} rows cannot be used: {_reasons(db)}; "
                    "repair them, or allow more: --most-skipped"
                ) from error
        if counts["rows"] % _REPORTED == 0:
            progress(counts["rows"])
    return counts


def _add(db: sqlite3.Connection, number: int, place: str, row: ExternalRow) -> str:
    """Add one row; return whether it is a new picture ("pictures") or was "joined" to an earlier one."""
    source, texts = locator(row.source), Texts(row.captions, row.questions, row.slots)
    if row.key is not None:
        known = db.execute("SELECT source, place FROM ids WHERE id = ?", (row.key,)).fetchone()
        if known is not None and known[0] != source:
            raise InputError(f"id {row.key[:80]!r} was given to another picture before ({known[1]})")
        if known is None:
            db.execute("INSERT INTO ids VALUES (?, ?, ?)", (row.key, source, place))
    held = db.execute("SELECT number, texts FROM pictures WHERE source = ?", (source,)).fetchone()
    if held is None:
        db.execute("INSERT INTO pictures VALUES (?, ?, ?, ?)", (number, source, place, texts.to_json()))
        return "pictures"
    db.execute("UPDATE pictures SET texts = ? WHERE number = ?", (Texts.from_json(held[1]).joined(texts).to_json(), held[0]))
    return "joined"


def _reasons(db: sqlite3.Connection) -> str:
    return "; ".join(f"{place}: {reason}" for place, reason in db.execute("SELECT place, reason FROM skipped LIMIT 5"))
