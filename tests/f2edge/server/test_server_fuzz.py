"""Hostile requests: whatever comes, a documented status, within bounds, and a server that is well afterwards.

The real engine runs over the model of paper, so that what gets through is worked on.  ``F2EDGE_FUZZ=N`` makes N times as many examples.
"""

from __future__ import annotations

import io
import os
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from f2edge.server.rpc import SERVICE
from f2edge.spec.attributes import F2EDGE_SCHEMA
from f2edge.v1 import face_pb2 as pb
from tests.support.serving import ServerThread, paper_pipeline, paper_served, photo, serving

pytestmark = pytest.mark.runtime

TIMES = int(os.environ.get("F2EDGE_FUZZ", "1"))
FUZZ = settings(max_examples=25 * TIMES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
METHODS = {method.name: method for method in SERVICE.methods}
#: Wall clock of a call on a machine that may be busy with anything; the promise of 200 ms is of processor time, see below.
LONGEST_S = 20.0
#: Folders that a message may not name.
PLACES = (str(Path(__file__).parents[3]), sys.prefix, tempfile.gettempdir() + "/")
PROCESSOR_S, MEMORY_BYTES = 1.0, 200 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    with serving(paper_served(paper_pipeline(tmp_path_factory.mktemp("paper")))) as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: ServerThread) -> Iterator[Any]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture(autouse=True)
def still_well(channel: Any) -> Iterator[None]:
    """After each test the server is healthy and answers."""
    yield
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LONGEST_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert outcome(channel, "Analyze", [pb.AnalyzeRequest(image=photo()).SerializeToString()]) is grpc.StatusCode.OK


def outcome(channel: Any, name: str, messages: list[bytes], metadata: Any = None) -> grpc.StatusCode:
    """Send bytes as a method's request; the status, which must be a documented one and say nothing of the inside."""
    method, path = METHODS[name], f"/{SERVICE.full_name}/{name}"
    arguments = {"timeout": LONGEST_S, "metadata": metadata}
    try:
        if method.client_streaming:
            list(channel.stream_stream(path)(iter(messages), **arguments))
        elif method.server_streaming:
            list(channel.unary_stream(path)(messages[0], **arguments))
        else:
            channel.unary_unary(path)(messages[0], **arguments)
    except grpc.RpcError as error:
        code, message = error.code(), error.details()
    else:
        code, message = grpc.StatusCode.OK, ""
    assert code in EXPECTED, (name, code, message)
    assert not any(inside in message for inside in ("Traceback", *PLACES)), message
    return code


# Bytes -----------------------------------------------------------------------------------------------------------------------------------


@FUZZ
@given(name=st.sampled_from(sorted(METHODS)), messages=st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_any_bytes(channel: Any, name: str, messages: list[bytes]) -> None:
    outcome(channel, name, messages)


def valid_messages() -> dict[str, bytes]:
    """A request of every method that the server would answer."""
    image, options = photo(), pb.DecodingOptions(steps=1, guidance=1.0)
    messages: dict[str, Any] = {
        "Generate": pb.GenerateRequest(prompt="a face", seed=1, options=options, previews=pb.PreviewOptions(every_steps=1)),
        "Edit": pb.EditRequest(image=image, prompt="a face", box=pb.Box(width=1, height=1), options=options),
        "Describe": pb.DescribeRequest(image=image, max_tokens=2),
        "Ask": pb.AskRequest(image=image, question="what?", max_tokens=2),
        "Analyze": pb.AnalyzeRequest(image=image, attributes=["age"]),
        "AnalyzeStream": pb.AnalyzeStreamRequest(image=image, faces=[pb.Box(width=20, height=20)]),
        "GetModel": pb.GetModelRequest(),
    }
    return {name: message.SerializeToString() for name, message in messages.items()}


VALID = valid_messages()


def test_the_messages_that_are_changed_below_are_good(channel: Any) -> None:
    assert set(VALID) == set(METHODS)
    assert {outcome(channel, name, [message]) for name, message in VALID.items()} == {grpc.StatusCode.OK}


@FUZZ
@given(data=st.data(), name=st.sampled_from(sorted(VALID)))
def test_valid_messages_with_wrong_bytes(channel: Any, data: st.DataObject, name: str) -> None:
    message = bytearray(VALID[name])
    for _ in range(data.draw(st.integers(1, 8)) if message else 0):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(message)))
    outcome(channel, name, [bytes(message[: max(cut, len(message) // 2)])])


# Fields ----------------------------------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, -1.0, 1e308, float("nan"), float("inf")]))
COUNTS = st.sampled_from([0, 1, 2, 3, 16, 1024, 1025, 2**31, 2**32 - 1])
TEXT = st.one_of(st.text(max_size=40), st.sampled_from(["a face", "", "a" * 5000, "\x00", "<|endoftext|>", "\u202e\ufdd0"]))
OPTIONS = st.builds(
    pb.DecodingOptions,
    steps=st.one_of(st.none(), COUNTS),
    guidance=st.one_of(st.none(), NUMBERS),
    order=st.one_of(st.none(), st.sampled_from(["halton", "maskgit", "?"]), TEXT),
    temperature=st.one_of(st.none(), NUMBERS),
    token_temperature=st.one_of(st.none(), NUMBERS),
    guidance_low=st.one_of(st.none(), NUMBERS),
    guidance_high=st.one_of(st.none(), NUMBERS),
)
PREVIEWS = st.builds(pb.PreviewOptions, every_steps=COUNTS, tokens=st.booleans(), proposal=st.booleans(), picture_side=COUNTS)
OUTPUT = st.builds(pb.OutputOptions, format=st.sampled_from([0, 1, 2, 3, 99]), side=COUNTS, quality=COUNTS)
BOXES = st.builds(pb.Box, x=NUMBERS, y=NUMBERS, width=NUMBERS, height=NUMBERS)
IMAGES = st.sampled_from([photo(), photo((64, 30), "JPEG"), photo((30, 64), "WEBP"), photo((8, 8)), b"", photo()[:50]])
NAMES = st.lists(st.one_of(st.sampled_from([*F2EDGE_SCHEMA, "hair+hair"]), TEXT), max_size=4)
MESSAGES: dict[str, st.SearchStrategy[Any]] = {
    "Generate": st.builds(
        pb.GenerateRequest,
        prompt=TEXT,
        seed=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
        options=OPTIONS.filter(lambda o: o.steps <= 16 or o.steps > 1024),
        previews=PREVIEWS,
        output=OUTPUT,
        min_steps=st.one_of(st.none(), COUNTS),
        priority=st.integers(-3, 9),
    ),
    "Edit": st.one_of(
        st.builds(pb.EditRequest, image=IMAGES, prompt=TEXT, box=BOXES),
        st.builds(pb.EditRequest, image=IMAGES, prompt=st.just("a face"), mask=IMAGES),
        st.builds(pb.EditRequest, image=IMAGES, prompt=st.just("a face"), name=TEXT),
        st.builds(
            pb.EditRequest, image=IMAGES, prompt=st.just("a face"), cells=st.builds(pb.Cells, inside=st.lists(st.booleans(), max_size=64))
        ),
    ),
    "Ask": st.builds(pb.AskRequest, image=IMAGES, question=TEXT, max_tokens=st.sampled_from([0, 1, 5, 5000])),
    "Describe": st.builds(pb.DescribeRequest, image=IMAGES, max_tokens=st.sampled_from([1, 3, 5000])),
    "Analyze": st.builds(pb.AnalyzeRequest, image=IMAGES, attributes=NAMES, include_sensitive=st.booleans(), priority=st.integers(-3, 9)),
    "AnalyzeStream": st.builds(pb.AnalyzeStreamRequest, image=IMAGES, faces=st.lists(BOXES, max_size=10)),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_any_values_of_fields(channel: Any, name: str) -> None:
    @FUZZ
    @given(message=MESSAGES[name])
    def check(message: Any) -> None:
        outcome(channel, name, [message.SerializeToString()])

    check()


# Pictures --------------------------------------------------------------------------------------------------------------------------------


def png(chunks: list[tuple[bytes, bytes]], *, lie: int = 0) -> bytes:
    """A PNG of chunks; ``lie`` is added to the first length."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for index, (kind, body) in enumerate(chunks):
        length = len(body) + (lie if index == 0 else 0)
        parts += [struct.pack(">I", length & 0xFFFFFFFF), kind, body, struct.pack(">I", zlib.crc32(kind + body))]
    return b"".join(parts)


def header(width: int, height: int, depth: int = 8, color: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)


def flat(width: int, height: int, mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


BOMBS: dict[str, bytes] = {
    "a chunk that claims two gigabytes": png([header(64, 64), (b"IDAT", b"x")], lie=2**31 - 32),
    "a picture of 2^31 by 2^31": png([header(2**31 - 1, 2**31 - 1), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]),
    "12 million pixels with an alpha channel": flat(4096, 3072, "RGBA"),
    "12 million pixels of 16 bits": flat(4096, 3072, "I;16"),
    "13 million pixels": flat(4096, 3200, "L"),
    "81 million pixels": flat(9000, 9000, "1"),
    "a text chunk that unpacks to a gigabyte": png(
        [
            header(64, 64),
            (b"zTXt", b"k\0\0" + zlib.compress(b"\0" * (64 << 20))),
            (b"IDAT", zlib.compress(b"\0" * 64 * 193)),
            (b"IEND", b""),
        ]
    ),
    "a strip": flat(4096, 16, "L"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_cost_little(channel: Any, bomb: str) -> None:
    """Processor time and memory of the whole process, client included, around one call."""
    assert len(BOMBS[bomb]) < 4 << 20
    message = pb.AnalyzeRequest(image=BOMBS[bomb], attributes=["age"]).SerializeToString()
    memory, processor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    outcome(channel, "Analyze", [message])
    assert time.process_time() - processor < PROCESSOR_S
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10 < MEMORY_BYTES


SWARMS = {
    "two million empty names": ("Analyze", b"\x12\x00" * (2 << 20)),
    "two million empty boxes": ("AnalyzeStream", b"\x1a\x00" * (2 << 20)),
    "four million cells": (
        "Edit",
        pb.EditRequest(prompt="a face", image=photo(), cells=pb.Cells(inside=[True] * (4 << 20))).SerializeToString(),
    ),
    "a prompt of four megabytes": ("Generate", pb.GenerateRequest(prompt="a" * (4 << 20)).SerializeToString()),
    "a million unknown fields": ("Generate", b"\xf8\x7f\x01" * (1 << 20)),
}


@pytest.mark.parametrize("swarm", SWARMS)
def test_swarms_of_small_things_cost_little(channel: Any, swarm: str) -> None:
    name, message = SWARMS[swarm]
    memory, processor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert outcome(channel, name, [message]) in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OK}
    assert time.process_time() - processor < PROCESSOR_S
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10 < MEMORY_BYTES


@FUZZ
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_pictures_with_wrong_bytes(channel: Any, data: st.DataObject, kind: str) -> None:
    picture = bytearray(photo((40, 40), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(picture) - 1))
        picture[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    outcome(channel, "Analyze", [pb.AnalyzeRequest(image=bytes(picture), attributes=["age"]).SerializeToString()])


# Connections -----------------------------------------------------------------------------------------------------------------------------


def test_empty_streams_and_odd_metadata(channel: Any) -> None:
    for _ in range(50):
        assert outcome(channel, "AnalyzeStream", []) is grpc.StatusCode.OK
    odd = [("x-request-id", "x" * 5000), ("traceparent", "00-zz"), ("x-bin", b"\x00\xff")]
    assert outcome(channel, "GetModel", [b""], odd) in EXPECTED
    large = [(f"k{index}", "v" * 1000) for index in range(30)]
    assert outcome(channel, "GetModel", [b""], large) in EXPECTED


@FUZZ
@given(junk=st.binary(min_size=1, max_size=400))
def test_bytes_that_are_no_http(server: ServerThread, junk: bytes) -> None:
    import socket

    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(junk)
