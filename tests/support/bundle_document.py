"""A small valid manifest and its folder, without any trained part: what bundle tests damage in every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from f2edge.bundle.bundle import write_manifest
from f2edge.spec.attributes import F2EDGE_SCHEMA
from f2edge.spec.configuration import NANO
from f2edge.spec.graphs import SIGNATURES, Tensor
from f2edge.spec.layout import TokenLayout

REGIONS = ["hair", "eyes"]


def port(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": [3 if axis == "3" else axis for axis in tensor.axes]}


def document() -> dict[str, Any]:
    """Every graph of the contract, with dynamic axes everywhere; one file for all graphs."""
    return {
        "name": "paper-cup",
        "model": NANO.to_json(),
        "layout": TokenLayout.of(NANO, 0, 1).to_json(),
        "attributes": F2EDGE_SCHEMA.to_json(),
        "regions": list(REGIONS),
        "alignment": {"landmarks": [[40, 50], [88, 50], [64, 70], [46, 92], [82, 92]], "margins": [0.2, 0.3, 0.2, 0.1]},
        "generation": {"steps": 12, "guidance": 2.0, "temperature_law": "linear", "temperature": 2.0, "order": "maskgit"},
        "smoke": {"prompt": "a face", "seed": 7, "codes": [5] * NANO.image_tokens, "agreement": 0.5},
        "graphs": {
            name: {
                "file": "graphs/all.onnx",
                "inputs": [port(t) for t in signature.inputs],
                "outputs": [port(t) for t in signature.outputs],
                "precision": "int8",
                "recipe": {"weights": "per channel"},
            }
            for name, signature in SIGNATURES.items()
        },
        "description": "An example.",
        "quality": {"judge": 0.9},
    }


def write_folder(folder: Path) -> Path:
    """The bundle on disk: a graph file, weights and a tokenizer of nonsense bytes."""
    (folder / "graphs").mkdir(parents=True)
    (folder / "graphs" / "all.onnx").write_bytes(bytes(range(256)) * 4)
    (folder / "weights.bin").write_bytes(b"\x01\x02" * 4096)
    (folder / "tokenizer.json").write_text("{}")
    write_manifest(folder, document())
    return folder
