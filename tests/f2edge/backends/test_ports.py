"""Caches layer by layer: stacked arrays are cut into views, outputs become one value, and callers see the signature's names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from f2edge.backends.base import Value, host
from f2edge.backends.ports import SCORED, Layers, Ports, columns

pytestmark = pytest.mark.runtime


def session(inputs: list[str], outputs: list[str]) -> Any:
    named = [[SimpleNamespace(name=name) for name in names] for names in (inputs, outputs)]
    metadata = SimpleNamespace(custom_metadata_map={})
    return SimpleNamespace(get_inputs=lambda: named[0], get_outputs=lambda: named[1], get_modelmeta=lambda: metadata)


PORTS = Ports.of(session(["text_ids", "key.0", "key.1", SCORED], ["logits", "next.0", "next.1"]))


def test_stacked_caches_are_cut_without_a_copy_and_outputs_are_joined() -> None:
    stacked, ids = np.arange(24.0).reshape(2, 1, 2, 3, 2), np.array([[5]])
    feeds = PORTS.feeds({"text_ids": ids, "key": stacked})
    assert set(feeds) == {"text_ids", "key.0", "key.1", SCORED}
    assert host(feeds[SCORED]).tolist() == [-1]
    assert all(np.shares_memory(host(feeds[f"key.{layer}"]), stacked) for layer in (0, 1))
    parts = [np.full((1, 2, 4, 2), layer) for layer in (0, 1)]
    found = PORTS.results({}, {"logits": np.zeros((1, 1, 7)), "next.0": parts[0], "next.1": parts[1]})
    assert (list(found), found["logits"].shape, found["next"].shape) == (["logits", "next"], (1, 7), (2, 1, 2, 4, 2))
    assert np.array_equal(host(found["next"]), np.stack(parts))
    again = PORTS.feeds({"key": found["next"], SCORED: np.array([-2, -1])})
    assert again["key.1"] is parts[1], "what a run gave goes into the next as it is"
    assert PORTS.results({SCORED: ids}, {"logits": np.zeros((1, 2, 7)), "next.0": parts[0], "next.1": parts[1]})["logits"].shape == (
        1,
        2,
        7,
    )


def test_a_graph_without_layers_is_left_alone() -> None:
    ports = Ports.of(session(["codes"], ["pixels"]))
    feeds = {"codes": np.zeros(3)}
    assert ports.feeds(feeds) == feeds
    assert ports.results(feeds, {"pixels": feeds["codes"]}) == {"pixels": feeds["codes"]}


@pytest.mark.parametrize("layered", [False, True])
def test_chosen_columns_are_views(layered: bool) -> None:
    stacked = np.arange(48.0).reshape(2, 2, 2, 3, 2)
    value: Value = Layers(list(stacked)) if layered else stacked
    found = columns(value, slice(1, 2), slice(1, None))
    assert found.shape == (2, 1, 2, 2, 2)
    assert np.array_equal(host(found), stacked[:, 1:2, :, 1:])
    assert all(np.shares_memory(host(part), stacked) for part in (found if isinstance(found, Layers) else [found]))
