"""The bench at any size: every figure is there, shares and ratios mean what they say, and memory is that of a process without PyTorch."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx_ir as ir
import pytest

from bench.hardware.ceilings import read_rate
from bench.latency import baseline, llama_cpp, paper_size, random_bundles
from bench.latency.baseline import Job, memory
from bench.latency.paper_size import TASKS, Size, compare, memory_of_bundle, print_comparison, size_of, task_bytes, token_bytes
from bench.latency.random_bundles import uncalibrated
from export.graph.trace import Models
from export.quantize.recipes import RECIPES
from f2edge.bundle.bundle import Bundle
from f2edge.errors import InputError
from f2edge.spec.configuration import PAPER, SHOW_O, TokenExperts
from f2edge.spec.flops import step_flops, text_flops
from tests.support.tiny_model import TINY


def test_a_comparison_has_every_figure(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(paper_size, "written", lambda *_: {"fp32": tiny_bundle})
    monkeypatch.setattr(paper_size, "ceilings", lambda _: {"fp32_gops": 100.0, "int8_gops": 400.0, "read_gb_per_s": 10.0})
    results = compare(
        Size("nano", layers=1), Path(), recipes=["fp32"], baselines=["lineage"], threads=1, repeats=2, progress=lambda _: None
    )
    print_comparison(results)
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1]) == json.loads(json.dumps(results))
    engine, lineage = results["contenders"]["fp32"], results["contenders"]["torch lineage"]
    for row in (engine, lineage):
        for name in ("step_ms", "prefill_ms", "token_ms"):
            assert 0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"]
        assert 0 < row["memory"]["t2i"]["own"] <= row["memory"]["t2i"]["resident"] <= row["memory"]["t2i"]["peak"]
        assert "failed" not in row
    assert engine["step_share"] == pytest.approx(step_flops(TINY, [19, 3], 1) / engine["step_ms"]["median"] / 1e8)
    assert engine["token_share"] == pytest.approx(engine["token_bytes"] / engine["token_ms"]["median"] / 1e7)
    assert engine["ratio"]["token_ms"] == pytest.approx(lineage["token_ms"]["median"] / engine["token_ms"]["median"])
    assert lineage["ratio"] == {"step_ms": 1.0, "prefill_ms": 1.0, "token_ms": 1.0}
    assert "image_decode_ms" in engine
    assert engine["memory"]["t2i"]["peak"] < lineage["memory"]["t2i"]["peak"]  # PyTorch alone is larger than the tiny engine


def test_memory_of_a_bundle_is_measured_task_by_task(tiny_bundle: Path) -> None:
    row = memory_of_bundle(str(tiny_bundle), threads=1)["contenders"]["tiny"]
    assert set(row["memory"]) == set(TASKS)
    assert "failed" not in row


def test_a_contender_that_fails_says_so_and_the_others_go_on(tmp_path: Path) -> None:
    row = paper_size.contend(Job("engine", "t2i", bundle=str(tmp_path / "nowhere")), ("t2i",), lambda _: None)
    assert "nowhere" in row["failed"]["t2i"]
    assert row["memory"] == {}


def test_a_tasks_bytes_are_its_own(tiny_bundles: dict[str, Path]) -> None:
    whole, small = (Bundle.load(tiny_bundles[recipe]) for recipe in ("fp32", "int8"))
    tasks = [task_bytes(whole, task) for task in TASKS]
    assert max(tasks) < whole.total_bytes < sum(tasks) + 10**6
    assert task_bytes(small, "t2i") < task_bytes(whole, "t2i") / 2
    linears = 4 * (text_flops(TINY, [1]) // 2)  # one token multiplies with every active weight once
    assert 0.7 * linears < token_bytes(whole) < 1.5 * linears


def test_llama_cpp_reads_answers_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library stands in for here: it is compiled on installation; the file that it would read is real."""
    gguf = pytest.importorskip("gguf", reason="the optional peer's file format")
    model = replace(SHOW_O, layers=2, width=64, heads=4, rotary=8, text_vocabulary=100, token_experts=TokenExperts(128))
    path = llama_cpp.write_gguf(tmp_path / "q4_0.gguf", model)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    up = gguf.quants.dequantize(tensors["blk.1.ffn_up.weight"].data, tensors["blk.1.ffn_up.weight"].tensor_type)
    assert up.shape == (128, 64)
    assert up.std() == pytest.approx(64**-0.5, rel=0.05)
    matrices = sum(int(t.n_bytes) for name, t in tensors.items() if name.endswith("weight") and "token_embd" not in name)
    assert matrices < llama_cpp.token_bytes(path, model) < matrices + 10**4
    heard: list[int] = []

    class Llama:
        def __init__(self, name: str, **settings: object) -> None:
            assert name == str(path)
            assert settings["n_ubatch"] == 30

        def reset(self) -> None:
            heard.append(0)

        def eval(self, tokens: list[int]) -> None:
            heard.append(len(tokens))

    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=Llama))
    times = llama_cpp.read(path, columns=30, threads=1, repeats=2)
    assert [len(values) for values in times.values()] == [2, 2]
    assert heard == [0, 30, 0, 30, 0, 30, 1, 1, 1]


def test_llama_cpp_is_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "routed experts" in llama_cpp.lacking(PAPER)
    monkeypatch.setattr(llama_cpp, "find_spec", lambda _: None)
    assert "pip install llama-cpp-python gguf" in llama_cpp.lacking(SHOW_O)
    with pytest.raises(InputError, match="only dense models"):
        llama_cpp.write_gguf(Path("never"), PAPER)


def test_the_compiled_and_the_cached_way_are_known_and_others_are_not() -> None:
    assert any(recipe.calibrated for recipe in RECIPES.values())
    for recipe in RECIPES.values():
        plain = uncalibrated(recipe)
        assert not plain.calibrated
        assert plain.of("mmu_extend").precision == recipe.of("mmu_extend").precision
    for wrong in ({"kind": "fast", "task": "t2i"}, {"kind": "engine", "task": "sing"}, {"kind": "engine", "task": "t2i", "repeats": 0}):
        with pytest.raises(InputError):
            Job(**wrong)
    with pytest.raises(InputError, match="go together"):
        size_of("nano", None, random_weights=False)
    with pytest.raises(InputError, match="unknown configuration"):
        size_of("giant", None, random_weights=True)
    with pytest.raises(InputError, match="unknown baseline"):
        compare(Size("nano"), Path(), baselines=["jax"])


def test_bundles_of_random_weights_are_written_without_calibration(
    tmp_path: Path, tiny_bundle: Path, tiny_models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_bundles, "random_models_of", lambda *_: tiny_models)
    monkeypatch.setattr(random_bundles, "trace_all", lambda *_: {"t2i_step": ir.load(tiny_bundle / "t2i_step.onnx")})
    calibrated = next(name for name, recipe in RECIPES.items() if recipe.calibrated)
    random_bundles.write("nano", 1, 0, ["int8", calibrated], tmp_path)
    for name in ("int8", calibrated):
        assert Bundle.load(tmp_path / name).manifest.graphs["t2i_step"].precision == RECIPES[name].of("t2i_step").label


def test_the_ways_of_pytorch_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "CONFIGURATIONS", {"nano": TINY})
    for kind, task, name in (("lineage", "t2i", "step_ms"), ("cached", "mmu", "token_ms")):
        assert len(baseline.run(Job(kind, task, layers=1, threads=1, repeats=2))[name]) == 2


def test_ceilings_are_above_zero() -> None:
    assert read_rate(1, repeats=1) > 0.1
    assert memory()["peak"] >= memory()["resident"] > 10**7
