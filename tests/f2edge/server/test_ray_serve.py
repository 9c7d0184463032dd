"""Two replicas on Ray Serve, as ``deploy/ray_serve.py`` starts them: replies are those of the pipeline, failures keep their status."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from f2edge.client.messages import FrameRequest
from f2edge.client.sync import Client
from f2edge.engine.requests import GenerateRequest
from f2edge.errors import CancelledError, InputError
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions

pytest.importorskip("ray", reason="needs `pip install f2edge[ray]`, which is large")
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
QUESTION = "what color is the hair?"
STEPS = GenerateOptions(steps=3)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    patience = dict.fromkeys(("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"), "60")  # on a busy machine
    environment = {**os.environ, **patience, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "deploy" / "ray_serve.py"), "--replicas", "2", "--threads", "1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        assert any(line.startswith("f2edge serves on") for line in process.stdout), "the process ended before it served"
        yield f"127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
        process.stdout.close()


@pytest.fixture(scope="module")
def client(server: tuple[str, subprocess.Popen[str]]) -> Iterator[Client]:
    with Client(server[0], connect_s=60.0) as made:
        yield made


@pytest.fixture(scope="module")
def pipeline() -> FacePipeline:
    return FacePipeline.load("nano", threads=1)


def replicas() -> list[str]:
    """Command lines of the replicas of this machine."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = file.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "ServeReplica:f2edge:Face" in text:
            lines.append(text)
    return lines


def test_two_replicas_give_the_pipelines_faces(client: Client, pipeline: FacePipeline) -> None:
    assert len(replicas()) == 2
    faces = client.generate(["a young man"] * 6, seeds=list(range(6)), options=STEPS)
    alone = pipeline.generate(["a young man"] * 6, seeds=list(range(6)), options=STEPS)
    assert all(np.array_equal(face.codes, other.codes) for face, other in zip(faces, alone, strict=True))
    steps: list[int] = []
    client.generate("an old woman", seeds=1, options=STEPS, on_step=lambda event: steps.append(event.step))
    assert steps == [1, 2, 3]


def test_words_and_reports_are_the_pipelines_from_many_clients_at_once(client: Client, pipeline: FacePipeline) -> None:
    face = pipeline.generate("a smiling woman with red hair", seeds=3, options=STEPS)[0].image
    expected, answers = pipeline.ask(face, QUESTION), []
    workers = [threading.Thread(target=lambda: answers.append(client.ask(face, QUESTION).tokens)) for _ in range(12)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert answers == [expected.tokens] * 12
    assert client.analyze(face, attributes=["hair_color"])[0].best == pipeline.analyze(face, attributes=["hair_color"])[0].best
    assert client.describe(face).tokens == pipeline.describe(face).tokens
    assert client.edit(face, "a woman", (0.2, 0.0, 0.6, 0.4), seed=2, options=STEPS).codes.shape == (
        pipeline.bundle.configuration.image_tokens,
    )
    answered = list(client.analyze_frames([FrameRequest(face, number=5)], attributes=["hair_color"]))
    assert [(answer.number, answer.problem) for answer in answered] == [(5, "")]


def test_failures_keep_their_status_and_words(client: Client) -> None:
    with pytest.raises(InputError, match="prompt"):
        client.generate("", seeds=1)
    with pytest.raises(InputError):
        client.generate("a man", seeds=1, options=GenerateOptions(order="sideways"))


def test_leaving_a_stream_early_does_no_harm(client: Client) -> None:
    stream = client.stream_generate(GenerateRequest("a man", 1))
    stream.close()  # type: ignore[attr-defined]  # a generator
    with pytest.raises((CancelledError, StopIteration)):
        next(stream)
    assert len(client.generate("a man", seeds=1, options=STEPS)) == 1


def test_it_ends_on_sigterm(server: tuple[str, subprocess.Popen[str]], client: Client) -> None:
    client.close()
    server[1].send_signal(signal.SIGTERM)
    assert server[1].wait(120) == 0
