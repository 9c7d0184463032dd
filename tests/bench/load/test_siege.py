"""The attackers as tools: a short siege by the process that the bench starts, and what counts as a finding."""

from __future__ import annotations

import os
from typing import Any

import grpc
import pytest

from bench.load.server import check
from bench.load.soak import growth
from bench.load.wire.attackers import attacking
from bench.load.wire.siege import Resources, findings
from tests.support.serving import ScriptedEngine, scripted, serving


@pytest.mark.slow
def test_attackers_of_a_process_of_their_own_leave_the_server_well() -> None:
    with serving(scripted(ScriptedEngine())) as server:
        with attacking(server.address, 8.0, seed=5, rate=50) as counts:
            done = counts()
        assert done["unreachable"] == 0
        assert done["conversations"] > 20
        assert done["pictures"] >= 1
        with grpc.insecure_channel(server.address) as channel:
            assert check(channel) == "SERVING"


def test_attackers_can_be_called_off() -> None:
    with serving(scripted(ScriptedEngine())) as server, attacking(server.address, 600.0):
        pass


def kept() -> dict[str, Any]:
    """Figures of a siege in which every promise was kept."""
    held = {"mb": 100.0, "files": 12, "threads": 20}
    return {
        "attacks": {"conversations": 1000, "unreachable": 0},
        "honest": {"calls": 100, "errors": [], "idle_p99_ms": 100.0, "p99_ms": 250.0},
        "health": {"ms": {"samples": 10, "max": 40.0}},
        "before": held,
        "after": dict(held),
        "peak_mb": 300.0,
    }


PICTURES = {"pictures": 10, "codes": {}, "processor_ms_most": 90.0, "costliest": "a bomb"}


def test_promises_that_were_kept_are_no_findings() -> None:
    assert findings(PICTURES, kept(), []) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("honest", "errors"), ["ask: UNAVAILABLE"], "1 honest calls failed"),
        (("honest", "p99_ms"), 301.0, "honest p99 grew 3.0 times"),
        (("health", "ms"), {"samples": 10, "max": 101.0}, "health took 101.0 ms"),
        (("health", "ms"), {"samples": 0}, "health took None ms"),
        (("after", "mb"), 151.0, "memory stayed at 151 MB"),
        (("after", "files"), 40, "40 open files, 12 before"),
        (("after", "threads"), 40, "40 threads, 20 before"),
        (("attacks", "unreachable"), 1, "1 connections were not taken"),
    ],
)
def test_promises_that_were_broken_are(path: tuple[str, str], value: Any, words: str) -> None:
    figures = kept()
    figures[path[0]][path[1]] = value
    (found,) = findings(PICTURES, figures, [])
    assert found.startswith(words)


def test_costly_pictures_and_errors_in_the_log_are_findings() -> None:
    assert findings({**PICTURES, "processor_ms_most": 201.0}, kept(), [])[0].endswith("(a bomb)")
    assert findings(PICTURES, kept(), ["a call failed"])[0].startswith("the server's log has 1 errors")


def test_growth_is_that_of_the_lowest_values() -> None:
    spiky = [(float(at), 100.0 + 200.0 * (at % 3 == 0)) for at in range(100)]
    assert growth(spiky, 100.0) == 0
    assert growth([(at, value + at) for at, value in spiky], 100.0) == pytest.approx(70.0, abs=1)
    assert growth([], 100.0) is None


def test_resources_are_those_of_a_process() -> None:
    held = Resources.of(os.getpid())
    assert held.mb > 1
    assert held.files > 2
    assert held.threads >= 1
