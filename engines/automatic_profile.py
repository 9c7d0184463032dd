"""Choice of the device profile for the GPU of this machine (``--profile auto``)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from engines.profile import Profile, load_profiles
from f2edge.backends.tensorrt.plans import Machine
from f2edge.errors import InputError

AUTO = "auto"
#: A device has as much memory as a profile says within this factor: drivers report some per cent more or less than data sheets.
_SAME_MEMORY = 1.25


def automatic_profile(machine: Machine, memory_bytes: int, *, integrated: bool, known: Iterable[Profile] | None = None) -> Profile:
    """Return the profile of a device: the one with its capability, multiprocessors and memory, else the nearest one, adapted.

    Adapted: settings of the largest profile of its architecture that has no more memory, with the device's own numbers.  Of an
    architecture without a profile, the newest earlier one counts.

    Args:
        machine: GPU of this machine.
        memory_bytes: its memory.
        integrated: whether CPU and GPU share it.
        known: profiles to choose from; the shipped ones by default.

    Raises:
        InputError: no profile is for this or an earlier architecture.
    """
    major, minor = (int(part) for part in machine.capability.split("."))
    sm, gigabytes = 10 * major + minor, memory_bytes / 1e9
    profiles = [p for p in (load_profiles() if known is None else known) if p.memory.integrated == integrated and p.sm <= sm]
    if not profiles:
        raise InputError(
            f"--profile auto: no profile for {machine.gpu} (compute capability {machine.capability}) or an earlier GPU; "
            "write a TOML file like those of engines/profiles"
        )
    newest = max(p.sm for p in profiles)
    near = sorted((p for p in profiles if p.sm == newest), key=lambda p: p.memory.total_gb)
    for profile in near:
        ratio = gigabytes / profile.memory.total_gb
        if profile.sm == sm and profile.sm_count == machine.multiprocessors and 1 / _SAME_MEMORY <= ratio <= _SAME_MEMORY:
            return profile
    smaller = [p for p in near if p.memory.total_gb <= gigabytes * _SAME_MEMORY]
    base = smaller[-1] if smaller else near[0]
    name = re.sub(r"[^a-z0-9]+", "-", f"auto {machine.gpu} {machine.multiprocessors}sm {gigabytes:.0f}gb".lower()).strip("-")
    memory = replace(base.memory, total_gb=gigabytes, reserved_gb=min(base.memory.reserved_gb, 0.5 * gigabytes))
    return replace(base, name=name, title=f"{machine.gpu}, settings of {base.name}", sm=sm, sm_count=machine.multiprocessors, memory=memory)
