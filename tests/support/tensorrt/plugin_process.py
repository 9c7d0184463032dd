"""What the tests of the plug-ins do in the process of :mod:`tests.support.tensorrt.plugin_interpreter`, beside NVIDIA's own bindings."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engines.plugins.fused_moe import INPUTS, MoEShape
from tests.support.tensorrt.plugin_bindings import load
from tests.support.tensorrt.plugin_driver import DriverDouble
from tests.support.tensorrt.plugin_interpreter import Array

_DOUBLES: dict[str, Any] = {}


def prepare(package: Path, libraries: list[Path]) -> str:
    """Load the bindings; their version."""
    _DOUBLES["trt"] = load(package, libraries)
    return str(_DOUBLES["trt"].__version__)


def node(settings: Mapping[str, int]) -> Any:
    """The plug-in's creator and a plug-in made from a node's attributes."""
    from engines.plugins.tensorrt_class import creator_class

    trt = _DOUBLES["trt"]
    creator = creator_class(trt)(_DOUBLES.get("root"))
    arrays = {name: np.array([value], dtype=np.int32) for name, value in settings.items()}
    fields = trt.PluginFieldCollection([trt.PluginField(name, array, trt.PluginFieldType.INT32) for name, array in arrays.items()])
    return creator, creator.create_plugin("layer", fields, trt.TensorRTPhase.BUILD)


def dynamic(trt: Any, dims: tuple[int, ...], kind: Any) -> Any:
    """A description of a tensor while an engine is built."""
    found = trt.DynamicPluginTensorDesc()
    found.desc = static(trt, dims, kind)
    found.min = found.opt = found.max = trt.Dims(dims)
    return found


def static(trt: Any, dims: tuple[int, ...], kind: Any) -> Any:
    """A description of a tensor while an engine runs."""
    desc = trt.PluginTensorDesc()
    desc.dims, desc.type, desc.format = trt.Dims(dims), kind, trt.TensorFormat.LINEAR
    return desc


def kinds_of(trt: Any, x: Array) -> list[Any]:
    """Types of the seven inputs and of y."""
    exact, half = trt.DataType.FLOAT, trt.DataType.HALF
    return [exact if x.dtype == np.float32 else half, exact, exact, half, half, half, half, half]


def run_node(
    shape: MoEShape, root: Path, xs: list[Array], weights: Mapping[str, Array], *, capability: int = 87, fails: str = ""
) -> tuple[list[Array], list[tuple[Any, ...]], int]:
    """From a node to its outputs, as TensorRT would call: build, write the plan, read it, and run once for each x (…, D).

    Returns the outputs, the launches, and the workspace that was asked for.
    """
    trt = _DOUBLES["trt"]
    _DOUBLES["root"] = root
    driver = DriverDouble(shape, capability)
    driver.install()
    driver.fails = fails
    creator, plugin = node({"active": shape.active, "gated": int(shape.gated)})
    largest = max(xs, key=len)
    tensors = [largest, *(weights[name] for name in INPUTS[1:])]
    kinds = kinds_of(trt, largest)
    inputs = [dynamic(trt, t.shape, kind) for t, kind in zip(tensors, kinds[:-1], strict=True)]
    outputs = [dynamic(trt, largest.shape, trt.DataType.HALF)]
    assert plugin.get_output_data_types(kinds[:-1]) == [trt.DataType.HALF]
    assert all(plugin.supports_format_combination(pos, inputs + outputs, 7) for pos in range(8))
    plugin.configure_plugin(inputs, outputs)
    size = plugin.get_workspace_size(inputs, outputs)
    runtime = creator.create_plugin("layer", plugin.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME).attach_to_context(None)
    results = []
    constants = [driver.upload(weights[name]) for name in INPUTS[1:]]
    workspace = driver.upload(np.full(size, 0xFF, dtype=np.uint8))  # NaN in fp16 and fp32, -1 in int32
    for x in xs:
        y = np.full(x.shape, np.nan, dtype=np.float16)
        runtime.on_shape_change(
            [static(trt, t.shape, kind) for t, kind in zip([x, *tensors[1:]], kinds[:-1], strict=True)],
            [static(trt, x.shape, trt.DataType.HALF)],
        )
        source, target = driver.upload(x), driver.upload(y)
        runtime.enqueue([], [], [source, *constants], [target], workspace, driver.stream)
        driver.synchronize()
        results.append(driver.download(target, y).copy())
    return results, driver.launches, size


def formats() -> list[list[list[str]]]:
    """Types that each of the eight tensors may have, in linear memory and otherwise."""
    trt = _DOUBLES["trt"]
    _, plugin = node({"active": 2})
    kinds = {name: getattr(trt.DataType, name) for name in ("FLOAT", "HALF", "INT8", "INT32", "BF16")}
    found: list[list[list[str]]] = []
    for layout in (trt.TensorFormat.LINEAR, trt.TensorFormat.CHW32):
        row = []
        for pos in range(8):
            taken = []
            for name, kind in kinds.items():
                descriptions = [dynamic(trt, (2, 2), trt.DataType.INT8) for _ in range(8)]
                descriptions[pos] = dynamic(trt, (2, 2), kind)
                desc = descriptions[pos].desc
                desc.format = layout
                descriptions[pos].desc = desc
                if plugin.supports_format_combination(pos, descriptions, 7):
                    taken.append(name)
            row.append(taken)
        found.append(row)
    return found


def settings_error(settings: Mapping[str, int]) -> str:
    """What a node with these attributes is refused with."""
    try:
        node(settings)
    except ValueError as error:
        return str(error)
    return ""


def surface() -> dict[str, Any]:
    """Attributes that TensorRT reads of creator and plug-in, and where each class defines its methods."""
    creator, plugin = node({"active": 2})
    copy = plugin.clone()
    return {
        "creator": (creator.name, creator.plugin_version, creator.plugin_namespace, [field.name for field in creator.field_names]),
        "plugin": (plugin.plugin_name, plugin.plugin_version, plugin.plugin_namespace, plugin.num_outputs),
        "clone": (copy.active, copy.gated, copy is not plugin, copy.kernels is plugin.kernels),
        "bases": [base.__name__ for base in type(plugin).__bases__],
        "tactics": plugin.get_valid_tactics(),
        "self": plugin.get_capability_interface(None) is plugin,
        "shapes": [[len(dims) for dims in plugin.get_output_shapes([_DOUBLES["trt"].DimsExprs(3)], [], None)]],
        "methods": {
            name: importlib.import_module("inspect").signature(getattr(type(plugin), name)).parameters.keys().__len__() - 1
            for name in vars(type(plugin))
            if not name.startswith("_")
        },
    }
