"""Encoders that users bring: the right ones pass, every other file is refused with what to bring and under which licence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from export.checkpoints.external_encoders import identity_encoder, semantic_encoder
from f2edge.errors import InputError


def network(path: Path, face: list[Any], identity: list[Any]) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input.1"], ["683"])],
        "recognition",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, face)],
        [helper.make_tensor_value_info("683", TensorProto.FLOAT, identity)],
    )
    onnx.save(helper.make_model(graph), path)
    return path


@pytest.mark.parametrize("batch", [1, "None"])
def test_the_identity_network_passes(tmp_path: Path, batch: int | str) -> None:
    file = network(tmp_path / "glintr100.onnx", [batch, 3, 112, 112], [1, 512])
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    found = identity_encoder(file, sha256=digest.upper())
    assert (found.image_size, found.vectors, found.width, found.sha256) == (112, 1, 512, digest)
    assert "non-commercial" in found.licence


@pytest.mark.parametrize(
    ("face", "identity", "words"),
    [
        ([1, 3, 224, 224], [1, 512], "takes 1x3x224x224"),
        ([1, 3, 112, 112], [1, 128], "gives 1x128"),
        ([4, 3, 112, 112], [4, 512], "takes 4x3x112x112"),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, face: list[int], identity: list[int], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        identity_encoder(network(tmp_path / "x.onnx", face, identity))
    assert "must take 1x3x112x112 and give 1x512" in str(caught.value)
    assert "non-commercial" in str(caught.value)


def test_absent_damaged_and_exchanged_files_name_the_licence(tmp_path: Path) -> None:
    file = tmp_path / "glintr100.onnx"
    file.write_text("<html>sign in to download</html>")
    for path, sha256, words in (
        (None, None, "was not given"),
        (tmp_path / "nowhere.onnx", None, "no such file"),
        (file, None, "as ONNX"),
        (file, "0" * 64, "expected 0000"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            identity_encoder(path, sha256)
        assert "licence: non-commercial research only" in str(caught.value)
    with pytest.raises(InputError, match="licence: MIT"):
        semantic_encoder(None)


def clip(folder: Path, *, width: int = 1024, layers: int = 24, size: int = 224) -> Path:
    """Only what is checked, and one tensor of the text model beside it; widths beside 1024 are cheap."""
    patches = (size // 14) ** 2
    one = torch.zeros(1)
    at = "vision_model.embeddings."
    state = {
        f"{at}class_embedding": one.expand(width),
        f"{at}patch_embedding.weight": torch.zeros(width, 3, 14, 14),
        f"{at}position_embedding.weight": torch.zeros(patches + 1, width),
        "text_model.final_layer_norm.bias": torch.zeros(768),
    }
    state |= {
        f"vision_model.encoder.layers.{i}.self_attn.q_proj.weight": torch.zeros(width, width, dtype=torch.float16) for i in range(layers)
    }
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    row = {"vision_config": {"hidden_size": width, "num_hidden_layers": layers, "patch_size": 14, "image_size": size}}
    (folder / "config.json").write_text(json.dumps(row))
    return folder


@pytest.mark.parametrize(("size", "vectors"), [(224, 256), (336, 576)])
def test_clip_passes_at_both_sizes(tmp_path: Path, size: int, vectors: int) -> None:
    found = semantic_encoder(clip(tmp_path, size=size))
    assert (found.image_size, found.vectors, found.width) == (size, vectors, 1024)
    assert found.sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()


def test_other_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        semantic_encoder(tmp_path)
    with pytest.raises(InputError, match="hidden_size is 768, must be 1024; num_hidden_layers is 12, must be 24"):
        semantic_encoder(clip(tmp_path, width=768, layers=12))
    clip(tmp_path, layers=23)
    row = json.loads((tmp_path / "config.json").read_text())
    row["vision_config"]["num_hidden_layers"] = 24
    (tmp_path / "config.json").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"missing    vision_model\.encoder\.layers\.23\.self_attn\.q_proj\.weight 1024x1024") as caught:
        semantic_encoder(tmp_path)
    assert "licence: MIT" in str(caught.value)
