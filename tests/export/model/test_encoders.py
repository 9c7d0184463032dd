"""The three encoders: shapes, folding, losses against slow references, and a short training on painted squares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.data.conditions import Conditions
from export.data.pixels import to_pixels
from export.model.encoders import (
    AttributeReadout,
    IdentityEncoder,
    RegionParser,
    SemanticEncoder,
    attribute_reader,
    folded,
    perceptual_features,
)
from export.training.encoders import (
    EncodersTask,
    attribute_loss,
    identity_loss,
    load_encoders,
    reduced,
    write_encoders,
)
from export.training.loop import TrainOptions, train
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema, Slot
from f2edge.spec.configuration import NANO, FeatureShape

assert NANO.semantic is not None
assert NANO.identity is not None
SEMANTIC, IDENTITY = NANO.semantic, NANO.identity

SCHEMA = AttributeSchema(
    [Slot("paper", ("red", "blue"), "which color?", "test"), Slot("place", ("left", "middle", "right"), "where is the square?", "test")]
)


class Squares:
    """Pictures of a bright square on colored paper; a person is the color of the stripe at the top."""

    region_names = ("square", "stripe")

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(5)
        self._slots: NDArray[np.int8] = np.stack([generator.integers(0, 2, count), generator.integers(0, 3, count)], axis=1).astype(np.int8)
        self._slots[::7, 0] = -1
        self._identity: NDArray[np.int64] = np.arange(count) // 2
        stripes = generator.integers(0, 256, (count // 2, 8, 3), dtype=np.uint8)
        self._images: NDArray[np.uint8] = np.zeros((count, 128, 128, 3), np.uint8)
        self._regions: NDArray[np.uint8] = np.zeros((count, 2, 8, 8), np.uint8)
        for row in range(count):
            self._images[row] = ((150, 20, 20), (20, 20, 150), (20, 150, 20))[self._slots[row, 0]]
            self._images[row, :16] = np.repeat(stripes[row // 2], 16, axis=0)[None]
            left = 16 + 32 * int(self._slots[row, 1])
            self._images[row, 64:96, left : left + 32] = 240
            self._regions[row, 0, 4:6, left // 16 : left // 16 + 2] = 255
            self._regions[row, 1, 0] = 255

    def __len__(self) -> int:
        return len(self._images)

    def images(self, rows: Any) -> NDArray[np.uint8]:
        return np.asarray(self._images[rows])

    def slots(self, rows: Any) -> NDArray[np.int8]:
        return np.asarray(self._slots[rows])

    def regions(self, rows: Any) -> NDArray[np.uint8]:
        return np.asarray(self._regions[rows])

    def identity(self, rows: Any) -> NDArray[Any]:
        return np.asarray(self._identity[rows])


@pytest.fixture(scope="module")
def warm_encoder() -> SemanticEncoder:
    """An encoder whose BatchNorm statistics and scales are no longer the initial ones."""
    torch.manual_seed(0)
    encoder = SemanticEncoder(SEMANTIC)
    for norm in (m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.2, 0.2)
    encoder.train()
    with torch.no_grad():
        for _ in range(3):
            encoder(torch.rand(4, 3, 128, 128) * 2 - 1)
    return encoder.eval()


def test_outputs_have_the_shapes_of_the_configuration() -> None:
    pixels = torch.rand(2, 3, 128, 128) * 2 - 1
    semantic = SemanticEncoder(SEMANTIC).eval()(pixels)
    identity = IdentityEncoder(IDENTITY).eval()(pixels)
    coverage = RegionParser(5).eval()(pixels)
    assert semantic.shape == (2, SEMANTIC.vectors, SEMANTIC.width)
    assert identity.shape == (2, 1, IDENTITY.width)
    assert coverage.shape == (2, 5, 8, 8)
    torch.testing.assert_close(semantic.mean(-1), torch.zeros(2, 64), atol=1e-5, rtol=0)
    torch.testing.assert_close(identity.norm(dim=-1), torch.ones(2, 1))
    assert 0 <= float(coverage.min()) <= float(coverage.max()) <= 1


def test_a_grid_that_differs_from_the_configuration_is_refused() -> None:
    with pytest.raises(InputError, match="16 vectors"):
        SemanticEncoder(FeatureShape(64, 128))(torch.zeros(1, 3, 64, 64))
    with pytest.raises(InputError, match="one vector"):
        IdentityEncoder(FeatureShape(2, 64))


def test_folding_batch_norm_keeps_the_outputs(warm_encoder: SemanticEncoder) -> None:
    pixels = torch.rand(3, 3, 128, 128) * 2 - 1
    plain = folded(warm_encoder)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in plain.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in warm_encoder.modules())
    torch.testing.assert_close(plain(pixels), warm_encoder(pixels), atol=2e-4, rtol=1e-3)


def test_perceptual_features_send_gradients_to_pixels_only(warm_encoder: SemanticEncoder) -> None:
    features = perceptual_features(warm_encoder)
    pixels = (torch.rand(2, 3, 128, 128) * 2 - 1).requires_grad_()
    maps = features(pixels)
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 64, 64), (56, 32, 32), (112, 16, 16), (192, 8, 8)]
    torch.stack([m.square().mean() for m in maps]).sum().backward()  # type: ignore[no-untyped-call]
    assert pixels.grad is not None
    assert float(pixels.grad.abs().min(dim=1).values.max()) > 0
    assert all(p.grad is None for p in warm_encoder.parameters())
    for ours, theirs in zip(maps, warm_encoder.trunk.maps(pixels), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


def test_readout_gives_no_chance_to_values_a_slot_lacks() -> None:
    readout = AttributeReadout(F2EDGE_SCHEMA, SEMANTIC)
    chances = torch.softmax(readout(torch.randn(2, 64, 128)), dim=-1)
    for k, slot in enumerate(F2EDGE_SCHEMA.values()):
        assert float(chances[:, k, len(slot.values) :].sum()) == 0
        assert float(chances[:, k, : len(slot.values)].min()) > 0


def test_attribute_loss_is_the_mean_over_visible_slots() -> None:
    logits = torch.randn(4, 3, 5)
    slots = torch.tensor([[0, 1, -1], [4, -1, -1], [2, 2, 2], [-1, -1, 3]])
    slow = [-float(logits[b, k].log_softmax(-1)[slots[b, k]]) for b in range(4) for k in range(3) if slots[b, k] >= 0]
    assert float(attribute_loss(logits, slots)) == pytest.approx(sum(slow) / len(slow), rel=1e-5)
    assert float(attribute_loss(logits, torch.full((4, 3), -1))) == 0


def test_identity_loss_against_a_slow_reference() -> None:
    features = torch.nn.functional.normalize(torch.randn(6, 8), dim=-1)
    slow = 0.0
    for person in range(3):
        for anchor, others in ((features[2 * person], features[1::2]), (features[2 * person + 1], features[0::2])):
            weights = [float(torch.exp(anchor @ other / 0.1)) for other in others]
            slow -= np.log(weights[person] / sum(weights)) / 6
    assert float(identity_loss(features, 0.1)) == pytest.approx(slow, rel=1e-4)


@pytest.mark.parametrize(("size", "grid"), [(128, 8), (256, 16)])
def test_larger_pictures_are_read_by_their_means(size: int, grid: int) -> None:
    parser, encoder = RegionParser(3, grid).eval(), SemanticEncoder(SEMANTIC).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    assert parser(to_pixels(images)).shape == (2, 3, grid, grid)
    torch.testing.assert_close(encoder(to_pixels(images)), encoder(to_pixels(reduced(images))), atol=0.05, rtol=0)  # uint8 rounds the means


def test_the_readout_says_apart_from_values_what_is_to_be_seen() -> None:
    readout, features = AttributeReadout(SCHEMA, SEMANTIC), torch.randn(2, 64, 128)
    values, shown = readout.both(features)
    assert torch.equal(values, readout(features))
    assert shown.shape == (2, len(SCHEMA))


@pytest.mark.slow
def test_training_learns_squares_and_the_written_encoders_say_the_same(tmp_path: Path) -> None:
    data = Squares(96)
    still = Conditions(share=0.3, mirror=0.0, moved=0.0, covered=0.0)  # places are named
    task = EncodersTask(data, 16, schema=SCHEMA, conditions=still, validation_rows=32)
    options = TrainOptions(out=tmp_path, steps=30, batch=16, learning_rate=3e-3, warmup=5, ema=0.8, log_every=0, bf16=False)
    train(task, options)
    write_encoders(tmp_path, task)
    table = json.loads(next((tmp_path / "samples").glob("encoders-*.json")).read_text())
    assert table["slot_accuracy"]["paper"] >= 0.9
    assert table["slot_accuracy"]["place"] >= 0.9
    assert table["retrieval"] >= 0.3  # chance: 1 of 16
    assert min(table["region_overlap"].values()) >= 0.5
    loaded, pixels = load_encoders(tmp_path), torch.rand(2, 3, 128, 128)
    assert loaded.region_names == data.region_names
    task.semantic.eval()
    task.regions.eval()
    torch.testing.assert_close(loaded.semantic(pixels), task.semantic.encoder(pixels))
    assert loaded.readout is not None
    read = attribute_reader(loaded.semantic, loaded.readout)
    torch.testing.assert_close(read(pixels), task.semantic(pixels), atol=1e-4, rtol=1e-4)
    wanted = pixels.clone().requires_grad_()
    torch.autograd.backward(read(wanted)[:, 0, 0].sum())
    assert wanted.grad is not None
    assert wanted.grad.abs().sum() > 0
    (tmp_path / "readout.safetensors").unlink()
    assert load_encoders(tmp_path).readout is None, "runs of before had none"
    torch.testing.assert_close(loaded.regions(pixels), task.regions(pixels))


def test_no_encoders_in_a_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="export train encoders"):
        load_encoders(tmp_path)
