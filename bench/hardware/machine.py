"""Identity of this machine, and how busy it is."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from time import sleep
from typing import Any

from f2edge.backends.onnxruntime import usable_cores

#: Share of the cores' time from which a machine counts as busy.
_BUSY = 0.15


def busy_share(before: str, after: str) -> float | None:
    """Return the share of all cores' time that was not idle between two readings of ``/proc/stat``; None for other texts.

    The columns of its first line are user, nice, system, idle, iowait, irq, softirq, steal (man 5 proc_stat); stolen time is not
    idle.
    """
    spent = []
    for text in (before, after):
        match = re.match(r"cpu((?: +[0-9]+){8})", text)
        if match is None:
            return None
        spent.append([int(ticks) for ticks in match[1].split()])
    passed = [now - then for then, now in zip(*spent, strict=True)]
    return 1 - (passed[3] + passed[4]) / sum(passed) if sum(passed) > 0 else None


def machine(seconds: float = 1.0) -> dict[str, Any]:
    """Return "processor", "cores", "busy_share" and "busy", observed for ``seconds`` in which this process sleeps."""

    def read(path: str) -> str:
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""  # not Linux

    lines = [line for line in read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    models = [line.partition(":")[2].strip() for line in lines]
    before = read("/proc/stat")
    sleep(seconds)
    share = busy_share(before, read("/proc/stat"))
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "busy_share": share,
        "busy": share is not None and share > _BUSY,
    }
