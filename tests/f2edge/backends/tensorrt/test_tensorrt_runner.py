"""The TensorRT backend on a machine of paper whose engines compute through ONNX Runtime: same tokens, right memory, right graphs.

The machine runs queued work only when a caller waits, hands out memory full of NaN and refuses addresses that are nobody's
(:mod:`tests.support.tensorrt.cuda_double`), so what is read too early, left unset or freed too soon shows as a wrong token or an error.
"""

from __future__ import annotations

import gc
import logging
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from f2edge.backends.base import host, pack_arrays
from f2edge.backends.registry import choose_backend
from f2edge.backends.tensorrt.backend import TensorRTBackend
from f2edge.backends.tensorrt.device_memory import DeviceArray
from f2edge.bundle.bundle import Bundle
from f2edge.decoding.parallel import decode
from f2edge.decoding.schedule import Schedule, plan
from f2edge.errors import BackendError
from f2edge.lru_cache import LRUCache
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions
from tests.support.tensorrt.tensorrt_double import VERSIONS
from tests.support.tensorrt.tensorrt_machine import Machine, extend_feeds, machine, planned_bundle, tensorrt_bundle

pytestmark = pytest.mark.slow

PROMPTS = ["a woman with long red hair", "an old man", "a smiling young man with a full beard"]
OPTIONS = GenerateOptions(steps=6, guidance=1.5)
#: Graph captured at the second run of a shape, launched from then on.
STEPS_LAUNCHED = 6 - 1


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planned_bundle(tiny_bundle, tmp_path_factory.mktemp("runner"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return machine(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def expected(bundle: Path) -> FacePipeline:
    """The ONNX Runtime backend on the same graphs."""
    return FacePipeline.load(bundle, backend="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def face(expected: FacePipeline) -> Image.Image:
    return expected.generate(PROMPTS[0], seeds=7, options=OPTIONS)[0].image


# Whole runs ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_faces_and_answers_are_those_of_onnx_runtime(
    version: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: Any, *, expected: FacePipeline, face: Image.Image
) -> None:
    there = machine(monkeypatch, tmp_path, version)
    path = tensorrt_bundle(tiny_bundle, tmp_path / "tiny")
    there.build(path)
    pipeline = FacePipeline.load(path, backend="tensorrt")
    (drawn,) = pipeline.generate(PROMPTS[0], seeds=7, options=OPTIONS)
    assert np.array_equal(drawn.codes, expected.generate(PROMPTS[0], seeds=7, options=OPTIONS)[0].codes)
    assert drawn.image.tobytes() == face.tobytes()
    answer = pipeline.ask(face, "what color is the hair?", max_tokens=40)
    assert answer.tokens == expected.ask(face, "what color is the hair?", max_tokens=40).tokens
    assert len(answer.tokens) == 40, "long enough for two sizes of earlier text"


def test_several_faces_edits_and_reports(here: Machine, bundle: Path, expected: FacePipeline, face: Image.Image) -> None:
    """Five requests where a plan takes two, and twenty questions where one takes four."""
    pipeline = FacePipeline.load(bundle, backend="tensorrt")
    prompts, seeds = [PROMPTS[i % 3] for i in range(5)], list(range(5))
    for own, other in zip(*(p.generate(prompts, seeds=seeds, options=OPTIONS) for p in (pipeline, expected)), strict=True):
        assert np.array_equal(own.codes, other.codes)
    interval = GenerateOptions(steps=5, guidance=2.0, guidance_interval=(0.3, 0.8))
    for own, other in zip(*(p.generate(prompts[:3], seeds=seeds[:3], options=interval) for p in (pipeline, expected)), strict=True):
        assert np.array_equal(own.codes, other.codes)
    edits = [p.edit(face, PROMPTS[2], (0, 0, 64, 64), seed=5, options=OPTIONS).codes for p in (pipeline, expected)]
    assert np.array_equal(edits[0], edits[1])
    (own,), (other,) = (p.analyze(face) for p in (pipeline, expected))
    assert own.probabilities.keys() == other.probabilities.keys() != set()
    for name, values in own.probabilities.items():
        assert values == pytest.approx(other.probabilities[name], abs=1e-4)


def counted(calls: list[str], name: str, function: Any) -> Any:
    def call(*given: Any) -> Any:
        calls.append(name)
        return function(*given)

    return call


def test_on_a_jetson_nothing_is_copied_to_the_device(tmp_path: Path, monkeypatch: Any, bundle: Path, expected: FacePipeline) -> None:
    there = machine(monkeypatch, tmp_path, integrated=True)
    driver = sys.modules["pycuda.driver"]
    copies: list[str] = []
    for name in ("memcpy_htod_async", "memcpy_dtoh_async"):
        monkeypatch.setattr(driver, name, counted(copies, name, getattr(driver, name)))
    pipeline = FacePipeline.load(bundle, backend="tensorrt")
    (drawn,) = pipeline.generate(PROMPTS[1], seeds=3, options=OPTIONS)
    assert np.array_equal(drawn.codes, expected.generate(PROMPTS[1], seeds=3, options=OPTIONS)[0].codes)
    assert copies == []
    assert there.cuda.launches


# Shapes and profiles ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "earlier"), [(1, 5, 0), (3, 20, 0), (1, 1, 1), (4, 1, 17), (2, 1, 60), (7, 9, 0), (6, 1, 33), (2, 4, 12)]
)
def test_padding_and_splitting_change_no_result(
    here: Machine, bundle: Path, expected: FacePipeline, *, rows: int, columns: int, earlier: int
) -> None:
    """Text of any length in any number of rows, padded to a plan's sizes and cut into runs of four."""
    feeds = extend_feeds(expected.bundle, rows, columns, earlier)
    backend = choose_backend("tensorrt", Bundle.load(bundle))[0]
    own = backend.run("mmu_extend", feeds)
    wanted = expected.backend.run("mmu_extend", feeds)
    assert np.allclose(host(own["logits"]), host(wanted["logits"]), atol=2e-4)
    valid = int(feeds["text_lengths"].min())
    for name in ("next_text_key", "next_text_value"):
        kept = host(own[name])
        assert isinstance(own[name], DeviceArray)
        assert kept.shape[:3] == host(wanted[name]).shape[:3]
        assert np.allclose(kept[..., -valid:, :], host(wanted[name])[..., -valid:, :], atol=2e-4)


def test_each_kind_of_run_has_its_profile(here: Machine, bundle: Path, face: Image.Image) -> None:
    pipeline = FacePipeline.load(bundle, backend="tensorrt")
    pipeline.ask(face, "how old does the person look?", max_tokens=3)
    pipeline.generate(PROMPTS[0], seeds=1, options=OPTIONS)
    pipeline.generate(PROMPTS[0], seeds=1, options=GenerateOptions(steps=2, guidance=0.0))
    chosen = [call["profile_index"] for call in here.calls("IExecutionContext", "set_optimization_profile_async")]
    assert chosen.count(0) >= 3, "one picture, one prompt, a question"
    assert 1 in chosen, "one token at a time"
    assert len(chosen) == len(here.calls("ICudaEngine", "create_execution_context")), "a context keeps its profile"


def test_an_answer_runs_in_few_shapes(here: Machine, bundle: Path, face: Image.Image) -> None:
    pipeline = FacePipeline.load(bundle, backend="tensorrt")
    answer = pipeline.ask(face, "what color is the hair?", max_tokens=30)
    assert len(answer.tokens) == 30
    shapes = {tuple(call["shape"]) for call in here.calls("IExecutionContext", "set_input_shape") if call["name"] == "text_key"}
    assert len(shapes) <= 3, "sixteen columns, thirty-two, sixty-four"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("text_ids"), "inputs are missing or unknown: text_ids"),
        (lambda f: f.update(magic=np.zeros(1)), "inputs are missing or unknown: magic"),
        (lambda f: f.update(text_lengths=np.zeros((1, 1), dtype=np.int64)), "text_lengths has 2 axes, the plan takes 1"),
        (lambda f: f.update(text_lengths=np.ones(2, dtype=np.int64)), "axis B is"),
        (lambda f: f.update(text_ids=f["text_ids"].astype(np.int32)), "text_ids is int32, the plan takes int64"),
        (lambda f: f.update(text_ids=np.zeros((1, 5000), dtype=np.int64), text_lengths=np.full(1, 5000)), "is 5000, the plan takes 1 …"),
        (lambda f: f.update(image_key=f["image_key"][..., :3]), "image_key is"),
    ],
)
def test_what_a_plan_does_not_take_is_named(here: Machine, bundle: Path, expected: FacePipeline, change: Any, message: str) -> None:
    feeds = extend_feeds(expected.bundle, 1, 5, 0)
    change(feeds)
    with pytest.raises(BackendError, match=message) as caught:
        choose_backend("tensorrt", Bundle.load(bundle))[0].run("mmu_extend", feeds)
    assert "graph 'mmu_extend'" in str(caught.value)
    assert "\n" not in str(caught.value)


# Memory ----------------------------------------------------------------------------------------------------------------------------------


def test_keys_and_values_stay_on_the_device(here: Machine, bundle: Path, expected: FacePipeline) -> None:
    """A prompt's cache never crosses to the host: what packs it and what reads it find it where it is."""
    backend = choose_backend("tensorrt", Bundle.load(bundle))[0]
    columns = expected.bundle.layout.prompt_tokens + len(expected.bundle.layout.unconditional)
    prompts = [{"prompt_ids": np.full((1, columns), i), "prompt_lengths": np.array([3 + i])} for i in range(3)]
    caches = [backend.run("t2i_prefill", feeds)["prefix_key"] for feeds in prompts]
    wanted = [host(expected.backend.run("t2i_prefill", feeds)["prefix_key"]) for feeds in prompts]
    assert all(isinstance(cache, DeviceArray) for cache in caches)
    packed = backend.pack(caches)
    assert isinstance(packed, DeviceArray)
    assert np.allclose(packed.numpy(), pack_arrays(wanted), atol=1e-5)
    assert np.array_equal(host(backend.pack([w[:, :, :, -c:] for w, c in zip(wanted, (5, 9, 2), strict=True)])),
                          pack_arrays([w[:, :, :, -c:] for w, c in zip(wanted, (5, 9, 2), strict=True)]))  # fmt: skip


def test_results_are_the_callers_own(here: Machine, bundle: Path, expected: FacePipeline) -> None:
    """A later run writes over nothing that an earlier one gave."""
    backend = choose_backend("tensorrt", Bundle.load(bundle))[0]
    first, second = extend_feeds(expected.bundle, 2, 7, 0), extend_feeds(expected.bundle, 2, 8, 0)
    before = backend.run("mmu_extend", first)
    logits, key = host(before["logits"]).copy(), host(before["next_text_key"]).copy()
    backend.run("mmu_extend", second)
    assert np.array_equal(host(before["logits"]), logits)
    assert np.array_equal(host(before["next_text_key"]), key)


def test_memory_does_not_grow_with_use(here: Machine, bundle: Path, face: Image.Image) -> None:
    pipeline = FacePipeline.load(bundle, backend="tensorrt")

    def use(seed: int) -> int:
        pipeline.generate(PROMPTS[:2], seeds=[seed, seed + 1], options=OPTIONS)
        pipeline.ask(face, "what color is the hair?", max_tokens=6)
        gc.collect()
        return sum(map(len, here.cuda.blocks.values()))

    use(0)
    after = use(2)
    assert all(use(seed) == after for seed in (4, 6))


def test_idle_memory_goes_back_and_its_graphs_with_it(here: Machine, bundle: Path, monkeypatch: Any, expected: FacePipeline) -> None:
    monkeypatch.setattr("f2edge.backends.tensorrt.backend.IDLE_BYTES", 0)
    pipeline = FacePipeline.load(bundle, backend="tensorrt")
    for seed in (1, 2):
        (drawn,) = pipeline.generate(PROMPTS[seed], seeds=seed, options=OPTIONS)
        assert np.array_equal(drawn.codes, expected.generate(PROMPTS[seed], seeds=seed, options=OPTIONS)[0].codes)
    before = len(here.cuda.graphs)
    assert before
    pipeline.inference.prompts = LRUCache(1)
    gc.collect()
    pipeline.generate(PROMPTS[0], seeds=1, options=GenerateOptions(steps=1, guidance=1.5))
    assert len(here.cuda.graphs) < before + 1, "graphs of addresses that went away are destroyed"


def test_a_full_gpu_says_what_to_do(here: Machine, bundle: Path) -> None:
    here.cuda.room = 1 << 16
    with pytest.raises(BackendError, match=r"the GPU has no room for .* --image-rows 1"):
        FacePipeline.load(bundle, backend="tensorrt").generate(PROMPTS[0], seeds=1, options=OPTIONS)


# CUDA graphs -----------------------------------------------------------------------------------------------------------------------------


def test_the_second_step_is_captured_and_the_rest_launched(here: Machine, bundle: Path) -> None:
    pipeline = FacePipeline.load(bundle, backend="tensorrt")
    pipeline.generate(PROMPTS[0], seeds=1, options=OPTIONS)
    assert here.cuda.launches == STEPS_LAUNCHED + 1, "and the second of two prompts"
    captures = here.cuda.captures
    enqueued = len(here.calls("IExecutionContext", "execute_async_v3"))
    gc.collect()
    pipeline.generate(PROMPTS[0], seeds=2, options=OPTIONS)  # the prefix is packed anew, where the last one lay
    assert here.cuda.launches >= 2 * STEPS_LAUNCHED
    assert here.cuda.captures - captures <= 1, "the decoder's second run; the steps' graph is still good"
    assert len(here.calls("IExecutionContext", "execute_async_v3")) - enqueued <= 1


def test_growing_buffers_forget_graphs(here: Machine, bundle: Path, expected: FacePipeline) -> None:
    backend = TensorRTBackend(Bundle.load(bundle))
    small, large = extend_feeds(expected.bundle, 1, 6, 0), extend_feeds(expected.bundle, 4, 60, 0)
    for _ in range(3):
        backend.run("mmu_extend", small)
    assert here.cuda.launches
    assert backend._sessions["mmu_extend"].captured
    backend.run("mmu_extend", large)
    launches = here.cuda.launches
    again, wanted = backend.run("mmu_extend", small), expected.backend.run("mmu_extend", small)
    assert np.allclose(host(again["logits"]), host(wanted["logits"]), atol=2e-4)
    assert here.cuda.launches == launches, "its buffers have moved"
    assert not backend._sessions["mmu_extend"].captured
    assert not here.cuda.graphs


def test_a_larger_engine_moves_the_scratch_memory(here: Machine, bundle: Path, face: Image.Image, expected: FacePipeline) -> None:
    pipeline = FacePipeline.load(bundle, backend="tensorrt")
    pipeline.generate(PROMPTS[0], seeds=1, options=OPTIONS)
    assert here.cuda.graphs
    here.trt.activations *= 4
    pipeline.encode(face)  # an engine that was not loaded yet, and needs more
    assert not here.cuda.graphs
    (drawn,) = pipeline.generate(PROMPTS[1], seeds=3, options=OPTIONS)
    assert np.array_equal(drawn.codes, expected.generate(PROMPTS[1], seeds=3, options=OPTIONS)[0].codes)


def test_an_engine_that_is_too_large_leaves_the_others_running(
    here: Machine, bundle: Path, face: Image.Image, expected: FacePipeline
) -> None:
    pipeline = FacePipeline.load(bundle, backend="tensorrt")
    pipeline.generate(PROMPTS[0], seeds=1, options=OPTIONS)
    here.trt.activations, kept = here.cuda.room, here.trt.activations
    with pytest.raises(BackendError, match="the GPU has no room"):
        pipeline.encode(face)
    here.trt.activations = kept
    (drawn,) = pipeline.generate(PROMPTS[1], seeds=3, options=OPTIONS)
    assert np.array_equal(drawn.codes, expected.generate(PROMPTS[1], seeds=3, options=OPTIONS)[0].codes)


@pytest.mark.parametrize("how", ["no library", "capture fails", "not enqueued"])
def test_without_graphs_the_engine_runs_as_it_is(
    how: str, tmp_path: Path, monkeypatch: Any, bundle: Path, *, expected: FacePipeline, caplog: Any
) -> None:
    there = machine(monkeypatch, tmp_path, graphs=how != "no library")
    there.cuda.capture_fails = how == "capture fails"
    if how == "not enqueued":
        original = there.trt.IExecutionContext.execute_async_v3
        monkeypatch.setattr(
            there.trt.IExecutionContext, "execute_async_v3", lambda s, stream: there.cuda._recording is None and original(s, stream)
        )
    with caplog.at_level(logging.WARNING, logger="f2edge"):
        pipeline = FacePipeline.load(bundle, backend="tensorrt")
        (drawn,) = pipeline.generate(PROMPTS[0], seeds=7, options=OPTIONS)
    assert np.array_equal(drawn.codes, expected.generate(PROMPTS[0], seeds=7, options=OPTIONS)[0].codes)
    assert there.cuda.launches == 0
    assert not there.cuda.graphs
    assert ("cuda-bindings" if how == "no library" else "without a CUDA graph") in caplog.text


# Threads ---------------------------------------------------------------------------------------------------------------------------------


def test_threads_take_turns(here: Machine, bundle: Path, expected: FacePipeline) -> None:
    backend = choose_backend("tensorrt", Bundle.load(bundle))[0]
    feeds = [extend_feeds(expected.bundle, 1 + i % 3, 4 + i, 0) for i in range(6)]
    results: dict[int, Any] = {}

    def work(i: int) -> None:
        results[i] = host(backend.run("mmu_extend", feeds[i])["logits"])

    threads = [Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, feed in enumerate(feeds):
        assert np.allclose(results[i], host(expected.backend.run("mmu_extend", feed)["logits"]), atol=2e-4)


# Copies ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("library", "faces"), [("pycuda", 1), ("cuda-bindings", 1), ("pycuda", 2)])
def test_a_step_takes_one_copy_in_and_none_out(  # noqa: PLR0917
    library: str, faces: int, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: FacePipeline
) -> None:
    """Twelve steps and six: the difference is what six steps copy.  The codes come from the step before, on the device.

    Two faces are two runs of these plans, joined on the device, with two prefixes each that are cut out of the batch's.
    """
    cuda = machine(monkeypatch, tmp_path, library=library).cuda
    pipeline = FacePipeline.load(bundle, backend="tensorrt")
    counts = []
    for steps in (2, 6, 12):  # the first prepares prompts
        before = {way: len(sizes) for way, sizes in cuda.copies.items()}
        options = GenerateOptions(steps=steps, guidance=1.5)
        prompts, seeds = PROMPTS[:faces], [4, 5][:faces]
        drawn = pipeline.generate(prompts, seeds=seeds, options=options)
        for own, other in zip(drawn, expected.generate(prompts, seeds=seeds, options=options), strict=True):
            assert np.array_equal(own.codes, other.codes)
        counts.append({way: len(sizes) - before[way] for way, sizes in cuda.copies.items()})
    more = {way: counts[2][way] - counts[1][way] for way in counts[0]}
    assert (more["to the device"], more["to the host"]) == (6 * faces, 0)
    assert more["on the device"] == (12 if faces == 1 else 6 * 2 * (2 + 2 + 2 * 2 + 2)), (
        "codes and grids; caches cut, staged; both grids joined"
    )


def test_an_answer_token_takes_one_copy_in_and_one_out(here: Machine, bundle: Path, face: Image.Image) -> None:
    pipeline = FacePipeline.load(bundle, backend="tensorrt")
    counts = []
    for tokens in (4, 9):
        before = {way: len(sizes) for way, sizes in here.cuda.copies.items()}
        assert len(pipeline.ask(face, "what color is the hair?", max_tokens=tokens).tokens) == tokens
        pipeline.inference.images = LRUCache(4)
        counts.append({way: len(sizes) - before[way] for way, sizes in here.cuda.copies.items()})
    more = {way: counts[1][way] - counts[0][way] for way in counts[0]}
    assert more == {"to the device": 5, "to the host": 5, "on the device": 15}, "the text's keys and values in, both out together"


def test_previews_and_changing_batches_read_the_grids(here: Machine, bundle: Path, expected: FacePipeline) -> None:
    """Rows that end at different steps, and a listener that reads every grid."""
    pipeline = FacePipeline.load(bundle, backend="tensorrt")
    seen: list[list[Any]] = []
    for chosen in (pipeline, expected):
        events: list[Any] = []
        rows = [plan(Schedule(steps=steps, guidance=guidance), np.ones(chosen.bundle.layout.image_tokens, dtype=bool), steps)
                for steps, guidance in ((2, 1.5), (5, 0.0))]  # fmt: skip
        masked = np.full((2, chosen.bundle.layout.image_tokens), chosen.bundle.layout.mask_code)
        step = chosen.inference.step([chosen.inference.prompt_prefix([5, 6]), chosen.inference.prompt_prefix([7])])
        codes = decode(step, masked, rows, [2, 5], on_step=events.append)
        assert np.array_equal(codes, decode(step, masked, rows, [2, 5]))
        seen.append([codes, *(grid for event in events for grid in (event.codes, event.proposal))])
    for own, other in zip(*seen, strict=True):
        assert np.array_equal(own, other)
