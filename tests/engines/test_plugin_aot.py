"""The ahead-of-time plug-ins: NVIDIA's own ``tensorrt.plugin`` takes them, and their launches are those of the plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.plugins import aot_graph
from engines.plugins.fused_moe import LARGE, SMALL, KernelPlan, MoEShape
from engines.plugins.tensorrt_aot import OPERATORS
from f2edge.errors import InputError
from tests.support.tensorrt import plugin_aot_process as remote
from tests.support.tensorrt import plugin_bindings
from tests.support.tensorrt.plugin_cases import random_weights
from tests.support.tensorrt.plugin_folder import write_folder
from tests.support.tensorrt.plugin_interpreter import Interpreter, interpreter
from tests.support.tensorrt.tensorrt_api import compile_stubs

SHAPE = MoEShape(48, 5, 40, 3)
GATED = MoEShape(48, 5, 24, 2, gated=True)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    package = plugin_bindings.installed()
    if package is None:
        pytest.skip("tensorrt-cu13-bindings is not installed; it is part of the dev extra on Linux")
    libraries = compile_stubs(tmp_path_factory.mktemp("stubs"), 11)
    root = tmp_path_factory.mktemp("kernels")
    for shape in (SHAPE, GATED):
        write_folder(root, shape, (75, 87))
    with interpreter() as run:
        run(remote.prepare, package, libraries, root)
        yield run


def test_tensorrt_plugin_takes_every_definition(process: Interpreter) -> None:
    known = process(remote.definitions)
    assert known == {
        f"f2edge::{operator.name}": (list(operator.inputs), dict.fromkeys(operator.attributes, "int"), operator.outputs, True)
        for operator in OPERATORS
    }
    assert process(remote.creators) == [("f2edge", operator.name) for operator in OPERATORS]


@pytest.mark.parametrize("leading", [(516,), (2, 258), (1, 2, 33)])
@pytest.mark.parametrize(("shape", "tile"), [(SHAPE, LARGE), (SHAPE, SMALL), (GATED, LARGE)])
@pytest.mark.parametrize("x_type", ["fp16", "fp32"])
def test_launches_are_those_of_the_plan(process: Interpreter, shape: MoEShape, tile: Any, x_type: str, leading: tuple[int, ...]) -> None:
    tokens = int(np.prod(leading))
    found = process(remote.chain, shape, x_type, tile.rows, leading)
    plan = KernelPlan(shape, x_type, tile)
    blocks = shape.blocks(tokens, tile.rows)
    A = tokens * shape.active
    assert found["shapes"] == {
        "experts": ("INT32", (tokens, shape.active)),
        "gates": ("FLOAT", (tokens, shape.active)),
        "order": ("INT32", (A,)),
        "blocks": ("INT32", (blocks, 4)),
        "hidden": ("HALF", (A, shape.expert_width)),
        "parts": ("HALF", (A, shape.width)),
        "rows": ("HALF", (tokens, shape.width)),
    }
    for kernel, launch in zip(plan.kernels, found["launches"], strict=True):
        takes_tokens = any(name == "T" for name, _ in kernel.arguments)
        assert launch == {
            "name": kernel.name,
            "ptx": f"ptx 87 {kernel.file}",
            "grid": (*kernel.grid.of(tokens), 1),
            "block": (32 * kernel.warps, 1, 1),
            "shared": 1024,
            "extra": [tokens] if takes_tokens else [],
        }


def test_arguments_stand_as_the_kernels_take_them() -> None:
    results = {"route": ("experts", "gates"), "sort": ("order", "blocks"), "up": ("hidden",), "down": ("parts",), "combine": ("y",)}
    for operator, kernel in zip(OPERATORS, KernelPlan(SHAPE, "fp32", SMALL).kernels, strict=True):
        assert operator.kernel == kernel.name
        names = [name for name, _ in kernel.arguments]
        extra = ["T"] if "T" in names else []
        assert names == [*operator.inputs, *extra, *results[operator.kernel]]


def test_kernels_that_were_not_compiled_are_named(process: Interpreter) -> None:
    with pytest.raises(InputError, match="no kernel route-fp32-small was compiled for"):
        process(remote.chain, MoEShape(48, 6, 40, 3), "fp32", 16, (4,))
    with pytest.raises(InputError, match="rows is 24"):
        process(remote.chain, SHAPE, "fp32", 24, (4,))


def _graph(shape: MoEShape, *, constant: bool = True) -> Any:
    onnx = pytest.importorskip("onnx")
    weights = random_weights(shape)
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    node = onnx.helper.make_node(
        "F2FusedMoE",
        ["x", *weights],
        ["layer/F2FusedMoE_1"],
        name="layer/F2FusedMoE_1",
        domain="f2edge",
        active=shape.active,
        gated=int(shape.gated),
        plugin_namespace="f2edge",
        plugin_version="1",
    )
    tensor, float32, float16 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    graph = onnx.helper.make_graph(
        [node, onnx.helper.make_node("Identity", ["layer/F2FusedMoE_1"], ["y"])],
        "g",
        [tensor("x", float32, ["B", 7, shape.width])],
        [tensor("y", float16, ["B", 7, shape.width])],
        initializer=initializers if constant else initializers[1:],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("f2edge", 1)])


@pytest.mark.parametrize("shape", [SHAPE, GATED])
def test_a_node_becomes_a_chain(tmp_path: Path, shape: MoEShape) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "step.onnx"
    onnx.save(_graph(shape), path)
    target, count = aot_graph.rewrite_file(path, tokens=2)
    assert (target, count) == (tmp_path / "step.aot.onnx", 1)
    nodes = onnx.load(target).graph.node
    assert [node.op_type for node in nodes] == [*(operator.name for operator in OPERATORS), "Shape", "Reshape", "Identity"]
    assert b"F2FusedMoE" not in target.read_bytes(), "engines.plugin_nodes looks for these bytes"
    made = {"x", *random_weights(shape)}
    for node in nodes:  # in an order that can run
        assert set(node.input) <= made
        made |= set(node.output)
    assert "y" in made
    for node, operator in zip(nodes, OPERATORS, strict=False):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes.pop("plugin_namespace") == b"f2edge"
        assert attributes.pop("plugin_version") == b"1"
        assert attributes.pop("aot") == 1
        wanted = {"active": shape.active, "gated": int(shape.gated), "count": shape.experts, "rows": 16}
        assert attributes == {name: wanted[name] for name in operator.attributes}


def test_graphs_that_cannot_be_rewritten_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "step.onnx"
    with pytest.raises(InputError, match="cannot be read"):
        aot_graph.rewrite_file(path, 1)
    path.write_bytes(b"\xff\xff\xff")
    with pytest.raises(InputError, match="ONNX"):
        aot_graph.rewrite_file(path, 1)
    onnx.save(_graph(SHAPE, constant=False), path)
    with pytest.raises(InputError, match="constants"):
        aot_graph.rewrite_file(path, 1)
    empty = _graph(SHAPE)
    del empty.graph.node[:]
    onnx.save(empty, path)
    with pytest.raises(InputError, match="no node F2FusedMoE"):
        aot_graph.rewrite_file(path, 1)
    assert list(tmp_path.iterdir()) == [path]
