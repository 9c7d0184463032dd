"""Forms for ONNX Runtime: the same values by layer and by column, and refusals of what is no cache of the transformer."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from export.graph.lower import Inserter, LoweringError
from export.graph.runtime_forms import runtime_forms, score_columns, split_caches
from export.graph.trace import trace
from export.quantize.calibration import save_scratch
from f2edge.backends.base import host
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.backends.onnxruntime_gpu import OnnxRuntimeGpuBackend, Provider
from f2edge.backends.ports import Layers
from f2edge.bundle.bundle import Bundle
from f2edge.pipeline import FacePipeline
from f2edge.results import GenerateOptions
from tests.support.tiny_model import TINY, random_models

pytestmark = pytest.mark.slow

MODEL = replace(TINY, query_key_norm=True)
#: In fp32 only the order of sums differs.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def traced() -> ir.Model:
    return trace("mmu_extend", random_models(MODEL))


def backend(model: ir.Model, folder: Path) -> OnnxRuntimeBackend:
    folder.mkdir()
    save_scratch(model, folder / "graph.onnx")
    return OnnxRuntimeBackend(lambda _: folder / "graph.onnx", 1, split=False)


def test_answers_have_the_same_logits_and_caches(traced: ir.Model, tmp_path: Path) -> None:
    model = runtime_forms(traced.clone())
    kinds = Counter(node.op_type for node in model.graph)
    assert (kinds["RotaryEmbedding"], kinds["FusedMatMul"]) == (2 * MODEL.layers, 2 * MODEL.layers)
    again = [node.op_type for node in runtime_forms(model.clone()).graph]
    assert Counter(again) == kinds, "what is in this form already stays"
    plain, formed = backend(traced.clone(), tmp_path / "plain"), backend(model, tmp_path / "formed")
    rng = np.random.default_rng(0)

    def cache(rows: int, columns: int) -> np.ndarray:
        return rng.normal(size=(MODEL.layers, rows, MODEL.heads, columns, MODEL.head_width)).astype(np.float32)

    C, ids = MODEL.understanding_columns, rng.integers(0, 1000, (2, 4))
    image, text = {name: cache(1, C) for name in ("image_key", "image_value")}, {name: cache(2, 5) for name in ("text_key", "text_value")}
    feeds = {"text_ids": ids, "text_lengths": np.array([9, 6]), **image, **text}
    wanted, found = plain.run("mmu_extend", feeds), formed.run("mmu_extend", feeds)
    assert isinstance(found["next_text_key"], Layers)
    for name, value in wanted.items():
        assert host(found[name]).shape == host(value).shape
        assert np.abs(host(found[name]) - host(value)).max() < TOLERANCE
    columns = host(formed.run("mmu_extend", {**feeds, "scored": np.array([-3, -1])})["logits"])
    shorter = {**feeds, "text_ids": ids[:, :2], "text_lengths": np.array([7, 4])}
    assert np.abs(columns[:, 0] - host(plain.run("mmu_extend", shorter)["logits"])).max() < TOLERANCE
    assert np.abs(columns[:, 1] - host(wanted["logits"])).max() < TOLERANCE


def test_a_cache_that_is_used_otherwise_is_refused(traced: ir.Model) -> None:
    model = traced.clone()
    graph = model.graph
    cache = next(value for value in graph.inputs if value.name == "text_key")
    extra = Inserter(graph, next(iter(graph)), "extra")("Abs", cache)
    graph.outputs.append(extra)
    with pytest.raises(LoweringError, match="cache 'text_key' feeds a Abs"):
        split_caches(model)
    model = traced.clone()
    next(node for node in model.graph if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 1).attributes["axis"] = (
        ir.AttrInt64("axis", 0)
    )
    with pytest.raises(LoweringError, match="the last column is picked 0 times"):
        score_columns(model)


def test_bound_layers_give_the_same_answers(tiny_int8_bundle: Path) -> None:
    """As on a GPU, in the CPU's memory: what stays on the device is passed layer by layer too."""
    bundle = Bundle.load(tiny_int8_bundle)
    bound = OnnxRuntimeGpuBackend(bundle.path, Provider("bound", "CPUExecutionProvider", {}, device="cpu"), threads=1)
    face = Image.fromarray(np.random.default_rng(1).integers(0, 255, (128, 128, 3), dtype=np.uint8))
    options = GenerateOptions(steps=2, guidance=1.5)
    found = []
    for pipeline in (FacePipeline(bundle, bound), FacePipeline.load(bundle, threads=1)):
        drawn = pipeline.generate("an old man", seeds=3, options=options)[0].codes.tolist()
        found.append((pipeline.ask(face, "what color is the hair?", max_tokens=8).tokens, drawn))
    assert found[0] == found[1]
