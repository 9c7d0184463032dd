"""``f2edge-export``, ``f2edge-engines`` and ``f2edge-bench``: the tools of the extras, from a wheel as from a checkout.

A checkout has their packages as top-level folders; a wheel has them inside this package, so that they hide no other project's ``export``
or ``bench``.  Each is run as ``python -m`` runs it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def export() -> None:
    """Run ``python -m export``."""
    _run("export")


def engines() -> None:
    """Run ``python -m engines``."""
    _run("engines")


def bench() -> None:
    """Run ``python -m bench``."""
    _run("bench")


def _run(name: str) -> None:
    inside = (_HERE / name).is_dir()
    sys.path.insert(0, str(_HERE if inside else _HERE.parent))
    runpy.run_module(name, run_name="__main__", alter_sys=True)
