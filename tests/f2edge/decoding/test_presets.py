"""Named qualities: what they resolve to, what a deadline chooses, and what a manifest may say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from f2edge.bundle.bundle import Bundle, write_manifest
from f2edge.bundle.trained_for import TrainedFor
from f2edge.cli.main import run
from f2edge.decoding.presets import QUALITIES, Preset, built_in, for_edits, name_of, nearest
from f2edge.decoding.schedule import Schedule
from f2edge.engine.requests import GenerateRequest
from f2edge.errors import BundleError, InputError
from f2edge.results import GeneratedFace, GenerateOptions
from tests.support.bundle_document import document, write_folder
from tests.support.engine_fake import Bench
from tests.support.paper_model import paper_bundle

pytestmark = pytest.mark.runtime

PRESETS = {
    "fast": Preset(Schedule(steps=4, guidance=0.0, temperature=0.3)),
    "balanced": Preset(Schedule(steps=8)),
    "best": Preset(Schedule(steps=20, order="halton")),
}


def test_a_bundle_without_presets_has_those_of_its_default() -> None:
    found = built_in(Schedule(steps=12, guidance=3.0))
    assert [found[name].schedule.steps for name in QUALITIES] == [4, 12, 24]
    assert {preset.schedule.guidance for preset in found.values()} == {3.0}
    assert [built_in(Schedule(steps=2))[name].schedule.steps for name in QUALITIES] == [2, 2, 4]


def test_options_change_a_preset_and_an_unknown_one_is_refused() -> None:
    assert GenerateOptions(quality="fast").resolve(Schedule(), PRESETS) == PRESETS["fast"].schedule
    changed = GenerateOptions(quality="fast", steps=6).resolve(Schedule(), PRESETS)
    assert (changed.steps, changed.guidance) == (6, 0.0)
    assert name_of(changed, PRESETS) == ""
    assert name_of(PRESETS["best"].schedule, PRESETS) == "best"
    equal = {**PRESETS, "balanced": PRESETS["fast"]}
    assert [name_of(PRESETS["fast"].schedule, equal, asked) for asked in (None, "balanced", "best")] == ["fast", "balanced", "fast"]
    assert GenerateOptions(quality="fast").resolve(Schedule(steps=12)).steps == 4
    assert GenerateOptions().resolve(Schedule(steps=9), PRESETS).steps == 9
    with pytest.raises(InputError, match="fast, balanced, best"):
        GenerateOptions(quality="great").resolve(Schedule(), PRESETS)


def test_edits_have_the_steps_of_a_preset_and_their_own_options() -> None:
    edits = for_edits(PRESETS, Schedule(guidance=6.0))
    assert [(p.schedule.steps, p.schedule.guidance) for p in edits.values()] == [(4, 6.0), (8, 6.0), (20, 6.0)]


@pytest.mark.parametrize(("steps", "name"), [(1, "fast"), (5, "fast"), (6, "balanced"), (12, "balanced"), (14, "best"), (40, "best")])
def test_the_preset_nearest_to_the_steps_that_fit_is_taken(steps: int, name: str) -> None:
    found, schedule = nearest(PRESETS, steps)
    assert (found, schedule.steps) == (name, steps)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return paper_bundle(tmp_path_factory.mktemp("bundles") / "paper", {"steps": 12})


def test_deadlines_choose_among_presets_and_say_which(bundle: Bundle) -> None:
    bench = Bench(bundle)
    bench.learn()
    said = {}
    for budget_ms in (130, 200, 2000):
        for options in (GenerateOptions(quality="best"), GenerateOptions(steps=24)):
            heard = bench.ask(GenerateRequest("an old man", 3, options), deadline=bench.clock.now + budget_ms / 1e3)
            bench.run()
            result = heard.done.result
            assert isinstance(result, GeneratedFace)
            assert result.options.steps == heard.done.steps
            said[budget_ms, options.quality] = result.preset
    assert [said[ms, "best"] for ms in (130, 200, 2000)] == ["fast", "balanced", "best"]
    assert [said[ms, None] for ms in (130, 200)] == ["", ""], "options of the caller's own are kept"


def test_a_manifest_says_its_presets(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "cup")
    assert Bundle.load(folder).presets == built_in(Bundle.load(folder).generation)
    rows = {"fast": {"steps": 5, "guidance": 0.0, "measured": {"attributes": 0.88}}, "balanced": {}, "best": {"steps": 30}}
    write_manifest(folder, {**document(), "presets": rows})
    found = Bundle.load(folder).presets
    assert [found[name].schedule.steps for name in QUALITIES] == [5, 12, 30]
    assert (found["fast"].schedule.guidance, found["fast"].schedule.temperature) == (0.0, 2.0)
    assert dict(found["fast"].measured) == {"attributes": 0.88}
    every: tuple[dict[str, Any], ...] = (
        {"fast": {}},
        {**rows, "great": {}},
        {**rows, "best": {"steps": 0}},
        {**rows, "best": {"speed": 3}},
        {**rows, "best": {"measured": {"attributes": "good"}}},
        {**rows, "best": 3},
    )
    for wrong in every:
        with pytest.raises(BundleError):
            write_manifest(folder, {**document(), "presets": wrong})


def test_a_manifest_says_what_a_student_was_trained_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, row = write_folder(tmp_path / "cup"), {"guidance": 0.0, "steps": [6, 12], "teacher_guidance": 3.0}
    assert Bundle.load(folder).manifest.trained_for is None
    write_manifest(folder, {**document(), "trained_for": row})
    found = Bundle.load(folder).manifest.trained_for
    assert found == TrainedFor(0.0, (6, 12), 3.0)
    assert found.to_json() == row
    assert found.default({"steps": 20, "guidance": 4.0, "order": "halton"}) == {"steps": 12, "guidance": 0.0, "order": "halton"}
    assert run(["info", "-b", str(folder), "--json"]) == 0
    assert "6 or 12 steps at guidance 0" in capsys.readouterr().out
    for wrong, message in (
        ({**row, "steps": []}, "distinct numbers"),
        ({**row, "steps": [6, 6]}, "distinct numbers"),
        ({**row, "steps": [0]}, "1 … 1024"),
        ({**row, "guidance": -1.0}, "0 … 100"),
        ({**row, "speed": 3}, "unknown keys"),
        ({"steps": [6]}, "trained_for.guidance is missing"),
        ("12 steps", "trained_for"),
    ):
        with pytest.raises(BundleError, match=message):
            write_manifest(folder, {**document(), "trained_for": wrong})
