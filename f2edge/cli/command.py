"""Exit codes and error messages of the ``export`` and ``engines`` command lines."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence

import typer

from f2edge.errors import F2EdgeError, InputError


def run_command(app: typer.Typer, name: str, arguments: Sequence[str]) -> int:
    """Run one command of ``app`` under the program name ``name`` and return the exit code.

    2 for bad input, 1 for other failures, 130 when interrupted.  ``F2EDGE_DEBUG=1`` adds the traceback.
    A file that cannot be read or written counts as bad input.
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
        usage = getattr(error, "format_message", None)  # the parser's errors: unknown option, missing argument
        if not callable(usage):
            raise
        return _report(name, usage(), 2)
    return code if isinstance(code, int) else 0


def end_as_interrupted() -> None:
    """Make SIGTERM end this process like Ctrl-C: temporary files are removed and the exit code is 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _report(name: str, message: str, code: int) -> int:
    if os.environ.get("F2EDGE_DEBUG") == "1":
        traceback.print_exc()
    line = "".join(c if c.isprintable() or c == "\n" else " " for c in message).strip()  # a list of differences has several lines
    if line:  # empty where the help was printed
        print(f"{name}: {line}", file=sys.stderr)
    return code
