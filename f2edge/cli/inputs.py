"""Inputs of commands: pictures from files, folders, patterns and standard input; prompts from CSV, JSON lines and text.

>>> list(prompt_rows(["prompt,seed", "an old man,7"]))
[PromptRow(number=1, prompt='an old man', seed=7, name=None, options={}, problem='')]
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import glob
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from f2edge.errors import ImageError, InputError

if TYPE_CHECKING:
    from f2edge.imaging.images import ImageSource

STDIN = "-"
#: Columns of prompts beside prompt, seed and name: decoding options.
OPTIONS: Mapping[str, type] = {"steps": int, "guidance": float, "order": str, "temperature": float, "temperature_law": str}
_LONGEST_LINE = 64 << 10


@dataclass(frozen=True)
class PromptRow:
    """One wanted face; ``problem`` says why there can be none."""

    number: int
    prompt: str = ""
    seed: int | None = None
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def picture_files(given: Sequence[str]) -> list[str]:
    """Return the pictures meant: "-" as it is, patterns and folders resolved, in order, each once.

    Raises:
        ImageError: a folder or a pattern without a JPEG, PNG or WebP.
    """
    from f2edge.provenance.saving import KINDS

    found: dict[str, None] = {}
    for text in given:
        path = Path(text)
        if text != STDIN and path.is_dir():
            inside = [str(file) for file in sorted(path.rglob("*")) if file.suffix.lower() in KINDS and file.is_file()]
            if not inside:
                raise ImageError(f"{text}: has no JPEG, PNG or WebP in it; give another folder")
            found.update(dict.fromkeys(inside))
        elif any(mark in text for mark in "*?[") and not path.exists():
            matched = [file for file in sorted(glob(text, recursive=True)) if Path(file).is_file()]  # noqa: PTH207  patterns may be absolute
            if not matched:
                raise ImageError(f"{text}: matches no file; check the pattern")
            found.update(dict.fromkeys(matched))
        else:
            found[text] = None
    return list(found)


def one_document(files: Sequence[str], *, json: bool) -> None:
    """Refuse one JSON document about several pictures with :class:`~f2edge.errors.InputError`."""
    if json and len(files) > 1:
        raise InputError(f"--json prints one document, and there are {len(files)} pictures; give --jsonl")


def picture_source(name: str) -> ImageSource:
    """Return what :func:`f2edge.imaging.images.open_image` opens: the path, or the bytes of standard input."""
    from f2edge.imaging.images import LOCAL_LIMITS

    return sys.stdin.buffer.read(LOCAL_LIMITS.largest_bytes + 1) if name == STDIN else name


@contextmanager
def text_lines(name: str) -> Iterator[IO[str]]:
    """Open a file of prompts, or standard input.

    Raises:
        InputError: the file cannot be read.
    """
    if name == STDIN:
        yield sys.stdin
        return
    try:
        file = Path(name).open(encoding="utf-8-sig", newline="")  # noqa: SIM115  closed below; only its opening is translated
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name[:200]}: cannot be read ({reason}); give a file of prompts, or - for standard input") from error
    with file:
        yield file


def prompt_rows(lines: Iterable[str]) -> Iterator[PromptRow]:
    """Return the rows of a text, as they arrive; its first line tells its kind.

    JSON lines are objects with ``prompt`` and any of ``seed``, ``name`` and :data:`OPTIONS`; CSV has these as columns, ``prompt`` among
    them; in any other text each line is a prompt.  A row that cannot be read has a ``problem``.

    Raises:
        InputError: the text is not UTF-8, or has an unknown column.
    """
    source = iter(lines)
    try:
        first = next((line for line in source if line.strip()), "").removeprefix("\ufeff")  # of programs that mark UTF-8 so
        everything = chain([first], source) if first else iter(())
        if first.lstrip().startswith("{"):
            yield from _json_rows(everything)
        elif len(first) <= _LONGEST_LINE and "prompt" in (header := next(csv.reader([first]), [])):
            yield from _csv_rows(everything, header)
        else:
            texts = (line.strip() for line in everything)
            yield from (PromptRow(number, text) for number, text in enumerate((text for text in texts if text), start=1))
    except UnicodeDecodeError as error:
        raise InputError("the prompts are not UTF-8; save them as UTF-8") from error


def _json_rows(lines: Iterable[str]) -> Iterator[PromptRow]:
    for number, line in enumerate((line for line in lines if line.strip()), start=1):
        try:
            row = json.loads(line) if len(line) <= _LONGEST_LINE else None
        except (ValueError, RecursionError):
            row = None
        yield _row(number, row) if isinstance(row, dict) else PromptRow(number, problem="is no JSON object on one line")


def _csv_rows(lines: Iterable[str], header: Sequence[str]) -> Iterator[PromptRow]:
    unknown = sorted(set(header) - {"prompt", "seed", "name", *OPTIONS})
    if unknown:
        raise InputError(f"prompts: unknown column {', '.join(unknown)[:100]}; known are prompt, seed, name, {', '.join(OPTIONS)}")
    try:
        for number, row in enumerate(csv.DictReader(lines, strict=True), start=1):
            yield _row(number, {key: value for key, value in row.items() if key is not None and value})
    except csv.Error as error:
        raise InputError(f"prompts: are no CSV ({error}); quote texts that hold commas, and end every quote") from error


def _row(number: int, row: Mapping[str, Any]) -> PromptRow:
    unknown = sorted(set(row) - {"prompt", "seed", "name", *OPTIONS})
    if unknown:
        return PromptRow(number, problem=f"has an unknown key {unknown[0][:40]!r}")
    try:
        seed = None if row.get("seed") is None else _whole(row["seed"])
        options = {key: kind(row[key]) for key, kind in OPTIONS.items() if row.get(key) is not None}
    except (TypeError, ValueError, OverflowError):
        return PromptRow(number, problem="has a seed or an option that is no number")
    name = row.get("name")
    if not isinstance(row.get("prompt", ""), str) or not isinstance(name, str | None):
        return PromptRow(number, problem="has a prompt or a name that is no text")
    return PromptRow(number, row.get("prompt", ""), seed, name, options)


def _whole(value: Any) -> int:
    if isinstance(value, bool | float):
        raise TypeError(value)
    return int(value)
