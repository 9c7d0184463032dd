"""``F2FusedMoE`` as a class-based Python plug-in (``IPluginV3``, TensorRT 10.3 and later).

Loading an engine that contains the plug-in needs :func:`register` in the same process (the runner calls it for modules named in
``F2EDGE_TENSORRT_PLUGINS``; ``trtexec`` cannot).  Kernels come from :mod:`engines.plugins.kernel_folder`.  With a CUDA graph Python runs at
capture only; without one each layer costs one call into Python and five launches.

Not run on a GPU yet.  Checked without one: names and signatures against NVIDIA's bindings 10.3 and 11.4, and the launches with their
arguments by interpreting the kernels behind a fake CUDA driver (tests/engines/test_plugin_tensorrt.py).

>>> register(tensorrt)  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.plugins.fused_moe import INPUTS, MoEShape, workspace_bytes
from engines.plugins.fused_moe_launch import KernelCache
from f2edge.errors import BackendError, InputError

NAME, VERSION, NAMESPACE = "F2FusedMoE", "1", "f2edge"
_CREATORS: list[Any] = []  # TensorRT keeps no reference


def layer_shape(dims: Sequence[Sequence[int]], active: int, gated: bool) -> tuple[MoEShape, int]:
    """Return the layer's shape and the number of tokens from the dimensions of the seven inputs.

    Raises:
        InputError: the dimensions do not match.
    """
    if len(dims) != len(INPUTS):
        raise InputError(f"{NAME}: takes {len(INPUTS)} inputs ({', '.join(INPUTS)}), got {len(dims)}")
    x, router, up = (tuple(dims[i]) for i in (0, 1, 3))
    if len(x) < 2 or len(router) != 2 or len(up) != 3:
        raise InputError(f"{NAME}: x must have 2 axes or more, router_weight 2, up_weight 3; got {x}, {router}, {up}")
    D, E, J = x[-1], router[1], up[2]
    shape = MoEShape(width=D, experts=E, expert_width=J // 2 if gated else J, active=active, gated=gated)
    I = shape.expert_width
    wanted = (x, (D, E), (E,), (E, D, 2 * I if gated else I), (E, 2 * I if gated else I), (E, I, D), (E, D))
    for name, got, want in zip(INPUTS, dims, wanted, strict=True):
        if tuple(got) != want:
            raise InputError(f"{NAME}: {name} has shape {tuple(got)}, expected {want}")
    return shape, math.prod(x[:-1])


def _settings(fields: Any) -> tuple[int, bool]:
    """Return K and whether the experts are gated, from a node's attributes or a plan's fields."""
    found = {field.name: int(np.asarray(field.data).reshape(-1)[0]) for field in fields if field.name in ("active", "gated")}
    if "active" not in found or found.get("gated", 0) not in (0, 1):
        raise InputError(f"{NAME}: needs the attribute active (experts per token), and gated as 0 or 1; got {found}")
    return found["active"], bool(found.get("gated", 0))


def plugin_class(trt: Any) -> type:  # noqa: C901  # one class with TensorRT's many methods
    """Return the plug-in class, derived from the base classes of this ``tensorrt`` module."""

    class FusedMoE(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[misc]
        """TensorRT calls the methods by position; see NVIDIA's documentation of ``IPluginV3OneBuild`` and ``IPluginV3OneRuntime``."""

        def __init__(self, active: int, gated: bool, kernels: KernelCache) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.plugin_name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            self.num_outputs = 1
            self.active, self.gated, self.kernels = active, gated, kernels
            self.launcher: Any = None
            self.tokens = 0
            self.serialized = [np.array([value], dtype=np.int32) for value in (active, int(gated))]  # fields only point to them

        def clone(self) -> Any:
            copy = FusedMoE(self.active, self.gated, self.kernels)
            copy.launcher, copy.tokens = self.launcher, self.tokens
            return copy

        def get_capability_interface(self, type: Any) -> Any:  # noqa: A002  # TensorRT's name
            return self

        def get_fields_to_serialize(self) -> Any:
            names, kind = ("active", "gated"), trt.PluginFieldType.INT32
            return trt.PluginFieldCollection([trt.PluginField(n, v, kind) for n, v in zip(names, self.serialized, strict=True)])

        def get_output_data_types(self, input_types: Any) -> Any:
            return [trt.DataType.HALF]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, expr_builder: Any) -> Any:
            return [trt.DimsExprs(inputs[0])]

        def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:
            exact, half = trt.DataType.FLOAT, trt.DataType.HALF
            wanted = ((exact, half), (exact,), (exact,), (half,), (half,), (half,), (half,), (half,))
            desc = in_out[pos].desc
            return bool(num_inputs == len(INPUTS) and desc.format == trt.TensorFormat.LINEAR and desc.type in wanted[pos])

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            layer_shape([tuple(i.max) for i in inputs], self.active, self.gated)

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            return workspace_bytes(*layer_shape([tuple(i.max) for i in inputs], self.active, self.gated))

        def get_valid_tactics(self) -> Any:
            return [1]

        def set_tactic(self, tactic: int) -> None:
            pass  # one tactic: the tile depends on the number of tokens

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            shape, self.tokens = layer_shape([tuple(i.dims) for i in inputs], self.active, self.gated)
            self.launcher = self.kernels.get(shape, "fp32" if inputs[0].type == trt.DataType.FLOAT else "fp16")

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def enqueue(  # noqa: PLR0917
            self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int
        ) -> None:
            tensors = {**dict(zip(INPUTS, map(int, inputs), strict=True)), "y": int(outputs[0])}
            self.launcher.enqueue(self.tokens, tensors, int(workspace), int(stream))

    return FusedMoE


def creator_class(trt: Any) -> type:
    """Return the creator class, derived from the base class of this ``tensorrt`` module."""
    plugin = plugin_class(trt)

    class FusedMoECreator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        """Creates the plug-in from a node's attributes or a plan's fields."""

        def __init__(self, root: Path | None) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            empty = [np.array([0], dtype=np.int32) for _ in range(2)]  # fields only point to them
            kind = trt.PluginFieldType.INT32
            self.empty = empty
            self.field_names = trt.PluginFieldCollection(
                [trt.PluginField(n, e, kind) for n, e in zip(("active", "gated"), empty, strict=True)]
            )
            self.kernels = KernelCache(root)

        def create_plugin(self, name: str, field_collection: Any, phase: Any) -> Any:
            return plugin(*_settings(field_collection), self.kernels)

    return FusedMoECreator


def register(trt: Any, root: Path | None = None) -> None:
    """Register the plug-in with TensorRT unless it is registered already.

    Args:
        trt: ``tensorrt`` module.
        root: folder of compiled kernels; None for the default.

    Raises:
        BackendError: TensorRT rejects the plug-in.
    """
    registry = trt.get_plugin_registry()
    if registry.get_creator(NAME, VERSION, NAMESPACE) is not None:
        return
    creator = creator_class(trt)(root)
    if not registry.register_creator(creator, NAMESPACE):
        raise BackendError(f"TensorRT rejected the plug-in {NAMESPACE}::{NAME}; is another plug-in of this name loaded?")
    _CREATORS.append(creator)
