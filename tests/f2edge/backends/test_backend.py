"""The ONNX Runtime backend on tiny graphs, the choice of a backend, packing of caches, the memory of recent results."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, save

from f2edge.backends.base import host, pack_arrays
from f2edge.backends.onnxruntime import OnnxRuntimeBackend, usable_cores
from f2edge.backends.registry import choose_backend
from f2edge.backends.row_groups import row_groups
from f2edge.decoding.parallel import UNCONDITIONAL, GridRow, step_feeds
from f2edge.decoding.schedule import Schedule, plan
from f2edge.errors import BackendError, BundleError
from f2edge.lru_cache import LRUCache
from tests.support.reference_sampler import reference_step


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two graphs: "scale" doubles a matrix and sums it; "broken" is no ONNX."""
    nodes = [helper.make_node("Mul", ["x", "two"], ["doubled"]), helper.make_node("ReduceSum", ["doubled"], ["total"], keepdims=0)]
    graph = helper.make_graph(
        nodes,
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["A", "B"])],
        [
            helper.make_tensor_value_info("doubled", TensorProto.FLOAT, ["A", "B"]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    save(model, tmp_path / "scale.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    return tmp_path


class Files:
    """What the registry needs of a bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

    def path(self, graph: str) -> Path:
        self.asked.append(graph)
        if not (self.folder / f"{graph}.onnx").exists():
            raise BundleError(f"bundle has no graph {graph!r}")
        return self.folder / f"{graph}.onnx"


def test_outputs_come_back_by_name(folder: Path) -> None:
    backend = OnnxRuntimeBackend(Files(folder).path, threads=1)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    outputs = backend.run("scale", {"x": x})
    assert sorted(outputs) == ["doubled", "total"]
    assert np.array_equal(host(outputs["doubled"]), 2 * x)
    assert float(host(outputs["total"])) == 30.0
    again = backend.run("scale", {"x": outputs["doubled"]})  # what a graph gives, a graph takes
    assert float(host(again["total"])) == 60.0


def test_a_graph_is_loaded_when_it_is_first_run_and_once(folder: Path) -> None:
    files = Files(folder)
    backend = OnnxRuntimeBackend(files.path, threads=1)
    assert files.asked == []
    x = np.ones((1, 1), dtype=np.float32)
    threads = [Thread(target=backend.run, args=("scale", {"x": x})) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.asked == ["scale"]


@pytest.mark.parametrize(
    ("graph", "feeds", "message"),
    [
        ("scale", {"x": np.ones((2, 3), dtype=np.float64)}, "graph 'scale' failed in ONNX Runtime"),
        ("scale", {"x": np.ones(3, dtype=np.float32)}, "graph 'scale' failed in ONNX Runtime"),
        ("scale", {}, "graph 'scale' failed in ONNX Runtime"),
        ("scale", {"x": np.ones((1, 1), dtype=np.float32), "y": np.ones(1)}, "graph 'scale' failed in ONNX Runtime"),
        ("broken", {}, "graph 'broken' cannot be loaded by ONNX Runtime"),
    ],
    ids=["dtype", "rank", "missing", "unknown", "no ONNX"],
)
def test_failures_name_the_graph_in_one_line(folder: Path, graph: str, feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        OnnxRuntimeBackend(Files(folder).path, threads=1).run(graph, feeds)
    assert "\n" not in str(caught.value)


def test_a_graph_that_the_bundle_lacks_is_the_bundles_error(folder: Path) -> None:
    with pytest.raises(BundleError, match="no graph 'other'"):
        OnnxRuntimeBackend(Files(folder).path).run("other", {})


def test_the_choice_is_logged_with_its_reason(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="f2edge"):
        backend, reason = choose_backend("auto", Files(folder), threads=1)
    assert backend.name == "onnxruntime"
    assert reason.startswith("auto: onnxruntime")
    assert reason in caplog.text
    assert choose_backend("onnxruntime", Files(folder))[1] == "onnxruntime: requested by name"


def test_an_unknown_backend_is_refused_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(BackendError, match=r"unknown backend 'abacus'; choose one of: auto, onnxruntime"):
        choose_backend("abacus", Files(folder))


def test_threads_default_to_the_usable_cores(folder: Path) -> None:
    assert OnnxRuntimeBackend(Files(folder).path).threads == usable_cores() >= 1
    assert OnnxRuntimeBackend(Files(folder).path, threads=3).threads == 3


def test_caches_are_packed_right_aligned() -> None:
    caches = [np.random.default_rng(i).normal(size=(2, 1, 3, columns, 4)).astype(np.float32) for i, columns in enumerate((5, 2))]
    packed = pack_arrays(caches)
    assert packed.shape == (2, 2, 3, 5, 4)
    assert np.array_equal(packed[:, 0], caches[0][:, 0])
    assert np.array_equal(packed[:, 1, :, 3:], caches[1][:, 0])
    assert not packed[:, 1, :, :3].any()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 2.0])), min_size=1, max_size=7), st.integers(1, 4), st.integers(0, 2**32)
)
@settings(deadline=None, max_examples=20)
def test_a_step_in_groups_is_the_step_of_all(requests: list[tuple[int, float]], size: int, seed: int) -> None:
    """Each branch's logits are a function of its prefix and the codes of its row, so a mixed-up branch would show."""
    N, V = 4, 3
    rows = [
        GridRow.of(np.full(N, V), plan(Schedule(steps=2, guidance=g), np.ones(N, dtype=bool), seed), seed + i)
        for i, (_, g) in enumerate(requests)
    ]
    feeds, prefixes = step_feeds(rows, range(len(rows)))
    prompts = [7 if p == UNCONDITIONAL else requests[p][0] for p in prefixes]
    cache = np.array(prompts, dtype=np.float32)[None, :, None, None, None]
    whole = {**feeds, "prefix_key": cache, "prefix_value": cache, "prefix_lengths": np.array(prompts)}

    def step(inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        seen = inputs["codes"][inputs["branch_row"]].sum(axis=1)
        assert np.array_equal(inputs["prefix_key"].ravel(), inputs["prefix_lengths"])
        logits = [np.random.default_rng([int(p), int(s)]).normal(size=(N, V)) for p, s in zip(inputs["prefix_lengths"], seen, strict=True)]
        return reference_step(np.stack(logits), inputs)

    groups = [step(group) for group in row_groups(whole, size)]
    assert len(groups) == -(-len(rows) // size)
    for joined, expected in zip(map(np.concatenate, zip(*groups, strict=True)), step(whole), strict=True):
        assert np.array_equal(joined, expected)


def test_recent_results_are_made_once_and_the_oldest_is_forgotten() -> None:
    made: list[str] = []

    def maker(key: str) -> Callable[[], str]:
        return lambda: made.append(key) or key.upper()  # type: ignore[func-returns-value]

    memory: LRUCache[str, str] = LRUCache(2)
    for key in ("a", "b", "a", "c", "a", "b"):  # c pushes b out, because a was used since
        assert memory.get(key, maker(key)) == key.upper()
    assert made == ["a", "b", "c", "b"]


def test_a_large_models_prefill_graphs_do_not_stay_open_where_memory_is_scarce(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened again for each run, with the same outputs; the graphs that do the work stay open."""
    monkeypatch.setenv("F2EDGE_LEAN", "1")
    for name in ("t2i_prefill", "mmu_extend"):
        (folder / f"{name}.onnx").write_bytes((folder / "scale.onnx").read_bytes())
    files, x = Files(folder), {"x": np.ones((2, 3), dtype=np.float32)}
    backend = OnnxRuntimeBackend(files.path, threads=1)
    monkeypatch.setattr("f2edge.backends.onnxruntime.LARGE_BYTES", 1)
    totals = [host(backend.run(graph, x)["total"]) for graph in ("t2i_prefill", "mmu_extend") * 2]
    assert totals == [12.0] * 4
    assert sorted(files.asked) == ["mmu_extend", "t2i_prefill", "t2i_prefill"]
    small = Files(folder)
    monkeypatch.setattr("f2edge.backends.onnxruntime.LARGE_BYTES", 1 << 40)
    backend = OnnxRuntimeBackend(small.path, threads=1)
    assert [host(backend.run("t2i_prefill", x)["total"]) for _ in range(2)] == [12.0, 12.0]
    assert small.asked == ["t2i_prefill"]
