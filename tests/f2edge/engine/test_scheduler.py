"""The engine's policy as laws: priorities and their shares, order, no starvation, estimates of time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from f2edge.engine.requests import Limits, Priority
from f2edge.engine.scheduler import FairQueue, Scheduler, Shares, Stage, startable
from f2edge.engine.step_times import MEMORY, WINDOW, StepTimes, finish_ms, fitting_steps
from f2edge.errors import InputError

pytestmark = pytest.mark.runtime

LIVE, NORMAL, BACKGROUND = Priority
costs = st.floats(20.0, 200.0)
quick = settings(max_examples=30, deadline=None)


@dataclass(frozen=True)
class Item:
    """A request as the scheduler sees it."""

    number: int
    priority: Priority
    due: float
    stage: Stage | None = None
    family: str = "images"

    @property
    def order(self) -> tuple[Priority, float, int]:
        return self.priority, self.due, self.number


# Shares ------------------------------------------------------------------------------------------------------------------------------


@quick
@given(unit=st.fixed_dictionaries({"live": costs, "normal": costs, "low": costs}), normal=st.floats(0.05, 0.5), low=st.floats(0.02, 0.3))
def test_every_backlogged_priority_gets_its_share_and_none_waits_forever(unit: dict[str, float], normal: float, low: float) -> None:
    floors = {"live": 0.0, "normal": normal, "low": low}
    shares = Shares(floors)
    spent = dict.fromkeys(floors, 0.0)
    last = dict.fromkeys(floors, 0.0)
    now, longest = 0.0, dict.fromkeys(floors, 0.0)
    most = max(unit.values())
    while now < 100 * most:
        key = shares.choose(unit)
        shares.charge(key, unit[key], floors)
        longest[key] = max(longest[key], now - last[key])
        now += unit[key]
        last[key] = now
        spent[key] += unit[key]
    for key in ("normal", "low"):
        assert spent[key] >= floors[key] * now - 4 * most
        assert longest[key] <= (2 * unit[key] + 3 * most) / floors[key]
    assert spent["live"] >= (1 - normal - low) * now - 4 * most


@quick
@given(floor=st.floats(0.05, 0.9), unit=costs, idle_turns=st.integers(1, 200))
def test_idling_earns_nothing(floor: float, unit: float, idle_turns: int) -> None:
    shares = Shares({"live": 0.0, "images": floor})
    for _ in range(idle_turns):
        shares.charge("live", unit, ("live",))
    assert shares.choose({"live": unit, "images": unit}) == "live"


@quick
@given(idle_turns=st.integers(1, 200), unit=costs)
def test_running_alone_is_not_held_against_a_priority(idle_turns: int, unit: float) -> None:
    shares = Shares({"live": 0.0, "images": 0.25})
    for _ in range(idle_turns):
        assert shares.choose({"images": unit}) == "images"
        shares.charge("images", unit, ("images",))
    turns = 0
    while shares.choose({"live": unit, "images": unit}) == "live":
        shares.charge("live", unit, ("live", "images"))
        turns += 1
        assert turns <= 4
    assert turns >= 3


@quick
@given(durations=st.dictionaries(st.sampled_from("abcd"), costs, min_size=2))
def test_stages_share_the_time_of_their_priority_equally(durations: dict[str, float]) -> None:
    fair: FairQueue[str] = FairQueue()
    spent = dict.fromkeys(durations, 0.0)
    for _ in range(60):
        key = fair.choose(durations)
        fair.charge(key, durations[key])
        spent[key] += durations[key]
    assert max(spent.values()) - min(spent.values()) <= max(durations.values()) + 1e-6


def test_a_stage_that_comes_back_does_not_catch_up() -> None:
    fair: FairQueue[str] = FairQueue()
    for _ in range(100):
        fair.charge(fair.choose(["step"]), 10.0)
    order = []
    for _ in range(6):
        order.append(fair.choose(["prompt", "step"]))
        fair.charge(order[-1], 10.0)
    assert order.count("prompt") <= 4


# The scheduler -----------------------------------------------------------------------------------------------------------------------


def scheduler(rows: int = 4, cost_ms: float = 10.0, limits: Limits | None = None) -> Scheduler:
    return Scheduler(limits or Limits(), lambda _stage: rows, lambda _stage, _rows: cost_ms)


ready_requests = st.lists(st.tuples(st.sampled_from(Priority), st.floats(0, 100), st.sampled_from(Stage)), min_size=1, max_size=20).map(
    lambda rows: [Item(i, *row) for i, row in enumerate(rows)]
)


@quick
@given(ready=ready_requests, rows=st.integers(1, 8))
def test_a_batch_is_one_stage_of_the_highest_priority_first_come_first_served_and_filled_up(ready: list[Item], rows: int) -> None:
    batch = scheduler(rows).choose(ready)
    assert batch is not None
    chosen = batch.requests
    assert batch.priority == min(r.priority for r in ready)
    assert {r.stage for r in chosen} == {batch.stage}
    assert chosen[0].priority == batch.priority
    alike = [r for r in ready if r.stage is batch.stage]
    assert len(chosen) == min(rows, len(alike))
    assert [r.order for r in chosen] == sorted(r.order for r in alike)[: len(chosen)]


def test_nothing_ready_is_no_batch() -> None:
    assert scheduler().choose([]) is None
    assert scheduler().choose([Item(1, LIVE, 0.0)]) is None, "what is queued has no stage"


@quick
@given(
    arrivals=st.lists(st.tuples(st.sampled_from([LIVE, NORMAL]), st.sampled_from([Stage.STEP, Stage.TOKEN, Stage.ENCODE])), max_size=8),
    work=st.integers(1, 5),
    unit=st.floats(5, 50),
)
def test_a_request_is_served_however_much_keeps_arriving(arrivals: list[tuple[Priority, Stage]], work: int, unit: float) -> None:
    """A background request with ``work`` batches left, while every batch finds the same crowd again, always newer."""
    policy = scheduler(rows=2, cost_ms=unit)
    old = Item(0, BACKGROUND, 30.0, Stage.STEP)
    left, now = work, 0.0
    for number in range(2000):
        crowd = [Item(number * 10 + i + 1, priority, now + 30, stage) for i, (priority, stage) in enumerate(arrivals)]
        batch = policy.choose([old, *crowd])
        assert batch is not None
        policy.charge(batch, unit)
        now += unit
        left -= old in batch.requests
        if left == 0:
            break
    assert left == 0
    assert now <= unit * (work + 1) * 3 / Limits().background_share


@quick
@given(late=st.floats(0.1, 100), newcomers=st.integers(2, 30))
def test_within_a_priority_a_waiting_request_goes_before_every_newcomer(late: float, newcomers: int) -> None:
    """Due times are fixed on arrival, so newcomers that arrive after the old one's due time are behind it."""
    old = Item(0, NORMAL, 30.0, Stage.STEP)
    crowd = [Item(1 + i, NORMAL, 30.0 + late * (i + 1), Stage.STEP) for i in range(newcomers)]
    batch = scheduler(rows=2).choose([*crowd, old])
    assert batch is not None
    assert batch.requests[0] is old


def test_live_work_goes_between_two_steps_and_is_counted_as_preemption() -> None:
    policy = scheduler()
    step, token = Item(1, NORMAL, 1.0, Stage.STEP), Item(2, LIVE, 2.0, Stage.TOKEN)
    for expected, ready in ((Stage.STEP, [step]), (Stage.TOKEN, [step, token]), (Stage.TOKEN, [step, token]), (Stage.STEP, [step])):
        batch = policy.choose(ready)
        assert batch is not None
        assert batch.stage is expected
        policy.charge(batch, 10.0)
    assert policy.preemptions == 1


@quick
@given(
    queued=st.lists(st.tuples(st.sampled_from(["images", "answers"]), st.sampled_from(Priority), st.floats(0, 9)), max_size=30),
    taken=st.integers(0, 3),
    slots=st.integers(1, 4),
)
def test_requests_begin_by_due_time_within_the_slots_of_their_priority(
    queued: list[tuple[str, Priority, float]], taken: int, slots: int
) -> None:
    waiting = [Item(i, priority, due, family=family) for i, (family, priority, due) in enumerate(queued)]
    begun = [Item(100 + i, NORMAL, 0.0, Stage.STEP) for i in range(taken)]
    chosen = startable([*waiting, *begun], {"images": slots, "answers": slots})
    assert [request.due for request in chosen] == sorted(request.due for request in chosen)
    for family in ("images", "answers"):
        for priority in Priority:
            alike = sorted((q for q in waiting if (q.family, q.priority) == (family, priority)), key=lambda q: q.order)
            room = max(0, slots - (taken if (family, priority) == ("images", NORMAL) else 0))
            assert [q in chosen for q in alike] == [i < room for i in range(len(alike))]


# Times -------------------------------------------------------------------------------------------------------------------------------


@quick
@given(ahead=st.lists(st.integers(0, 9), max_size=8), steps=st.integers(1, 9), rows=st.integers(1, 4), fixed=st.floats(0, 20))
def test_the_estimate_of_the_end_is_what_running_step_by_step_takes(ahead: list[int], steps: int, rows: int, fixed: float) -> None:
    left, elapsed = [*ahead, steps], 0.0
    while left[-1]:
        active = [i for i, n in enumerate(left) if n][:rows]
        elapsed += fixed + len(active)
        left = [n - (i in active) for i, n in enumerate(left)]
    assert finish_ms(ahead, steps, rows, lambda n: fixed + n) == pytest.approx(elapsed)


@quick
@given(wanted=st.integers(1, 64), floor=st.integers(1, 64), budget=st.floats(-10, 700), each=st.floats(0.1, 20))
def test_the_most_steps_that_fit_are_planned_but_never_below_the_floor(wanted: int, floor: int, budget: float, each: float) -> None:
    steps = fitting_steps(wanted, floor, budget, lambda n: each * n)
    lowest = min(floor, wanted)
    assert lowest <= steps <= wanted
    assert steps == lowest or each * steps <= budget
    assert steps == wanted or each * (steps + 1) > budget


def test_unknown_work_is_expected_to_take_no_time() -> None:
    assert StepTimes().ms("step", 3) == 0.0


def test_the_first_run_of_a_kind_loads_its_graph_and_is_not_counted() -> None:
    times = StepTimes()
    times.add("step", 4, 900.0)
    assert times.ms("step", 4) == 0.0
    times.add("step", 2, 20.0)
    assert times.ms("step", 4) == 40.0
    times.add("step", 2, 22.0)
    assert times.ms("step", 2) == 21.0


@quick
@given(sizes=st.dictionaries(st.integers(1, 32), st.floats(1, 100), min_size=1, max_size=6), size=st.integers(1, 64))
def test_sizes_between_those_measured_lie_between_their_times(sizes: dict[int, float], size: int) -> None:
    times = StepTimes()
    times.add("step", 1, 1e6)
    ordered = dict(zip(sorted(sizes), sorted(sizes.values()), strict=True))
    for known, ms in ordered.items():
        times.add("step", known, ms)
    for known, ms in ordered.items():
        assert times.ms("step", known) == ms
    asked = sorted({*ordered, size, size + 1})
    assert all(times.ms("step", a) <= times.ms("step", b) + 1e-9 for a, b in pairwise(asked))


def test_the_median_follows_a_machine_that_slows_down_and_ignores_outliers() -> None:
    times = StepTimes()
    for ms in [5.0, *[10.0] * WINDOW, 500.0]:
        times.add("step", 1, ms)
    assert times.ms("step", 1) == 10.0
    for _ in range(WINDOW):
        times.add("step", 1, 30.0)
    assert times.ms("step", 1) == 30.0


def test_sizes_that_no_longer_occur_are_forgotten() -> None:
    times = StepTimes()
    for size in (1, 8, *[1] * (MEMORY - 1)):
        times.add("step", size, 10.0 * size)
    assert times.largest("step") == 8
    times.add("step", 1, 10.0)
    assert times.largest("step") == 1
    assert StepTimes().largest("step") == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_rows": 0}, "image_rows"),
        ({"max_answers": 0}, "max_answers"),
        ({"quantum_ms": 0.0}, "quantum_ms"),
        ({"patience_s": float("nan")}, "patience_s"),
        ({"normal_share": 0.0}, "shares"),
        ({"normal_share": 0.9, "background_share": 0.2}, "shares"),
        ({"margin_ms": -1.0}, "margin_ms"),
        ({"padded_rows": (4, 2, 8)}, "padded_rows"),
        ({"padded_rows": (1, 2)}, "padded_rows"),
    ],
)
def test_limits_that_make_no_sense_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Limits(**values)  # type: ignore[arg-type]


def test_padding_takes_the_next_size_that_holds_the_rows() -> None:
    limits = Limits(image_rows=8, padded_rows=(1, 2, 8))
    assert [limits.padded(rows) for rows in (1, 2, 3, 8)] == [1, 2, 8, 8]
    assert Limits().padded(3) == 3
