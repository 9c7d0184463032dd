"""Accepted deadlines are kept: laws over random requests, on a clock of the test's own."""

from __future__ import annotations

from random import Random

import pytest

from f2edge.bundle.bundle import Bundle
from f2edge.engine.requests import AnalyzeRequest, DescribeRequest, EditRequest, Failed, Limits, ReplyKind, Request
from f2edge.errors import DeadlineUnreachableError, QueueFullError
from f2edge.results import GenerateOptions
from tests.support.engine_fake import Bench, Heard, face, generate, question

pytestmark = pytest.mark.runtime

PNG = ReplyKind("PNG", 128 * 128)


def anything(random: Random) -> Request:
    """A request of any kind; pictures are most."""
    kind, options = random.randrange(8), GenerateOptions(steps=random.choice([4, 8, 12]), guidance=random.choice([0.0, 2.0]))
    if kind == 0:
        return question(random.randrange(6), "what?", 6)
    if kind == 1:
        return DescribeRequest(face(random.randrange(6)), 12)
    if kind == 2:
        return AnalyzeRequest((face(random.randrange(6)),), ("hat",))
    if kind == 3:
        return EditRequest(face(random.randrange(6)), "an old man", "hair", random.randrange(99), options)
    return generate(random.randrange(99), prompt=random.choice(["an old man", "red hair", "a smile"]), steps=options.steps)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_accepted_with_a_deadline_answers_in_time_whatever_else_is_there(bundle: Bundle, seed: int) -> None:
    random = Random(seed)
    bench = Bench(bundle, Limits(image_rows=4, answer_rows=4, margin_ms=0))
    bench.backend.beside = 1 + seed % 2
    bench.learn()
    for _ in range(30):  # lengths of answers are learnt as they end
        bench.ask(anything(random))
        bench.run()
    accepted: list[tuple[float, Heard]] = []
    refused = 0
    for _ in range(150):
        deadline = bench.clock.now + random.choice([0.05, 0.1, 0.2, 0.4, 1.0, 3.0]) * (0.5 + random.random())
        try:
            if random.random() < 0.3:
                bench.ask(anything(random))  # without a deadline
            else:
                accepted.append((deadline, bench.ask(anything(random), deadline=deadline)))
        except DeadlineUnreachableError:
            refused += 1
        except QueueFullError:
            pass
        bench.run(random.randrange(8))
        if random.random() < 0.2:
            bench.run()
    bench.run()
    late = [heard.end for deadline, heard in accepted if isinstance(heard.end, Failed) or heard.done.ended > deadline]
    assert not late
    assert len(accepted) > 40
    assert refused > 10
    assert "deadline" not in bench.loop.stats().failed
    assert any(heard.done.degraded for _, heard in accepted)


def test_the_measured_time_of_a_reply_is_kept_free_before_a_deadline(bundle: Bundle) -> None:
    bench = Bench(bundle)
    bench.learn()
    for ms in [30.0] * 60 + [80.0] * 2:
        bench.loop.add_reply(PNG, ms)
    deadline = bench.clock.now + 0.25
    heard = bench.ask(generate(3, steps=12), deadline=deadline, reply=PNG)
    bench.run()
    assert 1e3 * (deadline - heard.done.ended) >= 80, "the high quantile, not the median"
    assert 4 <= heard.done.steps < 12
    with pytest.raises(DeadlineUnreachableError):
        bench.ask(generate(3, steps=12), deadline=bench.clock.now + 0.16, reply=PNG)
    bench.ask(generate(3, steps=12), deadline=bench.clock.now + 0.16)  # nothing follows this one
    bench.run()
    assert bench.loop.stats().failed == {}


def test_a_reply_that_was_never_measured_is_not_taken_for_free(bundle: Bundle) -> None:
    bench = Bench(bundle)
    bench.learn()
    deadline = bench.clock.now + 0.25
    heard = bench.ask(generate(3, steps=12), deadline=deadline, reply=PNG)
    bench.run()
    assert 1e3 * (deadline - heard.done.ended) >= 20


def test_a_new_deadline_that_would_break_an_accepted_one_is_refused(bundle: Bundle) -> None:
    bench = Bench(bundle, Limits(image_rows=1, margin_ms=0))
    bench.learn()
    first = bench.ask(generate(1, steps=12, min_steps=12), deadline=bench.clock.now + 0.3)
    with pytest.raises(DeadlineUnreachableError, match="other requests"):
        bench.ask(generate(2, steps=12, min_steps=12), deadline=bench.clock.now + 0.29)
    steps = len(bench.steps())
    bench.run()
    assert first.done.steps == 12
    assert steps == 0
    assert bench.loop.stats().rejected == {"deadline": 1}


def test_only_a_machine_that_slows_down_takes_steps_below_the_floor_and_never_below_the_callers_own(bundle: Bundle) -> None:
    def steps(min_steps: int | None = None) -> Heard:
        bench = Bench(bundle)
        bench.learn()
        heard = bench.ask(generate(3, steps=12, min_steps=min_steps), deadline=bench.clock.now + 0.125)
        while not bench.steps():
            bench.run(1)
        bench.backend.slowness = 2.0
        bench.run()
        return heard

    assert 1 <= steps().done.steps < 4
    assert isinstance(steps(min_steps=4).end, Failed)


def test_one_stall_does_not_close_an_idle_engine(bundle: Bundle) -> None:
    bench = Bench(bundle)
    bench.learn()
    bench.backend.slowness = 400.0
    bench.ask(generate(1, steps=2))
    bench.run()
    bench.backend.slowness = 1.0
    for tries in range(20):
        try:
            heard = bench.ask(generate(2, steps=8), deadline=bench.clock.now + 1.0)
            break
        except DeadlineUnreachableError:
            assert tries < 10, "it never learns"
    bench.run()
    assert heard.done.steps == 8
