"""ONNX Runtime's GPU providers: refusals, options, and the whole path by bound values, run in the CPU's memory where there is no GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from f2edge.backends.base import host, pack_arrays
from f2edge.backends.onnxruntime_gpu import PROVIDERS, RECORD, REFUSE, OnnxRuntimeGpuBackend, OrtTensor, Provider, operators_elsewhere
from f2edge.backends.registry import choose_backend
from f2edge.bundle.bundle import Bundle
from f2edge.errors import BackendError
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions

pytestmark = pytest.mark.runtime

#: The same code in the CPU's memory.
BOUND = Provider("bound", "CPUExecutionProvider", {}, device="cpu")
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


class _Part:
    def __init__(self, ep_name: str, *ops: str) -> None:
        self.ep_name, self._ops = ep_name, ops

    def get_nodes(self) -> list[Any]:
        return [type("Node", (), {"op_type": op})() for op in self._ops]


def sessions(parts: list[_Part], seen: dict[str, Any]) -> type:
    """Return a session class that takes providers and options as ONNX Runtime does and reports these assignments."""

    class Session:
        def __init__(self, _path: str, options: Any, providers: Any, disabled_optimizers: Any) -> None:
            refused = options.get_session_config_entry(REFUSE) if REFUSE in _entries(options) else "0"
            if refused == "1" and "CPUExecutionProvider" in dict(providers):
                raise RuntimeError("Conflicting session configuration: explicitly added the CPU EP")
            seen.update(providers=dict(providers), entries=_entries(options))

        def get_providers(self) -> list[str]:
            return [*seen["providers"], "CPUExecutionProvider"]

        def get_inputs(self) -> list[Any]:
            return []

        def get_modelmeta(self) -> Any:
            return SimpleNamespace(custom_metadata_map={})

        def get_outputs(self) -> list[Any]:
            return []

        def get_provider_graph_assignment_info(self) -> list[_Part]:
            return parts

    return Session


def _entries(options: Any) -> dict[str, str]:
    found = {}
    for key in (RECORD, REFUSE):
        try:
            found[key] = options.get_session_config_entry(key)
        except RuntimeError:
            continue
    return found


def cuda(bundle: Bundle, parts: list[_Part], monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any]) -> OnnxRuntimeGpuBackend:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", sessions(parts, seen))
    backend = choose_backend("onnxruntime-cuda", bundle)[0]
    assert isinstance(backend, OnnxRuntimeGpuBackend)
    return backend


def test_options_reach_the_session(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    cuda(bundle, [_Part("CUDAExecutionProvider", "MatMul"), _Part("CPUExecutionProvider", "Concat", "Gather")], monkeypatch, seen)._session(
        "regions"
    )
    assert list(seen["providers"]) == ["CUDAExecutionProvider"]  # with the CPU's, refusing it would be a contradiction
    assert seen["providers"]["CUDAExecutionProvider"]["use_tf32"] == "0"
    assert seen["entries"] == {RECORD: "1"}


def test_an_operator_on_the_cpu_is_refused_by_name(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [_Part("CUDAExecutionProvider", "MatMul"), _Part("CPUExecutionProvider", "MatMulIntegerToFloat", "Concat", "BitwiseXor")]
    with pytest.raises(BackendError, match=r"graph 'regions': .* BitwiseXor, MatMulIntegerToFloat on the CPU; .*--flavour cuda"):
        cuda(bundle, parts, monkeypatch, {})._session("regions")


def test_without_reports_any_operator_on_the_cpu_is_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    old = sessions([], seen)
    del old.get_provider_graph_assignment_info  # type: ignore[attr-defined]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", old)
    choose_backend("onnxruntime-cuda", bundle)[0]._session("regions")  # type: ignore[attr-defined]
    assert seen["entries"] == {REFUSE: "1"}


def test_real_sessions_report_what_runs_where(bundle: Bundle) -> None:
    """The report that refusals are built on, from ONNX Runtime itself: on a CPU everything is elsewhere."""
    backend = OnnxRuntimeGpuBackend(bundle.path, BOUND, threads=1)
    session = backend._session("t2i_step")[0]
    assert operators_elsewhere(session, "CPUExecutionProvider") == []
    assert {"MatMulIntegerToFloat", "TopK", "Softmax"} <= set(operators_elsewhere(session, "CUDAExecutionProvider"))


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
