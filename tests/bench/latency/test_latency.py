"""The latency bench on a tiny bundle: complete, plausible, printable as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.hardware.ceilings import gemm_peak
from bench.latency.latency import measure
from bench.latency.report import show
from bench.results import document
from f2edge.cli.console import Output
from f2edge.errors import InputError


def test_every_call_is_measured(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = measure(str(tiny_bundle), steps=3, threads=1, repeats=2, shell=False)
    show(results, Output())
    print(document(results))
    lines = capsys.readouterr().out.strip().splitlines()
    assert any(line.split()[:3] == ["generate,", "3", "steps"] for line in lines)
    assert json.loads(lines[-1]) == json.loads(json.dumps(results))
    assert results["ceilings"]["1"]["fp32_gops"] > 1
    rows = {row["call"]: row for row in results["rows"]}
    for name in (
        "generate, 3 steps",
        "one step",
        "analyze, per face",
        "ask, first token",
        "ask, first token, face again",
        "tokens to image",
    ):
        assert 0 < rows[name]["ms"]["low"] <= rows[name]["ms"]["median"] <= rows[name]["ms"]["high"]
    assert rows["one step"]["ms"]["median"] < rows["generate, 3 steps"]["ms"]["median"]
    for name in ("generate, 3 steps", "one step", "analyze, per face"):
        assert 0 < rows[name]["share"] < 1


def test_int8_products_are_measured_too() -> None:
    assert gemm_peak("int8", threads=1, repeats=1) > 1


def test_no_repeats_are_refused() -> None:
    with pytest.raises(InputError, match="repeats"):
        measure("nano", repeats=0)
