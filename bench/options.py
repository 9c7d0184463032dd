"""Command-line options that several benches share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from f2edge.errors import InputError

#: Weights of the attribute judge that the repository ships.
DEFAULT_JUDGE = Path(__file__).parent / "weights" / "judge.safetensors"

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]
BundleName = Annotated[str, typer.Option(help="Name or folder of a bundle.")]
BackendName = Annotated[str, typer.Option(help="Backend of the runtime.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; every usable core by default.", show_default=False)]
Steps = Annotated[int | None, typer.Option(help="Decoding steps; the bundle's default if not given.", show_default=False)]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; the bundle's default if not given.", show_default=False)]


def listed(given: Sequence[str], default: str) -> tuple[str, ...]:
    """Return the distinct values of a repeatable option, each a comma-separated list unless it names an existing folder."""
    parts = [part for text in given or [default] for part in ([text] if Path(text).is_dir() else text.split(","))]
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip())) or (default,)


def whole_numbers(name: str, given: Sequence[str], default: str) -> tuple[int, ...]:
    """As :func:`listed` for integers in 1 … 999999; others raise :class:`InputError` naming the option ``name``."""
    values = listed(given, default)
    wrong = [text for text in values if not re.fullmatch(r"0*[1-9][0-9]{0,5}", text)]
    if wrong:
        first = default.partition(",")[0]
        raise InputError(f"{name} {wrong[0]!r}: write whole numbers above 0, for instance {name} {first},{2 * int(first)}")
    return tuple(int(text) for text in values)
