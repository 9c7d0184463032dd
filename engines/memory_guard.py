"""Checks of free memory and disk space before a build.

On a board whose CPU and GPU share 8 GB, a build that runs out of memory can kill the desktop session.  A build needs, beside its workspace:
TensorRT's kernel library (1.15 to 1.75 GB of host memory in reports on Orin Nano: NVIDIA/TensorRT#3657, #4493), two copies of the weights
(as read and as the plan holds them), and buffers to time candidate kernels with.  GPU memory cannot be swapped out, so free swap counts for
the library and one copy of the weights only.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from f2edge.errors import InputError, OutputError

LIBRARY_BYTES = 1750 << 20
CURE = (
    "stop the desktop (`sudo systemctl set-default multi-user.target`, reboot), add swap on NVMe, lower --workspace-mib, "
    "export smaller weights (int4), build on a larger device of the same kind, or say --force (docs/jetson.md)"
)


@dataclass(frozen=True)
class HostMemory:
    """Free memory and free swap, in bytes."""

    available: int
    swap: int

    @classmethod
    def read(cls, path: str | Path = "/proc/meminfo") -> HostMemory | None:
        """Return free memory as Linux's ``/proc/meminfo`` reports it; None where that file is missing."""
        try:
            lines = Path(path).read_text(encoding="ascii").splitlines()
            row = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if rest.strip()}
            return cls(row["MemAvailable"], row.get("SwapFree", 0))
        except (OSError, ValueError, KeyError):
            return None


def check(memory: HostMemory, weight_bytes: int, workspace_bytes: int, *, integrated: bool) -> str:
    """Compare the expected memory of building one graph with free memory, and return the comparison as text.

    Args:
        memory: free memory of this machine.
        weight_bytes: size of the graph's weights.
        workspace_bytes: largest workspace of a tactic.
        integrated: whether CPU and GPU share memory.

    Raises:
        InputError: less memory is free than the build is expected to need.
    """
    host = LIBRARY_BYTES + 2 * weight_bytes
    device = (weight_bytes + workspace_bytes) if integrated else 0
    swappable = min(memory.swap, LIBRARY_BYTES + weight_bytes)
    free = memory.available + swappable
    if host + device > free:
        raise InputError(
            f"building this needs about {_gb(host + device)} and {_gb(memory.available)} of memory with {_gb(swappable)} of usable swap "
            f"are free; {CURE}"
        )
    return f"about {_gb(host + device)} of {_gb(free)} free"


def check_disk(folder: Path, weight_bytes: int) -> None:
    """Check that ``folder`` has room for a plan, which is about as large as its weights; raises :class:`OutputError`."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < weight_bytes:
        raise OutputError(f"{folder}: a plan takes about {_gb(weight_bytes)}, the disk has {_gb(free)} free; make room, or say --force")


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
