"""The self-test: a report on the CPU and on the double of TensorRT, and a damaged graph is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.cli import run
from engines.selftest.cases import CASES, Case, cases, feeds, uniform
from engines.selftest.command import AS_BUILT, NO_GRAPHS
from engines.selftest.layers import form, states
from engines.selftest.reference import BETWEEN, FILE, Reference, compute, error, groups
from engines.selftest.run import CaseResult
from f2edge.bundle.bundle import MANIFEST, Bundle, write_manifest
from tests.support.tensorrt.tensorrt_machine import machine, planned_bundle

pytestmark = pytest.mark.slow


def selftest(bundle: Path | str, out: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, JSON and Markdown."""
    code = run(["selftest", str(bundle), "--out", str(out), "--seconds", "0", "--power", "none", *more])
    return code, json.loads((out / "selftest.json").read_text()), (out / "selftest.md").read_text()


@pytest.fixture(scope="module")
def recorded(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that carries its reference."""
    folder = tmp_path_factory.mktemp("recorded") / "tiny"
    shutil.copytree(tiny_bundle, folder)
    assert run(["selftest", str(folder), "--record"]) == 0
    return folder


def test_a_cpu_bundle_without_a_reference(tiny_bundle: Path, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in tiny_bundle.iterdir()}
    code, document, text = selftest(tiny_bundle, tmp_path)
    assert code == 0
    assert document["passed"]
    assert (document["backend"], document["reference"], document["trtexec"]) == ("onnxruntime", "computed here", [])
    assert {row["graph"] for row in document["cases"]} == set(Bundle.load(tiny_bundle).manifest.graphs)
    for row in document["cases"]:
        assert 0 < row["ms"][AS_BUILT]["p50"] <= row["ms"][AS_BUILT]["p99"]
        assert row["interleaved"] <= 1.0
        assert f"| {row['graph']} | {row['case']} |" in text
    assert document["machine"]["packages"]["onnxruntime"]
    assert "**Passed**" in text
    assert {path.name: path.stat().st_mtime_ns for path in tiny_bundle.iterdir()} == before, "nothing is written into the bundle"


def test_caches_that_are_passed_layer_by_layer(tiny_int8_bundle: Path, tmp_path: Path) -> None:
    """As in every quantized bundle for the CPU."""
    assert "text_key.0" in [port.name for port in Bundle.load(tiny_int8_bundle).manifest.graphs["mmu_extend"].inputs]
    code, document, text = selftest(tiny_int8_bundle, tmp_path)
    assert code == 0, text
    (row,) = [row for row in document["cases"] if (row["graph"], row["case"]) == ("mmu_extend", "token")]
    assert {"state after layer 1", "logits", "next_text_key layer 1"} <= row["errors"].keys()


def test_a_reference_travels_with_the_bundle(recorded: Path, tmp_path: Path) -> None:
    assert (recorded / FILE).stat().st_size < 1 << 20
    assert FILE in Bundle.load(recorded).manifest.files
    code, document, _ = selftest(recorded, tmp_path)
    assert (code, document["reference"]) == (0, "of the bundle")


def test_a_damaged_graph_is_named(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of one graph changed, and the manifest written again, so that no checksum tells."""
    onnx = pytest.importorskip("onnx", reason="the graph is damaged with the onnx package")
    folder = tmp_path / "tiny"
    shutil.copytree(recorded, folder)
    entry = Bundle.load(folder).manifest.graphs["image_decode"]
    model = onnx.load(folder / entry.file)
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.ndim == 4:
            weight.CopyFrom(onnx.numpy_helper.from_array(1.05 * values, weight.name))
    onnx.save(model, folder / entry.file)
    write_manifest(folder, json.loads((folder / MANIFEST).read_text()))
    capsys.readouterr()
    code, document, text = selftest(folder, tmp_path / "out")
    assert code == 1
    assert {row["graph"] for row in document["cases"] if not row["passed"]} == {"image_decode"}
    assert "graph 'image_decode': differs from the reference" in capsys.readouterr().err
    assert "- **image_decode**, one: pixels is the first group that differs" in text


def damage(folder: Path, graph: str, weights: str) -> None:
    """Change some weights of one graph, and write the manifest again, so that no checksum tells."""
    onnx = pytest.importorskip("onnx", reason="the graph is damaged with the onnx package")
    path = folder / Bundle.load(folder).manifest.graphs[graph].file
    model = onnx.load(path)
    changed = [weight for weight in model.graph.initializer if weights in weight.name]
    assert changed
    for weight in changed:
        values = onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(np.roll(values, 1, axis=-1), weight.name))
    onnx.save(model, path)
    write_manifest(folder, json.loads((folder / MANIFEST).read_text()))


@pytest.mark.parametrize("graph", ["t2i_step", "mmu_extend"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_damaged_layer_is_named(graph: str, layers: int, recorded: Path, tmp_path: Path) -> None:
    """One weight of one layer; a step's only outputs are codes, which tell no layer."""
    folder = tmp_path / "tiny"
    shutil.copytree(recorded, folder)
    damage(folder, graph, "blocks.1.attention.output")
    code, document, text = selftest(folder, tmp_path / "out", "--layers", str(layers))
    assert code == 1
    assert {row["graph"] for row in document["cases"] if not row["passed"]} == {graph}
    before = "state after layer 0 agrees" if layers == 1 else "state before layer 0 agrees"
    assert f"**{graph}**" in text
    assert f"state after layer 1 is the first group that differs, {before}; worst" in text


def test_a_damaged_layer_is_named_by_tensorrt_too(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the double: the bundle of forms is built and tested like any other, and the original has no further outputs."""
    forms = tmp_path / "forms"
    assert run(["selftest", str(recorded), "--forms", str(forms)]) == 0
    outputs = {name: [port.name for port in entry.outputs] for name, entry in Bundle.load(forms).manifest.graphs.items()}
    assert outputs["t2i_step"][:3] == ["next_codes", "proposal", "state_0"]
    assert outputs["image_decode"] == ["pixels"]
    damage(forms, "mmu_prefill", "blocks.0.attention.output")
    bundle = planned_bundle(forms, tmp_path)
    machine(monkeypatch, tmp_path)
    code, document, text = selftest(bundle, tmp_path / "out", "--backend", "tensorrt")
    assert code == 1
    assert {row["graph"] for row in document["cases"] if not row["passed"]} == {"mmu_prefill"}
    assert "state after layer 0 is the first group that differs, state before layer 0 agrees" in text
    rows = [row for row in document["cases"] if row["graph"] in ("t2i_step", "mmu_extend") and row["case"] != "two guided"]
    assert all("state after layer 1" in row["errors"] for row in rows)


def test_forms_are_of_graphs_with_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    assert run(["selftest", "nano", "--forms", str(tmp_path / "there")]) == 2
    assert "there: File exists" in capsys.readouterr().err
    model = Bundle.load("nano").path("image_encode").read_bytes()
    assert states(model) == {}
    assert form(model) == model


def test_a_damaged_file_is_named(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(recorded, folder)
    data = bytearray((folder / "image_decode.onnx").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / "image_decode.onnx").write_bytes(data)
    assert run(["selftest", str(folder), "--out", str(tmp_path / "out")]) != 0
    assert "image_decode.onnx" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_graph_that_goes_wrong_at_a_layer(recorded: Path) -> None:
    """Layers before it agree, and the first that does not is named."""
    bundle = Bundle.load(recorded)
    case = Case("t2i_prefill", "two", CASES["t2i_prefill"]["two"])
    wanted = Reference.of(bundle, [case]).cases[case.label]
    result = CaseResult(case, {}, dict.fromkeys(wanted, 0.002))
    result.note(wanted, wanted)
    assert result.passed
    result.note({group: value * (1.01 if "layer 1" in group else 1.0) for group, value in wanted.items()}, wanted)
    assert result.wrong[0] == "prefix_key layer 1"
    assert not any("layer 0" in group for group in result.wrong)


def test_errors_of_groups() -> None:
    ones = np.ones(100, dtype=np.float32)
    assert error(ones, ones) == 0.0
    assert error(1.03 * ones, ones) == pytest.approx(0.03, rel=1e-3)
    assert error(np.where(np.arange(100) == 5, np.nan, ones), ones) == float("inf")
    assert error(ones[:5], ones) == float("inf")
    assert error(np.arange(4), np.array([0, 1, 2, 9])) == 0.25


def test_inputs_are_the_same_everywhere(tiny_bundle: Path) -> None:
    assert uniform("a", 3).tolist() == [0.7546573094801203, 0.371126313656029, 0.8390523071243764]
    bundle = Bundle.load(tiny_bundle)
    for case in cases(bundle):
        first, again = feeds(bundle, case), feeds(bundle, case)
        entry = bundle.manifest.graphs[case.graph]
        assert sorted((p.name, p.dtype) for p in entry.inputs) == sorted((name, value.dtype.name) for name, value in first.items())
        assert all(np.array_equal(first[name], again[name]) for name in first)


def test_padding_is_not_compared(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    case = Case("mmu_extend", "token", CASES["mmu_extend"]["token"])
    (found,) = compute(bundle, [case]).values()
    outputs = {"logits": np.zeros((1, 4)), **{f"next_text_{kind}": np.zeros((2, 1, 4, 64, 16)) for kind in ("key", "value")}}
    for value in outputs.values():
        value[..., :40, :] = np.nan
    assert all(np.isfinite(value).all() for name, value in groups(case, outputs).items() if name != "logits")
    assert list(groups(case, outputs)) == [group for group in found if not group.startswith(BETWEEN)]


def test_the_embedded_bundle_is_not_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["selftest", "nano", "--record"]) == 2
    assert "copy its folder and record there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--power", "wind"], 2, "--power 'wind': choose auto, none"),
        (["--backend", "abacus"], 1, "unknown backend 'abacus'"),
        (["--out", "/dev/null/out"], 2, "cannot write /dev/null/out"),
    ],
)
def test_bad_input_is_named(  # noqa: PLR0917
    words: list[str], code: int, message: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["selftest", str(recorded), "--power", "none", "--out", str(tmp_path / "out"), *words]) == code
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_with_and_without_cuda_graphs(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the double of TensorRT, whose engines compute through ONNX Runtime."""
    bundle = planned_bundle(tiny_bundle, tmp_path)
    here = machine(monkeypatch, tmp_path)
    code, document, text = selftest(bundle, tmp_path / "out", "--backend", "tensorrt")
    assert code == 0, text
    assert here.cuda.launches
    assert here.cuda.invalidated == []
    assert all(set(row["ms"]) == {AS_BUILT, NO_GRAPHS} for row in document["cases"])
    assert document["machine"]["device"] == "Orin"
    assert document["machine"]["cuda library"] == "pycuda"
    lines = document["trtexec"]
    assert any("--memPoolSize=workspace:768M" in line and "--minShapes=" in line for line in lines)
    assert any("--loadEngine=" in line and "--useCudaGraph" in line and "codes:1x128" in line for line in lines)
    assert "trtexec --onnx=" in text


def test_a_fault_that_only_other_graphs_bring_out_is_named(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that answers wrongly after a run of one other graph: right alone, wrong interleaved."""
    bundle = planned_bundle(tiny_bundle, tmp_path)
    here = machine(monkeypatch, tmp_path)
    through_onnxruntime, before = here.trt.compute, [""]

    def disturbed(document: Any, given: Any) -> Any:
        made, graph = through_onnxruntime(document, given), Path(document["onnx"]).stem
        wrong = graph == "semantic" and before[0] == "regions"
        before[0] = graph
        return {name: value + 1 if wrong else value for name, value in made.items()}

    monkeypatch.setattr(here.trt, "compute", disturbed)
    code, document, text = selftest(bundle, tmp_path / "out", "--backend", "tensorrt")
    assert code == 1
    (row,) = [row for row in document["cases"] if not row["passed"]]
    assert row["graph"] == "semantic"
    assert row["interleaved"] > 1.0
    assert "**semantic**" in text


@pytest.mark.long
def test_a_damaged_layer_of_the_shipped_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    shutil.copytree(Bundle.load("nano").folder, folder)
    assert run(["selftest", str(folder), "--record"]) == 0
    assert (folder / FILE).stat().st_size < 1 << 20
    damage(folder, "t2i_step", "blocks.3.attention.input.weight.T.int8")
    code, document, text = selftest(folder, tmp_path / "out", "--threads", "1")
    assert code == 1
    assert document["seconds"] < 120
    assert "state after layer 3 is the first group that differs, state after layer 2 agrees" in text


@pytest.mark.long
def test_the_shipped_bundle(tmp_path: Path) -> None:
    code, document, _ = selftest("nano", tmp_path, "--threads", "1")
    assert code == 0, [row for row in document["cases"] if not row["passed"]]
    assert len(document["graphs"]) == 9
