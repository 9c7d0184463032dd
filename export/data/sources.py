"""Rows of a cache by range: rendered faces out of shards, and other people's pictures out of an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.data.cache_format import SCALE, quantized, relative_loss
from export.data.conditions import REAL
from export.data.encoding import Encoding, encode_faces, encode_images
from export.data.external.dataset import LIMITS
from export.data.external.faces import FaceCutter
from export.data.external.index import Index
from export.data.external.split import HASH_BYTES, picture_hash
from export.data.external.stored import content
from export.data.later import packed
from export.data.shards import FaceShards
from export.data.tokens import slot_values
from f2edge.errors import ImageError, InputError
from f2edge.imaging.guard import ImageLimits
from f2edge.imaging.images import load_image
from f2edge.spec.attributes import AttributeSchema

#: How semantic features are kept.
FEATURES = ("fp16", "int8", "later")
Array = NDArray[Any]


@dataclass(frozen=True)
class Shard:
    """What one shard holds: arrays, byte strings, skipped pictures (place, reason), and the loss of 8-bit features if it was measured."""

    arrays: dict[str, Array]
    lines: dict[str, Sequence[bytes]]
    skipped: list[tuple[str, str]]
    loss: float | None = None


class ShardSource(Protocol):
    """Rows of a data set by number."""

    def __len__(self) -> int: ...

    def shard(self, rows: range, encode: Encoding) -> Shard:
        """Return the shard of some rows."""
        ...


class RenderedRows:
    """Rendered faces, each a second time as seen under real conditions."""

    def __init__(self, data: Path, limit: int | None) -> None:
        self.faces = FaceShards(data, limit)

    def __len__(self) -> int:
        return len(self.faces)

    def shard(self, rows: range, encode: Encoding) -> Shard:
        """See :class:`ShardSource`."""
        return Shard(encode_faces(self.faces, rows, encode, REAL), {}, [])


@dataclass(frozen=True)
class OwnRows:
    """Pictures of an index with their texts.

    Attributes:
        index: of the data set.
        cut: picture to face.
        schema: of the slots that the texts may name.
        features: one of :data:`FEATURES`.
        size: pixels along one side of a face.
        limits: of a picture.
        count: how many entries of the index are used.
    """

    index: Index
    cut: FaceCutter
    schema: AttributeSchema
    features: str
    size: int
    limits: ImageLimits
    count: int

    def __len__(self) -> int:
        return self.count

    def shard(self, rows: range, encode: Encoding) -> Shard:
        """See :class:`ShardSource`; pictures that cannot be read or show no face are left out and listed."""
        images, kept, skipped = [], [], list[tuple[str, str]]()
        for entry in self.index.entries(rows.start, rows.stop):
            try:
                images.append(np.asarray(self.cut(load_image(content(entry.source), limits=self.limits))))
                kept.append(entry)
            except (ImageError, InputError) as error:
                skipped.append((entry.place, str(error)))
        if not kept:
            return Shard({}, {}, skipped)
        pictures = np.stack(images)
        found = encode_images(pictures, encode)
        loss = relative_loss(found["semantic"]) if "semantic" in found else None
        arrays: dict[str, Array] = {
            **self._kept_features(found),
            "slots": slot_values([entry.texts.slots for entry in kept], self.schema),
            "hash": hashes_of(pictures),
            "number": np.array([entry.number for entry in kept], np.int64),
        }
        lines: dict[str, Sequence[bytes]] = {"texts": [entry.texts.to_json().encode() for entry in kept]}
        if self.features == "later":
            lines["crops"] = [packed(picture) for picture in pictures]
        return Shard(arrays, lines, skipped, loss)

    def _kept_features(self, found: dict[str, Array]) -> dict[str, Array]:
        arrays = {"codes": found["codes"], "regions": found["regions"]}
        for name in ("semantic", "identity"):
            if name not in found:
                continue
            if name == "semantic" and self.features == "int8":
                arrays[name], arrays[f"{name}{SCALE}"] = quantized(found[name])
            else:
                arrays[name] = found[name].astype(np.float16)
        return arrays


def hashes_of(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the perceptual hash of each picture (n, Y, X, 3) as (n, 32)."""
    from PIL import Image

    return np.array([picture_hash(Image.fromarray(picture)) for picture in pictures], np.uint8).reshape(-1, HASH_BYTES)


def own_limits(largest_megapixels: float) -> ImageLimits:
    """Return the limits of a user's pictures."""
    from dataclasses import replace

    return replace(LIMITS, largest_pixels=int(largest_megapixels * 1e6))
