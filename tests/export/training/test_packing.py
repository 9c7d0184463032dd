"""Weights in pieces: halved, cut, joined."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.training.checkpoint import weights_metadata
from export.training.packing import pack, unpack
from f2edge.errors import InputError

LARGEST = 20_000


def weights(path: Path) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layer.{k}.weight": torch.randn(40, 50, generator=generator) for k in range(12)} | {"count": torch.tensor([7])}
    save_file(tensors, str(path), {"configuration": "{}"})
    return tensors


def test_files_stay_below_the_limit_and_join_to_what_they_were(tmp_path: Path) -> None:
    tensors = weights(tmp_path / "big.safetensors")
    save_file({"a": torch.ones(3)}, str(tmp_path / "small.safetensors"), {"who": "me"})
    written = pack([tmp_path / "big.safetensors", tmp_path / "small.safetensors"], tmp_path / "packed", LARGEST)
    assert len(written) > 2
    assert all(path.stat().st_size <= LARGEST for path in written)
    assert (tmp_path / "packed" / "small.safetensors").is_file()
    joined = unpack(tmp_path / "packed", tmp_path / "out")
    assert sorted(path.name for path in joined) == ["big.safetensors", "small.safetensors"]
    again = load_file(str(tmp_path / "out" / "big.safetensors"))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], t.half().float() if t.is_floating_point() else t) for name, t in tensors.items())
    assert weights_metadata(tmp_path / "out" / "big.safetensors") == {"configuration": "{}"}


def test_a_missing_part_or_an_oversized_tensor_is_named(tmp_path: Path) -> None:
    weights(tmp_path / "big.safetensors")
    with pytest.raises(InputError, match="alone takes"):
        pack([tmp_path / "big.safetensors"], tmp_path / "packed", 3000)
    written = pack([tmp_path / "big.safetensors"], tmp_path / "packed", LARGEST)
    written[1].unlink()
    with pytest.raises(InputError, match=written[1].name):
        unpack(tmp_path / "packed", tmp_path / "out")
    with pytest.raises(InputError, match="no packed weights"):
        unpack(tmp_path / "none", tmp_path / "out")
