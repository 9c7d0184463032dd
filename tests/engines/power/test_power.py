"""Meters of energy, at the boundary of what they read: a folder like sysfs, an object like NVML's module, a program like tegrastats.

The lines of tegrastats are recorded ones with fewer cores and temperatures, from public reports and tests: the Nano's from DataDog's agent,
TX2's and Orin Nano's from henrygd/beszel, AGX Orin's (JetPack 6) and AGX Xavier's from scripts that read them, Thor's (JetPack 7.2) from
WendyOS's agent.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.power.meter import STALE_S, Meter, PowerError, PowerIntegral
from engines.power.power import Energy, Power
from engines.power.power_meters import Nvml, Rapl, Tegrastats, parse_rails, whole_of
from f2edge.errors import InputError

TX2 = (
    "RAM 3276/7859MB (lfb 5x4MB) SWAP 1626/12122MB (cached 181MB) CPU [44%@1421,49%@2031] EMC_FREQ 1%@1866 GR3D_FREQ 0%@114 APE 150 "
    "PLL@42.5C Tdiode@39.25C VDD_SYS_GPU 182/182 VDD_SYS_SOC 730/730 VDD_4V0_WIFI 0/0 VDD_IN 5297/5290 VDD_SYS_CPU 1917/1917"
)
AGX_ORIN = (
    "03-17-2024 18:54:10 RAM 10239/62841MB (lfb 442x4MB) SWAP 1/31421MB (cached 0MB) CPU [0%@1728,off] GR3D_FREQ 0% cpu@37.5C tboard@27C "
    "VDD_GPU_SOC 1592mW/1592mW VDD_CPU_CV -398mW/-398mW VIN_SYS_5V0 2624mW/2624mW VDDQ_VDD2_1V8AO 403mW/403mW"
)
THOR = (
    "07-02-2026 13:45:44 RAM 36529/125749MB (lfb 12x4MB) SWAP 11/4096MB (cached 9MB) CPU [2%@972,1%@972] cpu@60.406C/60.406C gpu@62.906C "
    "VDD_GPU 37528mW/37528mW/37528mW VDD_CPU_SOC_MSS 18961mW/18961mW/18961mW VIN_SYS_5V0 18331mW/18331mW/18331mW "
    "VIN 87426mW/43713mW/87426mW"
)
ORIN_NANO = (
    "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) CPU [15%@729] EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] "
    "VIC off APE 200 cpu@53.968C tj@53.968C VDD_IN 12479mW/12479mW VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW"
)
NANO = "RAM 613/3964MB (lfb 634x4MB) IRAM 0/252kB(lfb 252kB) EMC_FREQ 0% PMIC@100C POM_5V_IN 900/943 POM_5V_GPU 0/0 POM_5V_CPU 123/123"
AGX_XAVIER = (
    "CPU [0%@1190,1%@1190] EMC_FREQ 0%@1331 APE 150 AUX@36C CPU@36.5C GPU@35C GPU 467mW/467mW CPU 467mW/467mW SOC 1245mW/1245mW CV 0mW/0mW "
    "VDDRQ 311mW/311mW SYS5V 2768mW/2768mW"
)


def test_rails_of_recorded_lines() -> None:
    assert parse_rails(TX2) == {"VDD_SYS_GPU": 182, "VDD_SYS_SOC": 730, "VDD_4V0_WIFI": 0, "VDD_IN": 5297, "VDD_SYS_CPU": 1917}
    assert parse_rails(AGX_ORIN)["VDD_CPU_CV"] == -398
    assert parse_rails(THOR) == {"VDD_GPU": 37528, "VDD_CPU_SOC_MSS": 18961, "VIN_SYS_5V0": 18331, "VIN": 87426}


@pytest.mark.parametrize(
    ("line", "milliwatts"),
    [(NANO, 900), (TX2, 5297), (AGX_XAVIER, 5258), (ORIN_NANO, 12479), (AGX_ORIN, 1592 - 398 + 2624), (THOR, 87426)],
    ids=["nano", "tx2", "agx-xavier", "orin-nano", "agx-orin", "thor"],
)
def test_everything_is_counted_once(line: str, milliwatts: int) -> None:
    rails = parse_rails(line)
    assert sum(rails[name] for name in whole_of(rails)) == milliwatts


@given(st.text(max_size=300) | st.lists(st.sampled_from([*AGX_ORIN.split(), *THOR.split(), "NaNmW/1mW", "VIN", "7mW"])).map(" ".join))
def test_any_line_gives_rails_or_none(line: str) -> None:
    rails = parse_rails(line)
    assert all(re.search(rf"{name} -?0*{abs(value)}(?![0-9])", line) for name, value in rails.items())
    assert set(whole_of(rails)) <= set(rails)


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{0,12}", fullmatch=True), st.integers(-(10**8), 10**8), max_size=8), st.booleans())
def test_rails_as_printed_are_read_back(rails: dict[str, int], units: bool) -> None:
    unit = "mW" if units else ""
    line = "RAM 1/2MB " + " ".join(f"{name} {value}{unit}/{value}{unit}" for name, value in rails.items()) + " tj@40C"
    assert parse_rails(line) == rails


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 0.99 * STALE_S)), min_size=1, max_size=20))
def test_a_power_holds_until_the_next(readings: list[tuple[float, float]]) -> None:
    now, expected, seen = 0.0, 0.0, [0.0]
    held = PowerIntegral(lambda: now)
    for watts, seconds in readings:
        held.add(watts)
        now += seconds
        expected += watts * seconds
        seen.append(held.joules())
        assert seen[-1] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(seen))


def test_a_power_that_is_not_told_any_more_is_not_held() -> None:
    now = 0.0
    held = PowerIntegral(lambda: now)
    with pytest.raises(PowerError, match="no reading"):
        held.joules()
    held.add(10.0)
    now = STALE_S + 1
    with pytest.raises(PowerError, match=r"no reading of the power for 4\.0 s"):
        held.joules()


def zone(root: Path, number: str, name: str, energy: int, most: int = 1000) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")
    return folder


def test_rapl_adds_packages_and_memory_only(tmp_path: Path) -> None:
    folders = {
        name: zone(tmp_path, number, name, 100)
        for number, name in (("0", "package-0"), ("0:0", "core"), ("0:1", "dram"), ("1", "psys"), ("2", "package-1"))
    }
    (tmp_path / "intel-rapl").mkdir()
    meter = Rapl(tmp_path)
    for folder in folders.values():
        (folder / "energy_uj").write_text("350\n")
    assert meter.joules() == pytest.approx(3 * 250e-6)
    assert meter.covers == "CPU package-0 + dram + package-1"


@settings(max_examples=25, deadline=None)  # files are written
@given(st.lists(st.integers(0, 999), max_size=30), st.integers(0, 999))
def test_rapl_counts_on_where_a_counter_begins_anew(tmp_path_factory: pytest.TempPathFactory, steps: list[int], start: int) -> None:
    folder = zone(tmp_path_factory.mktemp("powercap"), "0", "package-0", start)
    meter = Rapl(folder.parent)
    counter = start
    for step in steps:
        counter = (counter + step) % 1000
        (folder / "energy_uj").write_text(f"{counter}\n")
        meter.joules()
    assert meter.joules() == pytest.approx(sum(steps) / 1e6)


def test_rapl_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PowerError, match="no RAPL, as in most virtual machines"):
        Rapl(tmp_path / "powercap")
    with pytest.raises(PowerError, match="no zone of a CPU package"):
        Rapl(tmp_path)
    folder = zone(tmp_path, "0", "package-0", 0)
    (folder / "energy_uj").write_text("much\n")
    with pytest.raises(PowerError, match="energy_uj is no number: 'much'"):
        Rapl(tmp_path)

    def refuse(_path: Path, **_: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # root, who runs tests in containers, may read whatever the mode is
    with pytest.raises(PowerError, match="root only"):
        Rapl(tmp_path)


class NVMLError(Exception):
    pass


def nvml(energies: list[int] | None = None, powers: list[int] | None = None, error: str = "") -> SimpleNamespace:
    """A module like pynvml: counters in mJ and powers in mW, one after the other, the last for ever; without a list, not supported."""

    def of(values: list[int] | None) -> Callable[[str], int]:
        def read(gpu: str) -> int:
            if values is None:
                raise NVMLError("Not Supported")
            assert gpu == "the GPU"
            return values.pop(0) if len(values) > 1 else values[0]

        return read

    def device(index: int) -> str:
        if error:
            raise NVMLError(error)
        assert index == 0
        return "the GPU"

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=device,
        nvmlDeviceGetName=lambda _: b"NVIDIA Paper",
        nvmlDeviceGetTotalEnergyConsumption=of(energies),
        nvmlDeviceGetPowerUsage=of(powers),
    )


@pytest.fixture(autouse=True)
def _any_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_nvml_reads_the_counter_of_energy() -> None:
    meter = Nvml(nvml(energies=[5000, 7500, 9000]))
    assert (meter.joules(), meter.joules(), meter.covers) == (2.5, 4.0, "GPU NVIDIA Paper")
    meter.close()


def test_nvml_adds_up_power_where_there_is_no_counter() -> None:
    start = time.monotonic()
    meter = Nvml(nvml(powers=[20_000]))
    try:
        time.sleep(0.2)
        low = meter.joules()
        assert 20 * 0.2 * 0.99 <= low <= 20 * (time.monotonic() - start)
        time.sleep(0.1)
        assert meter.joules() - low >= 20 * 0.1 * 0.99
    finally:
        meter.close()


def test_nvml_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PowerError, match="nvmlDeviceGetHandleByIndex: GPU is lost"):
        Nvml(nvml(error="GPU is lost"))
    with pytest.raises(PowerError, match="nvmlDeviceGetPowerUsage: Not Supported"):
        Nvml(nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(PowerError, match="hides every GPU"):
        Nvml(nvml(energies=[0]))


def program(path: Path, body: str) -> tuple[str, ...]:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return (str(path), "--interval", "100")


def test_tegrastats_is_read_while_it_runs(tmp_path: Path) -> None:
    meter = Tegrastats(program(tmp_path / "tegrastats", f"while :; do echo '{ORIN_NANO}'; sleep 0.05; done"))
    try:
        first, start = meter.joules(), time.monotonic()
        time.sleep(0.3)
        seconds = time.monotonic() - start
        assert meter.joules() - first == pytest.approx(12.479 * seconds, rel=0.2)
        assert meter.covers == "board (VDD_IN)"
    finally:
        meter.close()


@pytest.mark.parametrize(
    ("body", "said"), [("echo RAM 1/2MB", "no power"), ("echo VDD_ODD 5mW/5mW", "unknown rails: VDD_ODD"), ("exit 1", "no power")]
)
def test_tegrastats_without_known_rails_is_refused(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(PowerError, match=said):
        Tegrastats(program(tmp_path / "tegrastats", body))


def test_tegrastats_that_ends_is_no_constant_power(tmp_path: Path) -> None:
    meter = Tegrastats(program(tmp_path / "tegrastats", f"echo '{THOR}'"))
    meter._thread.join(5)
    with pytest.raises(PowerError, match="tegrastats ended"):
        meter.joules()
    meter.close()


class Counter:
    """A meter of so many joules more at each reading."""

    def __init__(self, name: str, step: float) -> None:
        self.name, self.covers, self.step, self.value, self.closed = name, f"the {name}", step, 0.0, False

    def joules(self) -> float:
        self.value += self.step
        return self.value

    def close(self) -> None:
        self.closed = True


def absent() -> Meter:
    raise PowerError("not here")


def test_cpu_and_gpu_are_added_and_a_board_stands_alone() -> None:
    cpu, gpu, board = Counter("rapl", 2.0), Counter("nvml", 3.0), Counter("tegrastats", 7.0)
    both = Power.open("auto", {"tegrastats": absent, "rapl": lambda: cpu, "nvml": lambda: gpu})
    result, drawn = both.measure(lambda: "done")
    assert (result, drawn.joules, both.covers, both.missing) == (
        "done",
        {"rapl": 2.0, "nvml": 3.0},
        "the rapl + the nvml",
        {"tegrastats": "not here"},
    )
    both.close()
    assert cpu.closed
    assert gpu.closed
    whole = Power.open("auto", {"tegrastats": lambda: board, "rapl": lambda: cpu, "nvml": lambda: gpu})
    assert [meter.name for meter in whole.meters] == ["tegrastats"]
    assert Energy(2.0, {"rapl": 2.0, "nvml": 4.0}).watts == 3.0


def test_a_meter_asked_for_by_name_must_be_there() -> None:
    openers = {"tegrastats": absent, "rapl": absent, "nvml": absent}
    assert Power.open("auto", openers).meters == ()
    assert Power.open("none").missing == {}
    with pytest.raises(InputError, match="--power rapl: not here"):
        Power.open("rapl", openers)
    with pytest.raises(InputError, match="choose auto, none, tegrastats, rapl, nvml"):
        Power.open("battery")
