"""The three meters of :mod:`engines.power.power`.

Sources, looked up in November 2026; none of the three has run on its hardware here:

* RAPL: docs.kernel.org/power/powercap/powercap.html (zones, ``energy_uj``, ``max_energy_range_uj``).  Zone "psys" contains the packages
  and "core"/"uncore" are parts of them, so only packages and DRAM are added (powercap/powercap#3).  Since CVE-2020-8694 only root reads.
* NVML: ``nvmlDeviceGetTotalEnergyConsumption`` (millijoules, Volta and newer), ``nvmlDeviceGetPowerUsage`` (milliwatts; from Ampere on an
  average over a second), both in NVIDIA's NVML reference.
* tegrastats: "tegrastats Utility" in NVIDIA's Jetson Linux Developer Guide (r36, r38.4): ``RAIL now/average``, with "mW" since JetPack 5.
  VDD_IN is all of the module (NVIDIA's forum, topic 200883), Thor's VIN all of the board (topic 366461), POM_5V_IN the Nano's input (topic
  73608).  Second-hand: AGX Xavier's rails add up (topic 81016), and AGX Orin's do without VDDQ_VDD2_1V8AO, a part of VIN_SYS_5V0.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.power.meter import Meter, PowerError, PowerIntegral

_POWERCAP = Path("/sys/class/powercap")
_ZONE = re.compile(r"package-\d+(-die-\d+)?|dram")
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (-?[0-9]{1,9})(?:mW(?:/-?[0-9]{1,9}mW)*|(?:/-?[0-9]{1,9})+)(?!\S)")
#: Rails that measure the whole device, in order of preference.
_WHOLE = ("VIN", "VDD_IN", "POM_5V_IN")
#: Rails whose sum is the whole device: AGX Orin, Thor without an input meter, AGX Xavier.
_PARTS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
_FIRST_LINE_S = 5.0
_NVML_PERIOD_S = 0.05


class Rapl:
    """Energy of the CPU packages and their DRAM, from counters that wrap around at their range.

    Args:
        root: folder of the zones.

    Raises:
        PowerError: no zones, or none that may be read.
    """

    name = "rapl"

    def __init__(self, root: Path = _POWERCAP) -> None:
        if not root.is_dir():
            raise PowerError(f"{root} does not exist: no RAPL, as in most virtual machines")
        zones = [folder for folder in sorted(root.glob("intel-rapl:*")) if _ZONE.fullmatch(_text(folder / "name"))]
        if not zones:
            raise PowerError(f"{root} has no zone of a CPU package")
        self._zones = [(folder / "energy_uj", _number(folder / "max_energy_range_uj")) for folder in zones]
        self.covers = "CPU " + " + ".join(_text(folder / "name") for folder in zones)
        self._last = [_number(path) for path, _ in self._zones]
        self._joules = 0.0

    def joules(self) -> float:
        """See :class:`~engines.power.meter.Meter`; call it at least once per range of the counter, minutes even at full power."""
        for place, (path, range_uj) in enumerate(self._zones):
            now = _number(path)
            self._joules += (now - self._last[place] + (range_uj if now < self._last[place] else 0)) / 1e6
            self._last[place] = now
        return self._joules

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except PermissionError as error:
        raise PowerError(f"{path} may be read by root only; run as root, or `sudo chmod a+r` every energy_uj") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PowerError(f"{path} cannot be read ({error})") from error


def _number(path: Path) -> int:
    text = _text(path)
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise PowerError(f"{path} is no number: {text[:40]!r}")
    return int(text)


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise PowerError("needs nvidia-ml-py: pip install nvidia-ml-py") from error
    return pynvml


class Nvml:
    """Energy of one NVIDIA GPU: from its energy counter or, where it has none, from its power, read twenty times a second.

    The GPU is the first of ``CUDA_VISIBLE_DEVICES`` (an index or a UUID), otherwise NVML's first.

    Args:
        library: the module ``pynvml`` of ``nvidia-ml-py``; imported by default.

    Raises:
        PowerError: no driver, no GPU, or one without energy and power readings.
    """

    name = "nvml"

    def __init__(self, library: Any | None = None) -> None:
        self._library = _pynvml() if library is None else library
        self._held: PowerIntegral | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="nvml", daemon=True)
        self._call("nvmlInit")
        try:
            self._gpu = self._device()
            name = self._call("nvmlDeviceGetName", self._gpu)
            self.covers = "GPU " + (name.decode(errors="replace") if isinstance(name, bytes) else str(name))
            try:
                self._first = self._call("nvmlDeviceGetTotalEnergyConsumption", self._gpu)
            except PowerError:
                self._held = PowerIntegral()
                self._held.add(self._call("nvmlDeviceGetPowerUsage", self._gpu) / 1e3)
                self._thread.start()
        except PowerError:
            self._call("nvmlShutdown")
            raise

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._library, function)(*arguments)
        except self._library.NVMLError as error:
            raise PowerError(f"{function}: {error}") from error

    def _device(self) -> Any:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
        if chosen.isdecimal():
            return self._call("nvmlDeviceGetHandleByIndex", int(chosen))
        if not chosen or chosen.startswith("-"):
            raise PowerError("CUDA_VISIBLE_DEVICES hides every GPU")
        return self._call("nvmlDeviceGetHandleByUUID", chosen)

    def _sample(self) -> None:
        assert self._held is not None
        while not self._stop.wait(_NVML_PERIOD_S):
            try:
                self._held.add(self._call("nvmlDeviceGetPowerUsage", self._gpu) / 1e3)
            except PowerError as error:
                self._held.end(str(error))
                return

    def joules(self) -> float:
        """See :class:`~engines.power.meter.Meter`."""
        if self._held is not None:
            return self._held.joules()
        return float(self._call("nvmlDeviceGetTotalEnergyConsumption", self._gpu) - self._first) / 1e3

    def close(self) -> None:
        """Stop sampling and shut NVML down."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._call("nvmlShutdown")


def parse_rails(line: str) -> dict[str, int]:
    """Return the current milliwatts of every rail in a line of tegrastats; {} for a line without any.

    Known formats: ``VDD_IN 5297/5297`` (JetPack 4), ``VDD_IN 7421mW/8050mW`` (now/average), and JetPack 7.2's with the maximum as a third.
    """
    return {match[1]: int(match[2]) for match in _RAIL.finditer(line)}


def whole_of(rails: Mapping[str, int]) -> tuple[str, ...]:
    """Return the rails whose sum is the power of the whole device; () where none are known."""
    for name in _WHOLE:
        if name in rails:
            return (name,)
    return next((parts for parts in _PARTS if rails.keys() >= set(parts)), ())


class Tegrastats:
    """Energy of a Jetson, from the power that ``tegrastats`` prints ten times a second.

    Raises:
        PowerError: no tegrastats, or no line with known rails within five seconds.
    """

    name = "tegrastats"

    def __init__(self, command: Sequence[str] = ("tegrastats", "--interval", "100")) -> None:
        program = shutil.which(command[0])
        if program is None:
            raise PowerError("tegrastats not found: not a Jetson")
        self._held, self._known, self._seen = PowerIntegral(), threading.Event(), dict[str, int]()
        self._rails: tuple[str, ...] = ()
        arguments = [program, *command[1:]]
        try:
            self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace")  # noqa: S603
        except OSError as error:
            raise PowerError(f"{program} cannot be run ({error.strerror})") from error
        self._thread = threading.Thread(target=self._read, name="tegrastats", daemon=True)
        self._thread.start()
        self.covers = f"board ({self._first()})"

    def _first(self) -> str:
        """Wait for the first line with known rails; return their names."""
        self._known.wait(_FIRST_LINE_S)
        if self._rails:
            return " + ".join(self._rails)
        self.close()
        raise PowerError(f"tegrastats prints {'unknown rails: ' + ', '.join(self._seen) if self._seen else 'no power'}; run it as root")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            rails = parse_rails(line)
            self._seen.update(rails)
            self._rails = self._rails or whole_of(rails)
            if self._rails and rails.keys() >= set(self._rails):
                self._held.add(sum(rails[name] for name in self._rails) / 1e3)
                self._known.set()
        self._held.end("tegrastats ended")
        self._known.set()

    def joules(self) -> float:
        """See :class:`~engines.power.meter.Meter`."""
        return self._held.joules()

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(timeout=5)
        if self._process.stdout is not None:
            self._process.stdout.close()


OPENERS: Mapping[str, Callable[[], Meter]] = {"tegrastats": Tegrastats, "rapl": Rapl, "nvml": Nvml}
