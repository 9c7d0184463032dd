"""Slots: one place, the newest wins, nothing is lost uncounted, no wait without end."""

from __future__ import annotations

from threading import Thread
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from f2edge.camera.slots import LatestSlot

pytestmark = pytest.mark.runtime


@given(st.lists(st.one_of(st.integers(), st.just("take"), st.just("close")), max_size=40))
@settings(deadline=None)
def test_a_slot_is_the_newest_of_what_was_put_since_the_last_take(steps: list[int | str]) -> None:
    slot: LatestSlot[int] = LatestSlot()
    place: int | None = None
    closed, put, dropped, taken = False, 0, 0, 0
    for step in steps:
        if step == "take":
            assert slot.take() == place
            taken += place is not None
            place = None
        elif step == "close":
            slot.close()
            closed = True
        elif isinstance(step, int):
            assert slot.put(step) == (not closed)
            if not closed:
                put, dropped, place = put + 1, dropped + (place is not None), step
        assert slot.finished == (closed and place is None)
    assert (slot.dropped, slot.taken) == (dropped, taken)
    assert put == dropped + taken + (place is not None)


def test_a_slow_taker_gets_ever_newer_things_and_the_last_one() -> None:
    slot: LatestSlot[int] = LatestSlot()
    seen: list[int] = []

    def take() -> None:
        while (thing := slot.take(None)) is not None:
            seen.append(thing)

    taker = Thread(target=take)
    taker.start()
    for number in range(20_000):
        slot.put(number)
    slot.close()
    taker.join(5)
    assert not taker.is_alive()
    assert seen == sorted(set(seen))
    assert seen[-1] == 19_999
    assert len(seen) + slot.dropped == 20_000


def test_waiting_ends_with_the_time_or_with_the_slot() -> None:
    slot: LatestSlot[int] = LatestSlot()
    start = monotonic()
    assert slot.take(0.05) is None
    assert 0.04 < monotonic() - start < 2
    closer = Thread(target=slot.close)
    closer.start()
    assert slot.take(None) is None
    closer.join(5)
