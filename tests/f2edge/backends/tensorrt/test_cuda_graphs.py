"""CUDA graphs of the TensorRT backend, on a device of paper that refuses what CUDA and TensorRT refuse
(:mod:`tests.support.tensorrt.cuda_double`)."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from f2edge.backends.base import host
from f2edge.backends.tensorrt.backend import TensorRTBackend
from f2edge.backends.tensorrt.device_memory import DeviceArray
from f2edge.bundle.bundle import Bundle
from f2edge.errors import BackendError
from tests.support.tensorrt.tensorrt_machine import Machine, extend_feeds, machine, planned_bundle

pytestmark = pytest.mark.slow

LIBRARIES = ("pycuda", "cuda-bindings")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(planned_bundle(tiny_bundle, tmp_path_factory.mktemp("graphs")))


@pytest.fixture(params=LIBRARIES)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    found = machine(monkeypatch, tmp_path, library=request.param)
    found.trt.compute = sums
    return found


def sums(document: Mapping[str, Any], feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of every output is the sum of all inputs, which zeros of a padding do not change."""
    total = sum(float(np.sum(value, dtype=np.float64)) for value in feeds.values())
    known = document["shapes"]
    shapes = next(shapes for key, shapes in known.items() if all(f'"{n}": {list(v.shape)}' in key for n, v in feeds.items()))
    return {name: np.full(shape, total, dtype=np.float32) for name, shape in shapes.items()}


def answer(backend: TensorRTBackend, feeds: Mapping[str, Any]) -> bool:
    """Whether a run of "mmu_extend" saw these inputs and no others."""
    total = sum(float(np.sum(host(value), dtype=np.float64)) for value in feeds.values())
    return bool(np.allclose(host(backend.run("mmu_extend", feeds)["logits"]), total, rtol=1e-3, atol=0.05))


def picture(backend: TensorRTBackend, bundle: Bundle, value: float) -> dict[str, DeviceArray]:
    """Keys and values of a picture in memory of their own on the device."""
    shape = extend_feeds(bundle, 1, 1, 0)["image_key"].shape
    with backend._lock, backend._cuda.current():
        return {name: backend._memory.upload(np.full(shape, value, dtype=np.float32)) for name in ("image_key", "image_value")}


def test_no_capture_before_the_shapes_have_settled(here: Machine, bundle: Bundle) -> None:
    """Two shapes in turn: each is captured, although the other ran last."""
    backend = TensorRTBackend(bundle)
    for _ in range(4):
        assert answer(backend, extend_feeds(bundle, 1, 5, 0))
        assert answer(backend, extend_feeds(bundle, 2, 20, 0))
    assert here.cuda.invalidated == []
    assert here.cuda.captures == 2
    assert here.cuda.launches == 5, "the larger shapes moved the buffers of the smaller"


def test_no_graph_is_launched_after_its_context_was_changed(here: Machine, bundle: Bundle) -> None:
    backend = TensorRTBackend(bundle)
    small, large = extend_feeds(bundle, 1, 5, 0), extend_feeds(bundle, 2, 20, 0)
    for feeds in (large, large, small, small):  # the larger first, so that no buffer moves later
        assert answer(backend, feeds)
    launches = here.cuda.launches
    assert launches == 2
    assert answer(backend, large)
    assert answer(backend, small)
    assert here.cuda.launches == 4
    assert here.cuda.captures == 2


@pytest.mark.parametrize("own_runtime", [False, True])
def test_a_failed_capture_gives_up_these_shapes_only(
    here: Machine, bundle: Bundle, own_runtime: bool, caplog: pytest.LogCaptureFixture
) -> None:
    backend = TensorRTBackend(bundle)
    here.cuda.capture_fails, here.cuda.own_runtime = True, own_runtime
    with caplog.at_level(logging.WARNING, logger="f2edge"):
        for _ in range(3):
            assert answer(backend, extend_feeds(bundle, 1, 5, 0))
    here.cuda.capture_fails = False
    assert caplog.text.count("without a CUDA graph") == 1, "not tried again"
    for _ in range(3):
        assert answer(backend, extend_feeds(bundle, 2, 20, 0))
    assert here.cuda.captures == 1
    assert here.cuda.launches == 2


def test_an_error_in_the_capture_ends_it(here: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in that raises while it is captured."""
    original = here.trt.IExecutionContext.execute_async_v3

    def execute(context: Any, stream: int) -> bool:
        if here.cuda.capturing:
            raise RuntimeError("the plug-in needs the device to wait")
        return bool(original(context, stream))

    monkeypatch.setattr(here.trt.IExecutionContext, "execute_async_v3", execute)
    backend = TensorRTBackend(bundle)
    for columns in (5, 5, 5, 20, 20):
        assert answer(backend, extend_feeds(bundle, 1, columns, 0))
    assert not here.cuda.capturing
    assert not here.cuda.error


def test_other_libraries_may_use_the_legacy_stream(here: Machine, bundle: Bundle) -> None:
    here.cuda.legacy_traffic = True
    backend = TensorRTBackend(bundle)
    for _ in range(3):
        assert answer(backend, extend_feeds(bundle, 1, 5, 0))
    assert here.cuda.invalidated == []
    assert here.cuda.launches == 2


def test_a_new_picture_needs_no_new_capture(here: Machine, bundle: Bundle) -> None:
    backend = TensorRTBackend(bundle)
    pictures = [picture(backend, bundle, float(i)) for i in range(5)]
    assert len({p["image_key"].address for p in pictures}) == 5
    for _ in range(3):
        for shown in pictures:
            assert answer(backend, {**extend_feeds(bundle, 1, 5, 0), **shown})
    assert here.cuda.captures == 1


def test_a_picture_is_copied_once(here: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    original: Callable[..., None] = here.cuda.copy_lines

    def copy(target: Any, source: Any, *size: int) -> None:
        copied.append(source[0])
        original(target, source, *size)

    monkeypatch.setattr(here.cuda, "copy_lines", copy)
    backend = TensorRTBackend(bundle)
    shown = picture(backend, bundle, 2.0)
    for _ in range(4):
        assert answer(backend, {**extend_feeds(bundle, 1, 5, 0), **shown})
    assert copied.count(shown["image_key"].address) == 1


def test_without_memory_for_another_context_the_others_go(here: Machine, bundle: Bundle) -> None:
    backend = TensorRTBackend(bundle)
    here.trt.most_contexts = 2
    for _ in range(2):
        for rows, columns in ((1, 5), (2, 20), (3, 9), (3, 9)):
            assert answer(backend, extend_feeds(bundle, rows, columns, 0))
    assert here.cuda.launches
    here.trt.most_contexts = 0
    with pytest.raises(BackendError, match="TensorRT makes no execution context; is the GPU's memory full"):
        backend.run("mmu_extend", extend_feeds(bundle, 4, 20, 0))


@pytest.mark.parametrize("calls", [600, pytest.param(10_000, marks=pytest.mark.long)])
def test_any_order_of_shapes_batches_and_pictures(here: Machine, bundle: Bundle, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No capture after an unsettled shape, no stale graph, no allocation inside a capture, and memory that does not grow."""
    backend, generator = TensorRTBackend(bundle), np.random.default_rng(7)
    monkeypatch.setattr(here.trt, "calls", [])
    pictures = [picture(backend, bundle, float(i)) for i in range(8)]
    memory = []
    for call in range(calls):
        rows, columns = int(generator.integers(1, 5)), int(generator.choice([1, 4, 9, 20]))
        earlier = int(generator.choice([0, 3, 17, 40])) if columns == 1 else 0
        feeds = extend_feeds(bundle, rows, columns, earlier)
        feeds["text_lengths"] = np.full(rows, columns + earlier)
        if generator.random() < 0.1:
            pictures[int(generator.integers(8))] = picture(backend, bundle, float(generator.integers(100)))
        feeds |= pictures[int(generator.integers(8))] if generator.random() < 0.9 else {}
        here.cuda.legacy_traffic = bool(generator.random() < 0.5)
        assert answer(backend, feeds), call
        here.trt.calls.clear()
        if call % (calls // 10) == calls // 10 - 1:
            gc.collect()
            memory.append((sum(map(len, here.cuda.blocks.values())), len(here.cuda.graphs)))
    assert here.cuda.invalidated == []
    assert here.cuda.launches > calls / 3
    steady = memory[len(memory) // 2 :]
    assert max(size for size, _ in steady) <= 1.02 * min(size for size, _ in steady), memory
    assert max(graphs for _, graphs in memory) <= 32
