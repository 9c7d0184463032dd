"""Memory that has been freed goes back to the system; glibc would keep what a burst leaves."""

from __future__ import annotations

import ctypes
import os
import sys

_M_ARENA_MAX, _HEAPS = -8, 2  # malloc.h


def few_heaps() -> None:
    """Let all threads share two heaps, from before the first thread on; nothing where there is no glibc or the user has chosen.

    glibc gives every thread one of eight heaps a core, and each keeps the pieces of the largest burst that it has seen: beside attackers a
    server grew by 60 MB in an hour, with as little in use as at the start.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(_M_ARENA_MAX, _HEAPS)


def give_back() -> None:
    """Return freed memory to the system; a few milliseconds, and nothing where there is no glibc."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
