"""What builder and runner use of TensorRT, pycuda and cuda-bindings exists there, by name, argument and type.

The tables are read from NVIDIA's own bindings of four versions (:mod:`tests.support.tensorrt.tensorrt_api`) and from pycuda's source; the
doubles that all other tests run on are made from them.  Here: the tables are what is installed, and the code uses nothing that they lack.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.tensorrt.bindings_double import bindings_driver, bindings_runtime
from tests.support.tensorrt.cuda_double import CudaDouble
from tests.support.tensorrt.pycuda_api import TABLE as PYCUDA
from tests.support.tensorrt.pycuda_double import pycuda_driver
from tests.support.tensorrt.tensorrt_api import compile_stubs, read_bindings
from tests.support.tensorrt.tensorrt_double import VERSIONS, table, tensorrt_double

ROOT = Path(__file__).parents[4]
CUDA = ROOT / "f2edge" / "backends" / "tensorrt"
SOURCES = sorted([*(ROOT / "engines").glob("*.py"), *(ROOT / "f2edge" / "backends").rglob("*.py")])
#: Enumerators and attributes that only some versions have, each behind a question to its class (``__members__``, ``hasattr``).
ASKED_FOR = {"SAME_COMPUTE_CAPABILITY"}


def chains(source: str, root: str) -> Iterator[list[str]]:
    """``["A", "B"]`` for every ``root.A.B``, where root is a name or an attribute such as ``self._trt``."""
    for found in ast.walk(ast.parse(source)):
        node, names = found, list[str]()
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            names.insert(0, node.id)
        for place, name in enumerate(names[:-1]):
            if name in (root, f"_{root}"):
                yield names[place + 1 :]


def test_the_scan_sees_chains() -> None:
    assert list(chains("x = self._trt.A.B; trt.f(1)", "trt")) == [["A", "B"], ["A"], ["f"]]


def test_the_installed_bindings_are_as_the_table_says(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings has wheels for Linux on x86-64 only; the table stands for it")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler for the nine functions that the bindings need; the table stands for them")
    version = importlib.metadata.version("tensorrt-cu13-bindings")
    found = read_bindings(compile_stubs(tmp_path, int(version.split(".")[0])))
    expected = {key: value for key, value in table(version).items() if key != "source"}
    assert found == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_used_that_a_version_lacks(version: str) -> None:
    """Every ``trt.…`` in the sources, whether a test runs it or not."""
    module, missing = tensorrt_double(version), set()
    assert len(SOURCES) > 10
    for source in SOURCES:
        for names in chains(source.read_text(encoding="utf-8"), "trt"):
            value: Any = module
            for name in names:
                if name in ASKED_FOR or (isinstance(value, type) and name == "__init__"):
                    break
                if not hasattr(value, name):
                    missing.add(f"{source.name}: {'.'.join(names)}")
                    break
                value = getattr(value, name)
    assert not missing


def test_the_scan_would_see_a_wrong_name() -> None:
    """The same scan on a line that was right before TensorRT 11."""
    module = tensorrt_double("11.4.0.106")
    (names,) = [n for n in chains("config.set_flag(trt.BuilderFlag.FP16)", "trt") if len(n) == 2]
    assert hasattr(module, names[0])
    assert not hasattr(module.BuilderFlag, names[1])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t, b: b.create_networks(0),
        lambda t, b: b.create_network("strong"),
        lambda t, b: b.create_network(0, 1),
        lambda t, b: b.create_network(flag=1),
        lambda t, b: b.create_builder_config().set_memory_pool_limit(t.MemoryPoolType.WORKSPACE, 1.5),
        lambda t, b: b.create_builder_config().set_memory_pool_limit(1 << 30, t.MemoryPoolType.WORKSPACE),
        lambda t, b: setattr(b.create_builder_config(), "max_workspace_size", 1),
        lambda t, b: setattr(b.create_builder_config(), "num_optimization_profiles", 1),
        lambda t, b: b.build_engine(None, None),
        lambda t, b: t.IBuilderConfig(),
        lambda t, b: t.BuilderFlag.NO_SUCH_FLAG,
        lambda t, b: b.create_optimization_profile().set_shape("x", [1], [2]),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_double_refuses_what_the_bindings_refuse(version: str, wrong: Any) -> None:
    trt = tensorrt_double(version)
    with pytest.raises((AttributeError, TypeError)):
        wrong(trt, trt.Builder(trt.ILogger()))


def test_every_enumerator_counts_by_name_not_by_number() -> None:
    """Why flags are looked up: the number of strong typing moved between versions."""
    numbers = {int(tensorrt_double(version).NetworkDefinitionCreationFlag.STRONGLY_TYPED) for version in VERSIONS}
    assert numbers == {0, 1}


def test_pycuda_has_what_is_used_of_it() -> None:
    source = (CUDA / "cuda_pycuda.py").read_text(encoding="utf-8")
    rows = json.loads(PYCUDA.read_text())
    outer = {*rows["functions"], *rows["classes"], "device_attribute"}
    used = {names[0] for names in chains(source, "cuda")}
    assert used >= {"mem_alloc", "Memcpy2D", "pagelocked_empty", "memcpy_htod_async"}
    assert used <= outer
    attributes = {names[1] for names in chains(source, "cuda") if names[0] == "host_alloc_flags" and len(names) > 1}
    assert attributes <= set(rows["classes"]["host_alloc_flags"])
    enumerators = {names[0] for names in chains(source, "attribute")}
    assert enumerators
    assert enumerators <= set(rows["enumerators"])


def test_the_double_of_pycuda_is_pycuda() -> None:
    """Arguments by name and order, members of classes by name."""
    rows, driver = json.loads(PYCUDA.read_text()), pycuda_driver(CudaDouble())
    for name in ("init", "pagelocked_empty", "memcpy_htod_async", "memcpy_dtoh_async", "memset_d8_async", "mem_get_info"):
        assert list(inspect.signature(getattr(driver, name)).parameters) == rows["functions"][name]
    for name in ("Device", "Context", "Stream", "Memcpy2D", "DeviceAllocation", "PagelockedHostAllocation"):
        members = {*rows["classes"][name], *(rows["classes"]["HostPointer"] if "Host" in name else ())}
        kind = getattr(driver, name, None)
        if kind is not None:
            own = {m for m in vars(kind) if not m.startswith("_")} - {"source", "target"}  # slots that hold what setters were given
            assert own <= members


def test_the_double_of_cuda_bindings_is_cuda_bindings() -> None:
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings has no wheel for this system")
    double = bindings_driver(CudaDouble())
    functions = [name for name in vars(double) if name.startswith("cu")]
    assert len(functions) == 26
    for name in functions:
        assert list(inspect.signature(getattr(real, name)).parameters) == list(inspect.signature(getattr(double, name)).parameters)
    assert {m.name for m in double.CUstreamCaptureMode} == {m.name for m in real.CUstreamCaptureMode}
    for kind in ("CUresult", "CUdevice_attribute", "CUmemorytype", "CUstream_flags"):
        numbers = {m.name: int(m) for m in getattr(real, kind)}
        assert {m.name: int(m.value) for m in getattr(double, kind)}.items() <= numbers.items()
    assert set(double.CUDA_MEMCPY2D.__slots__) <= set(dir(real.CUDA_MEMCPY2D()))
    assert double.CU_MEMHOSTALLOC_DEVICEMAP == real.CU_MEMHOSTALLOC_DEVICEMAP
    assert int(real.CUstream(81)) == 81
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings has no wheel for this system")
    assert [name for name in vars(bindings_runtime(CudaDouble())) if name.startswith("cu")] == ["cudaGetLastError"]
    assert not inspect.signature(runtime.cudaGetLastError).parameters


def test_the_runner_uses_no_other_function_of_cuda_bindings() -> None:
    called = {
        node.value
        for name in ("cuda.py", "cuda_bindings.py")
        for node in ast.walk(ast.parse((CUDA / name).read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"cu[A-Z]\w+", node.value)
    }
    assert called == {name for name in vars(bindings_driver(CudaDouble())) if name.startswith("cu")}
