"""Which plans the TensorRT backend takes, and how it says what is missing or wrong; on a machine of paper."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.backends.registry import choose_backend
from f2edge.backends.tensorrt.plans import PLANS, PlanFolder, find_plans
from f2edge.bundle.bundle import Bundle
from f2edge.errors import BackendError, BundleError
from tests.support.tensorrt.tensorrt_machine import Machine, machine, planned_bundle


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planned_bundle(tiny_bundle, tmp_path_factory.mktemp("refusals"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return machine(monkeypatch, tmp_path)


# The choice ------------------------------------------------------------------------------------------------------------------------------


def test_auto_takes_plans_that_fit_and_says_so(here: Machine, bundle: Path, tiny_bundle: Path, caplog: Any) -> None:
    backend, reason = choose_backend("auto", Bundle.load(bundle))
    assert (backend.name, reason.partition(",")[0]) == ("tensorrt", "auto: tensorrt")
    assert choose_backend("auto", Bundle.load(tiny_bundle))[0].name == "onnxruntime", "no plans"
    here.cuda.multiprocessors = 16
    backend, reason = choose_backend("auto", Bundle.load(bundle))
    assert backend.name == "onnxruntime"
    assert "8 multiprocessors" in reason
    assert reason in caplog.text, "never silently"


# What is missing or wrong ----------------------------------------------------------------------------------------------------------------


def test_missing_libraries_say_how_to_get_them(here: Machine, bundle: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(BackendError, match=r"TensorRT's Python package cannot be used .* apt install python3-libnvinfer"):
            choose_backend("tensorrt", Bundle.load(bundle))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pycuda.driver", None)
        patch.setitem(sys.modules, "cuda.bindings.driver", None)
        with pytest.raises(BackendError, match=r"needs pycuda or cuda-bindings, .* pip install 'f2edge\[tensorrt\]'"):
            choose_backend("tensorrt", Bundle.load(bundle))
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["pycuda.driver"], "Device", lambda _: (_ for _ in ()).throw(RuntimeError("invalid device ordinal")))
        with pytest.raises(BackendError, match="no CUDA device can be used"):
            choose_backend("tensorrt", Bundle.load(bundle))
    monkeypatch.setattr(here.trt, "__version__", "8.6.2")
    with pytest.raises(BackendError, match=r"TensorRT 8\.6\.2 is too old: 10\.3 is needed"):
        choose_backend("tensorrt", Bundle.load(bundle))


def test_plans_that_do_not_fit_are_refused_with_their_reason(here: Machine, bundle: Path, tiny_bundle: Path, monkeypatch: Any) -> None:
    here.cuda.multiprocessors = 16
    with pytest.raises(BackendError, match=r"no TensorRT plans that run here; .*/plans/orin-nano: built on Orin with 8 multiprocessors"):
        choose_backend("tensorrt", Bundle.load(bundle))
    here.cuda.multiprocessors = 8
    monkeypatch.setattr(here.trt, "__version__", "10.3.1")
    with pytest.raises(BackendError, match=r"built with TensorRT 10\.3\.0, this machine has 10\.3\.1; .*engines build"):
        choose_backend("tensorrt", Bundle.load(bundle))
    with pytest.raises(BackendError, match=r"no TensorRT plans that run here; `python -m engines build tiny`"):
        choose_backend("tensorrt", Bundle.load(tiny_bundle))


def changed_plans(bundle: Path, folder: Path, change: Any) -> Bundle:
    """A copy of the bundle whose ``plans.json`` says something else."""
    copy = folder / "copy"
    shutil.copytree(bundle, copy)
    plans = next(find_plans(Bundle.load(copy))) / PLANS
    document = json.loads(plans.read_text())
    change(document)
    plans.write_text(json.dumps(document))
    return Bundle.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["bundle"].update(sha256="0" * 64), "built from another version of the bundle"),
        (lambda d: d["portable"].update(version=True), "set F2EDGE_TRUST_PLANS=1 if you built them"),
        (lambda d: d.update(format_version=99), "format_version 1; update f2edge"),
        (lambda d: d.pop("machine"), "machine is missing"),
    ],
)
def test_other_plans_are_not_taken(here: Machine, bundle: Path, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        choose_backend("tensorrt", changed_plans(bundle, tmp_path, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["graphs"]["regions"].update(bytes=1), r"regions\.plan: differs from its entry in plans\.json"),
        (
            lambda d: d["graphs"]["regions"].update(plugins=["f2edge::F2FusedMoE:1"]),
            "needs the plug-ins f2edge::F2FusedMoE:1; name",
        ),
        (lambda d: d["graphs"]["regions"]["outputs"][0].update(dtype="float16"), "the engine's coverage is float32, its plan says float16"),
        (lambda d: d["graphs"]["regions"]["outputs"][0].update(name="magic"), "tensor 'coverage' that its plan does not have"),
        (
            lambda d: d["graphs"]["regions"]["profiles"].append(d["graphs"]["regions"]["profiles"][0]),
            "has 1 profiles, its plan 2",
        ),
        (lambda d: d["graphs"].pop("regions"), "no plan for graph 'regions'"),
    ],
)
def test_an_engine_that_is_not_its_plans_is_refused(here: Machine, bundle: Path, tmp_path: Path, change: Any, message: str) -> None:
    backend = choose_backend("tensorrt", changed_plans(bundle, tmp_path, change))[0]
    with pytest.raises((BackendError, BundleError), match=message):
        backend.run("regions", {"pixels": np.zeros((1, 3, 128, 128), dtype=np.float32)})


def test_an_engine_that_tensorrt_cannot_read_gives_its_reason(here: Machine, bundle: Path, tmp_path: Path) -> None:
    junk = b"this is no plan"

    def change(document: dict[str, Any]) -> None:
        document["graphs"]["regions"].update(bytes=len(junk), sha256=hashlib.sha256(junk).hexdigest())

    opened = changed_plans(bundle, tmp_path, change)
    PlanFolder.load(next(find_plans(opened))).folder.joinpath("regions.plan").write_bytes(junk)
    with pytest.raises(BackendError, match=r"cannot read .*magic tag does not match"):
        choose_backend("tensorrt", opened)[0].run("regions", {"pixels": np.zeros((1, 3, 128, 128), dtype=np.float32)})


def test_plug_in_modules_are_named_by_the_user(here: Machine, bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "my_plugins.py").write_text("def register(trt): trt.creators.add(('f2edge', 'F2FusedMoE', '1'))\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("F2EDGE_TENSORRT_PLUGINS", " my_plugins ,")
    opened = changed_plans(bundle, tmp_path, lambda d: d["graphs"]["regions"].update(plugins=["f2edge::F2FusedMoE:1"]))
    assert choose_backend("tensorrt", opened)[0].run("regions", {"pixels": np.zeros((1, 3, 128, 128), dtype=np.float32)})
    monkeypatch.setenv("F2EDGE_TENSORRT_PLUGINS", "no_such_module")
    with pytest.raises(BackendError, match="'no_such_module' registers no plug-ins"):
        choose_backend("tensorrt", opened)


def test_a_failure_while_running_names_the_graph(here: Machine, bundle: Path, monkeypatch: Any) -> None:
    backend = choose_backend("tensorrt", Bundle.load(bundle))[0]
    monkeypatch.setattr(here.trt.IExecutionContext, "execute_async_v3", lambda *_: False)
    with pytest.raises(BackendError, match=r"graph 'regions' failed in TensorRT"):
        backend.run("regions", {"pixels": np.zeros((1, 3, 128, 128), dtype=np.float32)})


def test_onnx_runtime_knows_nothing_of_it(bundle: Path) -> None:
    """The backend that everybody has imports neither TensorRT nor CUDA."""
    program = (
        "import sys\n"
        "import f2edge.pipeline, f2edge.backends.onnxruntime, f2edge.backends.registry\n"
        "print(sorted(n for n in sys.modules if n.startswith(('tensorrt', 'pycuda', 'cuda', 'f2edge.backends'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "tensorrt" not in done.stdout.replace("onnx", "")
    assert "cuda" not in done.stdout
    assert isinstance(choose_backend("onnxruntime", Bundle.load(bundle))[0], OnnxRuntimeBackend)
