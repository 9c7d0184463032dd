"""Layouts in the engine: what the pipeline draws, whoever shares the batch, and whatever time there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from f2edge.bundle.bundle import Bundle
from f2edge.engine.requests import GenerateRequest
from f2edge.errors import InputError
from f2edge.imaging.map_pictures import FREE
from f2edge.results import GeneratedFace, GenerateOptions
from tests.support.engine_fake import Bench, face, generate, question

pytestmark = pytest.mark.runtime

OPTIONS = GenerateOptions(steps=5)


def sketch() -> np.ndarray:
    """The first region in the upper half; the lower half is free."""
    indices = np.full((64, 64), FREE)
    indices[:32] = 0
    return indices


def test_layouts_are_those_of_the_pipeline_whoever_shares_their_batches(bench: Bench) -> None:
    wanted: list[dict[str, Any]] = [{"layout": sketch()}, {"layout_from": face(3)}, {"layout": sketch(), "check": 2}, {"check": 2}, {}]
    asked = [bench.ask(GenerateRequest("an old man", seed, OPTIONS, **more)) for seed, more in enumerate(wanted)]
    others = [bench.ask(generate(7, steps=8)), bench.ask(question(1))]
    bench.run()
    for seed, (heard, more) in enumerate(zip(asked, wanted, strict=True)):
        result = heard.done.result
        (alone,) = bench.alone.generate("an old man", seeds=seed, options=OPTIONS, **more)
        assert isinstance(result, GeneratedFace)
        assert np.array_equal(result.codes, alone.codes)
        assert result.image.tobytes() == alone.image.tobytes()
        assert (result.check, result.layout_agreement) == (alone.check, alone.layout_agreement)
        assert (result.layout_agreement is None) == ("layout" not in more and "layout_from" not in more)
        assert (result.check is None) == ("check" not in more)
        assert heard.done.steps == 5
    assert all(heard.done for heard in others)


def test_a_strength_of_nothing_draws_what_no_layout_draws_and_says_how_it_lies(bench: Bench) -> None:
    (plain,) = bench.alone.generate("an old man", seeds=3, options=OPTIONS)
    (weak,) = bench.alone.generate("an old man", seeds=3, options=OPTIONS, layout=sketch(), layout_strength=0.0)
    assert np.array_equal(plain.codes, weak.codes)
    assert weak.layout_agreement == pytest.approx(0.5), "hair is read in the upper quarter, whatever is drawn"


def test_faces_with_layouts_of_their_own_are_those_drawn_alone(bench: Bench) -> None:
    faces = [face(1), face(2), face(3)]
    together = bench.alone.generate("a man", seeds=[1, 2, 3], options=OPTIONS, layout_from=faces)
    for seed, (given, found) in enumerate(zip(faces, together, strict=True), start=1):
        (alone,) = bench.alone.generate("a man", seeds=seed, options=OPTIONS, layout_from=given)
        assert np.array_equal(alone.codes, found.codes)


def test_a_deadline_ends_a_layout_and_hands_over_the_best_attempt(bench: Bench) -> None:
    bench.learn()
    bench.loop.submit_internal(GenerateRequest("an old man", 99, OPTIONS, layout=sketch()))  # as the warm-up does
    bench.run()
    found = set()
    for budget_ms in (110, 150, 190, 230, 310, 600):
        for seed in range(2):
            deadline = bench.clock.now + budget_ms / 1e3
            heard = bench.ask(GenerateRequest("an old man", seed, GenerateOptions(steps=6), layout=sketch()), deadline=deadline)
            bench.run()
            assert isinstance(heard.done.result, GeneratedFace)
            assert heard.done.ended <= deadline
            options = GenerateOptions(steps=heard.done.steps_planned)
            (whole,) = bench.alone.generate("an old man", seeds=seed, options=options, layout=sketch())
            found.add(np.array_equal(heard.done.result.codes, whole.codes))
    assert found == {True, False}, "some have time for all attempts, some do not"
    assert bench.loop.stats().failed == {}


def test_a_map_asks_for_what_the_prompt_leaves_open(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = bench.alone.layout(sketch(), None)
    assert layout is not None
    monkeypatch.setattr(type(layout), "words", [("hat", "with a cap"), ("age", "old"), ("beard", "with a parrot")])
    plain = bench.alone.prompt_text("an old man")
    text = bench.alone.prompt_text("an old man", layout)
    assert text.reading.claims == {"age": "old", "hat": "cap"}, "neither what is said already, nor what the model does not know"
    assert len(text.ids) > len(plain.ids)
    assert text.wording == plain.wording
    assert bench.alone.prompt_text("a man with a cap", layout).reading.claims == {"hat": "cap", "age": "old"}


def test_what_is_no_layout_is_refused(bench: Bench, bundle: Bundle) -> None:
    empty = np.full((64, 64), FREE)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"layout": empty}, "empty"),
        ({"layout": np.full((8, 8), 77)}, "77 is no region"),
        ({"layout": sketch(), "layout_from": face(1)}, "exclude each other"),
        ({"layout": [sketch(), sketch()]}, "do not pair"),
        ({"layout": sketch(), "layout_strength": 2.0}, "layout_strength"),
    ]
    for arguments, told in cases:
        with pytest.raises(InputError, match=told):
            bench.alone.generate("a man", **arguments)
    with pytest.raises(InputError, match="layout_strength"):
        GenerateRequest("a man", layout_strength=-1.0)
