"""Questions: the answers are true, those of the schema are verbatim, and yes and no are balanced."""

from __future__ import annotations

import doctest
import importlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.data.slots import sample_slots, visible
from export.data.text.captions import mentioned_in
from export.data.text.questions import (
    CANNOT_TELL,
    DESCRIBE_QUESTION,
    DESCRIBE_QUESTIONS,
    QuestionAnswer,
    describe_question,
    every_question,
    frame_words,
    questions,
)
from f2edge.errors import InputError, UnknownAttributeError
from f2edge.spec.attributes import F2EDGE_SCHEMA


def drawn(seed: int, faces: int, count: int = 8) -> list[tuple[dict[str, str], QuestionAnswer]]:
    rng = np.random.default_rng(seed)
    pairs: list[tuple[dict[str, str], QuestionAnswer]] = []
    for _ in range(faces):
        slots = visible(sample_slots(rng))
        pairs.extend((slots, item) for item in questions(slots, rng, count, as_typed=False))
    return pairs


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_questions_ask_only_for_visible_slots_and_answer_in_the_words_of_the_schema(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    slots = visible(sample_slots(rng))
    items = questions(slots, rng, count, as_typed=False)
    assert len(items) == count
    for item in items:
        if item.kind == "unanswerable":
            assert item.answer == CANNOT_TELL
            assert item.slot not in slots
            continue
        slot = F2EDGE_SCHEMA[item.slot]
        assert item.slot in slots
        true = slot.answers[slot.index(slots[item.slot])]
        assert item.answer in ({"yes", "no"} if item.kind == "yes_no" else {true})
        if item.kind == "slot":
            assert item.question == slot.question
        assert item.question == item.question.lower()
        assert item.question.endswith("?")


def test_yes_is_true_and_no_is_false() -> None:
    """A yes-or-no question is read back as a claim about its slot; "a hat" asks for any hat."""
    any_of_it = {"hat", "earrings", "necklace", "bangs", "beard", "lipstick", "makeup", "eyewear", "any tie"}
    read = 0
    for slots, item in drawn(0, 600):
        if item.kind != "yes_no":
            continue
        true, words = slots[item.slot], item.question.removesuffix("?").replace("is the person without", "without")
        claim = mentioned_in(words).get(item.slot)
        if claim != "none" and any(
            words.endswith((f"wearing {noun}", f"wear {noun}", f" a {noun}", f"there {noun}")) for noun in any_of_it
        ):
            claim = true if true != "none" else None
        if claim is None and not words.endswith(tuple(any_of_it)):
            continue  # worded in a way that captions never are
        assert (claim == true) == (item.answer == "yes"), (item, true)
        read += 1
    assert read > 700


def test_what_could_be_heard_both_ways_is_not_asked() -> None:
    """Sunglasses are glasses to some, a bow tie is a tie to some."""
    rng = np.random.default_rng(5)
    for slots, words in (({"eyewear": "sunglasses"}, "glasses?"), ({"necktie": "bow_tie"}, " a tie?")):
        asked = [item.question for item in questions(slots, rng, 500, as_typed=False) if item.kind == "yes_no"]
        assert len(asked) > 50
        assert not [question for question in asked if question.endswith((f" {words.strip()}", f"wear{words}"))]


def test_yes_and_no_are_balanced_and_the_schemas_own_questions_are_the_commonest() -> None:
    items = [item for _, item in drawn(1, 1500)]
    kinds = Counter(item.kind for item in items)
    answers = Counter(item.answer for item in items if item.kind == "yes_no")
    assert set(kinds) == {"slot", "yes_no", "which", "open", "unanswerable"}
    assert kinds["slot"] / len(items) == pytest.approx(0.35 * 0.92, abs=0.02)
    assert kinds["unanswerable"] / len(items) == pytest.approx(0.08, abs=0.01)
    assert answers["yes"] / answers.total() == pytest.approx(0.5, abs=0.05)


def test_a_question_as_typed_keeps_its_answer_and_is_worded_in_many_ways() -> None:
    slots = {"gender_presentation": "feminine", "hair_color": "red", "eyewear": "none"}
    items = questions(slots, np.random.default_rng(8), 3000)
    by_slot = {slot: {item.question for item in items if item.slot == slot} for slot in slots}
    assert all(len(wordings) > 40 for wordings in by_slot.values()), {slot: len(w) for slot, w in by_slot.items()}
    assert any("she" in wording.split() for wording in by_slot["eyewear"])
    answers = {item.answer for item in items if item.slot == "hair_color" and item.kind in {"slot", "open", "which"}}
    assert answers == {"red"}


def test_which_names_the_answer_and_one_other_value() -> None:
    seen = 0
    for slots, item in drawn(2, 300):
        if item.kind != "which":
            continue
        slot = item.slot
        words = [frame_words(slot, value) for value in F2EDGE_SCHEMA[slot].values]
        named = [word for word in words if word is not None and (f" {word} or " in item.question or f" or {word}" in item.question)]
        assert frame_words(slot, slots[slot]) in named
        assert len(named) >= 2
        seen += 1
    assert seen > 100


def test_no_wording_is_shared_by_two_slots() -> None:
    wordings = every_question()
    assert len(wordings) == len(set(wordings))


def test_describe_questions_are_answered_by_a_description() -> None:
    rng = np.random.default_rng(3)
    asked: Counter[str] = Counter()
    for _ in range(400):
        slots = visible(sample_slots(rng))
        item = describe_question(slots, rng)
        asked[item.question] += 1
        claims = mentioned_in(item.answer)
        assert 10 <= len(claims) <= 20
        assert claims.items() <= slots.items()
    assert set(asked) == set(DESCRIBE_QUESTIONS)
    assert asked.most_common(1)[0][0] == DESCRIBE_QUESTION


def test_bad_input_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="no visible slots"):
        questions({}, rng, 1)
    with pytest.raises(UnknownAttributeError, match="hat"):
        questions({"hat": "crown"}, rng, 1)


@pytest.mark.parametrize("module", ["captions", "mentions", "questions"])
def test_the_examples_in_the_documentation_are_true(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"export.data.text.{module}"))
    assert tried >= 1
    assert failed == 0
