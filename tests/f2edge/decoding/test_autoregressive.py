"""Answers from a scripted model: stop rules, cache lengths, seeds, streaming; and the probabilities of closed answers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from f2edge.decoding.autoregressive import TextStream, answer
from f2edge.decoding.choice import answer_probabilities, branching_nodes
from f2edge.decoding.sample import greedy, log_softmax
from f2edge.errors import CancelledError, InputError
from f2edge.spec.layout import Ids, left_pad

pytestmark = pytest.mark.runtime

VOCABULARY, END, PAD = 12, 0, 11
Text = tuple[tuple[int, ...], ...]


def scripted(follow: Callable[[tuple[int, ...]], int], flat: float = 0.0) -> Callable[[Ids, Ids, Text], tuple[NDArray[np.float32], Text]]:
    """A model that remembers each row's text in the cache and favours the token ``follow`` of it."""

    def extend(ids: Ids, lengths: Ids, cache: Text) -> tuple[NDArray[np.float32], Text]:
        texts = []
        for row, earlier in enumerate(cache):
            new = tuple(ids[row].tolist())
            texts.append((earlier + new)[-int(lengths[row]) :])
            assert PAD not in texts[-1], "the length counts a column of padding"
            assert len(earlier) + len(new) >= lengths[row]
        logits = np.zeros((len(texts), VOCABULARY), dtype=np.float32)
        for row, text in enumerate(texts):
            logits[row, follow(text)] = 4.0 if flat else 1.0
        return logits, tuple(texts)

    return extend


def count_down(text: tuple[int, ...]) -> int:
    return max(text[-1] - 1, END)


def ask(questions: list[list[int]], follow: Callable[[tuple[int, ...]], int] = count_down, **options: object) -> list[list[int]]:
    ids, lengths = left_pad(questions, PAD)
    empty: Text = ((),) * len(questions)
    arguments = {"end_of_text": END, "max_tokens": 8, **options}
    return answer(scripted(follow), empty, ids, lengths, **arguments)  # type: ignore[arg-type]


def test_answers_end_at_end_of_text_or_at_the_limit() -> None:
    assert ask([[5, 3], [9], [1]]) == [[2, 1], [8, 7, 6, 5, 4, 3, 2, 1], []]
    assert ask([[9]], max_tokens=3) == [[8, 7, 6]]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 10), min_size=1, max_size=6), min_size=2, max_size=5))
def test_a_question_is_answered_the_same_in_any_company(questions: list[list[int]]) -> None:
    def follow(text: tuple[int, ...]) -> int:
        return (sum(i * t for i, t in enumerate(text, 1)) * 7 + len(text)) % 11

    assert ask(questions, follow) == [ask([question], follow)[0] for question in questions]


def test_tokens_are_heard_when_they_are_known() -> None:
    heard: list[tuple[int, int]] = []
    ask([[3], [2]], on_token=lambda row, token: heard.append((row, token)))
    assert heard == [(0, 2), (1, 1), (0, 1)]


def test_cancelling_stops_before_the_next_token() -> None:
    heard: list[int] = []
    with pytest.raises(CancelledError, match="after 2 tokens"):
        ask([[9]], on_token=lambda _, token: heard.append(token), cancelled=lambda: len(heard) == 2)
    assert heard == [8, 7]


def test_the_lowest_of_equal_tokens_is_chosen() -> None:
    assert greedy(np.array([[0.1, 0.9, 0.9], [2.0, 2.0, -1.0]], dtype=np.float32)).tolist() == [1, 0]


# Streaming ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    """A byte-level BPE that has seen English only, so that other letters take a token for every byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["the hair is long and red", "the eyes are green"], trainer)
    return tokenizer


@pytest.mark.parametrize("text", ["the hair is red", "naïve café", "日本語の顔", "a smile 😀👩🏽‍🦰 end", " leading and trailing "])
def test_streamed_text_is_whole_at_every_moment(byte_level: Tokenizer, text: str) -> None:
    stream = TextStream(byte_level.decode)
    shown = ""
    for token in byte_level.encode(text).ids:
        shown += stream.push(token)
        assert "\ufffd" not in shown
        assert text.startswith(shown)
    assert shown + stream.finish() == text


def test_an_answer_that_ends_within_a_character_shows_the_mark_at_its_end(byte_level: Tokenizer) -> None:
    stream = TextStream(byte_level.decode)
    pieces = [stream.push(token) for token in byte_level.encode("red 😀").ids[:-1]]
    assert "".join(pieces) == "red "
    assert stream.finish() == "\ufffd"


# Closed answers ----------------------------------------------------------------------------------------------------------------------


def model_of(path: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng([1, *path]).normal(size=6).astype(np.float32)


@settings(deadline=None)
@given(st.sets(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), min_size=2, max_size=8))
def test_choice_equals_decoding_restricted_to_the_answers(bodies: set[tuple[int, ...]]) -> None:
    """Against the literal process: at every token, renormalise over those that still lead to an answer."""
    answers = [(*body, 0) for body in sorted(bodies)]
    nodes = branching_nodes(answers)
    found = answer_probabilities(answers, {node.path: model_of(node.path) for node in nodes})
    expected = []
    for tokens in answers:
        probability = 1.0
        for depth, token in enumerate(tokens):
            allowed = sorted({a[depth] for a in answers if a[:depth] == tokens[:depth] and len(a) > depth})
            odds = np.exp(model_of(tokens[:depth]).astype(np.float64))
            probability *= odds[token] / odds[allowed].sum()
        expected.append(probability)
    assert found == pytest.approx(expected)
    assert found.sum() == pytest.approx(1.0)


def test_answers_that_part_at_once_need_one_node() -> None:
    assert [node.path for node in branching_nodes([(1, 2, 0), (2, 0), (3, 3, 3, 0)])] == [()]


def test_one_answer_may_begin_another() -> None:
    nodes = branching_nodes([(4, 0), (4, 5, 0)])
    assert [(node.path, node.allowed) for node in nodes] == [((4,), (0, 5))]


@pytest.mark.parametrize("answers", [[(1, 0), (1, 0)], [(1,), (1, 2)]])
def test_answers_that_cannot_be_told_apart_are_refused(answers: list[tuple[int, ...]]) -> None:
    with pytest.raises(InputError, match="answers"):
        branching_nodes(answers)


def test_log_softmax_of_large_logits() -> None:
    values = log_softmax(np.array([[1e4, 1e4, -1e4]], dtype=np.float32))
    assert values[0, :2] == pytest.approx([-np.log(2)] * 2)
    assert all(np.isfinite(v) for v in product(values.ravel().tolist()))
