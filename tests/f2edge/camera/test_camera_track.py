"""Tracks keep their numbers over movement, gaps and shuffled detections, and flicker makes none."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from f2edge.camera.detect import Detection
from f2edge.camera.frames import Box, grown, inside, overlap
from f2edge.camera.track import Track, Tracker, TrackerSettings
from f2edge.errors import InputError

pytestmark = pytest.mark.runtime

finite = st.floats(-500, 1500, allow_nan=False)
boxes = st.tuples(finite, finite, st.floats(1, 600), st.floats(1, 600))
frames = st.lists(st.tuples(st.floats(0, 0.5), st.lists(boxes, max_size=5)), max_size=25)


def walk(tracker: Tracker, frames_of_boxes: Iterable[tuple[float, Sequence[Box]]]) -> list[tuple[Track, ...]]:
    """Feed (time, boxes) and give the tracks after each."""
    return [tracker.update([Detection(box) for box in found], time) for time, found in frames_of_boxes]


def timed(steps: list[tuple[float, list[Box]]]) -> list[tuple[float, list[Box]]]:
    times = itertools.accumulate(step for step, _ in steps)
    return list(zip(times, (found for _, found in steps), strict=True))


@given(frames)
@settings(deadline=None, max_examples=40)
def test_numbers_are_never_shared_nor_given_twice(steps: list[tuple[float, list[Box]]]) -> None:
    tracker = Tracker()
    gone: set[int] = set()
    alive: set[int] = set()
    for tracks in walk(tracker, timed(steps)):
        numbers = [track.number for track in tracks]
        assert len(set(numbers)) == len(numbers)
        assert not gone & set(numbers)
        gone |= alive - set(numbers)
        alive = set(numbers)


@given(frames)
@settings(deadline=None, max_examples=40)
def test_every_detection_has_a_track_and_no_track_outlives_its_time(steps: list[tuple[float, list[Box]]]) -> None:
    settings_ = TrackerSettings()
    tracker, time = Tracker(settings_), 0.0
    for step, found in steps:
        time += step
        tracks = tracker.update([Detection(box) for box in found], time)
        assert sum(track.seen_s == time and track.detection.box in found for track in tracks) >= len(set(found))
        for track in tracks:
            assert time - track.seen_s <= settings_.forget_s
            assert track.confirmed == (track.hits >= settings_.confirm_hits)
            assert all(value == value and abs(value) < 1e6 for value in track.box)  # noqa: PLR0124  NaN
            assert track.box[2] >= 1
            assert track.box[3] >= 1


@given(st.lists(st.tuples(st.floats(0.02, 0.2), st.permutations(range(3))), min_size=1, max_size=15))
@settings(deadline=None, max_examples=40)
def test_the_order_of_detections_changes_nothing(steps: list[tuple[float, list[int]]]) -> None:
    def places(time: float) -> list[Box]:
        return [(60 * time, 10, 80, 80), (300, 20 + 30 * time, 90, 90), (600 - 50 * time, 40, 70, 70)]

    one, other, time = Tracker(), Tracker(), 0.0
    for step, order in steps:
        time += step
        found = places(time)
        straight = {track.detection.box: track.box for track in one.update([Detection(box) for box in found], time)}
        mixed = {track.detection.box: track.box for track in other.update([Detection(found[i]) for i in order], time)}
        assert straight == mixed


@given(st.floats(-250, 250), st.floats(-120, 120), st.floats(0.02, 0.12), st.integers(0, 4))
@settings(deadline=None, max_examples=40)
def test_a_face_at_constant_speed_keeps_its_number_even_when_missing_for_a_moment(
    dx: float, dy: float, period: float, missing: int
) -> None:
    """Whatever the frame rate, as long as it moves less than its own size between two sightings."""
    tracker = Tracker(TrackerSettings(confirm_hits=1))
    numbers: set[int] = set()
    for index in range(30):
        time = index * period
        hidden = 15 <= index < 15 + missing and missing * period < 0.3
        found = [] if hidden else [Detection((500 + dx * time, 400 + dy * time, 120, 120))]
        numbers |= {track.number for track in tracker.update(found, time)}
    assert numbers == {1}


def test_a_moving_box_is_followed_closely_and_predicted_while_it_is_missing() -> None:
    tracker = Tracker(TrackerSettings(confirm_hits=1))
    for index in range(20):
        (track,) = tracker.update([Detection((10 + 200 * index / 20, 50, 100, 100))], index / 20)
    assert overlap(track.box, (10 + 190, 50, 100, 100)) > 0.85
    (later,) = tracker.update([], 1.05)
    assert later.box[0] > track.box[0] + 5
    assert later.seen_s == 0.95


def test_flicker_never_counts_and_is_forgotten_sooner() -> None:
    tracker = Tracker()
    tracker.update([Detection((0, 0, 50, 50))], 0.0)
    (track,) = tracker.update([], 0.2)
    assert not track.confirmed
    assert tracker.update([], 0.3) == ()


def test_a_face_is_remembered_for_its_time_and_then_is_a_new_one() -> None:
    tracker = Tracker()
    for index in range(4):
        (track,) = tracker.update([Detection((0, 0, 50, 50))], index * 0.05)
    assert track.confirmed
    (same,) = tracker.update([Detection((2, 0, 50, 50))], 0.9)
    assert same.number == track.number
    (other,) = tracker.update([Detection((2, 0, 50, 50))], 1.9)
    assert other.number == track.number + 1


def test_a_clock_that_steps_back_breaks_nothing() -> None:
    tracker = Tracker(TrackerSettings(confirm_hits=1))
    tracker.update([Detection((0, 0, 50, 50))], 10.0)
    (track,) = tracker.update([Detection((1, 0, 50, 50))], 3.0)
    assert (track.number, track.seen_s) == (1, 10.0)


def test_a_crowd_is_capped() -> None:
    crowd = [Detection((100.0 * i, 0, 50, 50)) for i in range(20)]
    assert len(Tracker(TrackerSettings(most=7)).update(crowd, 0.0)) == 7


@given(boxes, boxes)
@settings(deadline=None)
def test_overlap_is_a_symmetric_share(a: Box, b: Box) -> None:
    assert 0 <= overlap(a, b) <= 1
    assert overlap(a, b) == pytest.approx(overlap(b, a))
    assert overlap(a, a) == pytest.approx(1)


@given(boxes, st.floats(0, 2))
@settings(deadline=None)
def test_grown_boxes_lie_in_the_frame(box: Box, by: float) -> None:
    left, top, right, bottom = grown(box, by, (640, 480))
    assert left >= 0
    assert top >= 0
    assert right >= left
    assert bottom >= top
    if inside(box, (640, 480)) > 0:
        assert right <= 640
        assert bottom <= 480


@pytest.mark.parametrize("bad", [{"least_overlap": 0}, {"confirm_hits": 0}, {"forget_s": 0}, {"smoothing_s": -1}, {"most": 0}])
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="tracker settings"):
        TrackerSettings(**bad)
