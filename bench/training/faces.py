"""Faces for the ablation: rendered, and encoded by the graphs of a bundle, so that no trained PyTorch weights are needed.

A small model learns little of a large vocabulary in minutes, so every code is cut to its :data:`BITS` bits that matter most for the
picture; the others get their most frequent value.  The ceiling of what the judge can read is measured on pictures cut in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.quality.judge import Images
from bench.results import write_json
from export.data.pixels import to_pixels
from export.data.shards import FaceShards, write_shards
from export.data.tokens import META, TokenCache, cache_tokens
from f2edge.backends.base import host
from f2edge.pipeline import FacePipeline

#: Bits of a code that the small models see.
BITS = 8
_LOOKED_AT = 48
_COARSE = "coarse.json"


@dataclass(frozen=True)
class CoarseCodes:
    """Codes cut to some of their bits.

    Attributes:
        kept: for each code of a cell, the bits that are kept, (codes per cell, BITS).
        filled: for each code of a cell, the value that all other bits get, (codes per cell,).
    """

    kept: NDArray[np.int64]
    filled: NDArray[np.int64]

    def cut(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map codes (B, N) to coarse ones in [0, 2**BITS)."""
        cells = codes.reshape(len(codes), -1, len(self.kept))
        parts = [(((cells[..., i, None] >> bits) & 1) << np.arange(BITS)).sum(-1) for i, bits in enumerate(self.kept)]
        return np.stack(parts, axis=-1).reshape(codes.shape)

    def whole(self, coarse: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map coarse codes (B, N) to codes of the bundle."""
        cells = coarse.reshape(len(coarse), -1, len(self.kept))
        parts = [(((cells[..., i, None] >> np.arange(BITS)) & 1) << bits).sum(-1) + self.filled[i] for i, bits in enumerate(self.kept)]
        return np.stack(parts, axis=-1).reshape(coarse.shape)


class BundleImages:
    """Encoding and decoding of pictures by a bundle's graphs.

    Args:
        pipeline: of the bundle.
        coarse: how codes are cut.
    """

    def __init__(self, pipeline: FacePipeline, coarse: CoarseCodes) -> None:
        self._pipeline, self.coarse = pipeline, coarse

    def encode(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, Y, X) in [-1, 1] to coarse codes (B, N)."""
        return torch.from_numpy(self.coarse.cut(_encoded(self._pipeline, pixels)))

    def pictures(self, codes: Tensor) -> Images:
        """Map coarse codes (B, N) to pictures, uint8 (B, Y, X, 3)."""
        pixels = _decoded(self._pipeline, self.coarse.whole(codes.numpy()))
        pictures: Images = np.asarray(np.rint((pixels.clip(-1, 1) + 1) * 127.5), dtype=np.uint8).transpose(0, 2, 3, 1)
        return pictures

    def again(self, images: Images) -> Images:
        """Encode, cut and decode pictures."""
        return np.concatenate([self.pictures(self.encode(to_pixels(images[i : i + 32]))) for i in range(0, len(images), 32)])


def _encoded(pipeline: FacePipeline, pixels: Tensor) -> NDArray[np.int64]:
    return np.array(host(pipeline.backend.run("image_encode", {"pixels": pixels.numpy()})["codes"]))


def _decoded(pipeline: FacePipeline, codes: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.array(host(pipeline.backend.run("image_decode", {"codes": codes})["pixels"]))


def choose_bits(pipeline: FacePipeline, pixels: Tensor) -> CoarseCodes:
    """Return the cut that keeps the bits whose loss changes pictures (B, 3, Y, X) most, each alone set to its most frequent value."""
    tokenizer = pipeline.bundle.configuration.tokenizer
    codes = _encoded(pipeline, pixels).reshape(len(pixels), -1, tokenizer.codes_per_cell)
    before, bits = _decoded(pipeline, codes.reshape(len(pixels), -1)), np.arange(tokenizer.bits)
    common = (((codes[..., None] >> bits) & 1).mean(axis=(0, 1)) >= 0.5).astype(np.int64)  # (codes per cell, bits)
    error = np.zeros(common.shape)
    for place, bit in np.ndindex(*common.shape):
        changed = codes.copy()
        changed[..., place] = changed[..., place] & ~(1 << bit) | common[place, bit] << bit
        error[place, bit] = float(((_decoded(pipeline, changed.reshape(len(pixels), -1)) - before) ** 2).mean())
    kept = np.sort(np.argsort(-error, axis=1)[:, :BITS], axis=1)
    left = np.array([[bit not in row for bit in bits] for row in kept])
    return CoarseCodes(kept, (common * left << bits).sum(axis=1))


class _Features(nn.Module):
    """One encoder of a bundle as a PyTorch module."""

    def __init__(self, pipeline: FacePipeline, name: str) -> None:
        super().__init__()
        self._run: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda pixels: np.array(
            host(pipeline.backend.run(name, {"pixels": pixels})["features"])
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, Y, X) in [-1, 1] to features (B, M, F)."""
        return torch.from_numpy(self._run(pixels.numpy()))


def cached_faces(pipeline: FacePipeline, count: int, folder: Path) -> tuple[TokenCache, BundleImages]:
    """Return ``count`` faces of the training split as coarse codes and features; made in ``folder`` where they are not there."""
    tokenizer = pipeline.bundle.configuration.tokenizer
    write_shards(folder / "faces", split="train", count=count, size=tokenizer.image_size, grid=tokenizer.grid, shard_size=min(2048, count))
    faces, tokens = FaceShards(folder / "faces", count), folder / "tokens"
    if not (folder / _COARSE).is_file():
        found = choose_bits(pipeline, to_pixels(faces.images(np.arange(min(_LOOKED_AT, count)))))
        write_json({"kept": found.kept.tolist(), "filled": found.filled.tolist()}, folder / _COARSE)
    row = json.loads((folder / _COARSE).read_text(encoding="utf-8"))
    images = BundleImages(pipeline, CoarseCodes(np.array(row["kept"]), np.array(row["filled"])))
    if not (tokens / META).is_file():
        cache_tokens(faces, images, _Features(pipeline, "semantic"), _Features(pipeline, "identity"), tokens, bf16=False)
    return TokenCache(tokens), images
