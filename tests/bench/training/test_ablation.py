"""The ablation: every variant gets the same, what is done is not done again, and intervals are Student's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.options import DEFAULT_JUDGE
from bench.quality.judge import Judge
from bench.training.ablation import METRICS, Ablation, Budget, interval, run_ablation, summary
from bench.training.faces import CoarseCodes
from bench.training.report import differs, table, write
from bench.training.variants import BASE, SMALL, VARIANTS, chosen
from export.model.transformer import UnifiedTransformer
from f2edge.errors import InputError
from f2edge.pipeline import FacePipeline


def rows(name: str, values: list[float]) -> list[dict[str, Any]]:
    return [{"variant": name, "seed": seed, "parameters": 1, **dict.fromkeys(METRICS, value)} for seed, value in enumerate(values)]


def test_variants_differ_in_one_thing_and_cost_the_same() -> None:
    base = next(v for v in VARIANTS if v.name == BASE)
    for variant in VARIANTS:
        changed = [name for name in ("masked", "score", "experts") if getattr(variant, name) != getattr(base, name)]
        assert len(changed) == (0 if variant is base else 2 if variant.name == "score only" else 1)
        with torch.device("meta"):
            UnifiedTransformer(variant.configuration(SMALL))
    assert [v.name for v in chosen("alpha=1, masked only")] == ["masked only", "alpha=1"]
    with pytest.raises(InputError, match="unknown variant 'alpha=7'"):
        chosen("alpha=7")


def test_intervals_and_paired_differences() -> None:
    assert interval(np.array([1.0, 2.0, 3.0])) == {"mean": 2.0, "half": pytest.approx(2.4841, abs=1e-3)}  # 4.303 / sqrt(3)
    assert interval(np.array([1.0]))["half"] is None
    found = summary(rows(BASE, [1.0, 2.0, 3.0]) + rows("alpha=1", [1.5, 2.5, 3.6]), [BASE, "alpha=1"])
    cell = found["alpha=1"]["judge"]
    assert cell["difference"]["mean"] == pytest.approx(1.6 / 3)
    assert differs(cell)  # although the variants' own intervals overlap
    assert not differs(found[BASE]["judge"])


def test_codes_are_cut_and_completed() -> None:
    coarse = CoarseCodes(np.array([[0, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 11]]), np.array([0b10, 0b1]))
    codes = np.random.default_rng(0).integers(0, 4096, (3, 10))
    cut = coarse.cut(codes)
    assert 0 <= cut.min() <= cut.max() < 256
    again = coarse.whole(cut)
    assert np.array_equal(coarse.cut(again), cut)
    kept = np.array([sum(1 << int(bit) for bit in row) for row in coarse.kept])
    assert np.array_equal(again.reshape(3, -1, 2) & kept, codes.reshape(3, -1, 2) & kept)
    assert np.array_equal(again.reshape(3, -1, 2) & ~kept & 4095, np.broadcast_to(coarse.filled, (3, 5, 2)))


@pytest.mark.long
def test_a_small_ablation_goes_on_where_it_was(tmp_path: Path) -> None:
    pipeline = FacePipeline.load("nano", backend="onnxruntime", threads=1, watermark=None)
    budget = Budget(faces=64, steps=2, batch=10, pictures=4)
    prepared = Ablation.prepare(pipeline, Judge.load(DEFAULT_JUDGE), budget, tmp_path)
    said: list[str] = []
    first = run_ablation(prepared, chosen("alpha=0.01"), 1, tmp_path, said.append)
    changed = tmp_path / "alpha-0.01" / "seed-0" / "result.json"
    changed.write_text(changed.read_text().replace('"slots": ', '"slots": 9'))
    results = run_ablation(prepared, chosen("alpha=0.01,no experts"), 1, tmp_path, said.append)
    assert results["rows"][0]["slots"] > 8  # read, not run again
    assert results["rows"][0]["judge"] == first["rows"][0]["judge"]
    assert results["rows"][1]["parameters"] < results["rows"][0]["parameters"]
    assert not (tmp_path / "no-experts" / "seed-0" / "run").exists()
    assert {path.name for path in write(results, tmp_path)} == {f"ablation.{kind}" for kind in ("json", "md", "svg", "png")}
    assert json.loads((tmp_path / "ablation.json").read_text())["summary"]["no experts"]["seeds"] == 1
    assert table(results).count("\n") == 5
    with pytest.raises(InputError, match="holds an ablation of"):
        Ablation.prepare(pipeline, prepared.judge, Budget(faces=64, steps=3, batch=10, pictures=4), tmp_path)
