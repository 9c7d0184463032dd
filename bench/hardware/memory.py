"""Memory of a process, from ``/proc`` (Linux)."""

from __future__ import annotations

from pathlib import Path

from f2edge.errors import InputError

_FIELDS = {"VmRSS": "resident", "RssAnon": "own", "RssFile": "mapped", "VmHWM": "peak"}


def process_memory(pid: int | str = "self") -> dict[str, int]:
    """Return bytes: "resident", of these "own" (anonymous) and "mapped" (from files, reclaimable), and "peak" resident so far.

    Raises:
        InputError: not Linux, or no such process.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise InputError(f"memory of process {pid}: cannot be read from /proc; run the bench on Linux") from error
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: 1024 * int(fields[field].split()[0]) for field, name in _FIELDS.items() if field in fields}


def memory_or_none(pid: int | str = "self") -> dict[str, int] | None:
    """As :func:`process_memory`; None where it cannot be read."""
    try:
        return process_memory(pid)
    except InputError:
        return None


def resident_mb(pid: int | str = "self") -> float | None:
    """Return resident memory in 10⁶ bytes; None where it cannot be read."""
    memory = memory_or_none(pid)
    return memory["resident"] / 1e6 if memory and "resident" in memory else None
