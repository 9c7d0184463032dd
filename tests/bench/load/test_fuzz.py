"""The fuzzing bench: its attempts can be repeated, its judgement sees what it should, and a server survives a moment of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.cli import main
from bench.load.fuzz import DOCUMENTED, Findings, judge, report
from bench.load.fuzz_inputs import METHODS, Attempt, HostileCalls
from bench.load.server import Watch

CHEAP = (0.0, 0.0)


def test_a_seed_is_a_sequence_of_attempts() -> None:
    one, other = HostileCalls(3), HostileCalls(3)
    attempts = [one.next() for _ in range(60)]
    assert attempts == [other.next() for _ in range(60)]
    assert one.frames() == other.frames()
    assert attempts != [HostileCalls(4).next() for _ in range(60)]
    assert {attempt.method for attempt in attempts} <= set(METHODS)
    assert len({attempt.kind for attempt in attempts}) >= 8


def test_messages_are_no_larger_than_a_server_takes_unless_they_are_compressed() -> None:
    calls = HostileCalls(1)
    for attempt in (calls.next() for _ in range(80)):
        assert all(len(message) <= (4 << 20) + 4096 or attempt.gzip for message in attempt.messages)


@pytest.mark.parametrize(
    ("code", "message", "cost", "seconds", "found"),
    [
        ("INVALID_ARGUMENT", "prompt: is empty", CHEAP, 0.1, ""),
        ("OK", "", (900.0, 20.0), 1.0, ""),  # the model's own work
        ("INTERNAL", "internal error", CHEAP, 0.1, "ended with INTERNAL"),
        ("UNKNOWN", "", CHEAP, 0.1, "ended with UNKNOWN"),
        ("INVALID_ARGUMENT", f"no such file: {Path(__file__).parents[3]}/x", CHEAP, 0.1, "shows internals"),
        ("INVALID_ARGUMENT", "Traceback (most recent call last)", CHEAP, 0.1, "shows internals"),
        ("INVALID_ARGUMENT", "", (350.0, 0.0), 0.4, "350 ms"),
        ("RESOURCE_EXHAUSTED", "", (10.0, 250.0), 0.4, "250 MB"),
        ("DEADLINE_EXCEEDED", "", CHEAP, 25.0, "25.0 s"),
    ],
)
def test_findings_about_a_call(code: str, message: str, cost: tuple[float, float], seconds: float, found: str) -> None:
    words = judge(Attempt("a kind", "Ask", (b"",)), code, message, cost, seconds)
    assert bool(words) == bool(found)
    assert all(word.startswith("a kind, Ask: ") for word in words)
    assert found in " ".join(words)


def test_a_wrong_number_of_messages_may_end_as_grpc_says() -> None:
    for code in ("UNIMPLEMENTED", "INTERNAL"):
        assert code not in DOCUMENTED
        assert judge(Attempt("a kind", "Ask", ()), code, "", CHEAP, 0.1) == []


def test_time_and_memory_of_a_process_are_measured() -> None:
    watch = Watch(os.getpid())
    watch.begin()
    block = bytearray(os.urandom(1 << 20) * 80)
    total = sum(block[::7])
    ms, mb = watch.end()
    assert total > 0
    assert ms > 0
    assert 70 < mb < 400


@pytest.mark.slow
def test_a_server_survives_three_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "fuzz", "--duration", "3", "--threads", "1", "--json", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    document = json.loads(capsys.readouterr().out)
    assert document["calls"] > 0
    assert set(document) == set(report(Findings(), 0.0))
    # on a machine that is busy with something else a call may be found slow; what it ended with does not depend on that
    assert not [what for what in document["found"] if "took" not in what]
    assert (ended.value.code or 0) == bool(document["found"])
