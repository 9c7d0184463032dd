"""Reuse between decoding steps: what runs, what is taken from the last whole step, and what it counts as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.cli import main
from bench.pareto.reuse import Reuse, Reused, methods
from export.graph.trace import Models
from export.model.transformer import UnifiedTransformer
from export.training.preview import sample
from f2edge.decoding.schedule import Schedule
from f2edge.spec.layout import Ids, TokenLayout

PROMPTS = [[5, 6, 7], [8, 9]]


@pytest.fixture(scope="module")
def transformer(tiny_models: Models) -> UnifiedTransformer:
    assert isinstance(tiny_models.transformer, UnifiedTransformer)
    return tiny_models.transformer


def drawn(model: UnifiedTransformer, reuse: Reuse, steps: int = 6) -> tuple[Ids, list[int]]:
    """Tokens of two prompts, and the branches of every forward."""
    layout, branches = TokenLayout.of(model.configuration, 1, 2), list[int]()
    head = model.image_head.register_forward_hook(lambda _module, given, _out: branches.append(len(given[0])))
    with torch.inference_mode(), Reused(model, reuse):
        codes = sample(model, layout, [layout.prompt(p) for p in PROMPTS], Schedule(steps=steps, guidance=2.0), [1, 2])
    head.remove()
    assert "image_logits" not in vars(model)
    assert not any("forward" in vars(block) for block in model.blocks)
    return codes.numpy(), branches


def test_the_first_step_of_a_period_is_whole_and_the_rest_runs_in_part(transformer: UnifiedTransformer) -> None:
    plain, whole = drawn(transformer, Reuse())
    assert whole == [4] * 6
    layout = TokenLayout.of(transformer.configuration, 1, 2)
    with torch.inference_mode():
        alone = sample(transformer, layout, [layout.prompt(prompt) for prompt in PROMPTS], Schedule(steps=6, guidance=2.0), [1, 2])
    assert np.array_equal(plain, alone.numpy())
    assert drawn(transformer, Reuse("logits", 2))[1] == [4] * 3
    assert drawn(transformer, Reuse("branch", 3))[1] == [4, 2, 2] * 2
    assert drawn(transformer, Reuse("blocks", 2, 1))[1] == [4] * 6


@pytest.mark.parametrize("reuse", [Reuse("logits", 2), Reuse("branch", 2), Reuse("blocks", 2, 1)])
def test_a_period_longer_than_the_picture_changes_the_rest_and_one_of_a_step_nothing(transformer: UnifiedTransformer, reuse: Reuse) -> None:
    plain, _ = drawn(transformer, Reuse())
    assert np.array_equal(drawn(transformer, Reuse(reuse.kind, 1, reuse.kept))[0], plain)
    assert not np.array_equal(drawn(transformer, reuse)[0], plain)
    one, _ = drawn(transformer, Reuse(), steps=1)
    assert np.array_equal(drawn(transformer, Reuse(reuse.kind, 9, reuse.kept), steps=1)[0], one)


def test_forwards_count_blocks_as_parts() -> None:
    counts = {kind.described: kind.forwards(12, 6) for _, kind in ((m.schedule, m.reuse) for m in methods(Schedule(steps=12), [4], 6))}
    assert counts == {
        "": 24, "logits, every 2": 12, "branch, every 2": 18, "blocks of the lower 3, every 2": 18, "blocks of the lower 5, every 2": 14,
        "logits, every 3": 8, "branch, every 3": 16, "blocks of the lower 3, every 3": 16,
        "blocks of the lower 5, every 3": pytest.approx(2 * (4 + 8 / 6)),
    }  # fmt: skip


@pytest.mark.long
def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "reuse", "--images", "4", "--steps", "2", "--out", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert rows == json.loads((tmp_path / "reuse.json").read_text())["rows"]
    assert len(rows) == 10
    assert rows[1]["forwards"] == 4
