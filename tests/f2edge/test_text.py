"""Prompts and questions: what is refused and how it is named; the tokenizer takes text as it stands."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from f2edge.errors import BundleError, PromptError
from f2edge.spec.configuration import NANO
from f2edge.spec.layout import TokenLayout
from f2edge.spec.lexicon import Lexicon
from f2edge.text import LARGEST_CODE_POINTS, PromptReader, TextTokenizer, check_text, one_line

pytestmark = pytest.mark.runtime
END = "<|endoftext|>"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A tokenizer of single bytes, one word and two specials."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: index for index, token in enumerate(["<|startoftext|>", END, *alphabet, "re", "red"])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[("r", "e"), ("re", "d")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|startoftext|>", END])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("empty", ["", " ", "\n\t ", "\u2003\u00a0"])
@pytest.mark.parametrize("kind", ["prompt", "question"])
def test_empty_text(empty: str, kind: str) -> None:
    with pytest.raises(PromptError, match=f"the {kind} is empty; write a few words"):
        check_text(empty, kind)


def test_too_many_characters() -> None:
    assert check_text("a" * LARGEST_CODE_POINTS) == "a" * LARGEST_CODE_POINTS
    with pytest.raises(PromptError, match=r"has 10000 characters, at most 2000 are read; shorten"):
        check_text("a" * 10_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("red\0hair", r"control character \(U\+0000\) at position 4"),
        ("  red\thair", r"control character \(U\+0009\) at position 6"),
        ("a\x1b[31m face", r"control character \(U\+001B\) at position 2"),
        ("a\x85b", r"U\+0085"),
        ("a\ud800", r"half of a surrogate pair \(U\+D800\)"),
        ("a\uffff", r"noncharacter \(U\+FFFF\)"),
        ("a\ufdd0", r"noncharacter \(U\+FDD0\)"),
        ("\U0010fffe", r"noncharacter \(U\+10FFFE\)"),
    ],
)
def test_characters_that_are_no_text_are_named_with_their_place(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        check_text(text)


def test_text_that_is_no_string() -> None:
    with pytest.raises(PromptError, match="must be text, got bytes"):
        check_text(b"a face")  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_what_passes_is_composed_stripped_and_stable(text: str) -> None:
    try:
        clean = check_text(text)
    except PromptError:
        return
    assert clean == unicodedata.normalize("NFC", text.strip())
    assert check_text(clean) == clean


def test_nothing_is_cut_padded_or_added(path: Path) -> None:
    """The file asks for truncation to 4 ids and padding to 9; a prompt is neither."""
    tokenizer = TextTokenizer(path)
    assert len(tokenizer.encode("red blue")) == 6
    assert tokenizer.encode("red") == [259]
    assert tokenizer.vocabulary == 260


def test_special_tokens_in_text_are_plain_characters(path: Path) -> None:
    tokenizer = TextTokenizer(path)
    ids = tokenizer.encode(f"red{END}")
    assert 0 not in ids
    assert 1 not in ids
    assert tokenizer.decode(ids) == f"red{END}"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_every_text_comes_back(path: Path, text: str) -> None:
    tokenizer = TextTokenizer(path)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_start_and_end_are_left_out_of_an_answer(path: Path) -> None:
    assert TextTokenizer(path).decode([0, 259, 1]) == "red"


def test_the_layout_says_how_many_tokens_there_are_and_how_many_are_read(path: Path) -> None:
    layout = TokenLayout.of(NANO, 0, 1)
    ids = TextTokenizer(path).encode("blue " * 30)
    with pytest.raises(PromptError, match=r"the prompt has 150 tokens, the model reads 96; shorten it"):
        layout.prompt(ids)


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json", '{"model": 3}'])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match="cannot be read as a tokenizer"):
        TextTokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(BundleError):
        TextTokenizer(tmp_path / "missing.json")


@settings(deadline=None)
@given(st.text(st.characters(), max_size=200), st.integers(2, 50))
def test_one_line_steers_no_terminal_and_ends(text: str, longest: int) -> None:
    line = one_line(text, longest)
    assert line.isprintable()
    assert len(line) <= longest
    assert one_line(line, longest) == line
    assert one_line(text).split() == "".join(c if c.isprintable() else " " for c in text).split()


def test_one_line_keeps_what_is_plain_and_drops_what_is_not() -> None:
    assert one_line("a  b\n\x1b[31mred\u202e\udcff", None) == "a b [31mred"
    assert one_line(ValueError("too long"), 5) == "too …"


WORDS = Lexicon(
    {("bloke",): (("gender", "masculine"),), ("bald",): (("hair", "none"),), ("cap",): (("hat", "cap"),)},
    {},
    {("hair",): (("hair", "none"),)},
    ["with"],
    spoken={("gender", "masculine"): "man", ("hair", "none"): "bald head"},
)


def test_what_a_prompt_says_is_said_again_in_the_models_own_words(path: Path) -> None:
    tokenizer = TextTokenizer(path)
    reader = PromptReader(tokenizer, WORDS, 99)
    read = reader.read("a bloek with no hair and a parrot")
    assert tokenizer.decode(read.ids) == "man, bald head, a bloke with no hair and a parrot"
    assert (read.wording.corrected, read.wording.unmatched) == ({"bloek": "bloke"}, ("parrot",))
    assert tokenizer.decode(reader.read("with a cap").ids) == "with a cap", "for a cap the model has no words of its own"
    assert tokenizer.decode(reader.read("no hair", [("hat", "a cap"), ("hair", "bald")]).ids) == "bald head, no hair, a cap"


def test_an_instruction_and_a_prompt_that_would_be_too_long_stay_as_they_are(path: Path) -> None:
    tokenizer = TextTokenizer(path)
    said = len(tokenizer.encode("bald head, no hair"))
    for longest, restated, wanted in ((said, True, "bald head, no hair"), (said - 1, True, "no hair"), (said, False, "no hair")):
        assert tokenizer.decode(PromptReader(tokenizer, WORDS, longest).read("no hair", restated=restated).ids) == wanted
    assert tokenizer.decode(PromptReader(tokenizer, None, said).read("no hair").ids) == "no hair"
