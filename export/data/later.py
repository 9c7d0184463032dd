"""Features computed while training, from pictures in the cache, where storing them takes too much room."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from export.data.cache_format import Lines
from export.data.pixels import to_pixels
from f2edge.spec.configuration import ModelConfiguration

#: JPEG quality of the pictures, 4:4:4; a fifth of the bytes of the pixels.
QUALITY = 95


def packed(image: NDArray[np.uint8]) -> bytes:
    """Return a picture (Y, X, 3) as JPEG."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=QUALITY, subsampling=0)
    return data.getvalue()


class LaterFeatures:
    """Semantic features (n, M, F) float16 by rows, computed by the encoder that the cache names, on a GPU if there is one."""

    def __init__(self, crops: Lines, count: int, about: Mapping[str, Any]) -> None:
        self._crops, self._about = crops, about
        self._encoder: Any = None
        shape = ModelConfiguration.from_json(about["configuration"]).semantic
        assert shape is not None
        self.shape, self.dtype = (count, shape.vectors, shape.width), np.dtype(np.float16)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.float16]:
        chosen = np.arange(len(self))[rows]
        if chosen.ndim == 0:
            first: NDArray[np.float16] = self[chosen.reshape(1)][0]
            return first
        if not len(chosen):
            return np.empty((0, *self.shape[1:]), np.float16)
        images = np.stack([np.asarray(Image.open(io.BytesIO(self._crops[int(row)])), np.uint8) for row in chosen])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found = self._network(device)(to_pixels(images).to(device))
        return np.asarray(found.float().cpu().numpy(), np.float16)

    def _network(self, device: torch.device) -> torch.nn.Module:
        if self._encoder is None:
            from export.checkpoints.parts import PartNames, open_parts

            names, shape = PartNames.from_json(self._about["parts"]), ModelConfiguration.from_json(self._about["configuration"])
            self._encoder = open_parts(names, shape).semantic
            assert self._encoder is not None
            self._encoder.to(device)
        network: torch.nn.Module = self._encoder
        return network
