"""The engine with its thread: many callers, states, drain, close, a backend that hangs or is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event as Flag
from threading import current_thread
from time import monotonic, sleep

import numpy as np
import pytest

import f2edge.engine.engine
from f2edge.bundle.bundle import Bundle
from f2edge.decoding import drafts as drafting
from f2edge.decoding.drafts import Drafts
from f2edge.decoding.parallel import StepEvent
from f2edge.engine.engine import Engine, RequestHandle
from f2edge.engine.requests import EngineState, Failed, Limits, Request, Token
from f2edge.errors import BackendError, DeadlineUnreachableError, EngineClosedError
from f2edge.pipeline import FacePipeline
from tests.support.engine_fake import ScriptedBackend, face, generate, question

pytestmark = pytest.mark.runtime

LIMITS = Limits(image_rows=2, answer_rows=2)
#: Generous, for machines that are busy with other things; nothing here waits as long unless it is broken.
PATIENCE_S = 60


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    scripted = ScriptedBackend()
    yield scripted
    scripted.gate.set()


@contextmanager
def running(bundle: Bundle, backend: ScriptedBackend, *, warm_up: bool = False, limits: Limits = LIMITS) -> Iterator[Engine]:
    engine = Engine(FacePipeline(bundle, backend), limits, warm_up=warm_up)
    try:
        engine.wait_ready(PATIENCE_S)
        yield engine
    finally:
        backend.gate.set()
        engine.close()


def eventually(condition: Callable[[], bool]) -> None:
    end = monotonic() + PATIENCE_S
    while not condition():
        assert monotonic() < end, "it never came true"
        sleep(0.005)


def hang(engine: Engine, backend: ScriptedBackend, *requests: Request) -> list[RequestHandle]:
    """Submit requests and return once a turn hangs."""
    backend.gate.clear()
    handles = [engine.submit(request) for request in requests]
    assert backend.inside.wait(PATIENCE_S)
    return handles


def test_many_callers_get_what_each_would_get_alone(bundle: Bundle, backend: ScriptedBackend) -> None:
    alone = FacePipeline(bundle, ScriptedBackend())
    with running(bundle, backend) as engine:

        def client(number: int) -> bool:
            image = engine.submit(generate(number, steps=1 + number % 4)).result(PATIENCE_S).result
            words = engine.submit(question(number % 3)).result(PATIENCE_S).result
            expected = alone.ask(face(number % 3), "what?", max_tokens=6)
            return (number, words.tokens) == (image.seed, expected.tokens)  # type: ignore[union-attr]

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(client, range(12)))
        faces = [engine.submit(generate(seed)) for seed in range(3)]
        for seed, handle in enumerate(faces):
            (expected,) = alone.generate("an old man", seeds=seed)
            assert np.array_equal(handle.result(PATIENCE_S).result.codes, expected.codes)  # type: ignore[union-attr]
        assert engine.stats().done == {"generate": 15, "ask": 12}


def test_answers_with_drafts_have_the_same_tokens_and_take_fewer_passes(
    bundle: Bundle, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "CLOSE", 0.0)  # this model's logits are exact, and close to one another
    alone, passes = FacePipeline(bundle, ScriptedBackend()), list[int]()
    with running(bundle, backend) as engine:
        engine._pipeline.inference.drafts = Drafts()
        for number in (1, 0, 1, 0, 1):
            before = backend.runs["mmu_extend"]
            handle = engine.submit(question(number, "what do you see?", 24))
            found = handle.result(PATIENCE_S).result
            passes.append(backend.runs["mmu_extend"] - before)
            expected = alone.ask(face(number), "what do you see?", max_tokens=24)
            assert (found.tokens, found.text) == (expected.tokens, expected.text)  # type: ignore[union-attr]
        together = [engine.submit(question(number, "what do you see?", 24)) for number in (0, 1, 2)]
        for number, handle in enumerate(together):
            assert handle.result(PATIENCE_S).result.tokens == alone.ask(face(number), "what do you see?", max_tokens=24).tokens  # type: ignore[union-attr]
    assert passes[-1] <= passes[0] / 2, "an answer that was given before is all drafts"


def test_events_come_on_the_engines_thread_and_before_the_result(bundle: Bundle, backend: ScriptedBackend) -> None:
    heard: list[tuple[str, str]] = []
    with running(bundle, backend) as engine:
        handle = engine.submit(
            generate(1, preview_every=1), on_event=lambda event: heard.append((current_thread().name, type(event).__name__))
        )
        handle.result(PATIENCE_S)
        assert handle.ended
        assert heard == [("f2edge-engine", name) for name in ("StepEvent", "StepEvent", "StepEvent", "Done")]


def test_the_warm_up_measures_and_leaves_no_trace_in_the_counters(bundle: Bundle, backend: ScriptedBackend) -> None:
    with running(bundle, backend, warm_up=True, limits=Limits(image_rows=3, answer_rows=2)) as engine:
        assert engine.state is EngineState.READY
        assert {rows for graph, rows in backend.rows if graph == "t2i_step"} >= {1, 2, 3}
        stats = engine.stats()
        assert (stats.accepted, stats.done, stats.turns, stats.image_steps) == ({}, {}, {}, 0)
        with pytest.raises(DeadlineUnreachableError):
            engine.submit(generate(1, steps=1000, min_steps=1000), deadline=monotonic() + 0.021)


def test_nothing_is_taken_before_the_warm_up_is_done(bundle: Bundle, backend: ScriptedBackend) -> None:
    backend.gate.clear()
    engine = Engine(FacePipeline(bundle, backend), LIMITS)
    assert backend.inside.wait(PATIENCE_S)
    assert engine.state is EngineState.STARTING
    assert not engine.wait_ready(0.01)
    with pytest.raises(EngineClosedError):
        engine.submit(generate(1))
    backend.gate.set()
    assert engine.wait_ready(PATIENCE_S)
    engine.submit(generate(1)).result(PATIENCE_S)
    engine.close()


def test_an_engine_whose_warm_up_fails_says_so_and_takes_nothing(bundle: Bundle, backend: ScriptedBackend) -> None:
    backend.fails = lambda graph, _feeds: graph == "mmu_prefill"
    engine = Engine(FacePipeline(bundle, backend), LIMITS)
    with pytest.raises(BackendError, match="told to fail"):
        engine.wait_ready(PATIENCE_S)
    eventually(lambda: engine.state is EngineState.STOPPED)
    with pytest.raises(EngineClosedError):
        engine.submit(generate(1))
    assert engine.stats().rejected == {"closed": 1}


def test_draining_finishes_what_was_accepted_and_refuses_the_rest(bundle: Bundle, backend: ScriptedBackend) -> None:
    with running(bundle, backend) as engine, ThreadPoolExecutor(1) as pool:
        handles = hang(engine, backend, *(generate(seed) for seed in range(4)), question(1))
        drained = pool.submit(engine.drain, PATIENCE_S)
        eventually(lambda: engine.state is EngineState.DRAINING)
        with pytest.raises(EngineClosedError):
            engine.submit(generate(9))
        backend.gate.set()
        assert drained.result(PATIENCE_S)
        assert [handle.result(0).steps for handle in handles[:4]] == [4] * 4
        assert handles[4].ended
        assert engine.state is EngineState.STOPPED
        assert engine.drain(0), "draining again is no error"


def test_a_drain_without_grace_fails_what_is_left(bundle: Bundle, backend: ScriptedBackend) -> None:
    with running(bundle, backend) as engine, ThreadPoolExecutor(1) as pool:
        handles = hang(engine, backend, *(generate(seed, steps=40) for seed in range(3)))
        drained = pool.submit(engine.drain, 0.0)
        eventually(lambda: engine._stop)
        backend.gate.set()
        assert not drained.result(PATIENCE_S)
        for handle in handles:
            with pytest.raises(EngineClosedError):
                handle.result(0)


def test_a_turn_that_hangs_ages_the_heartbeat_and_does_not_hold_up_closing(bundle: Bundle, backend: ScriptedBackend) -> None:
    with running(bundle, backend) as engine:
        ended = Flag()
        handle = hang(engine, backend, generate(1))[0]
        engine.submit(generate(2), on_event=lambda event: ended.set() if isinstance(event, Failed) else None)
        eventually(lambda: engine.heartbeat_age_ms > 100)
        with pytest.raises(TimeoutError):
            handle.result(0.01)
        engine.close(timeout_s=0.05)
        assert engine.state is EngineState.STOPPED
        assert ended.is_set()
        with pytest.raises(EngineClosedError):
            handle.result(0)
        backend.gate.set()
        eventually(lambda: not engine._thread.is_alive())
        assert engine.stats().done == {}


def test_an_idle_engine_is_seen_alive(bundle: Bundle, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f2edge.engine.engine, "BEAT_S", 0.01)
    with running(bundle, backend) as engine:
        for _ in range(3):
            before = engine._beat
            eventually(lambda before=before: engine._beat > before)  # type: ignore[misc]
        assert engine.heartbeat_age_ms < 1e3 * PATIENCE_S


def test_a_broken_backend_makes_it_faulty_until_a_trial_succeeds(
    bundle: Bundle, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f2edge.engine.engine, "TRIAL_EVERY_S", 0.01)
    monkeypatch.setattr(f2edge.engine.engine, "BEAT_S", 0.01)
    with running(bundle, backend) as engine:
        engine.submit(generate(1)).result(PATIENCE_S)
        backend.fails = lambda _graph, _feeds: True
        for seed in range(3):
            with pytest.raises(RuntimeError, match="told to fail"):
                engine.submit(generate(seed)).result(PATIENCE_S)
        eventually(lambda: engine.state is EngineState.FAULTY)
        backend.fails = lambda _graph, _feeds: False
        eventually(lambda: engine.state is EngineState.READY)  # nobody had to send anything
        assert engine.submit(generate(1)).result(PATIENCE_S).steps == 4


def test_a_defect_of_the_loop_itself_leaves_nobody_waiting(
    bundle: Bundle, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(bundle, backend) as engine:
        handles = hang(engine, backend, generate(1), question(1))

        def broken() -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(engine._loop, "_next_batch", broken)
        backend.gate.set()
        for handle in handles:
            with pytest.raises(EngineClosedError):
                handle.result(PATIENCE_S)
        eventually(lambda: engine.state is EngineState.STOPPED)


def test_a_cancelled_stream_of_tokens_ends(bundle: Bundle, backend: ScriptedBackend) -> None:
    with running(bundle, backend) as engine:
        handles: list[RequestHandle] = []

        def listener(event: object) -> None:
            if isinstance(event, Token | StepEvent):
                handles[0].cancel()

        backend.gate.clear()
        handles.append(engine.submit(generate(1, steps=100, preview_every=1), on_event=listener))
        backend.gate.set()
        with pytest.raises(Exception, match="cancelled"):
            handles[0].result(PATIENCE_S)
        assert [rows for graph, rows in backend.rows if graph == "t2i_step"] == [1]
