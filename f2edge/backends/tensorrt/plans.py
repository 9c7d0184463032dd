"""TensorRT plans on disk, written by ``python -m engines build`` and read by the TensorRT backend.

A folder holds the plans of one bundle for one device: ``plans.json`` and a ``*.plan`` file per graph.  It is ``plans/<device profile>`` in
the bundle's folder or, if that is not writable, in the user's data folder.  A plan depends on the exact TensorRT version and on the GPU
that it was built on; :func:`unfit` returns why one cannot be used before TensorRT loads it.

Keys of ``plans.json``::

    format_version  1
    bundle          {name, sha256 of its manifest.json}
    profile         the device profile that the plans were built with
    machine         fields of Machine
    portable        {hardware: "none" | "same-compute-capability" | "ampere-plus", version: whether other TensorRT versions may load it}
    graphs          name → {file, sha256, bytes, key, inputs, outputs, profiles, buckets, plugins}; optional: settings, any JSON
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from f2edge.bundle.bundle import LARGEST_MANIFEST_BYTES, MANIFEST, Bundle
from f2edge.bundle.checked_json import get, inner_path, load, require, sequence, table, text, texts
from f2edge.errors import BundleError, ChecksumError
from f2edge.spec.graph_checks import Port
from f2edge.spec.graphs import SIGNATURES

PLANS = "plans.json"
FORMAT_VERSION = 1
#: Portability of plans: the levels of ``IBuilderConfig.hardware_compatibility_level``.
HARDWARE = ("none", "same-compute-capability", "ampere-plus")
#: Axis → (smallest, preferred, largest) size.
Range = tuple[int, int, int]
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Machine:
    """Machine properties that a plan depends on.

    Attributes:
        gpu: name of the device.
        capability: compute capability as "8.7".
        multiprocessors: number of multiprocessors; Orin modules of one capability differ in it.
        tensorrt: version of the library.
        cuda: highest CUDA version that the driver supports, as "12.6".
        l4t: release of Jetson Linux as "36.4", empty elsewhere.
    """

    gpu: str
    capability: str
    multiprocessors: int
    tensorrt: str
    cuda: str
    l4t: str = ""


@dataclass(frozen=True)
class GraphPlan:
    """Plan of one graph.

    Attributes:
        name: name of the graph.
        file: path in the folder.
        sha256, size: checksum and size in bytes of the file.
        key: digest of all build inputs.
        inputs, outputs: ports as in the bundle; a shape mixes sizes and axis names.
        profiles: optimisation profiles in order, each with the range of every named axis.
        buckets: sizes that an axis is padded up to, ascending; an axis without an entry runs at its own size.
        plugins: plug-ins that must be registered before loading, as "namespace::name:version".
    """

    name: str
    file: str
    sha256: str
    size: int
    key: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    profiles: tuple[Mapping[str, Range], ...]
    buckets: Mapping[str, tuple[int, ...]]
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanFolder:
    """Plans of one bundle for one device; ``document`` is the parsed JSON."""

    folder: Path
    bundle_name: str
    bundle_sha256: str
    profile: str
    machine: Machine
    hardware: str
    version_compatible: bool
    graphs: Mapping[str, GraphPlan]
    document: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> PlanFolder:
        """Read ``plans.json``; raises :class:`BundleError` naming the file and the wrong key."""
        path = folder / PLANS
        try:
            require({f"at most {LARGEST_MANIFEST_BYTES >> 20} MiB": path.stat().st_size <= LARGEST_MANIFEST_BYTES}, "the document")
            return cls._parse(folder, load(path.read_bytes()))
        except BundleError as error:
            raise BundleError(f"{path}: {error}; build the plans again with `python -m engines build`") from error
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror}); make the plans with `python -m engines build`") from error

    @classmethod
    def _parse(cls, folder: Path, document: Any) -> PlanFolder:
        version = get(document, "format_version")
        require({f"format_version {FORMAT_VERSION}; update f2edge": type(version) is int and version == FORMAT_VERSION}, "the document")
        bundle, portable = get(document, "bundle"), get(document, "portable")
        hardware, version_compatible = get(portable, "hardware", "portable"), get(portable, "version", "portable")
        require({f"one of {', '.join(HARDWARE)}": hardware in HARDWARE}, "portable.hardware")
        require({"true or false": type(version_compatible) is bool}, "portable.version")
        graphs = {name: _graph(name, row) for name, row in table(get(document, "graphs"), "graphs").items()}
        return cls(
            folder=folder,
            bundle_name=text(get(bundle, "name", "bundle"), "bundle.name"),
            bundle_sha256=text(get(bundle, "sha256", "bundle"), "bundle.sha256"),
            profile=text(get(document, "profile"), "profile"),
            machine=_machine(table(get(document, "machine"), "machine")),
            hardware=hardware,
            version_compatible=version_compatible,
            graphs=graphs,
            document=document,
        )

    def path(self, graph: str) -> Path:
        """Return the verified file of a graph's plan; raises :class:`BundleError` for a missing or damaged file."""
        if graph not in self.graphs:
            raise BundleError(f"{self.folder}: no plan for graph {graph!r} (it has {', '.join(self.graphs) or 'none'}); build it too")
        entry = self.graphs[graph]
        path = self.folder / entry.file
        try:
            same = path.stat().st_size == entry.size and file_sha256(path) == entry.sha256
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror}); build the plans again") from error
        if not same:
            raise ChecksumError(f"{path}: differs from its entry in {PLANS}; build or copy the plans again")
        return path


def unfit(plans: PlanFolder, machine: Machine) -> str | None:
    """Return why these plans cannot run on this machine, with the cure; None if they can."""
    built = plans.machine
    again = f"build them here with `python -m engines build {plans.bundle_name}`"
    if built.tensorrt != machine.tensorrt and not plans.version_compatible:
        return f"built with TensorRT {built.tensorrt}, this machine has {machine.tensorrt}; {again}"
    if plans.hardware == "ampere-plus":
        if int(machine.capability.split(".")[0]) < 8:
            return f"built for GPUs of compute capability 8.0 and above, {machine.gpu} has {machine.capability}; {again}"
        return None
    if built.capability != machine.capability:
        return f"built for compute capability {built.capability} ({built.gpu}), {machine.gpu} has {machine.capability}; {again}"
    if plans.hardware == "none" and built.multiprocessors != machine.multiprocessors:
        return f"built on {built.gpu} with {built.multiprocessors} multiprocessors, {machine.gpu} has {machine.multiprocessors}; {again}"
    return None


def manifest_sha256(bundle: Bundle) -> str:
    """Return the SHA-256 of a bundle's ``manifest.json``, which identifies the bundle."""
    return file_sha256(bundle.folder / MANIFEST)


def plan_roots(bundle: Bundle) -> tuple[Path, Path]:
    """Return the parent folders of a bundle's plans: in the bundle and in the user's data folder."""
    from platformdirs import user_data_dir

    own = f"{bundle.name}-{manifest_sha256(bundle)[:12]}"
    return bundle.folder / "plans", Path(user_data_dir("f2edge", appauthor=False)) / "plans" / own


def find_plans(bundle: Bundle) -> Iterator[Path]:
    """Yield every folder with plans of this bundle, fitting or not."""
    for root in plan_roots(bundle):
        if root.is_dir():
            yield from sorted(path.parent for path in root.glob(f"*/{PLANS}"))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in lower-case hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def port_json(port: Port) -> dict[str, Any]:
    """Return a port in the form of ``plans.json``."""
    return {"name": port.name, "dtype": port.dtype, "shape": list(port.shape)}


def l4t_release(path: str | os.PathLike[str] = "/etc/nv_tegra_release") -> str:
    """Return Jetson Linux's release, such as "36.4.3"; empty on other machines.

    The file's first line reads ``# R36 (release), REVISION: 4.3, …``.
    """
    try:
        line = Path(path).read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return ""
    words = line.replace(",", " ").replace("#", " ").split()
    major = next((word[1:] for word in words if word.startswith("R") and word[1:].isdigit()), "")
    revision = words[words.index("REVISION:") + 1] if "REVISION:" in words[:-1] else ""
    return f"{major}.{revision}".strip(".") if major else ""


def _machine(row: Mapping[str, Any]) -> Machine:
    numbers = row.get("multiprocessors")
    require({"multiprocessors, a whole number": type(numbers) is int and numbers >= 0}, "machine")
    names = [field.name for field in fields(Machine) if field.name != "multiprocessors"]
    values = {name: text(get(row, name, "machine"), f"machine.{name}", empty=True) for name in names}
    capability = values["capability"].split(".")
    require({'capability as "8.7"': len(capability) == 2 and all(p.isascii() and p.isdigit() for p in capability)}, "machine")
    return Machine(multiprocessors=int(row["multiprocessors"]), **values)


def _graph(name: str, row: Any) -> GraphPlan:
    where = f"graphs.{name}"
    require({f"a graph that this f2edge knows ({', '.join(SIGNATURES)})": name in SIGNATURES}, where)
    size = get(row, "bytes", where)
    require({"bytes, a whole number": type(size) is int and size >= 0}, where)
    profiles = tuple(_ranges(p, f"{where}.profiles") for p in sequence(get(row, "profiles", where), f"{where}.profiles"))
    require({"at least one profile": len(profiles) > 0}, where)
    inputs = _ports(get(row, "inputs", where), f"{where}.inputs")
    axes = {axis for port in inputs for axis in port.shape if isinstance(axis, str)}
    require({"the range of every axis in every profile": all(set(profile) == axes for profile in profiles)}, where)
    return GraphPlan(
        name=name,
        file=inner_path(text(get(row, "file", where), f"{where}.file")),
        sha256=text(get(row, "sha256", where), f"{where}.sha256"),
        size=size,
        key=text(get(row, "key", where), f"{where}.key"),
        inputs=inputs,
        outputs=_ports(get(row, "outputs", where), f"{where}.outputs"),
        profiles=profiles,
        buckets={a: _sizes(s, f"{where}.buckets") for a, s in table(get(row, "buckets", where), f"{where}.buckets").items()},
        plugins=texts(row.get("plugins", []), f"{where}.plugins"),
    )


def _ports(rows: Any, where: str) -> tuple[Port, ...]:
    ports = []
    for row in sequence(rows, where):
        shape = tuple(sequence(get(row, "shape", where), f"{where}.shape"))
        whole = all((isinstance(axis, str) and axis) or (type(axis) is int and 0 <= axis < 2**31) for axis in shape)
        require({"a shape of sizes and axis names": whole}, where)
        ports.append(Port(text(get(row, "name", where), where), text(get(row, "dtype", where), where), shape))
    return tuple(ports)


def _ranges(row: Any, where: str) -> dict[str, Range]:
    ranges = {}
    for axis, bounds in table(row, where).items():
        sizes = _sizes(bounds, where)
        require({"smallest, preferred and largest size of an axis": len(sizes) == 3}, where)
        ranges[axis] = (sizes[0], sizes[1], sizes[2])
    return ranges


def _sizes(row: Any, where: str) -> tuple[int, ...]:
    sizes = sequence(row, where)
    require({"ascending sizes": len(sizes) > 0 and all(type(s) is int and 0 <= s < 2**31 for s in sizes)}, where)
    require({"ascending sizes": list(sizes) == sorted(sizes)}, where)
    return tuple(sizes)
