"""Weights out of a bundle: what they compute, what is exported from them again, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from export.checkpoints.from_bundle import transformer_of
from export.graph.stored_weights import stored_weight
from export.model.transformer import UnifiedTransformer
from export.quantize.quantize import quantize_columns
from export.training.start import start
from f2edge.bundle.bundle import Bundle
from f2edge.errors import InputError
from f2edge.spec.configuration import NANO, SHIPPED


@pytest.fixture(scope="module")
def nano() -> UnifiedTransformer:
    return transformer_of(Bundle.load("nano"))


def test_commands_without_a_configuration_fit_the_bundle(nano: UnifiedTransformer) -> None:
    assert nano.configuration == SHIPPED


def test_weights_quantized_again_have_the_same_codes(nano: UnifiedTransformer) -> None:
    graph = ir.load(Bundle.load("nano").path("t2i_step")).graph
    for name, inputs in (("blocks.3.attention.input.weight", 256), ("head.weight", 256)):
        stored = stored_weight(graph, name, inputs)
        assert stored is not None
        weight = nano.image_head.weight() if name == "head.weight" else nano.state_dict()[name]
        codes, scale = quantize_columns(weight.detach().numpy().T, 64)
        np.testing.assert_array_equal(codes, quantize_columns(stored.values, 64)[0])
        np.testing.assert_allclose(codes * scale, stored.values, atol=1e-6)


def test_a_training_starts_with_what_the_bundle_knows(nano: UnifiedTransformer) -> None:
    model, said = UnifiedTransformer(nano.configuration), list[str]()
    start(model, Path("nano"), lambda _: [], said.append)
    assert said == ["begins with the weights of bundle 'nano'"]
    state = nano.state_dict()
    same = {name for name, value in model.state_dict().items() if torch.equal(value, state[name])}
    assert {name.split(".sequence.")[0] for name in set(state) - same} <= {"blocks.5"}


def test_a_model_with_another_image_tokenizer_begins_with_all_but_the_picture(nano: UnifiedTransformer) -> None:
    model, said = UnifiedTransformer(NANO), list[str]()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    start(model, Path("nano"), lambda _: [], said.append)
    state, now = nano.state_dict(), model.state_dict()
    new = {name for name in now if name not in state or now[name].shape != state[name].shape}
    assert {name.split(".")[0] for name in new} == {"embedding", "image_head", "split"}
    assert all(torch.equal(now[name], first[name]) for name in new)
    assert all(torch.equal(now[name], state[name]) for name in now if name not in new and not name.startswith("blocks.5"))
    assert said[0].startswith("begins with the weights of bundle 'nano', but for embedding.")
    assert said[0].endswith(", which belong to another image tokenizer")


def test_another_configuration_is_refused() -> None:
    with pytest.raises(InputError, match=r"bundle 'nano' has another configuration than 'wide', and not in its image tokenizer alone"):
        start(UnifiedTransformer(replace(NANO, name="wide", width=512)), Path("nano"), lambda _: [], print)
