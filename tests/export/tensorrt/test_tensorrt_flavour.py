"""Export, builder and runner together: graphs of the "tensorrt" flavour, built and run; on a real GPU where there is one.

The flavour's own tests hold the graphs against the reference; here they pass the builder's checks, and the runner, padding and all, gives
what ONNX Runtime gives on the same graphs.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines.builder import BuildRequest, build
from engines.cli import run
from engines.selftest.cases import cases, feeds
from engines.selftest.reference import groups
from export.bundle_writer import write_graphs
from export.graph.static_shapes import infer
from export.tensorrt.graphs import TensorRTOptions
from export.tensorrt.recipes import recipes_of
from export.tensorrt_export import tensorrt_transform
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.backends.tensorrt.plans import PlanFolder
from f2edge.bundle.bundle import MANIFEST, Bundle, write_manifest
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions
from tests.support.tensorrt.tensorrt_machine import machine

pytestmark = pytest.mark.slow

OPTIONS = GenerateOptions(steps=5, guidance=1.5)
MISSING = [name for name in ("tensorrt", "cuda") if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's graphs in half precision, for TensorRT 10.3."""
    folder = tmp_path_factory.mktemp("flavour") / "tiny-trt"
    folder.mkdir()
    traced = {path.stem: ir.external_data.load_to_model(ir.load(path)) for path in sorted(tiny_bundle.glob("*.onnx"))}
    for model in traced.values():
        infer(model)
    configuration = Bundle.load(tiny_bundle).configuration
    rows = write_graphs(folder, traced, tensorrt_transform(configuration, TensorRTOptions(recipes=recipes_of("fp16"))))
    shutil.copy(tiny_bundle / "tokenizer.json", folder)
    document = json.loads((tiny_bundle / MANIFEST).read_text())
    write_manifest(folder, {**document, "name": "tiny-trt", "graphs": rows, "flavour": "tensorrt"})
    return folder


def same_as_onnx_runtime(bundle: Path, agreement: float) -> None:
    own, other = (FacePipeline.load(bundle, backend=b, threads=1) for b in ("tensorrt", "onnxruntime"))
    drawn = [p.generate(["an old man", "a woman"], seeds=[3, 4], options=OPTIONS) for p in (own, other)]
    for a, b in zip(*drawn, strict=True):
        assert (a.codes == b.codes).mean() >= agreement
    answers = [p.ask(drawn[1][0].image, "what color is the hair?", max_tokens=20).tokens for p in (own, other)]
    assert np.mean([a == b for a, b in zip(*answers, strict=False)]) >= agreement


def test_exported_graphs_are_built_and_run(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(monkeypatch, tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    plans = PlanFolder.load(here.build(copy))
    assert set(plans.graphs) == set(Bundle.load(bundle).manifest.graphs)
    same_as_onnx_runtime(copy, agreement=1.0)
    assert here.cuda.launches


def test_the_self_tests_inputs_have_the_types_of_the_graphs(bundle: Path) -> None:
    opened = Bundle.load(bundle)
    backend = OnnxRuntimeBackend(opened.path, 1)
    for case in (case for case in cases(opened) if case.graph in ("mmu_extend", "mmu_prefill")):
        found = feeds(opened, case)
        assert {port.name: port.dtype for port in opened.manifest.graphs[case.graph].inputs} == {n: v.dtype.name for n, v in found.items()}
        assert groups(case, backend.run(case.graph, found))


@pytest.mark.gpu
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (TensorRT 10.3 or newer on a machine with a GPU)")
def test_on_a_gpu_engines_are_built_and_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real engines round otherwise, so most tokens of random weights agree, not all."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    build(copy, BuildRequest("auto", image_rows=2, answer_rows=4))
    assert run(["verify", str(copy)]) == 0, capsys.readouterr().err
    assert run(["selftest", str(copy), "--backend", "tensorrt", "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    same_as_onnx_runtime(copy, agreement=0.5)
