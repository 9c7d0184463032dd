"""``python -m bench …``."""

from __future__ import annotations

import sys


def _run() -> None:
    if sys.argv[1:2] != ["gpu"]:
        from bench.cli import main

        main()
        return
    try:  # on machines that lack most of the other benches' packages
        from bench.hardware.gpu import main as gpu
    except ImportError as error:
        sys.exit(f"error: bench gpu cannot start ({error}); pip install numpy typer")
    del sys.argv[1]
    gpu()


if __name__ == "__main__":
    _run()
