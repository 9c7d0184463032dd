"""The class-based plug-in against NVIDIA's bindings, and its launches against a double of the driver that interprets the kernels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.plugins import reference
from engines.plugins.fused_moe import LARGE, SMALL, KernelPlan, MoEShape, workspace_bytes
from engines.plugins.tensorrt_class import layer_shape, register
from f2edge.errors import BackendError, InputError
from tests.support.tensorrt import plugin_bindings, plugin_process
from tests.support.tensorrt.plugin_cases import random_rows, random_weights, row_errors
from tests.support.tensorrt.plugin_folder import write_folder
from tests.support.tensorrt.plugin_interpreter import Interpreter, interpreter
from tests.support.tensorrt.tensorrt_api import compile_stubs

pytest.importorskip(
    "triton", reason="the plug-in's kernels are written in Triton, which exists for Linux only: pip install f2edge[plugins]"
)
SHAPE = MoEShape(48, 4, 40, 2)
VERSIONS = json.loads(plugin_bindings.TABLE.read_text())


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    package = plugin_bindings.installed()
    if package is None:
        pytest.skip("tensorrt-cu13-bindings is not installed; it is part of the dev extra on Linux")
    libraries = compile_stubs(tmp_path_factory.mktemp("stubs"), 11)
    with interpreter() as run:
        assert int(run(plugin_process.prepare, package, libraries).split(".")[0]) == 11
        yield run


def test_a_node_is_built_written_read_and_run(process: Interpreter, tmp_path: Path) -> None:
    write_folder(tmp_path, SHAPE, (80, 87))
    weights = random_weights(SHAPE)
    xs = [random_rows(tokens, 48, seed=tokens) for tokens in (40, 3)]
    ys, launches, size = process(plugin_process.run_node, SHAPE, tmp_path, xs, weights)
    for x, y in zip(xs, ys, strict=True):
        assert row_errors(y, reference.fused_moe(x, weights, 2)).max() < 1e-3
    wanted = [
        (kernel.name, kernel.file, kernel.grid.of(tokens), 32 * kernel.warps, 1024)
        for tokens, tile in ((40, LARGE), (3, SMALL))
        for kernel in KernelPlan(SHAPE, "fp32", tile).kernels
    ]
    assert launches == wanted
    assert size == workspace_bytes(SHAPE, 40)


def test_leading_axes_are_tokens_and_x_may_be_fp16(process: Interpreter, tmp_path: Path) -> None:
    shape = MoEShape(32, 3, 24, 1, gated=True)
    write_folder(tmp_path, shape, (110,))
    weights, x = random_weights(shape), random_rows(14, 32).astype("float16")
    (y,), launches, _ = process(plugin_process.run_node, shape, tmp_path, [x.reshape(2, 7, 32)], weights, capability=110)
    assert y.shape == (2, 7, 32)
    assert row_errors(y.reshape(14, 32), reference.fused_moe(x, weights, 1, gated=True)).max() < 1e-3
    assert [row[1] for row in launches] == [kernel.file for kernel in KernelPlan(shape, "fp16", SMALL).kernels]


def test_no_tokens_launch_nothing(process: Interpreter, tmp_path: Path) -> None:
    write_folder(tmp_path, SHAPE, (87,))
    (_, y), launches, _ = process(plugin_process.run_node, SHAPE, tmp_path, [random_rows(2, 48), random_rows(0, 48)], random_weights(SHAPE))
    assert y.shape == (0, 48)
    assert len(launches) == 5


def test_types_and_formats(process: Interpreter) -> None:
    linear, other = process(plugin_process.formats)
    assert linear == [["FLOAT", "HALF"], ["FLOAT"], ["FLOAT"], ["HALF"], ["HALF"], ["HALF"], ["HALF"], ["HALF"]]
    assert other == [[]] * 8


def test_what_tensorrt_reads_is_there(process: Interpreter) -> None:
    found = process(plugin_process.surface)
    assert found["creator"] == ("F2FusedMoE", "1", "f2edge", ["active", "gated"])
    assert found["plugin"] == ("F2FusedMoE", "1", "f2edge", 1)
    assert found["clone"] == (2, False, True, True)
    assert found["self"]
    assert found["tactics"] == [1]
    assert found["shapes"] == [[3]]
    for version, rows in VERSIONS.items():
        signatures = {}
        for base in found["bases"]:
            signatures.update(rows["classes"][base]["methods"])
        for name, count in found["methods"].items():
            (parameters,) = signatures[name]
            assert count == len(re.findall(r"\w+: ", parameters)), (version, name)


@pytest.mark.parametrize("version", VERSIONS)
def test_names_exist_in_every_version(version: str) -> None:
    rows = VERSIONS[version]
    for name, members in {
        "IPluginV3OneCore": {"plugin_name", "plugin_version", "plugin_namespace"},
        "IPluginV3OneBuild": {"num_outputs"},
        "IPluginCreatorV3One": {"name", "plugin_version", "plugin_namespace", "field_names"},
    }.items():
        assert {member for member in members if rows["classes"][name]["properties"].get(member) == "rw"} == members
    assert {"name", "data", "type"} <= set(rows["classes"]["PluginField"]["properties"])
    assert {"dims", "type", "format"} <= set(rows["classes"]["PluginTensorDesc"]["properties"])
    assert {"desc", "max"} <= set(rows["classes"]["DynamicPluginTensorDesc"]["properties"])
    assert {"FLOAT", "HALF"} <= set(rows["enumerations"]["DataType"])
    assert "INT32" in rows["enumerations"]["PluginFieldType"]
    assert "LINEAR" in rows["enumerations"]["TensorFormat"]
    registry = rows["classes"]["IPluginRegistry"]["methods"]
    assert "creator: IPluginCreatorInterface, plugin_namespace: str = ''" in registry["register_creator"]
    assert registry["get_creator"] == ["type: str, version: str, plugin_namespace: str = ''"]
    assert rows["functions"]["get_plugin_registry"] == [""]


@pytest.mark.parametrize("settings", [{}, {"gated": 1}, {"active": 2, "gated": 2}])
def test_attributes_that_make_no_sense_are_refused(process: Interpreter, settings: dict[str, int]) -> None:
    assert "active" in process(plugin_process.settings_error, settings)


@pytest.mark.parametrize("function", ["cuCtxGetDevice", "cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"])
def test_failures_of_the_driver_are_named(process: Interpreter, tmp_path: Path, function: str) -> None:
    write_folder(tmp_path, SHAPE, (87,))
    with pytest.raises(BackendError, match=f"{function} failed in CUDA: CUDA_ERROR_INVALID_IMAGE"):
        process(plugin_process.run_node, SHAPE, tmp_path, [random_rows(1, 48)], random_weights(SHAPE), fails=function)


def test_kernels_that_are_missing_or_of_another_build_are_refused(process: Interpreter, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="python -m engines kernels"):
        process(plugin_process.run_node, SHAPE, tmp_path, [random_rows(1, 48)], random_weights(SHAPE))
    write_folder(tmp_path, SHAPE, (87,))
    path = tmp_path / SHAPE.label / "kernels.json"
    path.write_text(path.read_text().replace('"BM": 16', '"BM": 32'))
    with pytest.raises(BackendError, match="other sources"):
        process(plugin_process.run_node, SHAPE, tmp_path, [random_rows(1, 48)], random_weights(SHAPE))


def test_shapes_are_read_from_the_inputs() -> None:
    dims = [(2, 5, 8), (8, 4), (4,), (4, 8, 6), (4, 6), (4, 6, 8), (4, 8)]
    assert layer_shape(dims, 2, False) == (MoEShape(8, 4, 6, 2), 10)
    gated = [*dims[:5], (4, 3, 8), (4, 8)]
    assert layer_shape(gated, 2, True) == (MoEShape(8, 4, 3, 2, gated=True), 10)
    for place, wrong in ((0, (8,)), (1, (7, 4)), (2, (3,)), (3, (4, 8)), (4, (4, 5)), (5, (4, 8, 6)), (6, (8,))):
        broken = [*dims[:place], wrong, *dims[place + 1 :]]
        with pytest.raises(InputError, match="F2FusedMoE"):
            layer_shape(broken, 2, False)
    with pytest.raises(InputError, match="7 inputs"):
        layer_shape(dims[:6], 2, False)
    with pytest.raises(InputError, match="active"):
        layer_shape(dims, 5, False)


class _Registry:
    def __init__(self, *, accepts: bool = True) -> None:
        self.accepts, self.creators = accepts, {}  # type: ignore[var-annotated]

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> object:  # noqa: A002
        return self.creators.get((type, version, plugin_namespace))

    def register_creator(self, creator: object, plugin_namespace: str = "") -> bool:
        if self.accepts:
            self.creators[creator.name, creator.plugin_version, plugin_namespace] = creator  # type: ignore[attr-defined]
        return self.accepts


def _tensorrt(registry: _Registry) -> object:
    bases = ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One")
    return type(
        "tensorrt",
        (),
        {
            **{name: type(name, (), {}) for name in bases},
            "PluginFieldType": type("PluginFieldType", (), {"INT32": 5}),
            "PluginField": staticmethod(lambda name, data, kind: (name, data, kind)),
            "PluginFieldCollection": list,
            "get_plugin_registry": staticmethod(lambda: registry),
        },
    )


def test_the_plugin_is_registered_once() -> None:
    registry = _Registry()
    register(_tensorrt(registry))
    (creator,) = registry.creators.values()
    register(_tensorrt(registry))
    assert list(registry.creators) == [("F2FusedMoE", "1", "f2edge")]
    assert list(registry.creators.values()) == [creator]
    with pytest.raises(BackendError, match="rejected the plug-in"):
        register(_tensorrt(_Registry(accepts=False)))
