"""Device profiles: hardware, TensorRT versions and build settings of each device.

One TOML file per device in ``engines/profiles``; the file's ``[sources]`` names the source of every number.

>>> profile = load_profile("orin-nano")
>>> profile.sm, profile.recipes["mmu_extend"], profile.version
(87, 'int4', '10.3')
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints

from f2edge.errors import InputError
from f2edge.spec.graphs import SIGNATURES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "profiles"
#: Recipe of the "tensorrt" flavour (``export.tensorrt.recipes``) → minimum compute capability, times ten.
RECIPE_SM: Mapping[str, int] = MappingProxyType({"fp16": 75, "int8": 75, "int4": 80, "int4-gptq": 80, "fp8": 89, "nvfp4": 100})
#: Number formats of a profile's throughput entries: tera-operations per second, dense, tensor cores.
RATES = ("fp16", "bf16", "int8", "fp8", "fp4")


@dataclass(frozen=True)
class Memory:
    """Memory of a device; sizes in 10⁹ bytes as in data sheets.

    Attributes:
        total_gb: size.
        reserved_gb: used by the operating system and the CUDA and TensorRT libraries.
        bandwidth_gb_s: bandwidth in GB/s.
        integrated: whether CPU and GPU share the memory.
    """

    total_gb: float
    reserved_gb: float
    bandwidth_gb_s: float
    integrated: bool

    @property
    def usable_gb(self) -> float:
        """Memory left for engines, caches and workspace."""
        return self.total_gb - self.reserved_gb


@dataclass(frozen=True)
class Software:
    """One TensorRT release for the device: versions "major.minor" of TensorRT and CUDA, and the system that ships it."""

    tensorrt: str
    cuda: str
    system: str


@dataclass(frozen=True)
class Build:
    """Build settings of a device.

    Attributes:
        workspace_mib: maximum workspace of a tactic.
        optimization_level: TensorRT's builder optimization level, 0 … 5.
        max_aux_streams: auxiliary streams of one engine.
        images: batch sizes R of a decoding step; each gets one static optimization profile.
        questions: maximum questions B in one batch.
        tactic_dram_mib: limit of the memory that the builder times kernels in; 0 keeps TensorRT's, 75 % of all memory on a Jetson, with
            the host memory of the build in it.
    """

    workspace_mib: int
    optimization_level: int
    max_aux_streams: int
    images: tuple[int, ...]
    questions: int
    tactic_dram_mib: int = 0


@dataclass(frozen=True)
class Profile:
    """Profile of one device.

    Attributes:
        name: file name without suffix; also the name on the command line.
        title: display name.
        sm: compute capability times ten.
        sm_count: streaming multiprocessors.
        memory: see :class:`Memory`.
        rates: throughput in dense tera-operations per second, by format of :data:`RATES`; unsupported formats are absent.
        software: TensorRT releases; the first is the one to build for.
        recipes: graph name → recipe of :data:`RECIPE_SM`.
        build: see :class:`Build`.
        sources: source of each number.
    """

    name: str
    title: str
    sm: int
    sm_count: int
    memory: Memory
    rates: Mapping[str, float]
    software: tuple[Software, ...]
    recipes: Mapping[str, str]
    build: Build
    sources: Mapping[str, str]

    @property
    def version(self) -> str:
        """TensorRT version to build for, such as "10.3"."""
        return self.software[0].tensorrt

    def to_json(self) -> dict[str, Any]:
        """Return the profile as JSON-ready data."""
        return {
            "name": self.name,
            "title": self.title,
            "sm": self.sm,
            "sm_count": self.sm_count,
            "memory": {**asdict(self.memory), "usable_gb": self.memory.usable_gb},
            "rates": dict(self.rates),
            "software": [asdict(software) for software in self.software],
            "recipes": dict(self.recipes),
            "build": {**asdict(self.build), "images": list(self.build.images)},
            "sources": dict(self.sources),
        }


def profile_names() -> tuple[str, ...]:
    """Return the names of all shipped profiles: integrated devices first, then by memory bandwidth."""
    known = {path.stem: load_profile(path.stem) for path in FOLDER.glob("*.toml")}
    return tuple(sorted(known, key=lambda name: (not known[name].memory.integrated, known[name].memory.bandwidth_gb_s, name)))


def load_profile(name: str) -> Profile:
    """Load the shipped profile called ``name``, or the TOML file at that path.

    Raises:
        InputError: unknown name, or an invalid file; the message names the key.
    """
    path = Path(name) if name.endswith(".toml") or Path(name).name != name else FOLDER / f"{name}.toml"
    if path.parent == FOLDER and not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise InputError(f"unknown device profile {name!r}; choose one of: {known}; or give a TOML file")
    try:
        return parse_profile(path.read_bytes(), path.stem)
    except OSError as error:
        raise InputError(f"device profile {name}: {error.strerror}; give a readable TOML file") from error


def load_profiles(names: Sequence[str] = ()) -> list[Profile]:
    """Load the named profiles, or all shipped ones."""
    return [load_profile(name) for name in names or profile_names()]


def parse_profile(data: bytes, name: str) -> Profile:
    """Parse the bytes of a profile file; raises :class:`InputError` naming the invalid key."""
    where = f"device profile {name!r}"
    try:
        row = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"{where}: not valid TOML ({error})") from error
    profile: Profile = _typed({"name": name, **row}, Profile, where)
    _check(profile, where)
    return profile


def _check(profile: Profile, where: str) -> None:
    memory, build = profile.memory, profile.build
    rules = {
        "name: the name of its file": profile.name == profile.name.strip() and bool(profile.name),
        "sm in 75 … 130": 75 <= profile.sm <= 130,
        "sm_count in 1 … 1000": 1 <= profile.sm_count <= 1000,
        "memory.total_gb above memory.reserved_gb, neither negative": 0 <= memory.reserved_gb < memory.total_gb <= 1e5,
        "memory.bandwidth_gb_s above 0": 0 < memory.bandwidth_gb_s <= 1e6,
        f"rates of {', '.join(RATES)}, each above 0, fp16 among them": set(profile.rates) <= set(RATES)
        and "fp16" in profile.rates
        and all(0 < rate <= 1e6 for rate in profile.rates.values()),
        "software: at least one TensorRT": bool(profile.software),
        "software.tensorrt as major.minor, 10.3 or newer": all(_version(s.tensorrt) >= (10, 3) for s in profile.software),
        "recipes: one for every graph": set(profile.recipes) == set(SIGNATURES),
        "build.images: positive numbers": bool(build.images) and all(0 < n <= 1024 for n in build.images),
        "build.questions in 1 … 1024": 1 <= build.questions <= 1024,
        "build.optimization_level in 0 … 5": 0 <= build.optimization_level <= 5,
        "build.max_aux_streams in 0 … 16": 0 <= build.max_aux_streams <= 16,
        "build.workspace_mib in 16 … 262144": 16 <= build.workspace_mib <= 1 << 18,
        "build.tactic_dram_mib 0, or from workspace_mib to 262144": not build.tactic_dram_mib
        or build.workspace_mib <= build.tactic_dram_mib <= 1 << 18,
    }
    for rule, kept in rules.items():
        if not kept:
            raise InputError(f"{where}: needs {rule}")
    for graph, recipe in profile.recipes.items():
        if recipe not in RECIPE_SM:
            raise InputError(f"{where}: recipes.{graph} is {recipe!r}; choose one of: {', '.join(RECIPE_SM)}")
        if RECIPE_SM[recipe] > profile.sm:
            raise InputError(
                f"{where}: recipes.{graph} {recipe!r} needs compute capability {RECIPE_SM[recipe]}, the device has {profile.sm}"
            )
    needed = {"memory", "bandwidth", *profile.rates}
    if missing := sorted(needed - set(profile.sources)):
        raise InputError(f"{where}: sources lacks {', '.join(missing)}; name the source of each number")


def _version(text: str) -> tuple[int, ...]:
    """Parse "10.3" as (10, 3); return () for anything else, which sorts below every version."""
    parts = text.split(".")
    return tuple(int(part) for part in parts) if len(parts) == 2 and all(part.isdecimal() for part in parts) else ()


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Convert parsed TOML to type ``hint``: a dataclass, ``tuple[…, ...]``, ``Mapping[str, …]`` or a plain type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where} must be a list, got {value!r:.60}")
        return tuple(_typed(item, arguments[0], f"{where}[{index}]") for index, item in enumerate(value))
    if origin is not None:
        return MappingProxyType({key: _typed(item, arguments[1], f"{where}.{key}") for key, item in _table(value, where).items()})
    if hint in (str, int, bool, float):
        allowed = (int, float) if hint is float else (hint,)
        if type(value) not in allowed:
            raise InputError(f"{where} must be {hint.__name__}, got {value!r:.60}")
        return hint(value)
    row, hints = _table(value, where), get_type_hints(hint)
    known = {f.name: f for f in fields(hint)}
    if unknown := sorted(set(row) - set(known)):
        raise InputError(f"{where}: unknown keys {', '.join(unknown)}; known are {', '.join(known)}")
    if missing := sorted(n for n, f in known.items() if n not in row and f.default is MISSING):
        raise InputError(f"{where}: {', '.join(missing)} missing")
    return hint(**{key: _typed(item, hints[key], f"{where}.{key}") for key, item in row.items()})


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a table, got {value!r:.60}")
    return value


def print_profiles(profiles: Sequence[Profile], *, as_json: bool) -> None:
    """Print profiles as a table, or as one JSON document."""
    if as_json:
        print(json.dumps([profile.to_json() for profile in profiles]))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shown = [rate for rate in RATES if rate != "bf16"]
    columns = ("SM", "GB", "GB/s", *shown, "TensorRT", "t2i", "mmu")
    table = Table(box=SIMPLE_HEAD, padding=0, title="Devices: dense tera-operations per second, recipes")
    table.add_column("device", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="left" if column in ("TensorRT", "t2i", "mmu") else "right")
    for p in profiles:
        rates = [f"{p.rates[rate]:.0f}" if rate in p.rates else "-" for rate in shown]
        hardware = (str(p.sm), f"{p.memory.total_gb:g}", f"{p.memory.bandwidth_gb_s:.0f}")
        versions = " ".join(s.tensorrt for s in p.software)
        table.add_row(p.name, *hardware, *rates, versions, p.recipes["t2i_step"], p.recipes["mmu_extend"])
    Console().print(table)
