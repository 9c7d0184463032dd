"""Detection of column roles in external tables: image, captions, conversations, questions and answers, or ignored.

A column's values decide, and its name helps; the reason is kept for ``explain``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.data.external.rows import IMAGE_SUFFIXES, Row
from export.data.external.stored import ParquetCell, Source, TarMember
from f2edge.errors import InputError

_IMAGE_NAMES = ("image", "image_path", "img", "img_path", "image_file", "file_name", "filename", "file", "path", "image_name", "picture",
                "photo", "jpg", "png", "webp", "image_id", "id", "key")  # fmt: skip
_ID_NAMES = ("id", "__key__", "key", "uid", "uuid", "guid")
ROLES = ("image", "captions", "conversation", "pairs", "question", "answer", "id", "ignored")
_IMAGE_FOLDERS = ("", "images", "image", "imgs", "img", "train")
_CAPTION_WORDS = frozenset(("caption", "text", "txt", "description", "desc", "prompt", "sentence", "comment", "summary"))
_NOT_TEXT_WORDS = frozenset(("negative", "ocr", "id", "number", "url"))
_QUESTION_WORDS = frozenset(("question", "query", "instruction"))
_ANSWER_WORDS = frozenset(("answer", "response", "output", "reply"))
_ASKERS, _ANSWERERS = frozenset(("human", "user")), frozenset(("gpt", "assistant", "model", "chatgpt"))
_UNKNOWN = "text of unknown purpose"
_PLACEHOLDER = re.compile(r"<\|?image\|?>|<img>|\[IMG\]", re.IGNORECASE)

Pair = tuple[str, str]


@dataclass(frozen=True)
class Column:
    """One column, its role (one of :data:`ROLES`) and the reason."""

    name: str
    role: str
    reason: str


def unpacked(value: Any) -> Any:
    """Parse lists and objects stored as a JSON string, as in CSV files; return anything else unchanged."""
    if isinstance(value, str) and value[:1] in {"[", "{"}:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def texts_of(value: Any) -> list[str]:
    """Return the non-empty strings of a string or a list of strings; ``[]`` for anything else."""
    value = unpacked(value)
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in values):
        return []
    return [text.strip() for text in values if text.strip()]


def turns_of(value: Any) -> list[Pair]:
    """Return question-answer pairs of a LLaVA-style conversation (``from``/``value`` or ``role``/``content``), without image tags."""
    value = unpacked(value)
    pairs: list[Pair] = []
    question = ""
    for turn in value if isinstance(value, list) else []:
        if not isinstance(turn, dict):
            return []
        speaker, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(speaker, str) or not isinstance(text, str):
            return []
        if speaker.lower() in _ASKERS:
            question = _PLACEHOLDER.sub("", text).strip()
        elif speaker.lower() in _ANSWERERS and question and text.strip():
            pairs.append((question, text.strip()))
            question = ""
    return pairs


def pairs_of(value: Any) -> list[Pair]:
    """Return question-answer pairs of a list of objects with a question and an answer each."""
    value = unpacked(value)
    pairs = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            return []
        question = next((item[name] for name in item if _words(name) & _QUESTION_WORDS), None)
        answer = next((item[name] for name in item if _words(name) & _ANSWER_WORDS), None)
        if isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip():
            pairs.append((question.strip(), answer.strip()))
    return pairs


def find_image(value: Any, base: Path) -> Source | None:
    """Return bytes, an existing path or a place inside another file for a value of an image column; None if missing."""
    if isinstance(value, Mapping):
        data = value.get("bytes")
        return bytes(data) if isinstance(data, bytes | bytearray) and data else find_image(value.get("path"), base)
    if isinstance(value, TarMember | ParquetCell):
        return value
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "" or "\0" in str(value):
        return None
    return _find_file(str(value), base)


def _find_file(name: str, base: Path) -> Path | None:
    """Return the existing file of a name or id beside a table or in its folder of images."""
    suffixes = ("",) if name.lower().endswith(IMAGE_SUFFIXES) else IMAGE_SUFFIXES
    for folder in _IMAGE_FOLDERS:
        for suffix in suffixes:
            try:
                path = base / folder / f"{name}{suffix}"
                if path.is_file():
                    return path
            except OSError:  # the name is too long
                return None
    return None


def sniff(sample: Sequence[Row], base: Path) -> tuple[Column, ...]:
    """Return the role of every column from sample rows; the image column is the one with the most images found, then by name."""
    names = list(dict.fromkeys(name for row in sample for name in row))
    values = {name: [row[name] for row in sample if row.get(name) not in (None, "", [])] for name in names}
    roles = {name: _role(name, values[name]) for name in names}
    _pick_image(roles, values, base)
    _pick_id(roles, values)
    _pair_up(roles)
    _free_text(roles, values)
    return tuple(Column(name, *roles[name]) for name in names)


def overruled(columns: Sequence[Column], wanted: Mapping[str, Sequence[str]]) -> tuple[Column, ...]:
    """Return the columns with the roles of ``wanted``, role → names; columns that were guessed to have one of these roles lose it.

    Raises:
        InputError: a role or a column is unknown.
    """
    names = [column.name for column in columns]
    for role, chosen in wanted.items():
        if role not in ROLES:
            raise InputError(f"--columns: no role {role!r}; choose from: {', '.join(ROLES)}")
        if missing := [name for name in chosen if name not in names]:
            raise InputError(f"--columns: no column {missing[0]!r}; found: {', '.join(names)}")
    by_name = {name: role for role, chosen in wanted.items() for name in chosen}
    return tuple(
        Column(c.name, by_name[c.name], "as --columns says") if c.name in by_name
        else Column(c.name, "ignored", f"--columns names another for {c.role}") if c.role in wanted and c.role != "ignored"
        else c
        for c in columns
    )  # fmt: skip


def parse_columns(text: str) -> dict[str, list[str]]:
    """Return role → names of ``image=photo,captions=text,captions=title``; raises :class:`InputError` for anything else."""
    wanted: dict[str, list[str]] = {}
    for part in filter(None, text.split(",")):
        role, mark, name = part.partition("=")
        if not (mark and role.strip() and name.strip()):
            raise InputError(f"--columns {part!r}: write ROLE=COLUMN,…, as in image=photo,captions=text; roles: {', '.join(ROLES)}")
        wanted.setdefault(role.strip(), []).append(name.strip())
    return wanted


def _words(name: str) -> set[str]:
    """Return the singular words of a column name: "Long_Captions" → {"long", "caption"}; "Q" and "A" are spelled out."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    words = [{"q": "question", "a": "answer"}.get(word, word) for word in words] if len(words) == 1 else words
    return {word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words}


def _role(name: str, values: Sequence[Any]) -> tuple[str, str]:
    """Return role and reason of a column by content and name, except for images."""
    words = _words(name)
    if not values:
        return "ignored", "empty"

    def mostly(reader: Callable[[Any], object]) -> bool:
        return sum(bool(reader(value)) for value in values) * 2 > len(values)

    for reader, role, reason in (
        (turns_of, "conversation", "conversation of a user and a model"),
        (pairs_of, "pairs", "questions with answers"),
    ):
        if mostly(reader):
            return role, reason
    if not mostly(texts_of):
        return "ignored", f"values of type {type(values[0]).__name__}, no text"
    for known, role in ((_QUESTION_WORDS, "question"), (_ANSWER_WORDS, "answer"), (_CAPTION_WORDS, "captions")):
        if words & known and not words & _NOT_TEXT_WORDS:
            return role, role if role == "captions" else f"{role}s"
    return "ignored", _UNKNOWN


def _pick_image(roles: dict[str, tuple[str, str]], values: Mapping[str, Sequence[Any]], base: Path) -> None:
    def rank(name: str) -> tuple[float, int]:
        found = sum(find_image(value, base) is not None for value in values[name]) / max(len(values[name]), 1)
        return found, -_IMAGE_NAMES.index(name.lower()) if name.lower() in _IMAGE_NAMES else -len(_IMAGE_NAMES)

    likely = {name: rank(name) for name in values if values[name] and _may_be_image(name, values[name])}
    if not likely:
        return
    best = max(likely, key=lambda name: likely[name])
    found = round(likely[best][0] * len(values[best]))
    embedded = isinstance(values[best][0], bytes | Mapping | TarMember | ParquetCell)
    kind = "embedded images" if embedded else "paths of images"
    for name in likely:
        if name != best and roles[name][0] == "ignored":
            roles[name] = "ignored", f"could be an image column, but {best!r} has more images"
    roles[best] = "image", f"{kind}, {found} of the first {len(values[best])} found"


def _pick_id(roles: dict[str, tuple[str, str]], values: Mapping[str, Sequence[Any]]) -> None:
    """Take the first column that is named like an id, and is not needed otherwise, for the id of a row."""
    known = [name for name in roles if name.lower() in _ID_NAMES and roles[name][0] == "ignored" and values[name]]
    for name in sorted(known, key=lambda name: _ID_NAMES.index(name.lower()))[:1]:
        if all(isinstance(value, str | int) for value in values[name]):
            roles[name] = "id", "id"


def _may_be_image(name: str, values: Sequence[Any]) -> bool:
    first = values[0]
    if isinstance(first, TarMember | ParquetCell):
        return True
    if isinstance(first, Mapping):
        return "bytes" in first or "path" in first
    if isinstance(first, bytes | bytearray):
        return True
    if isinstance(first, str) and first.lower().endswith(IMAGE_SUFFIXES) and len(first) < 1000:
        return True
    return isinstance(first, str | int) and not isinstance(first, bool) and name.lower() in _IMAGE_NAMES


def _pair_up(roles: dict[str, tuple[str, str]]) -> None:
    """Ignore question columns without an answer column and vice versa, and all but the first of each."""
    for role, other in (("question", "answer"), ("answer", "question")):
        for place, name in enumerate([name for name in roles if roles[name][0] == role]):
            if place:
                roles[name] = "ignored", f"a second column of {role}s"
            elif not any(found == other for found, _ in roles.values()):
                roles[name] = "ignored", f"{role}s without a column of {other}s"


def _free_text(roles: dict[str, tuple[str, str]], values: Mapping[str, Sequence[Any]]) -> None:
    """Take a single column of sentences of unknown purpose for captions if no column is named as one."""
    if any(role == "captions" for role, _ in roles.values()):
        return
    unknown = [name for name, (role, why) in roles.items() if role == "ignored" and why == _UNKNOWN and not _words(name) & _NOT_TEXT_WORDS]
    free = [name for name in unknown if _sentences(values[name])]
    if len(free) == 1:
        roles[free[0]] = "captions", "captions: the only other column of sentences"


def _sentences(values: Sequence[Any]) -> bool:
    texts = [text for value in values for text in texts_of(value)]
    return bool(texts) and sum(len(text.split()) for text in texts) >= 3 * len(texts)
