"""What other people's encoders read: CLIP's size, and the 112-pixel face of ArcFace networks, out of our aligned pictures.

Both are linear maps with constant weights, so they become part of an exported graph.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from f2edge.imaging.images import similarity

FACE = 112
#: Eyes, nose tip and mouth corners of a 112-pixel face on which ArcFace networks are trained (InsightFace, ``face_align.py``).
ARCFACE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
_TEMPLATE_SIDE = 128


class Resized(nn.Module):
    """Bicubic resizing with antialiasing, as Pillow's, by one product along each axis: pixels (B, 3, Y, Y) → (B, 3, S, S)."""

    def __init__(self, size: int, wanted: int) -> None:
        super().__init__()
        one = torch.eye(size)[None, None]  # (1, 1, Y, Y): each row is one pixel
        weight = functional.interpolate(one, size=(wanted, size), mode="bicubic", antialias=True, align_corners=False)[0, 0]
        self.register_buffer("weight", weight, persistent=False)  # (S, Y)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        assert isinstance(self.weight, Tensor)
        return torch.matmul(torch.matmul(self.weight, pixels.float()), self.weight.T).clamp(-1, 1)


class FaceTo112(nn.Module):
    """The 112-pixel face of ArcFace networks, bilinear, from pictures whose landmarks lie at ``template``.

    Args:
        size: pixels along one side of the pictures.
        template: five points (5, 2) in a picture of 128 pixels, as in a bundle's ``alignment``.
        bytes_wanted: whether the network reads 0 … 255 instead of [-1, 1].
    """

    def __init__(self, size: int, template: NDArray[np.floating], bytes_wanted: bool = False) -> None:
        super().__init__()
        forward = similarity(np.asarray(template, np.float64) * (size / _TEMPLATE_SIDE), np.array(ARCFACE))
        inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
        y, x = np.mgrid[:FACE, :FACE]
        points = np.stack((x, y, np.ones_like(x)), axis=-1) @ inverse.T  # (112, 112, 2), pixel centres as whole numbers
        grid = (2 * points + 1) / size - 1
        self.register_buffer("grid", torch.from_numpy(grid.astype(np.float32))[None], persistent=False)
        self.bytes_wanted = bytes_wanted

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, Y, X) in [-1, 1] → (B, 3, 112, 112)."""
        assert isinstance(self.grid, Tensor)
        grid = self.grid.expand(pixels.shape[0], -1, -1, -1)
        face = functional.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        return (face + 1) * 127.5 if self.bytes_wanted else face
