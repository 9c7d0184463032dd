"""Terminal output: one line per failure, one JSON document, tables, bars.  Results go to stdout, everything else to stderr.

Text may come from a server, a file or a bundle, so all of it is printed through :func:`f2edge.text.printable`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from f2edge.text import one_line, printable

_BAR_CELLS = 20
_FILE_COLUMNS = 160
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Output:
    """Printer of results: ``json`` prints one JSON document only, ``quiet`` suppresses notes and progress."""

    json: bool = False
    quiet: bool = False

    def document(self, content: Mapping[str, Any]) -> None:
        """Print the JSON document if ``json`` is set."""
        if self.json:
            sys.stdout.write(json.dumps(content, allow_nan=False, default=_plain) + "\n")

    def line(self, text: str) -> None:
        """Print a result as text unless ``json`` is set."""
        if not self.json:
            print_line(text)

    def note(self, text: str) -> None:
        """Print a remark unless ``json`` or ``quiet`` is set."""
        if not self.json and not self.quiet:
            print_line(text)

    @property
    def streams(self) -> bool:
        """Whether text is printed piece by piece: only on a terminal."""
        return not self.json and sys.stdout.isatty()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table.  A heading that begins with ">" right-aligns its column, one that ends with "…" lets it wrap."""
        if self.json:
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        headings = [column.strip(">…") for column in columns]
        table = Table(box=None, pad_edge=False, show_header=any(headings))
        for heading, column in zip(headings, columns, strict=True):
            table.add_column(heading, justify="right" if column.startswith(">") else "left", no_wrap=not column.endswith("…"))
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console = Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS)
        with console.capture() as text:  # printed by rich itself, a broken pipe would end the process with 1
            console.print(table)
        sys.stdout.write(text.get())

    @contextmanager
    def progress(self, what: str, *, always: bool = False) -> Iterator[Callable[[int, int | None], None]]:
        """Show a progress bar on stderr if it is a terminal; yields a function to call with (done, total).

        With ``always`` also beside JSON.
        """
        if (self.json and not always) or self.quiet or not sys.stderr.isatty():
            yield lambda _done, _total: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(what, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)


def bar(share: float) -> str:
    """Return a bar of up to 20 cells for a share in [0, 1], to an eighth of a cell."""
    eighths = round(min(max(share, 0.0), 1.0) * _BAR_CELLS * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def print_line(text: str) -> None:
    """Print untrusted text as one line on stdout."""
    print_piece(text)
    sys.stdout.write("\n")
    sys.stdout.flush()


def print_piece(text: str) -> None:
    """Print a piece of untrusted text on stdout, without a line end."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def fail(message: object) -> None:
    """Print an error as one line on stderr."""
    sys.stderr.write(f"f2edge: error: {one_line(message)}\n")


def _plain(value: Any) -> Any:
    """Return NumPy values as numbers or lists, anything else as a string."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
