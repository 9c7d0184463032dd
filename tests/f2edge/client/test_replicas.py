"""Several servers behind one address: calls are spread, replies are the same from each, and one that ends is missed by nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from f2edge.client.sync import Client
from f2edge.imaging.images import load_image
from tests.support.serving import (
    PROMPT,
    SETTINGS,
    WORDS,
    ScriptedEngine,
    ServerThread,
    asking,
    eventually,
    paper_pipeline,
    paper_served,
    photo,
    scripted,
    serving,
)

pytestmark = pytest.mark.runtime


@pytest.fixture
def engines() -> list[ScriptedEngine]:
    return [ScriptedEngine(steps=4, step_s=0.002) for _ in range(3)]


@pytest.fixture
def threads(engines: list[ScriptedEngine]) -> Iterator[list[ServerThread]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serving(scripted(engine))) for engine in engines]


def address(threads: list[ServerThread]) -> str:
    """All of them, as a resolver would name them."""
    return "ipv4:" + ",".join(thread.address for thread in threads)


def test_calls_are_spread_over_all_replicas(threads: list[ServerThread], engines: list[ScriptedEngine]) -> None:
    picture = load_image(photo())
    with Client(address(threads)) as client:
        client.ask(picture, "what?")
        assert eventually(lambda: bool(client.ask(picture, "what?")) and all(engine.submitted for engine in engines))
        before = [len(engine.submitted) for engine in engines]
        for _ in range(30):
            assert client.ask(picture, "what?").text == "".join(WORDS)
    assert [len(engine.submitted) - count for engine, count in zip(engines, before, strict=True)] == [10, 10, 10]


def test_a_replica_that_ends_is_missed_by_nobody(threads: list[ServerThread], engines: list[ScriptedEngine]) -> None:
    with asking(address(threads)) as asked:
        assert eventually(lambda: all(len(engine.submitted) > 5 for engine in engines))
        assert threads[0].stop(10.0)
        seen = len(engines[0].submitted)
        assert asked.more(40)
    assert asked.errors == []
    assert len(engines[0].submitted) == seen


def test_a_seed_is_a_face_on_every_replica(tmp_path: Path) -> None:
    alone = paper_pipeline(tmp_path / "alone")
    with ExitStack() as stack:
        replicas = [stack.enter_context(serving(paper_served(paper_pipeline(tmp_path / name)), SETTINGS)) for name in ("one", "other")]
        codes = []
        for replica in replicas:
            with Client(replica.address) as client:
                codes.append(client.generate(PROMPT, seeds=7)[0].codes)
        with Client(address(replicas)) as client:
            codes += [face.codes for face in client.generate([PROMPT] * 4, seeds=[7] * 4)]
    expected = alone.generate(PROMPT, seeds=7)[0].codes
    assert all(np.array_equal(row, expected) for row in codes)
