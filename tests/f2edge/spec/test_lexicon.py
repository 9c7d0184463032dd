"""The lexicon on a small vocabulary: what is read, what is ruled out, what is corrected and what is not known."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from f2edge.errors import BundleError
from f2edge.spec.lexicon import Lexicon, key_of, nouns_of

pytestmark = pytest.mark.runtime

LEXICON = Lexicon(
    {
        key_of("woman"): (("gender", "feminine"),),
        key_of("glasses"): (("eyewear", "eyeglasses"),),
        key_of("dark glasses"): (("eyewear", "sunglasses"),),
        key_of("smiling"): (("action", "smile"),),
        key_of("blonde"): (("hair_color", "blonde"),),
        key_of("old"): (("age", "old"),),
        key_of("chubby"): (("build", "chubby"),),
        key_of("grandma"): (("gender", "feminine"), ("age", "old")),
        key_of("mustache"): (("mustache", "present"),),
    },
    nouns_of(
        [
            (("hair",), {"hair_color": {"red": ("red", "ginger"), "blue": ("blue",)}, "hair_length": {"long": ("long",)}}),
            (("eyes",), {"eye_color": {"blue": ("blue",)}}),
        ]
    ),
    {
        key_of("glasses"): (("eyewear", "none"),),
        key_of("a hat"): (("hat", "none"),),
        key_of("hair"): (("hair_length", "bald"),),
        key_of("mustache"): (("mustache", "none"),),
    },
    ["with", "in", "of", "make", "she", "person"],
    {("build", "chubby"): "slim"},
)


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        (
            "A woman with long, red hair and glasses",
            {"gender": "feminine", "hair_length": "long", "hair_color": "red", "eyewear": "eyeglasses"},
        ),
        ("dark glasses", {"eyewear": "sunglasses"}),
        ("her hair is long and red, blue eyes", {"hair_length": "long", "hair_color": "red", "eye_color": "blue"}),
        ("hair: red. eyes: blue", {"hair_color": "red", "eye_color": "blue"}),
        ("make the hair blue", {"hair_color": "blue"}),
        ("change her hair to red", {"hair_color": "red"}),
        ("no hat or glasses", {"hat": "none", "eyewear": "none"}),
        ("she isn't wearing glasses", {"eyewear": "none"}),
        ("take off the glasses", {"eyewear": "none"}),
        ("shave the mustache", {"mustache": "none"}),
        ("no hair", {"hair_length": "bald"}),
        ("not chubby", {"build": "slim"}),
        ("grandma's glasses", {"gender": "feminine", "age": "old", "eyewear": "eyeglasses"}),
        ("a 70-year-old woman", {"age": "old", "gender": "feminine"}),
        ("woman, 25 years old", {"age": "young", "gender": "feminine"}),
        ("red hair, blue hair", {"hair_color": "red"}),
    ],
)
def test_what_is_said_is_read(text: str, claims: dict[str, str]) -> None:
    assert LEXICON.read(text).claims == claims


@pytest.mark.parametrize(
    ("text", "excluded"),
    [
        ("a woman, not blonde", {"hair_color": {"blonde"}}),
        ("isn't smiling", {"action": {"smile"}}),
        ("her hair is not red", {"hair_color": {"red"}}),
        ("no dark glasses", {"eyewear": {"sunglasses"}}),
        ("no red hair", {"hair_color": {"red"}}),
    ],
)
def test_what_is_denied_is_ruled_out_and_not_claimed(text: str, excluded: dict[str, set[str]]) -> None:
    reading = LEXICON.read(text)
    assert reading.excluded == excluded
    assert not reading.claims.keys() & excluded


def test_unknown_words_are_named_in_runs() -> None:
    reading = LEXICON.read("A pirate woman with glasses, eye patch and a wooden leg")
    assert reading.unmatched == ("pirate", "eye patch", "wooden leg")
    assert LEXICON.read("a woman with long red hair").unmatched == ()


@pytest.mark.parametrize(("typo", "meant"), [("galsses", "glasses"), ("womn", "woman"), ("smilling", "smiling"), ("grandam", "grandma")])
def test_a_slip_is_read_as_the_word_that_was_meant(typo: str, meant: str) -> None:
    reading = LEXICON.read(f"person with {typo}")
    assert reading.corrected == {typo: meant}
    assert reading.unmatched == ()
    assert LEXICON.correct(f"Person WITH {typo.title()}.") == (f"Person WITH {meant}.", {typo: meant})


@pytest.mark.parametrize("word", ["crown", "greasy", "pony", "queen", "hot", "grass"])
def test_another_word_is_not_taken_for_a_slip(word: str) -> None:
    assert LEXICON.read(word).unmatched == (word,)


@given(st.text(max_size=60))
def test_any_text_is_read_and_a_stored_lexicon_reads_the_same(text: str) -> None:
    stored = Lexicon.from_json(json.loads(json.dumps(LEXICON.to_json())))
    assert stored.read(text) == LEXICON.read(text)


@given(st.lists(st.sampled_from(sorted(LEXICON.vocabulary)), max_size=12).map(" ".join))
def test_known_words_in_any_order_are_read_without_correction(text: str) -> None:
    reading = LEXICON.read(text)
    assert not reading.corrected
    assert not reading.claims.keys() & reading.excluded.keys()


@pytest.mark.parametrize(
    "document", [[], {}, {"phrases": 1}, {**LEXICON.to_json(), "opposites": [["a"]]}, {**LEXICON.to_json(), "ignored": 3}]
)
def test_a_damaged_lexicon_is_refused(document: object) -> None:
    with pytest.raises(BundleError, match=r"lexicon\.json"):
        Lexicon.from_json(document)
