"""Pictures to codes and features, batch by batch.

Axes: B pictures of a batch, n of a shard, N image tokens, M feature vectors of width F, K slots, R regions on a grid of G, Y and X pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.data.conditions import Conditions, disturbed
from export.data.pixels import to_pixels

Array = NDArray[Any]


class FaceSource(Protocol):
    """The part of :class:`export.data.shards.FaceShards` that is used here."""

    @property
    def region_names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def images(self, rows: Any) -> NDArray[np.uint8]:
        """Return pictures ``(n, Y, X, 3)``."""
        ...

    def slots(self, rows: Any) -> NDArray[np.int8]:
        """Return value indices ``(n, K)``, -1 for hidden slots."""
        ...

    def regions(self, rows: Any) -> NDArray[np.uint8]:
        """Return coverage of cells ``(n, R, G, G)``, times 255."""
        ...


class ImageEncoder(Protocol):
    """An image tokenizer: ``encode`` takes pixels (B, 3, Y, X) in [-1, 1] to codes (B, N)."""

    def encode(self, pixels: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Encoding:
    """The networks of a cache, in eval mode on ``device``, and how they are run.

    Attributes:
        tokenizer: pixels to codes.
        semantic, identity: pixels to features (B, M, F); None where features are not stored.
        parser: pixels to the coverage of regions (B, R, G, G) in [0, 1], or None.
        batch: pictures at a time.
        bf16: run under autocast.
        device: of the networks.
        grid: G of the image tokenizer, for pictures without regions.
    """

    tokenizer: ImageEncoder
    semantic: nn.Module | None
    identity: nn.Module | None
    parser: nn.Module | None
    batch: int
    bf16: bool
    device: torch.device
    grid: int = 1

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> dict[str, Array]:
        """Return codes int16 (B, N) and features float32 (B, M, F) of pixels (B, 3, Y, X)."""
        pixels = pixels.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            found = {"codes": self.tokenizer.encode(pixels).cpu().numpy().astype(np.int16)}
            for name, network in (("semantic", self.semantic), ("identity", self.identity)):
                if network is not None:
                    found[name] = network(pixels).float().cpu().numpy()
            return found

    @torch.no_grad()
    def coverage(self, pixels: Tensor) -> NDArray[np.uint8]:
        """Return what the parser finds in pixels, times 255; no regions without one."""
        if self.parser is None:
            return np.zeros((len(pixels), 0, self.grid, self.grid), np.uint8)
        found = self.parser(pixels.to(self.device)).float().cpu().numpy()
        return np.asarray(np.rint(found.clip(0, 1) * 255), np.uint8)


def encode_faces(
    faces: FaceSource,
    rows: range,
    encode: Encoding,
    conditions: Conditions | None,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Array]:
    """Return the arrays of a shard for some rows of rendered faces; with ``conditions`` also those of each face as seen under them."""
    parts: dict[str, list[Array]] = {}
    for start in range(rows.start, rows.stop, encode.batch):
        part = np.arange(start, min(start + encode.batch, rows.stop))
        images, slots, regions = faces.images(part), faces.slots(part), faces.regions(part)
        found = {**_halved(encode(to_pixels(images))), "slots": slots, "regions": regions}
        if conditions is not None:
            rng = np.random.default_rng([seed, start])
            changed = disturbed(images, slots, rng, conditions, regions=regions, names=faces.region_names)
            found |= {f"seen_{name}": value for name, value in {**_halved(encode(changed.pixels)), "slots": changed.slots}.items()}
        for name, value in found.items():
            parts.setdefault(name, []).append(value)
        progress(int(part[-1]) + 1 - rows.start)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _halved(found: dict[str, Array]) -> dict[str, Array]:
    return {name: value.astype(np.float16) if value.dtype == np.float32 else value for name, value in found.items()}


def encode_images(images: NDArray[np.uint8], encode: Encoding) -> dict[str, Array]:
    """Return codes, features float32 and regions of pictures (n, Y, X, 3)."""
    parts: dict[str, list[Array]] = {}
    for start in range(0, len(images), encode.batch):
        pixels = to_pixels(images[start : start + encode.batch])
        for name, value in (encode(pixels) | {"regions": encode.coverage(pixels)}).items():
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in parts.items()}
