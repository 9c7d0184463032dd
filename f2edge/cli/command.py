"""How the command lines of ``export`` and ``engines`` end: an exit code, and for each failure a message."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence

import typer

from f2edge.errors import F2EdgeError, InputError


def run_command(app: typer.Typer, name: str, arguments: Sequence[str]) -> int:
    """Run one command of ``app``, called ``name``; returns the exit code.

    2 for bad input, 1 for other failures, 130 when interrupted.  ``F2EDGE_DEBUG=1`` adds the traceback.
    A file that the system does not let us read or write counts as bad input.
    """
    try:
        code = app(args=list(arguments), prog_name=name, standalone_mode=False)
    except F2EdgeError as error:
        return _report(name, str(error), 2 if isinstance(error, InputError) else 1)
    except typer.Abort:
        return _report(name, "interrupted", 130)
    except OSError as error:
        if error.strerror is None:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        return _report(name, f"{place}{error.strerror}; give a path that can be read or written, on a disk with room", 2)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # the parser's own errors: unknown option, missing argument
        if not callable(usage):
            raise
        return _report(name, usage(), 2)
    return code if isinstance(code, int) else 0


def end_as_interrupted() -> None:
    """From now on SIGTERM ends this process as Ctrl-C does: what was half written is removed, and the exit code is 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _report(name: str, message: str, code: int) -> int:
    if os.environ.get("F2EDGE_DEBUG") == "1":
        traceback.print_exc()
    said = "".join(c if c.isprintable() or c == "\n" else " " for c in message).strip()  # a list of differences has several lines
    if said:  # nothing where the help was printed
        print(f"{name}: {said}", file=sys.stderr)
    return code
