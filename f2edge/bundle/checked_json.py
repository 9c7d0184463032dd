"""Type checks for untrusted JSON, applied before any arithmetic (a string times a million is a valid product in Python).

Every function raises :class:`~f2edge.errors.BundleError` naming the key, the value found and what it should be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import PurePosixPath
from types import UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from f2edge.errors import BundleError

LARGEST_INTEGER = 2**31 - 1


def load(data: bytes) -> Any:
    """Parse UTF-8 JSON; NaN and infinities are refused."""

    def refuse(token: str) -> NoReturn:
        raise ValueError(f"{token} is not JSON")

    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise BundleError(f"manifest: not valid JSON ({type(error).__name__}); copy or export the bundle again") from error


def require(rules: Mapping[str, bool], where: str) -> None:
    """Raise for the first rule that is False; its key is the requirement in the message."""
    for rule, kept in rules.items():
        if not kept:
            raise BundleError(f"manifest: {where} needs {rule}")


def typed(value: Any, hint: Any, where: str) -> None:
    """Check parsed JSON against a type: a dataclass, ``tuple[…]``, ``X | None``, int (0 … 2³¹-1), float, str or bool."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        _typed_object(value, hint, where)
    elif origin is UnionType:
        if value is not None:
            typed(value, arguments[0], where)
    elif origin is tuple:
        items = sequence(value, where)
        if arguments[-1] is not Ellipsis and len(items) != len(arguments):
            raise BundleError(f"manifest: {where} needs {len(arguments)} entries, has {len(items)}")
        for index, item in enumerate(items):
            typed(item, arguments[0], f"{where}[{index}]")
    elif hint is float:
        number(value, where)
    elif hint is str:
        text(value, where, empty=True)
    elif type(value) is not hint or (hint is int and not 0 <= value <= LARGEST_INTEGER):
        raise BundleError(f"manifest: {where} must be {'0 … 2147483647' if hint is int else 'true or false'}, got {show(value)}")


def _typed_object(value: Any, kind: type, where: str) -> None:
    row, hints, known = table(value, where), _hints(kind), fields(kind)
    unknown = sorted(set(row) - {f.name for f in known})
    if unknown:
        raise BundleError(f"manifest: {where} has unknown keys {show(unknown)}; update f2edge")
    for field in known:
        if field.name in row:
            typed(row[field.name], hints[field.name], f"{where}.{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise BundleError(f"manifest: {where}.{field.name} is missing; export the bundle again")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def show(value: object) -> str:
    """Return the ``repr`` of a value, cut to 60 characters, for a message."""
    form = repr(value)
    return form if len(form) <= 60 else form[:59] + "…"


def table(value: Any, where: str) -> Mapping[str, Any]:
    """Return a value that must be a JSON object."""
    if not isinstance(value, Mapping):
        raise BundleError(f"manifest: {where} must be an object, got {show(value)}")
    return value


def get(value: Any, key: str, where: str = "") -> Any:
    """Return a required key of an object; ``where`` is the object's location, empty for the document itself."""
    row = table(value, where or "the document")
    if key not in row:
        raise BundleError(f"manifest: {where + '.' if where else ''}{key} is missing; export the bundle again")
    return row[key]


def sequence(value: Any, where: str) -> Sequence[Any]:
    """Return a value that must be a JSON list."""
    if not isinstance(value, list | tuple):
        raise BundleError(f"manifest: {where} must be a list, got {show(value)}")
    return value


def text(value: Any, where: str, *, empty: bool = False) -> str:
    """Return a value that must be a string without control characters other than line feeds."""
    if not isinstance(value, str) or not (value or empty) or not value.replace("\n", " ").isprintable():
        raise BundleError(f"manifest: {where} must be plain text, got {show(value)}")
    return value


def texts(value: Any, where: str) -> tuple[str, ...]:
    """Return a value that must be a list of strings."""
    return tuple(text(item, where) for item in sequence(value, where))


def number(value: Any, where: str) -> float:
    """Return a value that must be a finite number of magnitude at most 1e9."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e9:
        raise BundleError(f"manifest: {where} must be a number, got {show(value)}")
    return float(value)


def numbers(value: Any, count: int, where: str) -> tuple[float, ...]:
    """Return a value that must be a list of ``count`` numbers."""
    items = sequence(value, where)
    if len(items) != count:
        raise BundleError(f"manifest: {where} needs {count} numbers, got {show(value)}")
    return tuple(number(item, where) for item in items)


def inner_path(name: str) -> str:
    """Return a name that must be a normalised relative POSIX path inside its folder."""
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and ":" not in name
    if not plain or path.is_absolute() or ".." in path.parts or not path.parts or str(path) != name:
        raise BundleError(f"manifest: files names {show(name)}, which is not a path inside the bundle's folder")
    return name
