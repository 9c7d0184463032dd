"""Options that take several values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from f2edge.errors import InputError


def listed(given: Sequence[str], default: str) -> tuple[str, ...]:
    """Values of an option that may be given several times, each a comma-separated list, unless that is the name of a folder."""
    parts = [part for text in given or [default] for part in ([text] if Path(text).is_dir() else text.split(","))]
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip())) or (default,)


def whole_numbers(name: str, given: Sequence[str], default: str) -> tuple[int, ...]:
    """As :func:`listed`; raises :class:`InputError` for what is no number above 0."""
    values = listed(given, default)
    wrong = [text for text in values if not re.fullmatch(r"0*[1-9][0-9]{0,5}", text)]
    if wrong:
        raise InputError(f"{name} {wrong[0]!r}: write whole numbers above 0, for instance {name} {default},{2 * int(default)}")
    return tuple(int(text) for text in values)
