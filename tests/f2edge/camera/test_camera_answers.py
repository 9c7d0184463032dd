"""Answers: kept per track, smoothed, shown without flicker, asked for again when old or when the face has changed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from f2edge.camera.answers import AnswerBook, Freshness, Signature, _mixed, _shown
from f2edge.camera.frames import Box
from f2edge.camera.privacy import blur
from f2edge.results import FaceReport

pytestmark = pytest.mark.runtime

PLAIN = np.zeros((16, 16), np.float32)
CHANGED = np.ones((16, 16), np.float32)


def report(red: float) -> FaceReport:
    return FaceReport({"hair_color": {"red": red, "black": 1 - red}})


def test_a_face_is_asked_about_when_nothing_is_known_when_it_is_old_and_when_it_changed() -> None:
    book = AnswerBook(Freshness(refresh_s=1.0, drift=0.5, patience_s=0.1))
    book.follow([4])
    assert book.urgency(4, 0.0, PLAIN) == math.inf
    assert book.take(4, report(0.9), 10.0, 0.05, PLAIN)
    assert book.urgency(4, 10.05, CHANGED) == 0
    assert book.urgency(4, 10.2, CHANGED) == pytest.approx(0.2)
    assert book.urgency(4, 10.9, PLAIN) == 0
    assert book.urgency(4, 11.5, PLAIN) == pytest.approx(1.5)


def test_reports_about_faces_that_left_or_about_older_frames_are_dropped() -> None:
    book = AnswerBook()
    assert not book.take(1, report(0.5), 1.0, 0.1, PLAIN)
    book.follow([1, 2])
    assert book.take(1, report(0.9), 2.0, 0.1, PLAIN)
    assert not book.take(1, report(0.1), 1.0, 0.1, PLAIN)
    assert book.facts(1).shown["hair_color"].value == "red"
    book.follow([2])
    book.answer(1, "who?", "nobody", 3.0)
    assert len(book) == 1
    assert book.facts(1).words == {}
    book.follow([1])
    assert book.facts(1).captured_s is None


@given(st.floats(0, 2), st.sampled_from([PLAIN, CHANGED]))
def test_what_is_fresh_is_never_urgent(age: float, now: Signature) -> None:
    book = AnswerBook(Freshness(refresh_s=1.0, drift=0.5, patience_s=0.3))
    book.follow([1])
    assert not book.is_fresh(1, 5.0)
    book.take(1, report(0.9), 5.0, 0.0, PLAIN)
    assert not (book.is_fresh(1, 5.0 + age) and book.urgency(1, 5.0 + age, now))
    assert book.is_fresh(1, 5.1)
    assert not book.is_fresh(2, 5.1)


@given(st.lists(st.floats(0.46, 0.54), min_size=1, max_size=30))
@settings(deadline=None)
def test_a_value_is_shown_until_another_is_clearly_ahead(shares: list[float]) -> None:
    book = AnswerBook(Freshness(lead=0.1))
    book.follow([1])
    book.take(1, report(0.7), 0.0, 0.0, PLAIN)
    for index, share in enumerate(shares):
        book.take(1, report(share), 1.0 + index, 0.0, PLAIN)
        assert book.facts(1).shown["hair_color"].value == "red"
    for index in range(8):
        book.take(1, report(0.05), 100.0 + index, 0.0, PLAIN)
    assert book.facts(1).shown["hair_color"].value == "black"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1))
@settings(deadline=None)
def test_mixing_gives_a_distribution_between_both(a: list[float], b: list[float], weight: float) -> None:
    size = min(len(a), len(b))
    old = {str(i): (a[i] + 1e-3) / (sum(a[:size]) + size * 1e-3) for i in range(size)}
    new = {str(i): (b[i] + 1e-3) / (sum(b[:size]) + size * 1e-3) for i in range(size)}
    mixed = _mixed(old, new, weight)
    assert sum(mixed.values()) == pytest.approx(1)
    assert _mixed(old, old, weight) == pytest.approx(old, abs=1e-9)
    assert _mixed(old, new, 1.0) == pytest.approx(new, abs=1e-9)
    assert _shown(None, mixed, 0.1).probability == max(mixed.values())


def test_another_face_in_the_place_of_the_first_inherits_nothing() -> None:
    one, other = (np.random.default_rng(seed).normal(size=(16, 16)).astype(np.float32) for seed in (1, 2))
    book = AnswerBook(Freshness(smoothing_s=10))
    book.follow([1])
    book.take(1, report(0.95), 0.0, 0.0, one)
    book.answer(1, "a?", "yes", 0.0)
    book.take(1, report(0.9), 0.1, 0.0, one)
    assert book.facts(1).words
    book.take(1, report(0.1), 0.2, 0.0, other)
    assert book.facts(1).shown["hair_color"].value == "black"
    assert book.facts(1).shown["hair_color"].probability == pytest.approx(0.9)
    assert book.facts(1).words == {}


def test_questions_take_turns_the_missing_first() -> None:
    book = AnswerBook(Freshness(words_s=5))
    book.follow([1, 2])
    asked = []
    for _ in range(4):
        due = book.oldest_words([1, 2], ["a?", "b?"], 100.0)
        assert due is not None
        asked.append(due)
        book.answer(*due, "yes", 100.0)
    assert sorted(asked) == [(1, "a?"), (1, "b?"), (2, "a?"), (2, "b?")]
    assert book.oldest_words([1, 2], ["a?", "b?"], 104.0) is None
    assert book.oldest_words([2], ["a?"], 105.5) == (2, "a?")
    assert book.oldest_words([], ["a?"], 999.0) is None


@given(st.tuples(st.floats(-50, 150), st.floats(-50, 150), st.floats(1, 120), st.floats(1, 120)))
@settings(deadline=None)
def test_blurring_leaves_no_detail_in_the_box_and_touches_nothing_far_from_it(box: Box) -> None:
    checkers = (np.indices((100, 120)).sum(0) % 2 * 255).astype(np.uint8)
    image = np.ascontiguousarray(np.dstack([checkers] * 3))
    before = image.copy()
    blur(image, [box])
    x, y, w, h = (round(v) for v in box)
    part = image[max(0, y + 2) : max(0, y + h - 2), max(0, x + 2) : max(0, x + w - 2)].astype(int)
    if part.size and min(w, h) >= 40 and 0 <= x <= 120 - w and 0 <= y <= 100 - h:
        assert np.abs(np.diff(part, axis=1)).max() < 64
    far = np.ones(image.shape[:2], bool)
    far[max(0, y - h) : max(0, y + 2 * h), max(0, x - w) : max(0, x + 2 * w)] = False
    assert (image[far] == before[far]).all()


def test_how_unfamiliar_a_face_is_follows_the_newest_report() -> None:
    book = AnswerBook()
    book.follow([1])
    assert book.facts(1).unfamiliar is None
    for second, unfamiliar in ((1.0, 0.9), (2.0, 0.1), (3.0, None)):
        assert book.take(1, replace(report(0.5), unfamiliar=unfamiliar), second, 0.0, PLAIN)
        assert book.facts(1).unfamiliar == unfamiliar
