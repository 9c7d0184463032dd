"""Builds the plans of a bundle of the "tensorrt" flavour for the GPU of this machine.

>>> report = build("bundles/f2-trt", BuildRequest(profile="orin-nano"))                                          # doctest: +SKIP

Plans are written to ``plans/<profile>`` in the bundle's folder, or to the user's data folder if that is read-only.  A plan that is up to
date (:mod:`engines.engine_cache`) is not built again.  Each plan and then ``plans.json`` are written atomically: a build that is killed
leaves usable plans, and the next build continues from there.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from engines import memory_guard
from engines.automatic_profile import AUTO, automatic_profile
from engines.engine_cache import engine_key
from engines.network import BuildOptions, build_plan
from engines.plugin_nodes import check_kernels, plugins_of, register, to_load
from engines.profile import RECIPE_SM, Profile, load_profile
from engines.progress import BuildProgress
from engines.shapes import BuildSizes, GraphShapes, graph_shapes
from f2edge.backends.tensorrt.device import open_device
from f2edge.backends.tensorrt.installation import LogLines, import_tensorrt, machine_of
from f2edge.backends.tensorrt.plans import FORMAT_VERSION, PLANS, Machine, PlanFolder, manifest_sha256, plan_roots, port_json
from f2edge.bundle.bundle import TOKENIZER, Bundle
from f2edge.errors import BackendError, BundleError, InputError, OutputError
from f2edge.provenance.saving import check_writable, write_atomically
from f2edge.spec.graph_checks import GraphEntry

FLAVOUR = "tensorrt"
_log = logging.getLogger(__name__)


class ToolchainError(InputError, ImportError):
    """TensorRT, a CUDA library or a GPU is missing on this machine."""


@dataclass(frozen=True)
class BuildRequest:
    """Options of one build.

    Attributes:
        profile: name of a device profile, path of a TOML file, or "auto" for the GPU of this machine.
        graphs: graph names; empty for all graphs of the bundle.
        image_rows, answer_rows: lower maximum batch sizes than the profile's; None keeps the profile's.
        answer_tokens: maximum tokens of an answer.
        workspace_mib, level, tactic_dram_mib: override the profile's.
        hardware, version_compatible, detailed: see :class:`engines.network.BuildOptions`.
        timing_cache: file to read and extend; None for one in the user's cache folder, by GPU and TensorRT version.
        rebuild: rebuild plans that are up to date.
        force: skip the checks of free memory and disk space.
    """

    profile: str
    graphs: tuple[str, ...] = ()
    image_rows: int | None = None
    answer_rows: int | None = None
    answer_tokens: int = 128
    workspace_mib: int | None = None
    level: int | None = None
    tactic_dram_mib: int | None = None
    hardware: str = "none"
    version_compatible: bool = False
    detailed: bool = False
    timing_cache: Path | None = None
    rebuild: bool = False
    force: bool = False


@dataclass(frozen=True)
class BuildReport:
    """Folder of the plans, and build time of each graph in seconds; None where its plan was up to date."""

    folder: Path
    seconds: Mapping[str, float | None]


@dataclass(frozen=True)
class _Toolchain:
    """TensorRT module, logger and GPU of this machine."""

    trt: Any
    log: Any
    lines: LogLines
    machine: Machine
    integrated: bool
    memory_bytes: int


def build(source: str | os.PathLike[str], request: BuildRequest, *, quiet: bool = True) -> BuildReport:
    """Build the plans of a bundle.

    Raises:
        ToolchainError: TensorRT, a CUDA library or a GPU is missing; nothing is written.
        InputError: an unsuitable bundle, profile or option; too little memory; a graph that TensorRT cannot parse.
        BackendError: TensorRT finds no plan for a graph.
        OutputError: plans cannot be written.
    """
    named = None if request.profile == AUTO else load_profile(request.profile)
    bundle = Bundle.load(source)
    tools = toolchain()
    profile = named or automatic_profile(tools.machine, tools.memory_bytes, integrated=tools.integrated)
    if named is None:
        _log.info("profile %s for %s: %s", profile.name, tools.machine.gpu, profile.title)
    cache = request.timing_cache or _timing_cache(tools.machine)
    if request.timing_cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        check_writable(cache)
    graphs = _graphs(bundle, request.graphs, profile)
    sizes = BuildSizes.of(profile.build, request.image_rows, request.answer_rows, request.answer_tokens)
    shapes = {name: graph_shapes(entry, bundle.layout, sizes) for name, entry in graphs.items()}
    options = BuildOptions(
        workspace_mib=request.workspace_mib or profile.build.workspace_mib,
        optimization_level=profile.build.optimization_level if request.level is None else request.level,
        max_aux_streams=profile.build.max_aux_streams,
        hardware=request.hardware,
        version_compatible=request.version_compatible,
        detailed=request.detailed,
        tactic_dram_mib=profile.build.tactic_dram_mib if request.tactic_dram_mib is None else request.tactic_dram_mib,
    )
    _check_device(profile, tools.machine, options)
    plugins = {name: plugins_of(bundle.folder / entry.file) for name, entry in graphs.items()}
    for name in graphs:
        check_kernels(name, plugins[name], bundle.configuration, tools.machine.capability)
    folder = _folder(bundle, profile)
    document = _document(folder, bundle, profile, tools.machine, options)
    seconds: dict[str, float | None] = {}
    for name, entry in graphs.items():
        settings = asdict(options)
        key = engine_key(bundle, name, shapes=shapes[name], machine=tools.machine, settings=settings, plugins=plugins[name])
        if not request.rebuild and _up_to_date(folder, name, key):
            seconds[name] = None
            continue
        register(tools.trt, tools.log, plugins[name])
        start = perf_counter()
        document["graphs"][name] = _build_graph(
            bundle, entry, shapes=shapes[name], options=options, tools=tools, folder=folder, cache=cache, force=request.force, quiet=quiet
        ) | {
            "key": key,
            "plugins": to_load(plugins[name]),
            "settings": settings,
        }
        write_atomically(folder / PLANS, json.dumps(document, indent=1).encode(), durable=True)
        seconds[name] = perf_counter() - start
        gc.collect()  # free the network and its weights before the next graph is loaded
    return BuildReport(folder, seconds)


def toolchain() -> _Toolchain:
    """Return TensorRT and the GPU of this machine; raises :class:`ToolchainError` naming what is missing and how to get it."""
    try:
        trt = import_tensorrt()
        cuda = open_device()
    except BackendError as error:
        raise ToolchainError(str(error)) from error
    lines = LogLines()
    with cuda.current():
        _, total = cuda.memory()
    return _Toolchain(trt, lines.make(trt), lines, machine_of(trt, cuda), cuda.integrated, total)


def _graphs(bundle: Bundle, names: tuple[str, ...], profile: Profile) -> dict[str, GraphEntry]:
    """Return the graphs to build; raises :class:`InputError` for a bundle or recipe that the device cannot run."""
    flavour = bundle.manifest.document.get("flavour", "onnxruntime")
    if flavour != FLAVOUR:
        raise InputError(
            f"bundle {bundle.name!r} is of flavour {flavour!r}, whose graphs have operators that TensorRT lacks; "
            "export one with `python -m export onnx --flavour tensorrt`"
        )
    for name in names:
        bundle.path(name)
    graphs = {name: entry for name, entry in bundle.manifest.graphs.items() if not names or name in names}
    for name, entry in graphs.items():
        row = entry.recipe if isinstance(entry.recipe, Mapping) else {}
        recipe = str(row.get("name", ""))
        needed = RECIPE_SM.get(recipe, 0)
        if needed > profile.sm:
            raise InputError(
                f"graph {name!r} has recipe {recipe!r}, which needs compute capability {needed / 10:.1f}; {profile.title} has "
                f"{profile.sm / 10:.1f}: export it with recipe {profile.recipes[name]!r}"
            )
    return graphs


def _check_device(profile: Profile, machine: Machine, options: BuildOptions) -> None:
    """Check that the profile matches this GPU: plans are built on their device, or portably on another one (``--hardware``)."""
    capability = f"{profile.sm // 10}.{profile.sm % 10}"
    same_size = profile.sm_count == machine.multiprocessors or options.hardware != "none"
    if capability != machine.capability and options.hardware != "ampere-plus":
        raise InputError(f"profile {profile.name!r} is for compute capability {capability}, {machine.gpu} has {machine.capability}")
    if machine.l4t and options.hardware != "none":
        _log.warning("--hardware %s: NVIDIA's guide says that JetPack does not support hardware compatibility; unproven", options.hardware)
    if not same_size:
        raise InputError(
            f"profile {profile.name!r} is for {profile.sm_count} multiprocessors, {machine.gpu} has {machine.multiprocessors}; "
            "say --profile auto, or build on the device itself"
        )


def _folder(bundle: Bundle, profile: Profile) -> Path:
    """Return the folder of this bundle's plans: beside it if its folder can be written."""
    beside, user = plan_roots(bundle)
    return (beside if os.access(beside if beside.exists() else bundle.folder, os.W_OK) else user) / profile.name


def _document(folder: Path, bundle: Bundle, profile: Profile, machine: Machine, options: BuildOptions) -> dict[str, Any]:
    """Return ``plans.json`` to add graphs to: the existing one if bundle, profile and machine are the same, else a new one."""
    fresh: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "bundle": {"name": bundle.name, "sha256": manifest_sha256(bundle)},
        "profile": profile.name,
        "machine": asdict(machine),
        "portable": {"hardware": options.hardware, "version": options.version_compatible},
        "graphs": {},
    }
    try:
        document = dict(PlanFolder.load(folder).document)
    except BundleError:  # missing or unreadable
        return fresh
    same = all(document.get(key) == fresh[key] for key in fresh if key != "graphs")
    return {**fresh, "graphs": dict(document["graphs"])} if same else fresh


def _up_to_date(folder: Path, graph: str, key: str) -> bool:
    try:
        plans = PlanFolder.load(folder)
        return graph in plans.graphs and plans.graphs[graph].key == key and plans.path(graph).is_file()
    except BundleError:
        return False


def _build_graph(
    bundle: Bundle,
    entry: GraphEntry,
    *,
    shapes: GraphShapes,
    options: BuildOptions,
    tools: _Toolchain,
    folder: Path,
    cache: Path,
    force: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Build one graph and write its plan; return its entry of ``plans.json`` without key, plug-ins and settings."""
    if not force:
        weights = sum(f.size for n, f in bundle.manifest.files.items() if n != TOKENIZER and (not n.endswith(".onnx") or n == entry.file))
        memory_guard.check_disk(folder, weights)
        memory = memory_guard.HostMemory.read()
        if memory is not None:
            memory_guard.check(memory, weights, options.workspace_mib << 20, integrated=tools.integrated)
    with BuildProgress(entry.name, quiet=quiet) as progress:
        monitor = progress.monitor(tools.trt)
        try:
            built = build_plan(
                tools.trt,
                tools.log,
                tools.lines,
                bundle.folder / entry.file,
                entry,
                shapes=shapes,
                options=options,
                timing_cache=cache.read_bytes() if cache.is_file() else b"",
                monitor=monitor,
            )
        except BackendError:
            if progress.stopped:
                raise KeyboardInterrupt from None
            raise
    data = memoryview(built.plan)
    file = f"{entry.name}.plan"
    write_atomically(folder / file, data, durable=True)
    try:
        write_atomically(cache, built.timing_cache, durable=True)
    except OutputError as error:  # the plan is written; the cache only shortens the next build
        _log.warning("timing cache not written: %s", error)
    return {
        "file": file,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": data.nbytes,
        "inputs": [port_json(port) for port in entry.inputs],
        "outputs": [port_json(port) for port in entry.outputs],
        "profiles": [{axis: list(bounds) for axis, bounds in profile.items()} for profile in shapes.profiles],
        "buckets": {axis: list(sizes) for axis, sizes in shapes.buckets.items()},
    }


def _timing_cache(machine: Machine) -> Path:
    """Return the path of the timing cache of this GPU and TensorRT version."""
    from platformdirs import user_cache_dir

    name = f"{machine.gpu}-{machine.capability}-{machine.multiprocessors}-{machine.tensorrt}".replace(" ", "-").replace("/", "-")
    return Path(user_cache_dir("f2edge", appauthor=False)) / "tensorrt" / f"{name}.timing"


def print_report(report: BuildReport, *, as_json: bool) -> None:
    """Print what was built, or one JSON document."""
    if as_json:
        print(json.dumps({"folder": str(report.folder), "seconds": dict(report.seconds)}))
        return
    for graph, seconds in report.seconds.items():
        print(f"{graph:<14} {'up to date' if seconds is None else f'built in {seconds:.0f} s'}")
    print(f"plans in {report.folder}")
