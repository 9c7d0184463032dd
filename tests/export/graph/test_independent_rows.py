"""Rows of a decoding step: bit for bit the same alone and beside others, in graphs that say so; what an older bundle gains."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from export.bundle_writer import update_bundle
from export.graph.independent_rows import independent_rows
from export.graph.runtime_forms import runtime_forms
from export.verify.census import find_routers
from export.verify.parity import probed
from f2edge.backends.base import host
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.backends.ports import INDEPENDENT_ROWS
from f2edge.bundle.bundle import Bundle, write_manifest
from f2edge.decoding.parallel import GridRow, step_feeds
from f2edge.decoding.schedule import Schedule, plan
from f2edge.spec.configuration import ModelConfiguration
from tests.support.tiny_model import random_bundle

Feeds = dict[str, Any]


def feeds_of(model: ModelConfiguration, rows: list[int], guidance: float = 0.0) -> Feeds:
    """Step inputs of unguided requests whose prompts, pictures and seeds follow from their numbers."""
    N, V, P = model.image_tokens, model.codes, 9
    made, caches = [], []
    for row in rows:
        rng = np.random.default_rng(row)
        codes = np.where(rng.random(N) < 0.3, rng.integers(V, size=N), V)
        made.append(GridRow.of(codes, plan(Schedule(steps=4, guidance=guidance), codes == V, row), row))
        caches.append(rng.normal(size=(2, model.layers, 1, model.heads, P, model.head_width)).astype(np.float32))
    feeds, _ = step_feeds(made, range(len(made)))
    key, value = np.concatenate(caches, axis=2)
    return {
        **feeds,
        "codes": host(feeds["codes"]),
        "prefix_key": key,
        "prefix_value": value,
        "prefix_lengths": np.array([3 + r % 6 for r in rows]),
    }


def alone_and_beside(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits of masked positions of requests that run alone, and beside one, two and four others."""
    model = Bundle.load(folder, verify=False).configuration
    with probed(folder, "t2i_step", 1) as run:

        def logits(rows: list[int]) -> list[np.ndarray]:
            feeds = feeds_of(model, rows)
            masked, found = feeds["codes"] == model.codes, run(feeds)["logits"]
            drawn = found if found.ndim == 2 else found[masked]  # a graph may compute those alone
            return np.split(drawn, np.cumsum(masked.sum(axis=1))[:-1])

        whole = {count: logits(list(range(count))) for count in (2, 3, 5)}
        return [(logits([row])[0], whole[count][row]) for count in whole for row in range(count)]


@pytest.mark.parametrize("recipe", ["fp32", "int8"])
def test_logits_are_bit_for_bit_those_of_a_batch(tiny_bundles: dict[str, Path], recipe: str) -> None:
    assert INDEPENDENT_ROWS in ir.load(tiny_bundles[recipe] / "t2i_step.onnx").metadata_props
    for alone, beside in alone_and_beside(tiny_bundles[recipe]):
        np.testing.assert_array_equal(alone, beside)


def without_property(folder: Path) -> Path:
    """The bundle as bundles were: products of one row, and nothing said of them."""
    model = ir.load(folder / "t2i_step.onnx")
    for node in list(model.graph):
        first = node.inputs[0] if node.inputs else None
        if first is None:
            continue
        if node.op_type == "Concat" and len(node.inputs) == 2 and first is node.inputs[1]:
            node.outputs[0].replace_all_uses_with(first)
            model.graph.remove(node, safe=True)
        if node.op_type == "Split" and not node.outputs[1].uses():
            node.outputs[0].replace_all_uses_with(first)
            model.graph.remove(node, safe=True)
    model.metadata_props.pop(INDEPENDENT_ROWS, None)
    ir.save(model, folder / "t2i_step.onnx")
    write_manifest(folder, Bundle.load("nano").manifest.document)
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(Bundle.load("nano").folder, tmp_path / "nano")
    return without_property(tmp_path / "nano")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_an_older_bundle_is_updated_without_its_weights(old: Path) -> None:
    before, routers = digests(old), set(find_routers(ir.load(old / "t2i_step.onnx").graph))
    assert update_bundle(old) == ["t2i_step"]
    after = digests(old)
    assert {name for name in before if before[name] != after[name]} == {"t2i_step.onnx", "manifest.json"}
    assert set(find_routers(ir.load(old / "t2i_step.onnx").graph)) == routers
    assert len(routers) == 12
    for alone, beside in alone_and_beside(Bundle.load(old).folder):
        np.testing.assert_array_equal(alone, beside)
    assert update_bundle(old) == []


def test_a_single_branch_is_paired_only_where_the_graph_needs_it(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And both give the same tokens."""
    seen: list[int] = []
    paired: Callable[[Any], Any] = __import__("f2edge.backends.onnxruntime", fromlist=["paired_branch"]).paired_branch

    def counted(feeds: Feeds) -> Any:
        seen.append(len(feeds["branch_row"]))
        return paired(feeds)

    monkeypatch.setattr("f2edge.backends.onnxruntime.paired_branch", counted)
    feeds, found = feeds_of(Bundle.load(old, verify=False).configuration, [1]), []
    for _ in range(2):
        backend = OnnxRuntimeBackend(lambda graph: old / f"{graph}.onnx", 1)
        found.append(host(backend.run("t2i_step", feeds)["next_codes"]))
        model = ir.load(old / "t2i_step.onnx")
        ir.save(independent_rows(model), old / "t2i_step.onnx")
    assert seen == [1]
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.slow
def test_an_older_step_draws_masked_positions_alone_after_an_update(
    tiny_bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives the same tokens."""
    folder = tmp_path / "tiny"
    monkeypatch.setattr("export.bundle_writer.runtime_forms", lambda model, masked: runtime_forms(model, masked=False))
    random_bundle(folder, recipe="int8", text_tokenizer_path=tiny_bundles["int8"] / "tokenizer.json")
    feeds, found = feeds_of(Bundle.load(folder).configuration, [0, 1, 2]), []
    for changed in (["t2i_step"], []):
        backend = OnnxRuntimeBackend(lambda graph: folder / f"{graph}.onnx", 1)
        found.append(host(backend.run("t2i_step", feeds)["next_codes"]))
        assert update_bundle(folder) == changed
    assert any(node.op_type == "NonZero" for node in ir.load(folder / "t2i_step.onnx").graph)
    np.testing.assert_array_equal(found[0], found[1])
