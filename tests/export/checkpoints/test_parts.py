"""CLIP and AntelopeV2 at their true shapes with random weights: ours beside transformers and a plain IResNet-100, and as ONNX graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnxruntime import InferenceSession
from PIL import Image
from scipy.ndimage import map_coordinates
from skimage import data
from torch import nn

from export.checkpoints.face_inputs import ARCFACE, FACE, Resized
from export.checkpoints.parts import PartNames, open_parts, portrait_alignment
from export.graph.trace import Models, trace
from f2edge.errors import InputError
from f2edge.imaging.images import similarity
from f2edge.spec.configuration import NANO, PAPER, SHIPPED
from tests.support.plain_iresnet import IResNet


def faces(size: int) -> torch.Tensor:
    """Two squares of scikit-image's photographs, (2, 3, size, size) in [-1, 1]."""
    photographs = [getattr(data, name)() for name in ("astronaut", "cat")]
    pictures = [Image.fromarray(p).crop((60, 0, 440, 380)).resize((size, size)) for p in photographs]
    return torch.from_numpy(np.stack([np.asarray(p, np.float32).transpose(2, 0, 1) / 127.5 - 1 for p in pictures]))


def exported(graph: str, models: Models, pixels: torch.Tensor, folder: Path) -> np.ndarray:
    """Outputs of a part's ONNX graph."""
    ir.save(trace(graph, models), folder / "graph.onnx", external_data="graph.bin")
    found: np.ndarray = InferenceSession(str(folder / "graph.onnx")).run(None, {"pixels": pixels.numpy()})[0]
    return found


def worst(found: Any, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the spread of what is wanted."""
    return float((torch.as_tensor(found) - wanted).abs().max() / wanted.std())


def identity_models(folder: Path, network: nn.Module, configuration: Any = PAPER) -> Models:
    file = folder / "glintr100.onnx"
    torch.onnx.export(
        network, (torch.zeros(2, 3, FACE, FACE),), str(file), input_names=["input.1"], output_names=["683"], dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},), opset_version=18, external_data=False, verbose=False,
    )  # fmt: skip
    chosen = replace(configuration, semantic=None)
    return Models(chosen, identity=open_parts(PartNames("nano", None, None, str(file)), replace(chosen, identity=PAPER.identity)).identity)


def wanted_identity(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """A plain network on faces that scipy cuts out by ArcFace's five points."""
    size = pixels.shape[-1]
    matrix = similarity(np.array(portrait_alignment().landmarks) * (size / 128), np.array(ARCFACE))
    y, x = np.mgrid[:FACE, :FACE]
    back = np.linalg.inv(np.vstack((matrix, (0, 0, 1))))
    at = np.stack((x, y, np.ones_like(x)), -1) @ back.T
    cut = [[map_coordinates(c, (at[..., 1], at[..., 0]), order=1, mode="nearest") for c in picture] for picture in pixels.numpy()]
    with torch.inference_mode():
        found: torch.Tensor = network(torch.from_numpy(np.array(cut, np.float32)))[:, None]
    return found


def scattered(network: nn.Module) -> nn.Module:
    """Give a network's norms and slopes values as training leaves them."""
    torch.manual_seed(3)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.uniform_(part.weight, 0.5, 1.2)
            nn.init.normal_(part.bias, 0, 0.1)
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return network.eval()


def check_identity(folder: Path, network: nn.Module) -> None:
    models, pixels = identity_models(folder, network), faces(SHIPPED.tokenizer.image_size)
    assert models.identity is not None
    wanted = wanted_identity(network, pixels)
    with torch.inference_mode():
        found = models.identity(pixels)
    assert found.shape == (2, 1, 512)
    assert worst(found, wanted) <= 1e-4
    small = replace(models, configuration=replace(models.configuration, tokenizer=SHIPPED.tokenizer, identity=PAPER.identity))
    assert worst(exported("identity", small, pixels, folder), wanted) <= 1e-3


@pytest.mark.slow
def test_a_shallow_recognition_network_is_aligned_and_exported_as_it_is(tmp_path: Path) -> None:
    check_identity(tmp_path, scattered(IResNet((1, 1, 1, 1))))


@pytest.mark.long
def test_antelope_at_its_true_shape(tmp_path: Path) -> None:
    network = scattered(IResNet())
    assert sum(p.numel() for p in network.parameters()) > 65_000_000
    check_identity(tmp_path, network)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_clip_at_its_true_shape(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    shape = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224, patch_size=14
    )
    theirs: Any = CLIPVisionModel(shape)
    theirs.eval()
    for part in theirs.modules():  # the library's spread of 0.02 would hide differences behind the residual stream
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0, 0.03)
            nn.init.normal_(part.bias, 0, 0.1)
    theirs.save_pretrained(tmp_path / "clip")
    configuration = replace(PAPER, tokenizer=replace(NANO.tokenizer, image_size=256), identity=None)
    pixels = faces(256)
    names = PartNames("nano", clip=str(tmp_path / "clip"))
    clip = open_parts(names, replace(configuration, tokenizer=NANO.tokenizer)).semantic
    assert isinstance(clip, nn.Sequential)
    clip[0] = Resized(256, 224)
    pictures = [Image.fromarray(((p.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)) for p in pixels]
    channels = [[np.asarray(c.convert("F").resize((224, 224), Image.Resampling.BICUBIC)) for c in picture.split()] for picture in pictures]
    small = torch.from_numpy(np.array(channels, np.float32)).clamp(0, 255) / 255
    mean, spread = torch.tensor((0.48145466, 0.4578275, 0.40821073)), torch.tensor((0.26862954, 0.26130258, 0.27577711))
    with torch.inference_mode():
        wanted = theirs((small - mean[:, None, None]) / spread[:, None, None], output_hidden_states=True).hidden_states[-2][:, 1:]
        del theirs
        found = clip(pixels)
    assert found.shape == (2, 256, 1024)
    assert worst(found, wanted) <= 1e-4
    assert worst(exported("semantic", Models(configuration, semantic=clip), pixels, tmp_path), wanted) <= 1e-3


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has a semantic encoder; give --encoders, or --clip FOLDER"):
        open_parts(PartNames("nano"), NANO)
    with pytest.raises(InputError, match=r"gives .*vectors=64"):
        open_parts(PartNames("nano", "nano"), PAPER)
    file = tmp_path / "part.onnx"
    file.write_bytes(b"x")
    row = PartNames("nano", antelope=str(file)).to_json()
    file.write_bytes(b"y")
    with pytest.raises(InputError, match="has changed since the token cache was made"):
        PartNames.from_json(row)
