"""A schema of the user's own: which slots the data has, their values, and other words for them.

    {"slots": [{"name": "hair_color", "values": ["black", "blonde"], "question": "what color is the hair?", "group": "hair",
                "words": {"blonde": ["blond", "fair"]}}]}

A slot's value is read from the column of its name, or from an object in a column named ``attributes``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.data.external.columns import Column, unpacked
from export.data.external.rows import Row
from f2edge.errors import F2EdgeError, InputError
from f2edge.spec.attributes import AttributeSchema

_NESTED = "attributes"


@dataclass(frozen=True)
class Vocabulary:
    """A schema with the words that its values may be called.

    Attributes:
        schema: slots and values.
        words: slot → word → value; values are words of themselves.
        unknown: "slot=word" → how often a word that no value has was read.
    """

    schema: AttributeSchema
    words: Mapping[str, Mapping[str, str]]
    unknown: Counter[str] = field(default_factory=Counter)

    def slots_of(self, row: Row) -> dict[str, str]:
        """Return slot → value of a row; a word that no value has is counted and left out."""
        nested = unpacked(row.get(_NESTED))
        found = {}
        for name, words in self.words.items():
            value = row.get(name, nested.get(name) if isinstance(nested, Mapping) else None)
            if value is None or value == "":
                continue
            known = words.get(_plain(value))
            if known is None:
                self.unknown[f"{name}={str(value)[:40]}"] += 1
            else:
                found[name] = known
        return found

    def marked(self, columns: Sequence[Column]) -> tuple[Column, ...]:
        """Return the columns with those that hold slots shown as such.

        Raises:
            InputError: no column holds any slot.
        """
        if not any(column.name in self.words or column.name == _NESTED for column in columns):
            names = ", ".join(column.name for column in columns)
            raise InputError(f"--schema: no column is named as one of its slots ({', '.join(self.words)}); found: {names}")
        return tuple(Column(c.name, "slot", "slot of the schema") if c.name in self.words or c.name == _NESTED else c for c in columns)


def _plain(word: Any) -> str:
    return str(word).strip().lower().replace(" ", "_").replace("-", "_")


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a schema file; raises :class:`InputError` naming what is wrong in it."""
    try:
        row = json.loads(path.read_text(encoding="utf-8-sig"))
        slots = row["slots"] if isinstance(row, dict) else row
        words: dict[str, dict[str, str]] = {}
        for slot in slots:
            words[slot["name"]] = {_plain(value): value for value in slot["values"]}
            for value, others in slot.get("words", {}).items():
                if value not in slot["values"]:
                    raise InputError(f"slot {slot['name']!r} has words for {value!r}, which is none of its values")
                words[slot["name"]] |= {_plain(word): value for word in others}
        schema = AttributeSchema.from_json(
            [{"group": "attributes", "sensitive": False, **{key: value for key, value in slot.items() if key != "words"}} for slot in slots]
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, F2EdgeError) as error:
        raise InputError(f"schema {path}: {error!s}; see docs/train-your-own.md for an example") from error
    return Vocabulary(schema, words)
