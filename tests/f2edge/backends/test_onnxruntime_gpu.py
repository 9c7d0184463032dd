"""ONNX Runtime's GPU providers: refusals, options, and the whole path by bound values, run in the CPU's memory where there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from f2edge.backends.base import host, pack_arrays
from f2edge.backends.onnxruntime_gpu import PROVIDERS, OnnxRuntimeGpuBackend, OrtTensor, Provider
from f2edge.backends.registry import choose_backend
from f2edge.bundle.bundle import Bundle
from f2edge.errors import BackendError
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions

pytestmark = pytest.mark.runtime

#: The same code in the CPU's memory.
BOUND = Provider("bound", (("CPUExecutionProvider", {}),), device="cpu")
OPTIONS = GenerateOptions(steps=4, guidance=1.5)
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load("nano", verify=False)


@pytest.fixture(scope="module")
def pipelines(bundle: Bundle) -> tuple[FacePipeline, FacePipeline]:
    """With bound values, and without."""
    return FacePipeline(bundle, OnnxRuntimeGpuBackend(bundle.path, BOUND, threads=1)), FacePipeline.load(bundle, threads=1)


def test_bound_values_give_the_same_faces_and_answers(pipelines: tuple[FacePipeline, FacePipeline]) -> None:
    faces = [p.generate(["an old man", "a woman"], seeds=[3, 4], options=OPTIONS) for p in pipelines]
    for own, other in zip(*faces, strict=True):
        assert np.array_equal(own.codes, other.codes)
    face: Image.Image = faces[0][0].image
    answers = [p.ask(face, "what color is the hair?", max_tokens=5).tokens for p in pipelines]
    assert answers[0] == answers[1]


def test_keys_and_values_are_bound_not_copied(pipelines: tuple[FacePipeline, FacePipeline]) -> None:
    prefixes = [p.inference.prompt_prefix([5, 6, 7]) for p in pipelines]
    assert isinstance(prefixes[0].key, OrtTensor)
    assert prefixes[0].key.shape == prefixes[1].key.shape
    assert np.array_equal(prefixes[0].key.numpy(), host(prefixes[1].key))
    packed = pipelines[0].backend.pack([prefixes[0].key, prefixes[0].value])
    assert isinstance(packed, OrtTensor)
    assert np.array_equal(packed.numpy(), pack_arrays([host(prefixes[1].key), host(prefixes[1].value)]))


@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_a_wheel_without_the_provider_is_named_with_its_cure(name: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=rf"'{name}' needs \w+ExecutionProvider, .*\(it has CPUExecutionProvider\); .*onnxruntime-gpu"):
        choose_backend(name, bundle)


@pytest.mark.skipif(HAS_CUDA, reason="this ONNX Runtime has the provider")
def test_a_provider_that_does_not_start_is_no_silent_cpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    backend = choose_backend("onnxruntime-cuda", bundle)[0]
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider does not start|cannot be loaded by ONNX Runtime"):
        backend.run("regions", {"pixels": np.zeros((1, 3, 128, 128), dtype=np.float32)})


def test_options_reach_the_session(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Session:
        def __init__(self, _path: str, _options: Any, providers: Any, disabled_optimizers: Any) -> None:
            seen.extend(providers)

        def get_providers(self) -> list[str]:
            return [name for name, _ in seen]

        def get_inputs(self) -> list[Any]:
            return []

        def get_outputs(self) -> list[Any]:
            return []

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    backend = choose_backend("onnxruntime-tensorrt", bundle)[0]
    assert isinstance(backend, OnnxRuntimeGpuBackend)
    backend._session("regions")
    rows = dict(seen)
    assert list(rows) == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert rows["TensorrtExecutionProvider"]["trt_engine_cache_enable"] == "1"
    assert Path(rows["TensorrtExecutionProvider"]["trt_engine_cache_path"]).is_dir()
    assert rows["CUDAExecutionProvider"]["use_tf32"] == "0"
    assert all(isinstance(value, str) for row in rows.values() for value in row.values())


def test_failures_name_the_graph_in_one_line(bundle: Bundle) -> None:
    backend = OnnxRuntimeGpuBackend(bundle.path, BOUND, threads=1)
    with pytest.raises(BackendError, match="graph 'regions' failed in ONNX Runtime") as caught:
        backend.run("regions", {"pixels": np.zeros((1, 3), dtype=np.float32)})
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="needs onnxruntime-gpu in place of onnxruntime")
@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_on_a_gpu_faces_are_close_to_the_cpus(name: str, bundle: Bundle) -> None:
    """Other kernels round otherwise, and noise is coupled code by code: most tokens of a first step agree."""
    one = GenerateOptions(steps=1, guidance=1.5)
    own, other = (FacePipeline.load(bundle, backend=b).generate("an old man", seeds=3, options=one)[0].codes for b in (name, "onnxruntime"))
    assert (own == other).mean() > 0.5
