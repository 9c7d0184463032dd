"""Command line of the TensorRT side; each command imports what it needs when it runs.

python -m engines profiles
python -m engines profiles orin-nano --json
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from f2edge.errors import F2EdgeError, InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn bundles into TensorRT engines.",
)


@app.callback()
def _group() -> None:
    """Turn bundles into TensorRT engines."""


@app.command()
def profiles(
    names: Annotated[list[str] | None, typer.Argument(help="Devices; all by default.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")] = False,
) -> None:
    """List the devices that engines are built for: memory, rates, TensorRT versions, recipe of each graph."""
    from engines.profile import load_profiles, print_profiles

    print_profiles(load_profiles(names or ()), as_json=as_json)


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code, errors are printed in one line (``F2EDGE_DEBUG=1`` adds the traceback)."""
    try:
        code = app(args=list(arguments), prog_name="python -m engines", standalone_mode=False)
    except F2EdgeError as error:
        return _report(str(error), 2 if isinstance(error, InputError) else 1)
    except typer.Abort:
        return _report("interrupted", 130)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # the parser's own errors: unknown option, missing argument
        if not callable(usage):
            raise
        return _report(usage(), 2)
    return code if isinstance(code, int) else 0


def _report(message: str, code: int) -> int:
    if os.environ.get("F2EDGE_DEBUG") == "1":
        traceback.print_exc()
    print(f"python -m engines: {message}", file=sys.stderr)
    return code


def main() -> None:
    sys.exit(run(sys.argv[1:]))
