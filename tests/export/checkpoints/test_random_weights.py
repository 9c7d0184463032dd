"""Random weights of any size: the published layouts import, the values follow from seed and name, and a name's restored by its values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from export.checkpoints.import_showo import import_show_o
from export.checkpoints.random_weights import PooledEncoder, random_models_of, random_tensor, shortened, write_published
from export.graph.trace import restore_names
from f2edge.errors import InputError
from f2edge.spec.configuration import SHOW_O, FeatureShape
from tests.support.small_showo import SMALL


def test_the_published_layout_imports(tmp_path: Path) -> None:
    showo, magvit = write_published(tmp_path, SMALL, seed=3)
    written = import_show_o(showo, magvit, tmp_path / "ours", base=SMALL, progress=lambda _: None)
    assert [file.name for file in written] == ["unified.safetensors", "tokenizer.safetensors"]
    head = load_file(written[0])["text_head.weight"]
    assert head.dtype == torch.bfloat16
    wanted = random_tensor("showo.lm_head.weight", (SMALL.vocabulary, SMALL.width), 3)[: SMALL.text_vocabulary]
    assert torch.equal(head, wanted.to(torch.bfloat16))


def test_values_follow_from_seed_and_name_alone() -> None:
    one, two = (random_models_of(SMALL, seed=5).transformer for _ in range(2))
    assert one is not None
    assert two is not None
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert bool(torch.isfinite(a).all()), name
    assert not torch.equal(random_tensor("a.weight", (4, 4), 0), random_tensor("b.weight", (4, 4), 0))
    assert not torch.equal(random_tensor("a.weight", (4, 4), 0), random_tensor("a.weight", (4, 4), 1))


def test_a_shortened_model_keeps_its_width() -> None:
    assert shortened("show-o", 2) == replace(SHOW_O, layers=2)
    assert shortened("show-o") is SHOW_O
    for name, layers in (("show-o", 25), ("show-o", 0), ("shown-o", None)):
        with pytest.raises(InputError, match="choose"):
            shortened(name, layers)


def test_the_encoder_that_stands_in_has_the_shape_of_the_real_one() -> None:
    assert PooledEncoder(FeatureShape(256, 1024))(torch.zeros(2, 3, 256, 256)).shape == (2, 256, 1024)
    with pytest.raises(InputError, match="do not form a square grid"):
        PooledEncoder(FeatureShape(5, 8))


def test_constants_get_their_parameters_names_back_and_strangers_do_not() -> None:
    torch.manual_seed(0)
    linears = {name: nn.Linear(40, 30).requires_grad_(requires_grad=False) for name in ("one", "two")}
    module, one, two = nn.ModuleDict(linears), linears["one"].weight.numpy(), linears["two"].weight.numpy()
    altered = one.T.copy()
    altered[7, 3] += 1.0  # one value of 1200
    arrays = {"c0": one.T, "c1": two.copy(), "c2": altered}
    values = [ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name)) for name, array in arrays.items()]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 20})
    restore_names(ir.Model(graph, ir_version=10), module)
    assert [value.name for value in values] == ["one.weight.T", "two.weight", "c2"]
