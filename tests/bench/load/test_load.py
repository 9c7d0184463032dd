"""The load bench: shapes of load on scripted callers, scenarios on a scripted server, a real server process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count, cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cli import main
from bench.load import deadlines, loops
from bench.load.loops import Run, Sample
from bench.load.plan import LoadPlan
from bench.load.report import order_statistic, parse_slo, percentiles, results_of
from bench.load.server import ServerProcess
from bench.load.soak import drift_mb, replies_alone, soak
from bench.load.work import Query, Reply, mixed, parse_mix
from f2edge.errors import InputError, ServerUnavailableError
from tests.support.serving import ScriptedEngine, ServerThread, scripted, serving

QUERIES = [Query("ask", number, None) for number in range(5)]


def caller(answer: Callable[[Query], Awaitable[str]]) -> Any:
    """Return a caller whose replies have the code returned by ``answer`` and a distinct content."""

    async def call(query: Query, *, timeout_s: float | None = None) -> Reply:
        sent = time.perf_counter()
        code = await answer(query)
        content = f"{query.method} {query.number}".encode() if code == "OK" else b""
        return Reply(code, sent, time.perf_counter(), time.perf_counter(), content)

    return call


def quiet(_done: int, _all: int) -> None:
    pass


def sample(latency_ms: float, code: str = "OK", method: str = "ask", number: int = 0) -> Sample:
    return Sample(method, number, 0.0, Reply(code, 0.0, latency_ms / 1e3, latency_ms / 2e3))


# What is asked for -----------------------------------------------------------------------------------------------------------------------


def test_a_mix_is_read_and_kept() -> None:
    assert parse_mix("generate=1, ask=3,analyze") == {"generate": 1.0, "ask": 3.0, "analyze": 1.0}
    queries = {method: [Query(method, number, None) for number in range(7)] for method in ("generate", "ask")}
    drawn = [query for query, _ in zip(mixed(queries, {"generate": 1, "ask": 3}, seed=1), range(4000), strict=False)]
    assert 0.7 < sum(query.method == "ask" for query in drawn) / 4000 < 0.8
    numbers = [query.number for query in drawn if query.method == "ask"]
    assert len(numbers) > 2000
    assert [(after - before) % 7 for before, after in pairwise(numbers)] == [1] * (len(numbers) - 1)


@pytest.mark.parametrize("text", ["", "sing=1", "ask=0", "ask=x", "ask=-1", "ask=inf", "ask=nan"])
def test_a_bad_mix_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--mix"):
        parse_mix(text)


def test_an_slo_is_for_all_methods_or_for_some() -> None:
    assert set(parse_slo("500").values()) == {500.0}
    assert parse_slo("500,ask=100")["ask"] == 100
    assert parse_slo("500,ask=100")["generate"] == 500
    assert parse_slo("") == {}
    for text in ("x", "sing=4", "ask=0", "ask="):
        with pytest.raises(InputError, match="--slo"):
            parse_slo(text)


@pytest.mark.parametrize("change", [{"clients": 0}, {"rate": 1e9}, {"seconds": 1e6}, {"most": 10**9}, {"distinct": 0}, {"mix": "x"}])
def test_a_plan_is_bounded(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        LoadPlan(**change)


@given(st.floats(0.5, 500), st.floats(0.5, 20), st.integers(0, 99))
def test_arrivals_are_sorted_bounded_and_repeatable(rate: float, seconds: float, seed: int) -> None:
    arrivals = loops.poisson(rate, seconds, 1000, seed)
    assert arrivals == loops.poisson(rate, seconds, 1000, seed)
    assert arrivals == sorted(arrivals)
    assert len(arrivals) <= 1000
    assert all(0 <= at < seconds for at in arrivals)


def test_arrivals_are_a_poisson_process() -> None:
    gaps = np.diff(loops.poisson(50.0, 400.0, 100_000, seed=3))
    assert abs(gaps.mean() * 50 - 1) < 0.03
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05  # exponential: as wide as long
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03


# Shapes ----------------------------------------------------------------------------------------------------------------------------------


def test_a_stall_delays_every_request_that_arrives_in_it() -> None:
    """A server that answers nothing for 0.5 s: the open loop sees as many slow calls as arrived, not one for each connection."""
    begun: list[float] = []

    async def stalls(_query: Query) -> str:
        begun.append(time.perf_counter())
        await asyncio.sleep(max(0.0, begun[0] + 0.5 - time.perf_counter()))
        return "OK"

    arrivals = [at / 50 for at in range(20)]  # all within the stall
    run = asyncio.run(loops.open_loop([caller(stalls)], cycle(QUERIES), arrivals, quiet))
    latencies = sorted(s.latency_ms for s in run.samples)
    assert len(latencies) == 20
    assert sum(ms > 200 for ms in latencies) >= 5
    assert all(s.latency_ms >= s.lag_ms >= 0 for s in run.samples)  # twenty, see above
    assert np.allclose(np.diff(sorted(s.intended for s in run.samples)), 0.02, atol=1e-6)


def test_a_busy_generator_counts_its_own_delay() -> None:
    """Another task blocks the event loop: the calls that were due meanwhile were intended then, not when they could be sent."""

    async def at_once(_query: Query) -> str:
        return "OK"

    async def both() -> Run:
        async def block() -> None:
            await asyncio.sleep(0.1)
            time.sleep(0.3)  # noqa: ASYNC251

        blocking = asyncio.create_task(block())
        run = await loops.open_loop([caller(at_once)], cycle(QUERIES), [at / 100 for at in range(40)], quiet)
        await blocking
        return run

    run = asyncio.run(both())
    assert max(s.latency_ms for s in run.samples) > 150
    results = results_of(run, {})
    assert results["generator_late"]
    assert results["generator_lag_ms"]["max"] > 150


def test_an_open_loop_stops_when_the_server_cannot_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "MOST_OPEN", 5)
    released = asyncio.Event()

    async def never(_query: Query) -> str:
        asyncio.get_running_loop().call_later(0.1, released.set)
        await released.wait()
        return "OK"

    run = asyncio.run(loops.open_loop([caller(never)], cycle(QUERIES), [0.001 * at for at in range(50)], quiet))
    assert "5 calls were open" in run.given_up
    assert len(run.samples) == 5


def test_a_closed_loop_has_one_open_call_for_each_client() -> None:
    busy = [0, 0]

    async def watched(_query: Query) -> str:
        busy[0] += 1
        busy[1] = max(busy)
        await asyncio.sleep(0.001)
        busy[0] -= 1
        return "OK"

    run = asyncio.run(loops.closed_loop([caller(watched)] * 3, cycle(QUERIES), 5.0, 40, quiet))
    assert (len(run.samples), busy[1]) == (40, 3)
    alone = asyncio.run(loops.single_stream([caller(watched)] * 3, cycle(QUERIES), 5.0, 10, quiet))
    assert len(alone.samples) == 10


def test_queries_of_eight_begin_together_and_end_with_the_slowest() -> None:
    numbers = count()

    async def one_is_slow(_query: Query) -> str:
        await asyncio.sleep(0.05 if next(numbers) % 8 == 3 else 0.0)
        return "OK"

    run = asyncio.run(loops.multi_stream([caller(one_is_slow)], cycle(QUERIES), 5.0, 30, quiet))
    assert len(run.samples) == 24
    starts = [s.intended for s in run.samples]
    assert [len(set(starts[at : at + 8])) for at in (0, 8, 16)] == [1, 1, 1]
    assert starts[8] - starts[0] >= 0.05


def test_offline_repeats_refused_requests() -> None:
    attempts: dict[int, int] = {}

    async def full_at_first(query: Query) -> str:
        attempts[query.number] = attempts.get(query.number, 0) + 1
        return "RESOURCE_EXHAUSTED" if attempts[query.number] <= 2 else "OK"

    queries = [Query("ask", number, None) for number in range(100)]
    run = asyncio.run(loops.offline([caller(full_at_first)], queries, 20.0, quiet))
    assert sorted(s.number for s in run.samples) == list(range(100))
    assert all(s.ok for s in run.samples)
    assert len({s.intended for s in run.samples}) == 1


def test_offline_ends_in_time() -> None:
    async def full(_query: Query) -> str:
        await asyncio.sleep(0.01)
        return "RESOURCE_EXHAUSTED"

    start = time.perf_counter()
    run = asyncio.run(loops.offline([caller(full)], QUERIES * 100, 0.3, quiet))
    assert time.perf_counter() - start < 5
    assert "requests were left" in run.given_up


@settings(max_examples=60)
@given(limit=st.floats(0.0, 300.0), first=st.floats(0.1, 200.0))
def test_the_peak_is_found(limit: float, first: float) -> None:
    tried: list[float] = []

    async def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    best = asyncio.run(loops.find_peak(holds, first, 14))
    assert len(tried) == 14
    assert best == max((rate for rate in tried if rate <= limit), default=0.0)
    if 0.1 < limit < 100 * first and limit > first / 32:
        assert best > 0.9 * limit


# Figures ---------------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=1500))
def test_percentiles_are_order_statistics_with_an_interval_around_them(values: list[float]) -> None:
    results = percentiles(values)
    assert results["samples"] == len(values)
    assert results["max"] == max(values)
    assert ("p99" in results) == (len(values) >= 1000)
    for level in (50, 90, 95, 99):
        name = f"p{level}"
        if name in results:
            assert results[name] in values
            low, high = results[f"{name}_interval"]
            assert low <= results[name] <= high
            assert sum(value <= results[name] for value in values) >= level / 100 * len(values)


def test_no_samples_give_no_figures() -> None:
    assert percentiles([]) == {"samples": 0}
    assert order_statistic([], 99) == float("inf")
    assert results_of(Run([], 1.0), {})["per_second"] == 0


def test_goodput_counts_correct_and_timely_replies() -> None:
    samples = [sample(100), sample(300), sample(50, method="generate"), sample(2, "RESOURCE_EXHAUSTED"), sample(9, "INTERNAL")]
    results = results_of(Run(samples, 2.0), {"ask": 200.0})
    assert results["codes"] == {"OK": 3, "RESOURCE_EXHAUSTED": 1, "INTERNAL": 1}
    assert (results["per_second"], results["goodput_per_second"], results["late"]) == (1.5, 1.0, 1)
    assert results["refused_ms"]["max"] == 2.0
    assert results["latency_ms"]["ask"]["samples"] == 2
    assert results_of(Run(samples, 2.0), {})["goodput_per_second"] is None


def test_failed_calls_count_as_infinitely_long() -> None:
    assert order_statistic([sample(1)] * 98 + [sample(1, "INTERNAL")] * 2, 99) == float("inf")
    assert order_statistic([sample(1)] * 99 + [sample(1, "INTERNAL")], 99) == 1.0


# The soak --------------------------------------------------------------------------------------------------------------------------------


def test_the_soak_finds_errors_and_differing_replies() -> None:
    async def well(_query: Query) -> str:
        await asyncio.sleep(0.001)
        return "OK"

    async def sometimes(query: Query) -> str:
        await asyncio.sleep(0.001)
        return "INTERNAL" if query.number == 3 else "OK"

    async def everything() -> Any:
        alone, run = await replies_alone(caller(well), {"ask": QUERIES}, quiet)
        assert len(run.samples) == len(alone) == 5
        changed = {**alone, ("ask", 1): b"something else"}
        good = await soak([caller(well)] * 4, cycle(QUERIES), alone, seconds=0.3, seed=1, progress=quiet)
        bad = await soak([caller(sometimes)] * 4, cycle(QUERIES), changed, seconds=0.3, seed=1, progress=quiet)
        return good, bad

    (run, good), (_, bad) = asyncio.run(everything())
    own = ("a bad prompt", "a hopeless deadline")  # which these callers answer as if nothing were wrong
    assert not good.different
    assert all(error.startswith(own) for error in good.errors)
    assert len(run.samples) > 50
    assert good.own_faults.total() > 0
    assert "ask 1" in bad.different
    assert any(error == "ask 3: INTERNAL" for error in bad.errors)


def test_memory_drift_leaves_the_warm_up_out() -> None:
    grows_then_rests = [(at / 10, 100 + min(at, 20)) for at in range(100)]
    assert drift_mb(grows_then_rests, 10.0) == 0
    grows = [(at / 10, 100.0 + at) for at in range(100)]
    drift = drift_mb(grows, 10.0)
    assert drift is not None
    assert 65 < drift < 75
    assert drift_mb([], 10.0) is None


# From the command line -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with serving(scripted(ScriptedEngine(steps=4, step_s=0.001))) as running:
        yield running


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["bench", "load", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["closed", "open", "single-stream", "multi-stream", "server", "offline"])
def test_every_scenario_runs_to_its_end(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, scenario: str
) -> None:
    limits = ["--duration", "0.5", "--count", "40", "--distinct", "3", "--rate", "40", "--bound", "1000", "--slo", "1000"]
    mix = ["--mix", "generate=1,edit=1,ask=1,describe=1,analyze=1"]
    code, out, _ = command(monkeypatch, capsys, "--server", server.address, "--scenario", scenario, "--out", str(tmp_path), *limits, *mix)
    assert code == 0
    document = json.loads(out.splitlines()[-1])
    assert document == json.loads((tmp_path / "load.json").read_text())
    assert set(document["codes"]) == {"OK"}
    assert document["requests"] > 0
    assert document["health"]["not_serving"] == 0
    assert (tmp_path / f"{scenario}.png").stat().st_size > 1000
    if scenario == "server":
        assert document["peak_per_second"] >= 40
        assert len(document["trials"]) == 10
    if scenario == "offline":
        assert document["requests"] == 40


def test_json_is_the_only_thing_printed(server: ServerThread, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(
        monkeypatch, capsys, "--server", server.address, "--duration", "0.5", "--count", "9", "--distinct", "2", "--json"
    )
    assert (code, json.loads(out)["requests"]) == (0, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mix", "sing"], "--mix"),
        (["--duration", "1e9"], "--duration"),
        (["--scenario", "promises"], "is now --scenario slo"),
        (["--scenario", "sing"], "choose from closed, open"),
        (["--server", "127.0.0.1:1", "--bundle", "nano"], "runs already"),
        (["--server", "127.0.0.1:1", "--scenario", "slo"], "leave out --server"),
    ],
)
def test_bad_input_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    import re

    code, out, err = command(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err)


@pytest.mark.slow
def test_a_started_server_is_soaked_and_stopped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--soak", "3", "--clients", "4", "--distinct", "2", "--mix", "generate=1,ask=1,analyze=1", "--steps", "2"]
    code, out, _ = command(monkeypatch, capsys, *arguments, "--bundle", "nano", "--threads", "1", "--json")
    document = json.loads(out)
    assert code == 0
    found = document["soak"]
    assert (found["errors"], found["different_replies"], found["first_errors"]) == (0, 0, [])
    assert document["requests"] > 4
    assert document["server_errors"] == []
    assert found["memory_mb"]
    assert found["memory_mb"][0] > 30


def test_a_server_that_does_not_start_reports_why(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailableError, match="did not become ready"), ServerProcess(["--bundle", str(tmp_path)]):
        pass


def test_calls_with_deadlines_are_refused_in_time_or_failed() -> None:
    replies = [
        (0.5, Reply("OK", 0.0, 0.4, 0.4, b"x", steps=7, degraded=True)),
        (0.5, Reply("OK", 0.0, 0.1, 0.1, b"x", steps=12)),
        (0.1, Reply("DEADLINE_EXCEEDED", 0.0, 0.002, refused=True)),
        (0.1, Reply("DEADLINE_EXCEEDED", 0.0, 0.1)),
    ]
    found = deadlines.results_of(replies, {"wasted_steps": 3.0})
    assert (found["calls"], found["refused"], found["accepted"], found["in_time"]) == (4, 1, 3, 2)
    assert found["share_in_time"] == pytest.approx(2 / 3)
    assert found["steps"] == {"7": 1, "12": 1}
    assert (found["degraded"], found["without_steps"], found["failed"]) == (1, 0, {"DEADLINE_EXCEEDED": 1})
    assert found["left_ms"]["min"] == pytest.approx(100)


@pytest.mark.long
def test_random_deadlines_beside_a_load_are_kept(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "SHORTEST_S", 10.0)
    monkeypatch.setattr(deadlines, "LONGEST_S", 30.0)
    words = "load --scenario deadlines --count 10 --rate 4 --clients 1 --mix analyze --distinct 4 --json"
    monkeypatch.setattr("sys.argv", ["bench", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calls"] == 10
    assert found["accepted"] == found["in_time"] + sum(found["failed"].values())
    assert (found["failed"], found["without_steps"], found["server_errors"]) == ({}, 0, [])
