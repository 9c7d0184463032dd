"""The search of presets: what is tried, what is chosen, and what a bundle's manifest then says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench.cli import main
from bench.quality.presets import Candidate, candidates, chosen, variations, write
from f2edge.bundle.bundle import Bundle
from f2edge.bundle.seal import check_seal
from f2edge.decoding.schedule import Schedule
from tests.support.bundle_document import write_folder


def candidate(steps: int, accuracy: float, *, guidance: float = 3.0, frechet: float = 900.0, sharpness: float = 50.0) -> Candidate:
    return Candidate(Schedule(steps=steps, guidance=guidance), accuracy, frechet, steps * (1 + (guidance > 0)), 1.0, sharpness)


def test_the_fewest_branches_within_a_loss_of_the_default_are_chosen() -> None:
    measured = [
        candidate(12, 0.905),
        candidate(18, 0.910, frechet=880.0),
        candidate(12, 0.906, guidance=1.5),
        candidate(8, 0.9052),
        candidate(8, 0.8952, guidance=0.0),
        candidate(4, 0.89),
        candidate(3, 0.92, frechet=1000.0),
        candidate(2, 0.92, sharpness=47.0),
    ]
    found = chosen(measured)
    assert {name: (c.schedule.steps, c.branches) for name, c in found.items()} == {"fast": (8, 8), "balanced": (8, 16), "best": (18, 36)}


def test_a_default_that_nothing_equals_is_every_preset() -> None:
    measured = [candidate(12, 0.95), candidate(4, 0.9), candidate(2, 0.96, frechet=1000.0)]
    assert {id(c) for c in chosen(measured).values()} == {id(measured[0])}


def test_the_second_round_changes_the_best_of_each_number_of_steps() -> None:
    measured = [candidate(12, 0.9), candidate(4, 0.88), candidate(4, 0.89, guidance=5.0), candidate(3, 0.8, guidance=0.0)]
    tried = variations(measured)
    assert len(tried) == len(set(tried)) == 7 + 7 + 4
    assert {(s.steps, s.guidance) for s in tried} == {(12, 3.0), (4, 5.0), (3, 0.0)}
    assert all(s.guidance for s in tried if s.guidance_ramp or s.guidance_interval != (0.0, 1.0))
    assert not set(tried) & {c.schedule for c in measured}
    assert not variations([*measured, *(Candidate(s, 0.1, 900.0, 1, 1.0, 50.0) for s in tried)])


def test_the_default_is_tried_first_and_nothing_twice() -> None:
    tried = candidates(Schedule(steps=12, guidance=3.0), [4, 12], [0.0, 3.0])
    assert tried[0] == Schedule(steps=12, guidance=3.0)
    assert len(tried) == len(set(tried)) == 12


def test_chosen_presets_are_written_into_a_sealed_manifest(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "cup")
    write(Bundle.load(folder), {"fast": candidate(4, 0.88), "balanced": candidate(8, 0.9), "best": candidate(20, 0.91)})
    check_seal((folder / "manifest.json").read_bytes())
    presets = Bundle.load(folder).presets
    assert [preset.schedule.steps for preset in presets.values()] == [4, 8, 20]
    assert dict(presets["fast"].measured) == {"attributes": 0.88, "frechet": 900.0, "sharpness": 50.0, "branches": 8}


def test_only_a_folder_is_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "presets", "--write"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--bundle" in capsys.readouterr().err


@pytest.mark.long
def test_a_small_search_of_nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "nano"
    shutil.copytree(Bundle.load("nano").folder, folder)
    words = ["presets", "--bundle", str(folder), "--images", "2", "--steps", "2", "--guidance", "0", "--write", "--json"]
    monkeypatch.setattr("sys.argv", ["bench", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(document["tried"]) == 4 + 7 + 4
    assert {preset.schedule.steps for preset in Bundle.load(folder).presets.values()} <= {2, 12}
