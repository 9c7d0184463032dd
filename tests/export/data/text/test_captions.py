"""Captions: what is written can be read back exactly, nothing hidden is claimed, and the wording stays varied and short."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.data.slots import sample_slots, visible
from export.data.text.captions import caption, describe_text, full_caption, is_plain, mentioned_in
from export.data.text.mentions import spoken_phrases
from export.data.text.phrases import BEFORE_NOUN, NEGATABLE, NOUN_GROUPS, PHRASES
from export.data.text.synonyms import SYNONYMS
from export.data.text.wording import Dice, misspelt
from f2edge.errors import InputError, UnknownAttributeError
from f2edge.spec.attributes import F2EDGE_SCHEMA


@st.composite
def visible_slots(draw: st.DrawFn) -> dict[str, str]:
    """Any value for any subset of the slots: far wilder than what is rendered."""
    names = draw(st.sets(st.sampled_from(list(F2EDGE_SCHEMA)), min_size=1))
    return {name: draw(st.sampled_from(F2EDGE_SCHEMA[name].values)) for name in names}


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=300, deadline=None)
@given(visible_slots(), seeds, st.one_of(st.none(), st.integers(1, 20)))
def test_what_a_caption_mentions_is_what_can_be_read_in_it(slots: dict[str, str], seed: int, attributes: int | None) -> None:
    made = caption(slots, np.random.default_rng(seed), attributes=attributes)
    assert mentioned_in(made.text) == {name: slots[name] for name in made.mentioned}, made.text


@settings(max_examples=300, deadline=None)
@given(visible_slots(), seeds)
def test_what_a_description_mentions_is_what_can_be_read_in_it(slots: dict[str, str], seed: int) -> None:
    for made in (describe_text(slots), describe_text(slots, np.random.default_rng(seed))):
        assert mentioned_in(made.text) == {name: slots[name] for name in made.mentioned}, made.text


def test_both_styles_appear_and_read_back_on_rendered_faces() -> None:
    rng = np.random.default_rng(0)
    styles: Counter[str] = Counter()
    for _ in range(600):
        slots = visible(sample_slots(rng))
        made = caption(slots, rng, attributes=10)
        assert mentioned_in(made.text) == {name: slots[name] for name in made.mentioned}, made.text
        styles["sentence" if ("with " in made.text or "wearing " in made.text) else "tags"] += 1
    assert 0.18 < styles["tags"] / 600 < 0.35


@pytest.mark.parametrize("slot", list(F2EDGE_SCHEMA))
def test_every_value_can_be_said_in_every_style(slot: str) -> None:
    rng = np.random.default_rng(1)
    for value in F2EDGE_SCHEMA[slot].values:
        said = {caption({slot: value}, rng, attributes=1).text for _ in range(60)}
        assert all(mentioned_in(text) == {slot: value} for text in said), said
        assert len(said) > 1


def test_the_number_of_attributes_is_what_was_asked_for() -> None:
    rng = np.random.default_rng(2)
    slots = visible(sample_slots(rng))
    for attributes in range(1, 19):
        assert len(caption(slots, rng, attributes=attributes).mentioned) == attributes
    drawn = Counter(len(caption(slots, rng).mentioned) for _ in range(3000))
    assert set(drawn) == set(range(1, 19))
    assert 0.1 < sum(drawn[n] for n in (1, 2, 3)) / 3000 < 0.2


def test_remarkable_values_are_mentioned_more_often_but_none_values_too() -> None:
    rng = np.random.default_rng(3)
    present = {name: slot.values[1] for name, slot in F2EDGE_SCHEMA.items()}
    absent = {name: slot.values[0] for name, slot in F2EDGE_SCHEMA.items()}
    mixed = {name: (present if i % 2 else absent)[name] for i, name in enumerate(sorted(NEGATABLE))}
    said = Counter(
        name for _ in range(2000) for name in caption({"gender_presentation": "masculine", **mixed}, rng, attributes=4).mentioned
    )
    remarkable = [said[name] for name in mixed if mixed[name] != "none"]
    missing = [said[name] for name in mixed if mixed[name] == "none"]
    assert min(remarkable) > max(missing)
    assert min(missing) > 0


def test_a_description_is_the_same_for_the_same_face_and_speaks_of_twelve_to_twenty_slots() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        slots = visible(sample_slots(rng))
        made = describe_text(slots)
        assert made == describe_text(dict(reversed(slots.items())))
        assert 10 <= len(made.mentioned) <= 20
        unsaid = {name for name, value in slots.items() if not is_plain(name, value)} - set(made.mentioned)
        assert not unsaid or all(not is_plain(name, slots[name]) for name in made.mentioned)
        assert describe_text(slots, rng).mentioned == made.mentioned


def test_full_caption_says_the_remarkable_first() -> None:
    slots = {"gender_presentation": "masculine", "hat": "none", "eyewear": "sunglasses", "beard": "goatee"}
    assert full_caption(slots, attributes=3).text == "a man with a goatee. he is wearing sunglasses."


def test_the_same_generator_state_gives_the_same_caption() -> None:
    slots = visible(sample_slots(np.random.default_rng(5)))
    first, second = (caption(slots, np.random.default_rng(6)) for _ in range(2))
    assert first == second
    assert len({caption(slots, np.random.default_rng(seed)).text for seed in range(100)}) > 95


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("A smiling old man with glasses", {"action": "smile", "age": "old", "gender_presentation": "masculine", "eyewear": "eyeglasses"}),
        ("a woman with red hair", {"gender_presentation": "feminine", "hair_color": "red"}),
        ("Her hair is long, wavy and red.", {"hair_length": "long", "hair_texture": "wavy", "hair_color": "red"}),
        ("her hair is red, brown eyes", {"hair_color": "red", "eye_color": "brown"}),
        ("a man without a hat or glasses", {"gender_presentation": "masculine", "hat": "none", "eyewear": "none"}),
        ("he is not wearing a tie", {"gender_presentation": "masculine", "necktie": "none"}),
        ("a man not smiling", {"gender_presentation": "masculine"}),
        ("no hoop earrings and no long hair", {}),
        ("a bow tie", {"necktie": "bow_tie"}),
        ("big blue eyes", {"eye_color": "blue"}),
        ("eyes closed, lips full red", {"action": "close_eyes"}),
        ("full red lips", {"lips": "full", "lipstick": "red"}),
        ("a chubby, dark-skinned girl", {"build": "chubby", "skin_tone": "dark", "gender_presentation": "feminine", "age": "young"}),
        ("a clean-shaven face against a dark background", {"beard": "none", "mustache": "none", "background": "dark"}),
        ("blonde, blue eyes", {"hair_color": "blonde", "eye_color": "blue"}),
        ("a green hill under a red sky", {}),
        ("grumpy nan in her 60s, white hair", {"emotion": "angry", "gender_presentation": "feminine", "age": "old", "hair_color": "gray"}),
        ("lad aged about 45 with a buzz cut", {"gender_presentation": "masculine", "age": "young", "hair_length": "short"}),
        ("auburn locks, a navy hoodie and a stetson", {"hair_color": "red", "clothing_color": "blue", "hat": "brimmed"}),
        ("my uncle Bob: balding, sipping tea", {"gender_presentation": "masculine", "hairline": "receding", "action": "drink"}),
        ("60s housewife, ² years old", {"age": "old"}),
        ("", {}),
    ],
)
def test_reading_what_people_write(text: str, claims: dict[str, str]) -> None:
    assert mentioned_in(text) == claims


def test_the_first_mention_of_a_slot_wins() -> None:
    assert mentioned_in("a man with black hair and red hair")["hair_color"] == "black"


@given(st.text(max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    for name, value in mentioned_in(text).items():
        F2EDGE_SCHEMA[name].index(value)


def test_the_phrase_tables_hold_only_slots_and_values_of_the_schema() -> None:
    tables = [PHRASES, BEFORE_NOUN, *(group.adjectives for group in NOUN_GROUPS)]
    for table in tables:
        for slot, values in table.items():
            assert set(values) <= set(F2EDGE_SCHEMA[slot].values), slot
    sayable = {(slot, value) for table in tables for slot, values in table.items() for value in values}
    sayable |= {(slot, "none") for slot in NEGATABLE}
    sayable |= {("sharpness", "sharp"), ("sharpness", "blurry")}
    assert {(name, value) for name, slot in F2EDGE_SCHEMA.items() for value in slot.values} <= sayable


def test_hair_that_a_bald_head_lacks_is_not_claimed() -> None:
    slots = {"hair_length": "bald", "hair_color": "red", "hair_texture": "curly", "bangs": "straight"}
    assert caption(slots, np.random.default_rng(0), attributes=4).mentioned == ("hair_length",)


def test_bad_input_is_refused_by_name() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="whiskers"):
        caption({"whiskers": "long"}, rng)
    with pytest.raises(UnknownAttributeError, match="hair_color"):
        describe_text({"hair_color": "plaid"})
    with pytest.raises(InputError, match="at least 1"):
        caption({"hair_color": "red"}, rng, attributes=0)


def test_a_noun_is_said_of_faces_that_have_it_at_least_as_often_as_of_those_that_lack_it() -> None:
    """A noun heard mostly behind "no" comes to mean its absence: "old man with glasses" then draws none."""
    rng = np.random.default_rng(7)
    heard: Counter[tuple[str, bool]] = Counter()
    nouns = {noun.removeprefix("a "): slot for slot, several in NEGATABLE.items() for noun in several[:1]}
    for draw in range(12000):
        made = caption(visible(sample_slots(rng)), rng, even=draw % 2 == 0, attributes=12 if draw % 2 == 0 else None)
        words = f" {' '.join(made.text.lower().replace('.', ' ').replace(',', ' ').split())} "
        for noun in nouns:
            denied = sum(words.count(f" {lead}{noun} ") for lead in ("no ", "without a ", "without ", "not wearing a ", "not wearing "))
            heard[noun, False] += denied
            heard[noun, True] += words.count(f" {noun} ") - denied
    assert heard.total() > 5000
    assert {noun for noun in nouns if heard[noun, True] < heard[noun, False]} == set()


def test_slips_of_the_fingers_are_mostly_read_as_what_was_meant() -> None:
    rng = np.random.default_rng(8)
    same = 0
    for _ in range(400):
        made = caption(visible(sample_slots(rng)), rng, attributes=6)
        same += mentioned_in(misspelt(made.text.lower(), Dice(rng))) == mentioned_in(made.text)
    assert same > 0.85 * 400


def test_every_value_is_said_again_as_captions_say_it() -> None:
    spoken = spoken_phrases()
    assert list(spoken) == [(slot.name, value) for slot in F2EDGE_SCHEMA.values() for value in slot.values]
    for (slot, value), phrase in spoken.items():
        assert mentioned_in(phrase).get(slot) == value, phrase
    assert spoken["hat", "none"] == "without a hat"
    assert spoken["hair_color", "gray"] == "gray hair"


def test_every_synonym_is_read_as_it_is_meant() -> None:
    phrases = [phrase for phrases in SYNONYMS.values() for phrase in phrases]
    assert len(phrases) == len(set(phrases))
    for claims, synonyms in SYNONYMS.items():
        for phrase in synonyms:
            assert dict(claims).items() <= mentioned_in(phrase).items(), phrase
