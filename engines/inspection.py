"""Listing and verification of plans."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.builder import toolchain
from engines.plugin_nodes import register
from f2edge.backends.tensorrt.device import open_device
from f2edge.backends.tensorrt.installation import LogLines
from f2edge.backends.tensorrt.plans import PLANS, PlanFolder, find_plans, manifest_sha256, unfit
from f2edge.backends.tensorrt.session import checked_dtypes
from f2edge.bundle.bundle import Bundle
from f2edge.errors import BackendError, BundleError, InputError


def plan_folders(source: str) -> tuple[list[PlanFolder], Bundle | None]:
    """Return the plan folders of a bundle and the bundle, or the plan folder at a path and None.

    Raises:
        InputError: the bundle has no plans.
    """
    if (Path(source) / PLANS).is_file():
        return [PlanFolder.load(Path(source))], None
    bundle = Bundle.load(source)
    folders = [PlanFolder.load(folder) for folder in find_plans(bundle)]
    if not folders:
        raise InputError(f"bundle {bundle.name!r} has no plans; make them with `python -m engines build {source} --profile NAME`")
    return folders, bundle


def print_plans(source: str, *, as_json: bool) -> None:
    """Print a table for each plan folder, or their ``plans.json`` documents as one JSON list."""
    folders, _ = plan_folders(source)
    if as_json:
        print(json.dumps([{"folder": str(plans.folder), **plans.document} for plans in folders]))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for plans in folders:
        machine = plans.machine
        system = f"L4T {machine.l4t}, " if machine.l4t else ""
        title = f"{plans.folder}: {machine.gpu} ({machine.capability}), {system}TensorRT {machine.tensorrt}, hardware {plans.hardware}"
        table = Table("graph", "MiB", "profiles", "padded to", "plug-ins", box=SIMPLE_HEAD, title=title)
        for graph in plans.graphs.values():
            profiles = "\n".join(_ranges(profile) for profile in graph.profiles)
            buckets = "\n".join(f"{axis}: {' '.join(map(str, sizes))}" for axis, sizes in graph.buckets.items())
            table.add_row(graph.name, f"{graph.size / 2**20:.1f}", profiles, buckets, " ".join(graph.plugins))
        console.print(table)


def verify_plans(source: str) -> Iterator[str]:
    """Yield one line for each check that passes: checksums first, then loading every engine on this GPU.

    Raises:
        BundleError: a file is missing or damaged, or belongs to another bundle.
        InputError: TensorRT, a CUDA library or a GPU is missing, or the plans do not fit this machine.
        BackendError: an engine cannot be loaded, or its tensors differ from its plan's description.
    """
    folders, bundle = plan_folders(source)
    for plans in folders:
        for name in plans.graphs:
            plans.path(name)
        if bundle is not None and plans.bundle_sha256 != manifest_sha256(bundle):
            raise BundleError(f"{plans.folder}: built from another version of bundle {bundle.name!r}; build the plans again")
        yield f"{plans.folder}: {len(plans.graphs)} plans are intact"
    tools = toolchain()
    device = open_device()
    with device.current():
        runtime = tools.trt.Runtime(tools.log)
        for plans in folders:
            reason = unfit(plans, tools.machine)
            if reason is not None:
                raise InputError(f"{plans.folder}: {reason}")
            for name, graph in plans.graphs.items():
                register(tools.trt, tools.log, dict.fromkeys(graph.plugins, ""))
                checked_dtypes(graph, _engine(runtime, plans, name, tools.lines), tools.trt)
            yield f"{plans.folder}: every engine loads on {tools.machine.gpu} with TensorRT {tools.machine.tensorrt}"


def print_layers(source: str, graph: str) -> None:
    """Print TensorRT's description of a plan's layers as one JSON document; the first folder with the graph is used."""
    folders, _ = plan_folders(source)
    plans = next((plans for plans in folders if graph in plans.graphs), folders[0])
    plans.path(graph)
    tools = toolchain()
    device = open_device()
    with device.current():
        register(tools.trt, tools.log, dict.fromkeys(plans.graphs[graph].plugins, ""))
        engine = _engine(tools.trt.Runtime(tools.log), plans, graph, tools.lines)
        print(engine.create_engine_inspector().get_engine_information(tools.trt.LayerInformationFormat.JSON))


def _engine(runtime: Any, plans: PlanFolder, graph: str, lines: LogLines) -> Any:
    lines.clear()
    with plans.path(graph).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        runtime.engine_host_code_allowed = plans.version_compatible
        engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BackendError(f"{plans.folder / plans.graphs[graph].file}: TensorRT cannot read it: {lines.last}; build it again")
    return engine


def _ranges(profile: Any) -> str:
    return ", ".join(f"{axis} {low}" if low == high else f"{axis} {low}…{high} ({best})" for axis, (low, best, high) in profile.items())
