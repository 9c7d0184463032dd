"""The profile of a decoding step: every operator has a cause, and causes add up."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest

from bench.latency import causes
from bench.latency.causes import causes_of
from bench.latency.step_profile import profile
from f2edge.bundle.bundle import Bundle
from f2edge.errors import InputError


def test_operators_of_nanos_step_by_cause() -> None:
    bundle = Bundle.load("nano", verify=False)
    graph = onnx.load(str(bundle.path("t2i_step")), load_external_data=False).graph
    counts, layers = Counter(causes_of(graph)), bundle.configuration.layers
    assert counts.total() == len(graph.node)
    assert counts[causes.HEAD] == 1
    joined = 2 * layers - 1  # of the same input: queries, keys and values with the experts' hidden values; maps of the mask ratio
    assert counts[causes.PRODUCTS] == 5 * layers + 4 - joined  # and the map of bits, the noise's two, and the split of columns
    assert counts[causes.SCALES] == counts[causes.PRODUCTS] + 1, "one of each product's input, and of the head's"
    assert counts[causes.BIASES] == 0, "within the products"
    assert counts[causes.ATTENTION] == 4 * layers
    assert counts[causes.ROUTERS] == 11 * layers + 2  # and the zeros that both kinds of gates are written into


def test_a_profile_adds_up_and_refuses_fp32(tiny_bundle: object, tiny_int8_bundle: object) -> None:
    results = profile([str(tiny_int8_bundle)], 1, 2)
    (row,) = results["rows"]
    assert row["steps"] == 4
    assert row["step_ms"] > 0
    assert 0 < row["share"] < 1
    assert {cause["cause"] for cause in row["causes"]} >= {causes.PRODUCTS, causes.HEAD, causes.SAMPLING, causes.ROUTERS}
    assert sum(cause["nodes"] for cause in row["causes"]) <= row["nodes"]
    with pytest.raises(InputError, match="its decoding step is fp32"):
        profile([str(tiny_bundle)], 1, 1)
