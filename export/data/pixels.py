"""Conversion of pictures to tensors."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_pixels(images: NDArray[np.uint8]) -> Tensor:
    """Convert uint8 (B, Y, X, 3) to float32 (B, 3, Y, X) in [-1, 1], channels last in memory."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
