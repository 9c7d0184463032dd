"""The parallel loop over a scripted model: counts, independence of batch mates, edits, cancellation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from f2edge.decoding.grids import GridsValue
from f2edge.decoding.parallel import UNCONDITIONAL, Feeds, StepEvent, StepFunction, decode
from f2edge.decoding.schedule import Plan, Schedule, plan
from f2edge.errors import CancelledError
from f2edge.spec.layout import Ids
from tests.support.reference_sampler import reference_step

pytestmark = pytest.mark.runtime

N, V = 16, 5
EVERYTHING = np.ones(N, dtype=bool)


def scripted(prompts: Sequence[int]) -> StepFunction:
    """A model whose logits are a function of a branch's prompt and the grid it sees, and the slow reference behind it."""

    def step(feeds: Feeds, prefixes: tuple[int, ...]) -> tuple[Ids, Ids]:
        logits = []
        for row, prefix in zip(feeds["branch_row"], prefixes, strict=True):
            prompt = -1 if prefix == UNCONDITIONAL else prompts[prefix]
            seen = int(np.dot(feeds["codes"][row], np.arange(1, N + 1)))
            logits.append(np.random.default_rng([prompt + 1, seen]).normal(size=(N, V)))
        return reference_step(np.stack(logits), feeds)

    return step


def masked(rows: int) -> Ids:
    return np.full((rows, N), V, dtype=np.int64)


def run(prompts: Sequence[int], plans: Sequence[Plan], seeds: Sequence[int]) -> Ids:
    return decode(scripted(prompts), masked(len(prompts)), plans, seeds)


SCHEDULES = st.builds(
    Schedule,
    steps=st.integers(1, 20),
    guidance=st.sampled_from([0.0, 1.5, 3.0]),
    order=st.sampled_from(["maskgit", "halton", "ancestral"]),
    temperature=st.floats(0, 3),
    temperature_law=st.sampled_from(["linear", "show-o", "constant"]),
    token_temperature=st.floats(0.5, 2),
    guidance_interval=st.sampled_from([(0.0, 1.0), (0.3, 0.8)]),
)
REQUESTS = st.tuples(st.integers(0, 3), SCHEDULES, st.integers(0, 2**64 - 1))


@settings(deadline=None, max_examples=25)
@given(st.lists(REQUESTS, min_size=2, max_size=4))
def test_a_row_decodes_to_the_same_tokens_in_any_company(requests: list[tuple[int, Schedule, int]]) -> None:
    prompts = [prompt for prompt, _, _ in requests]
    plans = [plan(schedule, EVERYTHING, seed) for _, schedule, seed in requests]
    seeds = [seed for _, _, seed in requests]
    together = run(prompts, plans, seeds)
    assert ((together >= 0) & (together < V)).all()
    for i in range(len(requests)):
        assert np.array_equal(run([prompts[i]], [plans[i]], [seeds[i]])[0], together[i])


def test_seeds_and_prompts_matter() -> None:
    plans = [plan(Schedule(steps=4, guidance=2.0), EVERYTHING, seed) for seed in (1, 2, 1)]
    first, other_seed, other_prompt = run([0, 0, 1], plans, [1, 2, 1])
    assert not np.array_equal(first, other_seed)
    assert not np.array_equal(first, other_prompt)


@settings(deadline=None, max_examples=25)
@given(SCHEDULES, st.lists(st.booleans(), min_size=N, max_size=N).filter(any), st.integers(0, 2**32))
def test_an_edit_leaves_every_known_token(schedule: Schedule, region: list[bool], seed: int) -> None:
    known = np.arange(N) % V
    inside = np.array(region)
    events: list[StepEvent] = []
    made = plan(schedule, inside, seed)
    result = decode(scripted([0]), np.where(inside, V, known)[None], [made], [seed], on_step=events.append)[0]
    assert np.array_equal(result[~inside], known[~inside])
    assert (result < V).all()
    assert [int((e.codes == V).sum()) for e in events] == made.masked_after.tolist()
    for event in events:
        assert np.array_equal(event.codes[0][~inside], known[~inside])
        assert (event.proposal < V).all()
    settled = [set(np.flatnonzero(e.codes[0] != V).tolist()) for e in events]
    assert all(earlier < later for earlier, later in pairwise(settled))


def test_a_fixed_order_decides_alone() -> None:
    """The k-th token of a low-discrepancy order is settled at its step whatever the model thinks of it."""
    schedule = Schedule(steps=N, order="halton", mask_law="linear", token_temperature=5.0)
    made = plan(schedule, EVERYTHING, 3)
    events: list[StepEvent] = []
    decode(scripted([0]), masked(1), [made], [3], on_step=events.append)
    order = np.argsort(-made.priority)
    assert len(events) == N
    for k, event in enumerate(events):
        assert set(np.flatnonzero(event.codes[0] != V).tolist()) == set(order[: k + 1].tolist())


def test_only_guided_rows_take_a_second_branch() -> None:
    seen: list[tuple[int, ...]] = []
    model = scripted([0, 1, 2])

    def step(feeds: Feeds, prefixes: tuple[int, ...]) -> tuple[GridsValue, GridsValue]:
        seen.append(prefixes)
        assert len(feeds["branch_row"]) == len(prefixes)
        for row, branch in enumerate(feeds["unconditional_branch"]):
            assert feeds["branch_row"][branch] == row
            assert (prefixes[branch] == UNCONDITIONAL) == (feeds["guidance"][row] > 0)
        return model(feeds, prefixes)

    schedules = [
        Schedule(steps=2, guidance=0.0),
        Schedule(steps=4, guidance=2.0),
        Schedule(steps=3, guidance=2.0, guidance_interval=(1, 1)),
    ]
    decode(step, masked(3), [plan(s, EVERYTHING, 0) for s in schedules], [0, 0, 0])
    assert seen == [(0, 1, 2, -1, -1), (0, 1, 2, -1), (1, 2, -1), (1, -1)]


def test_listeners_hear_every_step_of_the_longest_row() -> None:
    events: list[StepEvent] = []
    plans = [plan(Schedule(steps=steps), EVERYTHING, 0) for steps in (2, 5)]
    decode(scripted([0, 1]), masked(2), plans, [0, 0], on_step=events.append)
    assert [(e.step, e.steps) for e in events] == [(k, 5) for k in range(1, 6)]
    assert all(e.elapsed_ms >= 0 for e in events)
    assert np.array_equal(events[1].codes[0], events[4].codes[0])  # the short row stays as it ended
    first: NDArray[np.int64] = events[0].proposal
    assert not np.array_equal(first, events[4].proposal)  # an event's arrays are its own


def test_cancelling_stops_between_two_steps() -> None:
    done: list[int] = []
    with pytest.raises(CancelledError, match="before step 3 of 6"):
        decode(
            scripted([0]),
            masked(1),
            [plan(Schedule(steps=6), EVERYTHING, 0)],
            [0],
            on_step=lambda event: done.append(event.step),
            cancelled=lambda: len(done) == 2,
        )
    assert done == [1, 2]


class Far:
    """Grids on a device that counts how often they are read."""

    def __init__(self, grids: Ids, reads: list[int]) -> None:
        self._grids, self._reads = grids, reads
        self.shape = grids.shape

    def numpy(self) -> Ids:
        self._reads.append(len(self._grids))
        grids: Ids = self._grids.copy()
        return grids


@pytest.mark.parametrize(("steps", "listening", "reads"), [((4, 4), False, 1), ((4, 4), True, 8), ((2, 4), False, 2)])
def test_grids_are_read_when_somebody_needs_them(steps: tuple[int, ...], *, listening: bool, reads: int) -> None:
    """The last ones; with a listener two of each step; and where a row ends, the batch that it was in."""
    done: list[int] = []
    model = scripted([0, 1])

    def step(feeds: Feeds, prefixes: tuple[int, ...]) -> tuple[GridsValue, GridsValue]:
        given = feeds["codes"]
        near = {**feeds, "codes": given._grids if isinstance(given, Far) else given}
        first, second = model(near, prefixes)
        assert isinstance(first, np.ndarray)
        assert isinstance(second, np.ndarray)
        return Far(first, done), Far(second, done)

    plans = [plan(Schedule(steps=count), EVERYTHING, 0) for count in steps]
    times: list[float] = []
    codes = decode(step, masked(2), plans, [0, 0], on_step=(lambda _: None) if listening else None, times=times)
    assert np.array_equal(codes, decode(model, masked(2), plans, [0, 0]))
    assert len(times) == max(steps)
    assert len(done) == reads
