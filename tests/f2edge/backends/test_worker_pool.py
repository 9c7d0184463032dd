"""Work side by side: the order of results, errors, nesting, the same bits as alone; what large models keep in memory."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier, current_thread

import numpy as np
import pytest

from f2edge.backends import onnxruntime as backend_module
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.backends.worker_pool import WorkerPool
from f2edge.bundle.bundle import Bundle
from f2edge.pipeline import FacePipeline

pytestmark = pytest.mark.runtime
SEEDS = list(range(5))


def test_pieces_run_at_the_same_time_and_come_back_in_order() -> None:
    meet = Barrier(2, timeout=20)

    def piece(number: int) -> int:
        meet.wait()  # passes only where two are here at once
        return number * number

    workers = WorkerPool(2)
    assert workers.each(piece, range(6)) == [0, 1, 4, 9, 16, 25]
    assert not workers.in_worker


@pytest.mark.parametrize(("count", "items"), [(1, [3, 4]), (4, [3]), (4, [])])
def test_nothing_to_gain_stays_on_the_calling_thread(count: int, items: list[int]) -> None:
    here = current_thread()
    assert WorkerPool(count).each(lambda item: (item, current_thread() is here), items) == [(item, True) for item in items]


def test_a_lane_opens_no_lanes() -> None:
    workers = WorkerPool(2)

    def outer(number: int) -> list[tuple[int, bool]]:
        here = current_thread()
        return workers.each(lambda item: (item, workers.in_worker and current_thread() is here), [number, number + 1])

    assert workers.each(outer, [0, 10, 20]) == [[(n, True), (n + 1, True)] for n in (0, 10, 20)]


def test_an_error_waits_for_the_others() -> None:
    done = []

    def piece(number: int) -> None:
        if number == 0:
            raise ValueError("the first")
        done.append(number)

    with pytest.raises(ValueError, match="the first"):
        WorkerPool(2).each(piece, range(5))
    assert sorted(done) == [1, 2, 3, 4]


def backend(threads: int) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(Bundle.load("nano").path, threads)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 3])
def test_side_by_side_is_alone_to_the_last_bit(threads: int) -> None:
    bundle = Bundle.load("nano")
    alone, several = FacePipeline(bundle, backend(1)), FacePipeline(bundle, backend(threads))
    faces = [alone.generate("an old man with a beard", seeds=seed)[0] for seed in SEEDS]
    together = several.generate(["an old man with a beard"] * len(SEEDS), seeds=SEEDS)
    assert all(np.array_equal(one.codes, other.codes) for one, other in zip(faces, together, strict=True))
    images = [face.image for face in faces[:3]]
    assert several.analyze(images) == [alone.analyze(image)[0] for image in images]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """Sessions as they are made: graph, threads, and whether their weights are packed anew; every model counts as large."""
    made: list[tuple[str, int, bool]] = []
    load = OnnxRuntimeBackend._load

    def note(self: OnnxRuntimeBackend, graph: str, path: Path, threads: int, *, packed: bool) -> object:
        made.append((graph, threads, packed))
        return load(self, graph, path, threads, packed=packed)

    monkeypatch.setattr(OnnxRuntimeBackend, "_load", note)
    monkeypatch.setattr(backend_module, "LARGE_BYTES", 1)
    return made


def test_large_weights_are_in_memory_once(opened: list[tuple[str, int, bool]]) -> None:
    FacePipeline(Bundle.load("nano"), backend(2)).generate("a man", seeds=[1, 2, 3, 4])
    assert ("t2i_step", 2, True) in opened
    assert {threads for _, threads, _ in opened} == {2}


@pytest.mark.parametrize(("choice", "kept"), [("1", False), ("0", True)])
def test_where_memory_is_scarce_a_large_models_prefill_is_closed_again(
    opened: list[tuple[str, int, bool]], monkeypatch: pytest.MonkeyPatch, choice: str, *, kept: bool
) -> None:
    monkeypatch.setenv(backend_module.LEAN, choice)
    pipeline = FacePipeline(Bundle.load("nano"), backend(2))
    faces = [pipeline.generate(prompt)[0] for prompt in ("a man", "a woman")]
    assert opened.count(("t2i_prefill", 2, False)) == (1 if kept else 3)  # the empty prompt, and each of the two
    assert opened.count(("t2i_step", 2, True)) == 1
    monkeypatch.setattr(backend_module, "LARGE_BYTES", 1 << 40)
    assert np.array_equal(FacePipeline(Bundle.load("nano"), backend(2)).generate("a woman")[0].codes, faces[1].codes)


def test_memory_is_scarce_below_four_times_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend_module.LEAN, raising=False)
    assert not backend_module._lean(1 << 20)
    if Path("/proc/meminfo").is_file():
        assert backend_module._lean(1 << 60)
