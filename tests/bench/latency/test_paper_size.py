"""The bench at any size: complete, with correct shares and ratios, and memory of processes without PyTorch."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx_ir as ir
import pytest

from bench.hardware.ceilings import read_rate
from bench.hardware.memory import process_memory, resident_mb
from bench.latency import llama_cpp, paper_size, random_bundles, stages
from bench.latency.paper_size import CALLS, TASKS, Measured, Size, compare, memory_of_bundle, task_bytes, token_bytes
from bench.latency.random_bundles import uncalibrated
from bench.latency.report import show
from bench.latency.stages import System
from bench.results import document
from export.graph.trace import Models
from export.quantize.recipes import RECIPES
from f2edge.bundle.bundle import Bundle
from f2edge.cli.console import Output
from f2edge.errors import InputError
from f2edge.spec.configuration import PAPER, SHOW_O, TokenExperts
from f2edge.spec.flops import step_flops, text_flops
from tests.support.tiny_model import TINY


@pytest.mark.slow
def test_a_comparison_is_complete(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(paper_size, "written", lambda *_: {"fp32": tiny_bundle})
    monkeypatch.setattr(paper_size, "ceilings", lambda _: {"fp32_gops": 100.0, "int8_gops": 400.0, "read_gb_per_s": 10.0})
    results = compare(
        Size("nano", layers=1), Path(), recipes=["fp32"], baselines=["lineage"], threads=1, repeats=2, progress=lambda _: None
    )
    show(results, Output())
    print(document(results))
    lines = capsys.readouterr().out.strip().splitlines()
    assert json.loads(lines[-1]) == json.loads(json.dumps(results))
    assert [line.split()[0] for line in lines if line.startswith(("guided step", "image +", "answer"))] == ["guided", "image", "answer"]
    assert any(line.split()[:2] == ["torch", "lineage"] for line in lines)
    engine, lineage = ({row["call"]: row for row in results["rows"] if row["system"] == name} for name in ("fp32", "torch lineage"))
    assert set(engine) == set(CALLS.values())
    assert set(lineage) == {"guided step", "step without guidance", "image + question", "answer token"}
    for row in results["rows"]:
        assert 0 < row["ms"]["low"] <= row["ms"]["median"] <= row["ms"]["high"]
    assert engine["image in, first token out"]["ms"]["median"] > engine["image encode"]["ms"]["median"]
    step, token = engine["guided step"], engine["answer token"]
    assert step["share"] == pytest.approx(step_flops(TINY, [19, 3], 1) / step["ms"]["median"] / 1e8)
    assert token["share"] == pytest.approx(token["token_bytes"] / token["ms"]["median"] / 1e7)
    assert token["ratio"]["median"] == pytest.approx(lineage["answer token"]["ms"]["median"] / token["ms"]["median"])
    assert [row["ratio"] for row in lineage.values()] == [{"median": 1.0}] * 4
    assert results["failed"] == []
    memory = {(row["system"], row["task"]): row for row in results["memory"]}
    for row in memory.values():
        assert 0 < row["own"] <= row["resident"] <= row["peak"]
    assert memory["fp32", "t2i"]["peak"] < memory["torch lineage", "t2i"]["peak"]  # PyTorch alone is larger than the tiny engine


def test_memory_of_a_bundle_is_measured_task_by_task(tiny_bundle: Path) -> None:
    results = memory_of_bundle(str(tiny_bundle), threads=1)
    assert [(row["system"], row["task"]) for row in results["memory"]] == [("tiny", task) for task in TASKS]
    assert all(row["files"] > 0 for row in results["memory"])
    assert results["failed"] == []


def test_a_failed_system_is_reported_and_the_others_continue(tmp_path: Path) -> None:
    measured = Measured(lambda _: None)
    measured.run("lost", System("engine", "t2i", bundle=str(tmp_path / "nowhere")), {"t2i": None})
    assert [(row["system"], row["task"]) for row in measured.failed] == [("lost", "t2i")]
    assert "nowhere" in measured.failed[0]["reason"]
    assert measured.rows == measured.memory == []


def test_a_tasks_bytes_are_its_own(tiny_bundles: dict[str, Path]) -> None:
    whole, small = (Bundle.load(tiny_bundles[recipe]) for recipe in ("fp32", "int8"))
    tasks = [task_bytes(whole, task) for task in TASKS]
    assert max(tasks) < whole.total_bytes < sum(tasks) + 10**6
    assert task_bytes(small, "t2i") < task_bytes(whole, "t2i") / 2
    linears = 4 * (text_flops(TINY, [1]) // 2)  # one token multiplies with every active weight once
    assert 0.7 * linears < token_bytes(whole) < 1.5 * linears


def test_llama_cpp_reads_answers_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake replaces the library, which is compiled on installation; the file that it would read is real."""
    gguf = pytest.importorskip("gguf", reason="file format of the optional baseline")
    model = replace(SHOW_O, layers=2, width=64, heads=4, rotary=8, text_vocabulary=100, token_experts=TokenExperts(128))
    path = llama_cpp.write_gguf(tmp_path / "q4_0.gguf", model)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    up = gguf.quants.dequantize(tensors["blk.1.ffn_up.weight"].data, tensors["blk.1.ffn_up.weight"].tensor_type)
    assert up.shape == (128, 64)
    assert up.std() == pytest.approx(64**-0.5, rel=0.05)
    matrices = sum(int(t.n_bytes) for name, t in tensors.items() if name.endswith("weight") and "token_embd" not in name)
    assert matrices < llama_cpp.token_bytes(path, model) < matrices + 10**4
    evaluated: list[int] = []

    class Llama:
        def __init__(self, name: str, **settings: object) -> None:
            assert name == str(path)
            assert settings["n_ubatch"] == 30

        def reset(self) -> None:
            evaluated.append(0)

        def eval(self, tokens: list[int]) -> None:
            evaluated.append(len(tokens))

    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=Llama))
    times = llama_cpp.time_llama(path, columns=30, threads=1, repeats=2)
    assert [len(values) for values in times.values()] == [2, 2]
    assert evaluated == [0, 30, 0, 30, 0, 30, 1, 1, 1]


def test_llama_cpp_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "routed experts" in llama_cpp.unavailable(PAPER)
    monkeypatch.setattr(llama_cpp, "find_spec", lambda _: None)
    assert "pip install llama-cpp-python gguf" in llama_cpp.unavailable(SHOW_O)
    with pytest.raises(InputError, match="only dense models"):
        llama_cpp.write_gguf(Path("never"), PAPER)


def test_unknown_systems_and_sizes_are_refused() -> None:
    assert any(recipe.calibrated for recipe in RECIPES.values())
    for recipe in RECIPES.values():
        plain = uncalibrated(recipe)
        assert not plain.calibrated or any(plain.of(graph).convolutions == "computed" for graph in ("image_encode", "image_decode"))
        assert plain.of("mmu_extend").precision == recipe.of("mmu_extend").precision
    for wrong in ({"kind": "fast", "task": "t2i"}, {"kind": "engine", "task": "sing"}, {"kind": "engine", "task": "t2i", "repeats": 0}):
        with pytest.raises(InputError):
            System(**wrong)
    with pytest.raises(InputError, match="unknown configuration"):
        Size("giant")
    with pytest.raises(InputError, match="unknown baseline"):
        compare(Size("nano"), Path(), baselines=["jax"])


def test_bundles_of_random_weights_are_written_without_calibration(
    tmp_path: Path, tiny_bundle: Path, tiny_models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_bundles, "random_models_of", lambda *_: tiny_models)
    monkeypatch.setattr(random_bundles, "trace_all", lambda *_: {"t2i_step": ir.load(tiny_bundle / "t2i_step.onnx")})
    calibrated = next(name for name, recipe in RECIPES.items() if recipe.calibrated)
    random_bundles.start("nano", 1, 0, ["int8", calibrated], str(tmp_path))
    for name in ("int8", calibrated):
        assert Bundle.load(tmp_path / name).manifest.graphs["t2i_step"].precision == RECIPES[name].of("t2i_step").label


def test_pytorch_baselines_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "CONFIGURATIONS", {"nano": TINY})
    for kind, task, name in (("lineage", "t2i", "step_ms"), ("cached", "mmu", "token_ms")):
        _, handle = stages.start(kind=kind, task=task, layers=1, threads=1, repeats=2)
        assert len(handle({})["times"][name]) == 2


def test_ceilings_are_above_zero() -> None:
    assert read_rate(1, repeats=1) > 0.1
    memory = process_memory()
    assert memory["peak"] >= memory["resident"] > 10**7
    assert resident_mb(2**22 + 1) is None
