"""The camera bench on a fake model: complete and plausible results, several cameras on one model, refused input."""

from __future__ import annotations

import json

import pytest

from bench.camera.camera import camera, print_results
from bench.camera.run import Setting, call_costs, measure
from bench.hardware.memory import resident_mb
from f2edge.cli.console import Output
from f2edge.errors import InputError
from f2edge.pipeline import FacePipeline
from tests.support.serving import paper_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> FacePipeline:
    return paper_pipeline(tmp_path_factory.mktemp("paper"))


@pytest.mark.slow
def test_concurrent_cameras_are_measured(pipeline: FacePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    messages: list[str] = []
    rows = measure(pipeline, [Setting(1, 1), Setting(2, 3)], 3.0, (240, 136), messages.append)
    assert len(messages) == 2
    for row, setting in zip(rows, ((1, 1), (2, 3)), strict=True):
        assert (row["cameras"], row["people"]) == setting
        assert row["frames_per_second"] > 0
        assert 0 <= row["drop_rate"] < 1
        assert 0 < row["frame_age_ms_p50"] <= row["frame_age_ms_p99"]
        assert row["cores"] > 0
        assert 10 < row["rss_mb"] < 4000
        assert row["accuracy"] is None or 0 <= row["accuracy"] <= 1
    calls = call_costs(pipeline, (1, 3), repeats=2)
    assert [row["faces"] for row in calls] == [1, 3]
    for row in calls:
        assert row["whole_ms"] > 0
        assert row["face_ms"] == pytest.approx(row["whole_ms"] / row["faces"], abs=0.02)
    print_results({"calls": calls, "rows": rows}, Output())
    printed = capsys.readouterr().out
    assert "answer age" in printed
    assert "against one" in printed
    json.dumps([calls, rows], allow_nan=False)


def test_bad_settings_are_refused() -> None:
    for bad in ("1,x", "0", "-1"):
        with pytest.raises(InputError, match="--cameras"):
            camera(cameras=[bad])
    for cameras, people in ((0, 1), (17, 1), (1, 5)):
        with pytest.raises(InputError, match="cameras with"):
            Setting(cameras, people)
    with pytest.raises(InputError, match="--duration"):
        camera(duration=0.0)


def test_resident_memory_is_read() -> None:
    before = resident_mb()
    assert before is not None
    held = bytearray(64 << 20)
    held[::4096] = b"x" * len(held[::4096])
    after = resident_mb()
    assert after is not None
    assert after - before > 50
