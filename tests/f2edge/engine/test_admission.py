"""What the step loop takes and when it stops: cancelling, deadlines, full queues, priority; on a clock of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from f2edge.bundle.bundle import Bundle
from f2edge.decoding.parallel import StepEvent
from f2edge.engine.requests import AnalyzeRequest, EditRequest, Failed, Limits, Priority, Request, Token
from f2edge.errors import (
    BundleError,
    CancelledError,
    DeadlineExceededError,
    DeadlineUnreachableError,
    InputError,
    PromptError,
    QueueFullError,
    UnknownAttributeError,
    UnknownRegionError,
)
from f2edge.results import GeneratedFace, GenerateOptions
from tests.support.engine_fake import Bench, face, generate, question

pytestmark = pytest.mark.runtime


# Cancelling and deadlines ------------------------------------------------------------------------------------------------------------


def test_what_is_cancelled_is_in_no_further_step(bench: Bench) -> None:
    heard = [bench.ask(generate(seed, steps=8)) for seed in range(3)]
    while len(bench.steps()) < 3:
        bench.run(1)
    heard[1].handle.cancel()
    bench.run()
    assert isinstance(heard[1].error, CancelledError)
    assert bench.steps() == [3, 3, 3, 2, 2, 2, 2, 2]
    stats = bench.loop.stats()
    assert stats.wasted_steps == 3
    assert stats.cancelled_at == {"running": 1}
    assert isinstance(heard[1].end, Failed)
    assert heard[1].end.timings.total_ms > 0


def test_what_is_cancelled_in_the_queue_runs_nothing(bench: Bench) -> None:
    for request in (generate(1), question(1), AnalyzeRequest((face(1),))):
        heard = bench.ask(request)
        heard.handle.cancel()
        assert bench.run() == 0
        assert isinstance(heard.error, CancelledError)
    assert not bench.backend.runs
    assert bench.loop.stats().cancelled_at == {"queued": 3}


def test_an_answer_stops_between_two_tokens(bench: Bench) -> None:
    heard = bench.ask(question(1, "what do you see here?", 30))
    while not any(isinstance(e, Token) for e in heard.events):
        bench.run(1)
    runs = bench.backend.runs["mmu_extend"]
    heard.handle.cancel()
    bench.run()
    assert bench.backend.runs["mmu_extend"] == runs
    assert isinstance(heard.error, CancelledError)


def test_a_deadline_that_passes_in_the_queue_costs_nothing(bench: Bench) -> None:
    heard = bench.ask(generate(1), deadline=bench.clock.now + 1)  # nothing is measured yet, so it is taken
    bench.clock.now += 2
    assert bench.run() == 0
    assert isinstance(heard.error, DeadlineExceededError)
    assert not bench.backend.runs


def test_a_deadline_that_passes_between_steps_stops_before_the_next(bench: Bench) -> None:
    heard = bench.ask(generate(1, steps=50, min_steps=50), deadline=bench.clock.now + 0.2)  # 20 ms each
    bench.run()
    assert isinstance(heard.error, DeadlineExceededError)
    assert len(bench.steps()) <= 10
    assert bench.loop.stats().failed == {"deadline": 1}


def test_a_deadline_that_cannot_be_met_is_refused_at_once(bench: Bench) -> None:
    bench.learn()
    with pytest.raises(DeadlineUnreachableError, match="ms"):
        bench.ask(generate(1, steps=12, min_steps=12), deadline=bench.clock.now + 0.2)  # 12 steps of 20 ms
    with pytest.raises(DeadlineUnreachableError):
        bench.ask(question(1), deadline=bench.clock.now + 0.005)
    with pytest.raises(DeadlineUnreachableError):
        bench.ask(question(1), deadline=bench.clock.now - 1)
    assert not bench.backend.runs
    assert bench.loop.stats().rejected == {"deadline": 3}
    assert bench.loop.stats().accepted == {}


def test_work_ahead_counts_when_a_deadline_is_judged(bundle: Bundle) -> None:
    bench = Bench(bundle, Limits(image_rows=1, margin_ms=0))
    bench.learn()
    request = generate(7, steps=12, min_steps=12)
    bench.ask(request, deadline=bench.clock.now + 0.4).handle.cancel()
    bench.run()
    for seed in range(2):
        bench.ask(generate(seed, steps=12), deadline=bench.clock.now + 0.39)
    with pytest.raises(DeadlineUnreachableError):
        bench.ask(request, deadline=bench.clock.now + 0.4)


@pytest.mark.parametrize(("budget_ms", "fewest", "most"), [(1000, 12, 12), (170, 5, 8), (125, 4, 5)])
def test_the_steps_that_fit_are_taken_and_the_face_is_that_of_so_many_steps(bench: Bench, budget_ms: int, fewest: int, most: int) -> None:
    bench.learn()
    deadline = bench.clock.now + budget_ms / 1e3
    heard = bench.ask(generate(3, steps=12), deadline=deadline)
    bench.run()
    done = heard.done
    assert bench.clock.now <= deadline
    assert fewest <= done.steps <= most
    assert done.degraded == (done.steps < 12)
    assert done.steps_planned == done.steps
    (alone,) = bench.alone.generate("an old man", seeds=3, options=GenerateOptions(steps=done.steps))
    assert isinstance(done.result, GeneratedFace)
    assert np.array_equal(done.result.codes, alone.codes)
    assert done.result.options.steps == done.steps
    assert bench.loop.stats().degraded == done.degraded


def test_when_the_machine_slows_down_the_last_proposal_is_the_result(bench: Bench) -> None:
    bench.learn()
    deadline = bench.clock.now + 0.3
    heard = bench.ask(generate(3, steps=12), deadline=deadline)
    while len(bench.steps()) < 5:
        bench.run(1)
    bench.backend.slowness = 3.0
    bench.run()
    done = heard.done
    assert bench.clock.now <= deadline
    assert (done.degraded, done.steps_planned) == (True, 12)
    assert 5 <= done.steps < 12
    events: list[StepEvent] = []
    bench.alone.generate("an old man", seeds=3, options=GenerateOptions(steps=12), on_step=events.append)
    assert np.array_equal(done.result.codes, events[done.steps - 1].proposal[0])  # type: ignore[union-attr]
    assert len(bench.steps()) == done.steps


# Admission and priority --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (lambda: generate(1, prompt=" "), PromptError),
        (lambda: generate(1, prompt="x" * 97), PromptError),
        (lambda: generate(-1), InputError),
        (lambda: generate(1, steps=0), InputError),
        (lambda: question(1, "a\x00b"), PromptError),
        (lambda: AnalyzeRequest((face(),), ("shoe_size",)), UnknownAttributeError),
        (lambda: AnalyzeRequest((face(),), ()), InputError),
        (lambda: EditRequest(face(), "a man", "tail"), UnknownRegionError),
        (lambda: EditRequest(face(), "a man", (500, 500, 10, 10)), InputError),
        (lambda: AnalyzeRequest(()), InputError),
        (lambda: question(1, max_tokens=0), InputError),
        (lambda: generate(1, min_steps=0), InputError),
        (lambda: generate(1, preview_every=-1), InputError),
    ],
)
def test_bad_requests_are_refused_at_once(bench: Bench, request_: Callable[[], Request], error: type[Exception]) -> None:
    with pytest.raises(error):
        bench.ask(request_())
    assert len(bench.loop) == 0


def test_a_bundle_without_a_graph_refuses_what_needs_it(bundle: Bundle, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = {name: entry for name, entry in bundle.manifest.graphs.items() if name != "mmu_extend"}
    monkeypatch.setitem(bundle.manifest.__dict__, "graphs", graphs)
    with pytest.raises(BundleError, match="mmu_extend"):
        bench.ask(question(1))
    bench.ask(generate(1))


def test_full_queues_refuse_with_a_time_to_come_back_and_do_not_stand_in_each_others_way(bundle: Bundle) -> None:
    bench = Bench(bundle, Limits(max_images=3, max_answers=2, image_rows=2, margin_ms=0))
    bench.learn()
    images = [bench.ask(generate(seed)) for seed in range(3)]
    with pytest.raises(QueueFullError, match="3 images") as full:
        bench.ask(generate(4))
    assert 50 <= full.value.retry_after_ms <= 30_000
    answers = [bench.ask(question(i)) for i in range(2)]
    with pytest.raises(QueueFullError, match="2 answers"):
        bench.ask(question(3))
    for family in ("images", "answers"):  # which a server asks before it opens a picture
        with pytest.raises(QueueFullError, match=family):
            bench.loop.check_room(family)
    images[0].handle.cancel()
    bench.run(1)
    bench.loop.check_room("images")
    bench.ask(generate(5))
    bench.run()
    assert all(h.done for h in (*images[1:], *answers))
    assert bench.loop.stats().rejected == {"queue_full": 4}


def test_estimated_work_is_bounded_too(bundle: Bundle) -> None:
    bench = Bench(bundle, Limits(max_image_work_ms=500.0, margin_ms=0))
    bench.learn()
    for seed in range(2):
        bench.ask(generate(seed, steps=12))
    with pytest.raises(QueueFullError, match="s of work") as full:
        bench.ask(generate(3, steps=64))
    assert full.value.retry_after_ms >= 50
    assert bench.loop.stats().work_ms["images"] <= 500
    bench.run()
    bench.ask(generate(1, steps=128))  # an empty queue takes whatever comes


def expected_tokens(bench: Bench) -> float:
    """Return the length that the engine expects of an answer, from its estimates of the work of queued questions."""
    work_ms = []
    for max_tokens in (1, 2, 30):
        heard = bench.ask(question(50, max_tokens=max_tokens))
        work_ms.append(bench.loop.stats().work_ms["answers"])
        heard.handle.cancel()
        bench.run()
    one, two, many = work_ms
    assert two > one
    return 1 + (many - one) / (two - one)


def test_the_expected_length_of_an_answer_is_a_running_mean(bench: Bench) -> None:
    bench.learn()
    before = wanted = expected_tokens(bench)
    for image in range(6):
        heard = bench.ask(question(image, max_tokens=2))
        bench.run()
        tokens = sum(isinstance(event, Token) for event in heard.events)
        assert 1 <= tokens <= 2
        wanted += 0.1 * (tokens - wanted)
    assert expected_tokens(bench) == pytest.approx(wanted)
    assert wanted < before - 2
    assert 16 - 3 * 0.1 * 16 < before <= 16  # 16 is assumed before the first answer, three answers were given in bench.learn()


def test_an_answer_waits_for_one_step_at_most_while_images_run(bench: Bench) -> None:
    bench.learn()
    images = [bench.ask(generate(seed, steps=12)) for seed in range(4)]
    while len(bench.steps()) < 3:
        bench.run(1)
    heard = bench.ask(question(1, "what do you see?", 4))
    before = len(bench.steps())
    while heard.handle.ended is False and not any(isinstance(e, Token) for e in heard.events):
        bench.run(1)
    assert len(bench.steps()) <= before + 1
    bench.run()
    assert all(h.done.steps == 12 for h in images)
    assert bench.loop.stats().preemptions >= 1


def test_images_keep_their_share_under_a_flood_of_answers(bench: Bench) -> None:
    bench.learn()
    image = bench.ask(generate(1, steps=12))
    start, busy_ms = bench.clock.now, 12 * 20 + 30
    asked = 0
    while not image.handle.ended:
        while len(bench.loop) < 12:
            bench.ask(question(asked % 20, f"what is {asked}?", 8))
            asked += 1
        bench.run(1)
        assert bench.clock.now - start < 10, "the image starves"
    assert 1e3 * (bench.clock.now - start) <= 1.5 * busy_ms / Limits().normal_share


def test_background_work_fills_empty_rows_and_waits_otherwise(bundle: Bundle) -> None:
    bench = Bench(bundle, Limits(image_rows=2, margin_ms=0))
    late = [bench.ask(generate(seed), priority=Priority.BACKGROUND) for seed in range(2)]
    first = bench.ask(generate(5))
    bench.run()
    assert first.done.timings.total_ms < min(h.done.timings.total_ms for h in late)
    assert bench.steps()[0] == 2, "the empty row of the first step is used"
