"""The step loop on a scripted backend and its own clock: batches, events, faults, memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from random import Random

import numpy as np
import pytest

from f2edge.backends.base import Value
from f2edge.bundle.bundle import Bundle
from f2edge.decoding.parallel import StepEvent
from f2edge.decoding.presets import QUALITIES
from f2edge.engine.requests import (
    AnalyzeRequest,
    AskRequest,
    DescribeRequest,
    Done,
    EditRequest,
    GenerateRequest,
    Limits,
    Priority,
    Report,
    Request,
    Token,
)
from f2edge.errors import (
    CancelledError,
    InputError,
)
from f2edge.imaging.regions import Region
from f2edge.results import Answer, EditedFace, GeneratedFace, GenerateOptions
from tests.support.engine_fake import Bench, Heard, face, generate, poisoned, question
from tests.support.paper_model import MODEL

pytestmark = pytest.mark.runtime


def is_what_it_is_alone(bench: Bench, request: Request, done: Done) -> bool:
    """Whether a result is that of the pipeline without other requests in the batch."""
    alone, result = bench.alone, done.result
    if isinstance(request, GenerateRequest):
        assert isinstance(result, GeneratedFace)
        (expected,) = alone.generate(request.prompt, seeds=request.seed, options=request.options)
        same_options = result.options == expected.options
        return same_options and np.array_equal(result.codes, expected.codes) and result.image.tobytes() == expected.image.tobytes()
    if isinstance(request, EditRequest):
        assert isinstance(result, EditedFace)
        edited = alone.edit(request.image, request.prompt, request.region, seed=request.seed, options=request.options)
        return np.array_equal(result.codes, edited.codes) and result.image.tobytes() == edited.image.tobytes()
    if isinstance(request, AnalyzeRequest):
        assert isinstance(result, tuple)
        return list(result) == alone.analyze(request.images, attributes=request.attributes)
    assert isinstance(result, Answer)
    if isinstance(request, DescribeRequest):
        return result.tokens == alone.describe(request.image, max_tokens=request.max_tokens).tokens
    answer = alone.ask(request.image, request.question, max_tokens=request.max_tokens)
    return (result.tokens, result.text) == (answer.tokens, answer.text)


def anything(random: Random) -> Request:
    """A request of any kind."""
    options = GenerateOptions(
        steps=random.choice([1, 2, 5, 8]),
        guidance=random.choice([0.0, 2.0]),
        order=random.choice(["maskgit", "halton", "ancestral"]),
        guidance_interval=random.choice([(0.0, 1.0), (0.3, 0.9)]),
    )
    options = random.choice([options, options, GenerateOptions(quality=random.choice(QUALITIES))])
    kind = random.randrange(6)
    prompt, image = random.choice(["an old man", "red hair", "a smile"]), face(random.randrange(3))
    if kind <= 1:
        return GenerateRequest(prompt, random.getrandbits(64), options, preview_every=random.randrange(3), preview_images=kind == 0)
    if kind == 2:
        regions: list[Region] = ["hair", (0, 0, 128, 40)]
        return EditRequest(image, prompt, random.choice(regions), random.randrange(99), options)
    if kind == 3:
        return DescribeRequest(image, random.randrange(1, 12))
    if kind == 4:
        return AnalyzeRequest(tuple(face(i) for i in range(random.randrange(1, 3))), ("hat", "age"))
    return AskRequest(image, random.choice(["what?", "why is it so?"]), random.randrange(1, 12))


# Batches -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_every_request_ends_as_it_would_alone_whoever_joins_leaves_or_is_cancelled(bundle: Bundle, seed: int) -> None:
    random = Random(seed)
    limits = Limits(image_rows=3, answer_rows=3, padded_rows=(1, 3) if seed else (), margin_ms=0)
    bench = Bench(bundle, limits)
    bench.backend.beside = 1 + seed
    asked: list[tuple[Request, Heard]] = []
    gone: set[int] = set()
    for _ in range(16):
        request = anything(random)
        asked.append((request, bench.ask(request, priority=random.choice([None, *Priority]))))
        if random.random() < 0.2:
            victim = random.choice(asked)[1]
            if not victim.handle.ended:
                victim.handle.cancel()
                gone.add(victim.handle.id)
        bench.run(random.randrange(6))
    bench.run()
    for request, heard in asked:
        if heard.handle.id in gone:
            assert isinstance(heard.error, CancelledError)
        else:
            assert is_what_it_is_alone(bench, request, heard.done)
    stats = bench.loop.stats()
    assert sum(stats.done.values()) + stats.failed.get("cancelled", 0) == 16
    assert len(bench.loop) == 0


def test_images_at_different_steps_share_one_forward_pass(bench: Bench) -> None:
    bench.learn()
    first = bench.ask(generate(1, steps=6))
    while len(bench.steps()) < 2:
        bench.run(1)
    later = [bench.ask(generate(seed, prompt="a smile" if seed == 3 else "an old man", steps=4)) for seed in (2, 3)]
    bench.run()
    assert bench.steps() == [1, 1, 3, 3, 3, 3]
    assert [h.done.steps for h in (first, *later)] == [6, 4, 4]
    assert bench.loop.stats().rows["step"] == {1: 2, 3: 4}
    assert bench.loop.stats().image_steps == 14


def test_questions_about_one_face_share_its_prefix_and_their_forward_passes(bench: Bench) -> None:
    heard = [bench.ask(question(1, f"is it {i}?", 4)) for i in range(5)]
    bench.run()
    assert {h.done.steps for h in heard} <= {0, 1, 2, 3, 4}
    assert [bench.backend.runs[g] for g in ("image_encode", "semantic", "identity", "mmu_prefill")] == [1, 1, 1, 1]
    extends = [rows for graph, rows in bench.backend.rows if graph == "mmu_extend"]
    assert extends[0] == 5
    assert len(extends) <= 5
    bench.ask(question(1, "again?"))
    bench.run()
    assert bench.backend.runs["mmu_prefill"] == 1
    assert bench.loop.stats().prefix_misses == 1
    assert bench.loop.stats().prefix_hits == 5


def test_one_prompt_with_many_seeds_is_prefilled_once(bench: Bench) -> None:
    heard = [bench.ask(generate(seed)) for seed in range(4)]
    bench.run()
    assert bench.backend.runs["t2i_prefill"] == 2  # and the empty prompt
    assert bench.steps() == [4] * 4
    assert len({h.done.result.codes.tobytes() for h in heard}) == 4  # type: ignore[union-attr]


def test_work_that_is_apart_goes_side_by_side_as_far_as_the_backend_does(bench: Bench) -> None:
    bench.backend.beside = 2
    pictures = [bench.ask(generate(seed, prompt=prompt)) for seed, prompt in enumerate(("an old man", "a smile", "an old man"))]
    reports = [bench.ask(AnalyzeRequest((face(number),), ("hat", "age"))) for number in (1, 1, 2)]
    bench.run()
    rows = bench.loop.stats().rows
    assert rows["report"] == {2: 1, 1: 1}
    assert [bench.backend.runs[graph] for graph in ("t2i_prefill", "image_encode", "mmu_prefill")] == [3, 2, 2]  # no prompt or face twice
    for request, heard in zip([generate(0), generate(1, prompt="a smile"), generate(2)], pictures, strict=True):
        assert is_what_it_is_alone(bench, request, heard.done)
    assert reports[0].done.result == reports[1].done.result != reports[2].done.result


def test_pictures_that_end_together_are_drawn_side_by_side(bench: Bench) -> None:
    bench.backend.beside = 2
    heard = [bench.ask(generate(seed, preview_every=2)) for seed in range(3)]
    bench.run()
    assert bench.loop.stats().rows["draw"] == {2: 1, 1: 1}
    assert all(is_what_it_is_alone(bench, generate(seed), h.done) for seed, h in enumerate(heard))


def test_more_requests_than_rows_are_served_in_the_order_of_their_arrival(bundle: Bundle) -> None:
    bench = Bench(bundle, Limits(image_rows=2, margin_ms=0))
    heard = [bench.ask(generate(seed)) for seed in range(5)]
    bench.run()
    assert max(bench.steps()) == 2
    ends = [h.done.timings.total_ms for h in heard]
    assert ends == sorted(ends)


def test_a_step_takes_no_more_rows_than_fit_in_the_quantum(bundle: Bundle) -> None:
    bench = Bench(bundle, Limits(quantum_ms=35.0, margin_ms=0))  # 10 ms and 10 for each guided row
    bench.learn()
    for seed in range(4):
        bench.ask(generate(seed))
    bench.run()
    assert max(bench.steps()) == 2


def test_every_step_of_show_os_law_runs_although_there_are_fewer_tokens(bench: Bench) -> None:
    steps = MODEL.image_tokens + 4
    request = GenerateRequest("an old man", 3, GenerateOptions(steps=steps, mask_law="show-o"))
    heard = bench.ask(request)
    bench.run()
    assert (heard.done.steps, heard.done.degraded) == (steps, False)
    assert is_what_it_is_alone(bench, request, heard.done)


def test_steps_are_short_while_live_answers_are_asked_for(bench: Bench) -> None:
    bench.learn()
    bench.ask(question(1))  # about 20 ms to its first token, as one row's step
    bench.run()
    for seed in range(4):
        bench.ask(generate(seed))
    bench.run()
    assert max(bench.steps()) == 1
    bench.clock.now += Limits().live_memory_s
    bench.ask(generate(4))
    bench.ask(generate(5))
    bench.run()
    assert max(bench.steps()) == 2


# Events -------------------------------------------------------------------------------------------------------------------------------


def test_previews_come_every_so_many_steps_with_the_pipelines_own_proposals(bench: Bench) -> None:
    events: list[StepEvent] = []
    (face_alone,) = bench.alone.generate("an old man", seeds=5, options=GenerateOptions(steps=7), on_step=events.append)
    heard = bench.ask(generate(5, steps=7, preview_every=2))
    seen = bench.ask(generate(5, steps=7, preview_every=3, preview_images=True))
    bench.run()
    progress = [e for e in heard.events if isinstance(e, StepEvent)]
    assert [(p.step, p.steps, p.images) for p in progress] == [(2, 7, ()), (4, 7, ()), (6, 7, ())]
    for event in progress:
        assert np.array_equal(event.codes, events[event.step - 1].codes)
        assert np.array_equal(event.proposal, events[event.step - 1].proposal)
    pictures = [e for e in seen.events if isinstance(e, StepEvent)]
    assert [p.step for p in pictures] == [3, 6]
    for event in pictures:
        assert [image.tobytes() for image in event.images] == [image.tobytes() for image in bench.alone.decode(event.proposal)]
    assert np.array_equal(heard.done.result.codes, face_alone.codes)  # type: ignore[union-attr]


def test_the_pieces_of_an_answer_make_its_text(bench: Bench) -> None:
    heard = [bench.ask(question(i % 2, f"what is {i}?", 12)) for i in range(6)]
    bench.run()
    for h in heard:
        pieces = [e.text for e in h.events if isinstance(e, Token)]
        assert "" not in pieces
        assert "".join(pieces).strip() == h.done.result.text  # type: ignore[union-attr]
    assert max(len(h.events) for h in heard) > 2, "the scripted answers are all empty"


def test_reports_are_told_face_by_face(bench: Bench) -> None:
    heard = bench.ask(AnalyzeRequest((face(1), face(2)), ("hat",)))
    bench.run()
    told = [e for e in heard.events if isinstance(e, Report)]
    assert [t.index for t in told] == [0, 1]
    assert tuple(t.report for t in told) == heard.done.result


def test_timings_are_from_submission(bench: Bench) -> None:
    bench.clock.now += 1
    heard = bench.ask(generate(1))
    bench.clock.now += 0.5
    bench.run()
    timings = heard.done.timings
    prompt, step, draw = (4 + len("an old man") + 3) / 1e3, 20 / 1e3, 6 / 1e3
    empty = (4 + 3) / 1e3
    assert timings.queued_ms == pytest.approx(500)
    assert timings.first_ms >= 500 + 1e3 * step
    assert timings.total_ms <= 500 + 1e3 * (prompt + empty + 4 * step + draw)


def test_a_listener_that_fails_loses_its_request_and_nobody_else(bench: Bench) -> None:
    def listener(_event: object) -> None:
        raise ValueError("the client is gone")

    handle = bench.loop.submit(generate(1, preview_every=1), on_event=listener)
    other = bench.ask(generate(2))
    bench.run()
    assert handle.ended
    with pytest.raises(CancelledError):
        handle.result(0)
    assert other.done.steps == 4
    assert bench.steps() == [2, 1, 1, 1]


# Faults ------------------------------------------------------------------------------------------------------------------------------


def test_a_request_that_breaks_its_batch_fails_alone(bench: Bench) -> None:
    bench.backend.fails = poisoned
    good = [generate(1), generate(2), question(1), question(2)]
    bad = [generate(3, prompt="an old! man"), question(1, "what!")]
    heard = [bench.ask(request) for request in (good[0], bad[0], good[1], good[2], bad[1], good[3])]
    bench.run()
    for request, h in zip((good[0], good[1], good[2], good[3]), (heard[0], heard[2], heard[3], heard[5]), strict=True):
        assert is_what_it_is_alone(bench, request, h.done)
    for h in (heard[1], heard[4]):
        assert "was told to fail" in str(h.error)
    stats = bench.loop.stats()
    assert (stats.faults, stats.isolated) == (4, 2)
    assert stats.failed == {"other": 2}


def test_a_passing_fault_of_a_batch_costs_nobody_anything(bench: Bench) -> None:
    def once(graph: str, _feeds: Mapping[str, Value]) -> bool:
        if graph != "t2i_step":
            return False
        bench.backend.fails = lambda _graph, _feeds: False
        return True

    bench.backend.fails = once
    requests = [generate(seed, preview_every=1) for seed in range(3)]
    heard = [bench.ask(request) for request in requests]
    bench.run()
    for request, h in zip(requests, heard, strict=True):
        assert is_what_it_is_alone(bench, request, h.done)
        assert [e.step for e in h.events if isinstance(e, StepEvent)] == [1, 2, 3], "a step is told once"
    assert bench.loop.failures == 0


def test_what_lies_in_the_request_is_no_fault_of_the_engine(bench: Bench) -> None:
    heard = bench.ask(EditRequest(face(1), "an old man", "eyes"))  # the paper parser sees no eyes
    bench.run()
    assert isinstance(heard.error, InputError)
    assert bench.loop.failures == 0
    assert bench.loop.stats().faults == 0
    assert bench.loop.stats().failed == {"input": 1}


# Memory and counts -------------------------------------------------------------------------------------------------------------------


def test_memory_is_bounded_after_many_faces_and_prompts(bench: Bench) -> None:
    for number in range(34):
        bench.ask(question(number, max_tokens=2))
        bench.ask(generate(number, prompt=f"man {number}", steps=1))
        bench.run()
    assert len(bench.pipeline.inference.images) <= 8
    assert len(bench.pipeline.inference.prompts) <= 32
    assert len(bench.loop) == 0
    heard = bench.ask(question(99, max_tokens=3))
    bench.run(1)
    (state,) = bench.loop._requests.values()
    kept = weakref.ref(state)
    del state
    bench.run()
    gc.collect()
    assert heard.done
    assert kept() is None, "an ended request is still held"


def test_counters_are_exactly_those_of_a_scripted_load(bench: Bench) -> None:
    bench.learn()
    heard = [bench.ask(generate(seed, steps=3)) for seed in range(2)]
    heard.append(bench.ask(AnalyzeRequest((face(1),), ("hat",)), priority=Priority.NORMAL))
    stats = bench.loop.stats()
    assert stats.queued == {"live": 0, "normal": 3, "background": 0}
    assert stats.running == {"live": 0, "normal": 0, "background": 0}
    assert stats.work_ms["images"] > 0
    assert stats.work_ms["answers"] > 0
    bench.run()
    stats = bench.loop.stats()
    assert stats.accepted == stats.done == {"generate": 2, "analyze": 1}
    assert stats.turns == {"encode": 1, "report": 1, "step": 3, "draw": 2}  # the prompt is remembered from the learning
    assert stats.rows["step"] == {2: 3}
    assert stats.turn_ms["step"] == pytest.approx(3 * 30)
    assert (stats.image_steps, stats.wasted_steps, stats.faults, stats.degraded) == (6, 0, 0, 0)
    assert (stats.prompt_hits, stats.prompt_misses, stats.prefix_misses) == (2, 0, 1)
    assert stats.work_ms == {"images": 0.0, "answers": 0.0}
    assert all(h.done for h in heard)
