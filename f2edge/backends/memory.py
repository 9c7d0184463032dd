"""Memory that has been freed goes back to the system; glibc would keep what a burst leaves."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return freed memory to the system; a few milliseconds, and nothing where there is no glibc."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
