"""The nano text tokenizer: size, repeatability, first tokens of the answers, any text, and the length of what is written."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from export.data.slots import sample_slots, visible
from export.data.text.captions import caption, describe_text
from export.data.text.tokenizer import END_OF_TEXT, START_OF_TEXT, train_text_tokenizer
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA
from f2edge.spec.configuration import NANO


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_text_tokenizer(made)
    return made


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def test_it_has_exactly_the_ids_asked_for(tokenizer: Tokenizer) -> None:
    assert sorted(tokenizer.get_vocab().values()) == list(range(NANO.text_vocabulary))
    assert (tokenizer.token_to_id(START_OF_TEXT), tokenizer.token_to_id(END_OF_TEXT)) == (0, 1)


def test_training_twice_writes_the_same_file(path: Path, tmp_path: Path) -> None:
    train_text_tokenizer(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_large_vocabulary_is_filled_up_with_reserved_names(tmp_path: Path) -> None:
    made = train_text_tokenizer(tmp_path / "large.json", vocabulary=6000)
    assert sorted(made.get_vocab().values()) == list(range(6000))
    assert any("reserved" in token for token in made.get_vocab())


def test_a_vocabulary_too_small_for_the_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="300 ids"):
        train_text_tokenizer(tmp_path / "small.json", vocabulary=300)
    assert not (tmp_path / "small.json").exists()


def test_the_first_token_tells_the_answers_of_a_slot_apart(tokenizer: Tokenizer) -> None:
    for slot in F2EDGE_SCHEMA.values():
        first = [tokenizer.encode(answer, add_special_tokens=False).ids[0] for answer in slot.answers]
        assert len(first) == len(set(first)), slot.name


def test_an_answer_has_the_same_ids_alone_and_after_its_question(tokenizer: Tokenizer) -> None:
    for slot in F2EDGE_SCHEMA.values():
        asked = tokenizer.encode(f"{slot.question}\n").ids
        for answer in slot.answers:
            assert tokenizer.encode(f"{slot.question}\n{answer}").ids == asked + tokenizer.encode(answer).ids


@pytest.mark.parametrize("before", ["", "a woman with ", "a beard, ", "a hat. ", "what is it?\n", "no  \t ", "\n\n"])
def test_red_hair_is_red_hair_everywhere(tokenizer: Tokenizer, before: str) -> None:
    words = tokenizer.encode("red hair").ids
    assert len(words) == 2
    assert tokenizer.encode(f"{before}red hair").ids[-2:] == words
    assert tokenizer.encode(f"{before}Red HAIR ").ids[-2:] == words


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_normalised(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert all(0 <= i < NANO.text_vocabulary for i in ids)
    back = tokenizer.decode(ids)
    assert tokenizer.encode(back).ids == ids
    if text.isascii():
        assert back.split() == text.lower().split()


def test_accents_are_composed_and_bytes_are_the_fallback(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("Cafe\u0301 漢字 🙂").ids) == unicodedata.normalize("NFC", "café 漢字 🙂")


def test_what_is_written_fits_the_prompt(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    typical, longest, described = [], [], []
    for _ in range(1500):
        slots = visible(sample_slots(rng))
        typical.append(len(tokenizer.encode(caption(slots, rng).text).ids))
        longest.append(len(tokenizer.encode(caption(slots, rng, attributes=18).text).ids))
        made = describe_text(slots, rng).text
        described.append(len(tokenizer.encode(made).ids))
        assert tokenizer.decode(tokenizer.encode(made).ids) == made
    assert np.mean(typical) <= 45
    assert max(longest) <= 90 < NANO.prompt_tokens
    assert max(described) <= 90
