"""Check and repair: what a prompt asks for, what is drawn again, and that the best attempt wins."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from f2edge.decoding.repair import MOST_ROUNDS, ROUNDS, Attempt, Refinements, Repair, Wanted, Workshop, checked_rounds, repair_cells
from f2edge.decoding.schedule import Schedule
from f2edge.errors import InputError
from f2edge.results import Check, FaceReport
from f2edge.spec.attributes import F2EDGE_SCHEMA
from f2edge.spec.lexicon import Reading
from f2edge.spec.slot_regions import SLOT_REGIONS

pytestmark = pytest.mark.runtime

PICTURE = Image.new("RGB", (8, 8))
NAMES = ("hair", "eyes", "background")


def attempt(first_code: int = 0, **agreement: float) -> Attempt:
    return Attempt(np.arange(first_code, first_code + 16), PICTURE, agreement)


def coverage() -> np.ndarray:
    """Hair in the first row of a 4 x 4 grid, eyes in one cell, no background."""
    shares = np.zeros((3, 4, 4), dtype=np.float32)
    shares[0, 0], shares[1, 1, 1] = 1.0, 0.6
    return shares


def of_cells(cells: np.ndarray) -> np.ndarray:
    return np.asarray(cells.reshape(-1))


def beard_coverage(_pixels: np.ndarray) -> np.ndarray:
    return np.stack([coverage()[0], coverage()[1]])


def no_pixels(_picture: Image.Image) -> np.ndarray:
    return np.zeros((3, 4, 4), dtype=np.float32)


def no_tokens(_pixels: np.ndarray) -> np.ndarray:
    return np.zeros((1, 16), dtype=np.int64)


#: Of a bundle whose parser knows chin and eyes.
WORKSHOP = Workshop(("chin", "eyes"), 4, 99, 1, no_pixels, beard_coverage, no_tokens, of_cells)


def test_the_words_of_a_prompt_are_held_against_the_reading_of_the_picture() -> None:
    reading = Reading({"hat": "cap", "eyewear": "none", "shoe": "red"}, {"hair_color": frozenset({"blonde", "red"})})
    wanted = Wanted.of(reading, F2EDGE_SCHEMA)
    assert wanted.slots == ("hat", "eyewear", "hair_color")
    report = FaceReport(
        {
            "hat": {"none": 0.1, "cap": 0.9},
            "eyewear": {"none": 0.3, "eyeglasses": 0.7},
            "hair_color": {"blonde": 0.2, "red": 0.1, "black": 0.7},
        },
        hidden={"hat": 0.5},
    )
    assert wanted.agreement(report) == pytest.approx({"hat": 0.45, "eyewear": 0.3, "hair_color": 0.7})
    assert wanted.without(["hat", "hair_color"]).slots == ("eyewear",)


def test_the_regions_of_what_is_missing_are_drawn_again() -> None:
    hair, eyes = np.zeros((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)
    hair[0], eyes[1, 1] = True, True
    assert np.array_equal(repair_cells(["hair_texture"], NAMES, 4, coverage), hair)
    assert np.array_equal(repair_cells(["hair_texture", "eye_color"], NAMES, 4, coverage), hair | eyes)
    for nowhere in ("background", "head_pose", "an own slot"):  # not visible, everywhere, unknown
        assert repair_cells([nowhere], NAMES, 4, coverage).all()
    assert repair_cells(["hair_texture"], (), 4, coverage).all()
    assert np.array_equal(repair_cells(["hair_texture"], NAMES, 4, coverage, allowed=eyes), eyes), "an edit stays in its region"
    left = np.zeros((4, 4), dtype=bool)
    left[:, 0] = True
    assert repair_cells(["hair_texture"], NAMES, 4, coverage, allowed=left).sum() == 1
    assert set(SLOT_REGIONS) < set(F2EDGE_SCHEMA)


def test_the_best_attempt_stays_whatever_repairs_do() -> None:
    repair = Repair(Wanted({"hat": "cap", "beard": "full"}, {}), Schedule(steps=8), seed=5, rounds=2)
    dues = [repair.due]
    repair.add(attempt(hat=0.9, beard=0.1))
    dues.append(repair.due)
    assert dues == [False, True]
    row = repair.next_row(WORKSHOP)  # the eyes, where a beard is not seen, are not drawn again
    ended = [repair.ended]
    assert np.array_equal(row.codes, np.where(np.arange(16) < 4, 99, np.arange(16)))
    assert row.plan.steps == 4, "a quarter of the tokens takes fewer steps"
    repair.add(attempt(100, hat=0.2, beard=0.3))
    assert repair.check == Check(0.5, ("beard",), 2, 1)
    assert repair.next_row(WORKSHOP).seed not in (5, row.seed)
    repair.add(attempt(200, hat=0.8, beard=0.2))  # as much is missing, surer of the rest
    assert [*ended, repair.ended] == [False, True], "two repairs are all"
    assert repair.best is not None
    assert repair.best.codes[0] == 200
    done = Repair(Wanted({"hat": "cap"}, {}), Schedule(), seed=5, rounds=2)
    done.add(attempt(hat=0.6))
    assert (done.due, done.check) == (False, Check(1.0, (), 1, 0))


def test_protected_traits_are_looked_at_and_never_named() -> None:
    repair = Repair(Wanted({"age": "old", "hat": "cap"}, {}, silent=frozenset({"age"})), Schedule(), seed=5, rounds=1)
    repair.add(attempt(age=0.1, hat=0.2))
    assert repair.check == Check(0.0, ("hat",), 1, 0)
    repair.add(attempt(age=0.1, hat=0.9))
    assert repair.check == Check(1.0, (), 1, 0)
    assert repair.due


def test_a_prompt_that_names_nothing_is_satisfied() -> None:
    repair = Repair(Wanted({}, {}), Schedule(), seed=5, rounds=2)
    repair.add(attempt())
    assert (repair.due, repair.check) == (False, Check(1.0, (), 0, 0))


def test_check_is_true_or_a_number_of_repairs() -> None:
    assert [checked_rounds(value) for value in (False, True, 0, 1, MOST_ROUNDS)] == [0, ROUNDS, 0, 1, MOST_ROUNDS]
    for wrong in (-1, MOST_ROUNDS + 1):
        with pytest.raises(InputError, match="check"):
            checked_rounds(wrong)


def test_refinements_follow_one_another_and_the_last_one_has_the_result() -> None:
    wanted = Wanted({"beard": "full"}, {})
    first, second = (Repair(wanted, Schedule(), seed=5, rounds=rounds) for rounds in (1, 2))
    refinements = Refinements(wanted, placement=first, repair=second)
    refinements.add(attempt(beard=0.1))
    turns = [refinements.current]
    first.next_row(WORKSHOP)
    refinements.add(attempt(100, beard=0.2))
    turns.append(refinements.current)
    assert second.best is first.best, "what ends a refinement begins the next, and is not read twice"
    for code in (200, 300):
        second.next_row(WORKSHOP)
        refinements.add(attempt(code, beard=code / 1000))
    assert [*turns, refinements.current] == [first, second, None]
    assert refinements.best is not None
    assert refinements.best.codes[0] == 300
    assert refinements.check == Check(0.0, ("beard",), 1, 2)
    assert Refinements(wanted).current is None


def test_a_repair_does_not_give_up_the_layout() -> None:
    repair = Repair(Wanted({"beard": "full"}, {}), Schedule(), seed=5, rounds=2)
    repair.add(Attempt(np.arange(16), PICTURE, {"beard": 0.1}, placed=0.8))
    repair.add(Attempt(np.arange(1, 17), PICTURE, {"beard": 0.9}, placed=0.7))
    placed = [repair.best.placed if repair.best else None]
    repair.add(Attempt(np.arange(2, 18), PICTURE, {"beard": 0.7}, placed=0.79))
    assert [*placed, repair.best.placed if repair.best else None] == [0.8, 0.79]
