"""The latency bench on a tiny bundle: every figure is there, plausible, and printable as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.latency.latency import gemm_peak, print_results, run
from f2edge.errors import InputError


def test_every_figure_is_measured(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(str(tiny_bundle), steps=3, threads=1, repeats=2, shell=False)
    print_results(results)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert json.loads(last) == json.loads(json.dumps(results))
    assert results["ceilings"]["fp32_gops"] > 1
    rows = {row["name"]: row for row in results["rows"]}
    for name in (
        "generate, 3 steps",
        "one step",
        "analyze, per face",
        "ask, first token",
        "ask, first token, face again",
        "tokens to image",
    ):
        assert 0 < rows[name]["low"] <= rows[name]["median"] <= rows[name]["high"]
    assert rows["one step"]["median"] < rows["generate, 3 steps"]["median"]
    for name in ("generate, 3 steps", "one step", "analyze, per face"):
        assert 0 < rows[name]["share"] < 1


def test_int8_products_are_measured_too() -> None:
    assert gemm_peak("int8", threads=1, repeats=1) > 1


def test_no_repeats_are_refused() -> None:
    with pytest.raises(InputError, match="repeats"):
        run("nano", repeats=0)
