"""Conversion of an ONNX graph to a TensorRT plan, for TensorRT 10.3 (JetPack 6) to 11.4.

Networks are strongly typed: precisions come from the ONNX graph.  Features of a version are detected by its classes and enumerations, not
by its number, because enumerators were renumbered between 10 and 11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.shapes import GraphShapes, input_shapes
from f2edge.backends.tensorrt.installation import LogLines
from f2edge.errors import BackendError, InputError
from f2edge.spec.graph_checks import GraphEntry, Port

#: ``HARDWARE`` of :mod:`f2edge.backends.tensorrt.plans` → member of ``tensorrt.HardwareCompatibilityLevel``.
LEVELS: Mapping[str, str] = {"none": "NONE", "same-compute-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}


@dataclass(frozen=True)
class BuildOptions:
    """Settings of TensorRT's builder.

    Attributes:
        workspace_mib: maximum workspace of a kernel.
        optimization_level: 0 … 5; higher levels search longer for fast kernels.
        max_aux_streams: streams beside the main one.
        hardware: one of ``f2edge.backends.tensorrt.plans.HARDWARE``; ``same-compute-capability`` needs 10.9.
        version_compatible: whether other TensorRT versions may load the plan, which then contains host code and is slower.
        detailed: keep layer descriptions in the plan, for ``inspect --layers``.
        tactic_dram_mib: limit of the memory for timing kernels; 0 keeps TensorRT's.
    """

    workspace_mib: int
    optimization_level: int
    max_aux_streams: int
    hardware: str = "none"
    version_compatible: bool = False
    detailed: bool = False
    tactic_dram_mib: int = 0


@dataclass(frozen=True)
class BuiltPlan:
    """Result of a build: ``plan`` has the buffer protocol (``tensorrt.IHostMemory``); ``timing_cache`` is the updated cache."""

    plan: Any
    timing_cache: bytes


def build_plan(
    trt: Any,
    log: Any,
    lines: LogLines,
    onnx: Path,
    entry: GraphEntry,
    *,
    shapes: GraphShapes,
    options: BuildOptions,
    timing_cache: bytes = b"",
    monitor: Any = None,
) -> BuiltPlan:
    """Build the plan of one graph.

    Args:
        trt: ``tensorrt`` module.
        log: ``tensorrt.ILogger`` that writes to ``lines``.
        lines: logged errors; cleared first.
        onnx: ONNX file, with external data beside it.
        entry: the graph's entry in the manifest.
        shapes: optimization profiles.
        options: see :class:`BuildOptions`.
        timing_cache: timing cache of earlier builds on this machine, or empty; one that does not fit is ignored.
        monitor: ``tensorrt.IProgressMonitor``.

    Raises:
        InputError: the graph cannot be parsed, differs from the manifest, or needs a feature that this TensorRT lacks.
        BackendError: TensorRT finds no plan for it.
    """
    lines.clear()
    builder = trt.Builder(log)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        raise InputError(f"graph {entry.name!r}: TensorRT {trt.__version__} cannot parse {onnx.name}: {_parser_errors(parser)}")
    _check_ports(trt, entry, network)
    config = builder.create_builder_config()
    configure(trt, config, options)
    if any(isinstance(axis, str) for port in entry.inputs for axis in port.shape):
        for ranges in shapes.profiles:
            profile = builder.create_optimization_profile()
            for name, (low, best, high) in input_shapes(entry, ranges).items():
                profile.set_shape(name, low, best, high)
            if config.add_optimization_profile(profile) < 0:
                raise InputError(f"graph {entry.name!r}: TensorRT refuses the profile {dict(ranges)}: {lines.last}")
    if monitor is not None:
        config.progress_monitor = monitor
    cache = _set_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"graph {entry.name!r}: TensorRT {trt.__version__} builds no plan of {onnx.name}: {lines.last}")
    return BuiltPlan(plan, bytes(memoryview(cache.serialize())))


def network_flags(trt: Any) -> int:
    """Return the flag for strong typing: needed in 10.x, kept without effect in 11.x."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if "STRONGLY_TYPED" in flags.__members__ else 0


def configure(trt: Any, config: Any, options: BuildOptions) -> None:
    """Set the options of an ``IBuilderConfig``; raises :class:`InputError` for one that this version lacks."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.tactic_dram_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, options.tactic_dram_mib << 20)
    config.builder_optimization_level = options.optimization_level
    config.max_aux_streams = options.max_aux_streams
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED if options.detailed else trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    config.clear_flag(trt.BuilderFlag.TF32)  # router, LayerNorm and sampling need full fp32
    level = LEVELS[options.hardware]
    if level not in trt.HardwareCompatibilityLevel.__members__:
        raise InputError(
            f"--hardware {options.hardware}: TensorRT {trt.__version__} does not know it (10.9 and newer do); build on the target itself"
        )
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.__members__[level]
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _set_timing_cache(config: Any, data: bytes) -> Any:
    """Set and return a timing cache with ``data``, or an empty one if it does not fit.  Keep a reference: the config does not."""
    cache = config.create_timing_cache(data)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _parser_errors(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    shown = [f"{error.node_operator()} {error.node_name()!r}: {' '.join(error.desc().split())}" for error in errors]
    return "; ".join(shown[:3]) or "no reason given"


def _check_ports(trt: Any, entry: GraphEntry, network: Any) -> None:
    """Check that the parsed network has the inputs and outputs of the manifest."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for kind, tensors, ports in (("inputs", inputs, entry.inputs), ("outputs", outputs, entry.outputs)):
        found = {tensor.name: tensor for tensor in tensors}
        if set(found) != {port.name for port in ports}:
            raise InputError(
                f"graph {entry.name!r}: its {kind} are {', '.join(sorted(found))}; the manifest says otherwise; export it again"
            )
        for port in ports:
            _check_port(trt, entry.name, port, found[port.name])


def _check_port(trt: Any, graph: str, port: Port, tensor: Any) -> None:
    try:
        dtype = np.dtype(trt.nptype(tensor.dtype)).name
    except TypeError:
        dtype = str(tensor.dtype)
    shape = [int(size) for size in tensor.shape]
    same = len(shape) == len(port.shape) and all(
        size == -1 or isinstance(axis, str) or size == axis for size, axis in zip(shape, port.shape, strict=True)
    )
    if dtype != port.dtype or not same:
        raise InputError(
            f"graph {graph!r}: {port.name} is {dtype}{shape}, the manifest says {port.dtype}{list(port.shape)}; export it again"
        )
