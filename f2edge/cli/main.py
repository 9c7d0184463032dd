"""The command line: ``f2edge generate | edit | describe | ask | analyze | camera | serve | studio | top | token | info | verify`` …

    f2edge generate "a smiling woman with red hair" -o face.png --seed 7

Inputs are checked before the model is opened.  Exit codes: 0 success, 2 bad input, 1 any other failure, 130 interrupted;
``F2EDGE_DEBUG=1`` adds the traceback.  Heavy libraries are imported inside the commands, so that ``--help`` is fast.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from f2edge import __version__
from f2edge.camera import READ_THREADS
from f2edge.cli import analyze, ask, bundles, camera, generate, regions, serve, top, verify_image
from f2edge.cli.console import fail
from f2edge.errors import F2EdgeError, InputError

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130
#: The thread on which a server loads its model (:func:`f2edge.server.lifecycle.in_thread`).
LOADING = "f2edge-loading"
#: What writing to a full, closed or lost standard output gives.
_UNWRITABLE = (errno.ENOSPC, errno.EPIPE, errno.EBADF, errno.EIO, errno.EFBIG)

app = typer.Typer(
    name="f2edge",
    add_completion=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    generate.generate,
    generate.edit,
    ask.describe,
    ask.ask,
    analyze.analyze,
    regions.regions,
    camera.camera,
    serve.serve,
    serve.studio,
    top.top,
    serve.token,
    bundles.info,
    bundles.verify,
    verify_image.verify_image,
):
    app.command()(command)
app.add_typer(bundles.bundles, name="bundles")


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"f2edge {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    _version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")] = False,
) -> None:
    """Text to face, face to words, on small machines."""
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


def run(arguments: Sequence[str]) -> int:
    """Run one command, print its error if it fails, and return the exit code."""
    try:
        code = app(args=list(arguments), prog_name="f2edge", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):  # which click makes an exit with 1
            raise
        return _report(ended.__context__)
    except Exception as error:  # noqa: BLE001  every failure becomes one line
        if os.environ.get("F2EDGE_DEBUG") == "1":
            traceback.print_exc()
        return _report(error)
    if code == INTERRUPTED:  # newer versions of typer turn Ctrl-C into this code themselves
        fail("interrupted")
    return code if isinstance(code, int) else 0


def _report(error: Exception) -> int:
    usage = getattr(error, "format_message", None)
    if callable(usage):  # the parser's errors: unknown option, missing argument, not a number
        fail(f"{usage()} (see `f2edge --help`)")
        return BAD_INPUT
    if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  else the interpreter fails at its end
        return 0
    if isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITABLE:
        fail(f"standard output cannot be written ({error.strerror}); the result is incomplete")
        return FAILURE
    if isinstance(error, F2EdgeError):
        fail(error)
        return BAD_INPUT if isinstance(error, InputError) else FAILURE
    fail(f"unexpected {type(error).__name__}: {error}; F2EDGE_DEBUG=1 shows where")
    return FAILURE


def main() -> None:
    """Entry point of the ``f2edge`` script."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the parent process
            setattr(sys, stream, _ClosedStream() if stream == "stdout" else Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode still gets its table
    if os.environ.get("F2EDGE_DEBUG") != "1":
        warnings.simplefilter("ignore")  # of image libraries
    _leave(_flushed(run(sys.argv[1:])))


class _ClosedStream(io.TextIOBase):
    """Standard output that was closed by the parent process: a command may run without it, but cannot print a result."""

    def write(self, text: str, /) -> int:
        if text:
            raise OSError(errno.EBADF, "it is closed")
        return 0


def _flushed(code: int) -> int:
    """Flush standard output and return the exit code: 1 if the rest of the output cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or _report(error)
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  else the interpreter fails again at its end
    return code


def _leave(code: int) -> NoReturn:
    """Exit; while a camera's read hangs in its driver or a model is loading, skip the interpreter's shutdown, which would abort there."""
    if any(thread.is_alive() for thread in READ_THREADS) or any(thread.name == LOADING for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
