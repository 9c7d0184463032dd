"""How far a picture is from all that a model was trained to read, from features that it computes anyway.

Each of the M feature vectors has a mean of its own; all share one covariance.  The score rises with the logarithm of the mean squared
Mahalanobis distance (arXiv 1807.03888), scaled so that 0.5 parts known pictures from unknown ones.

>>> domain = Domain.load(folder / "domain.npy", center=5.0, scale=0.2)
>>> domain.score(features)      # 0.02: a face that the model knows;  0.99: noise, a photograph, another drawing style
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from f2edge.errors import BundleError
from f2edge.spec.configuration import FeatureShape

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Domain:
    """Statistics of the pictures that a model knows.

    Attributes:
        mean: (M, F) float32.
        whitening: (F, F) float32; ``(features - mean) @ whitening`` has unit covariance.
        center: logarithm of the distance that scores 0.5.
        scale: width of the logistic curve around it, above 0.
    """

    mean: Features
    whitening: Features
    center: float
    scale: float

    @classmethod
    def load(cls, path: Path, shape: FeatureShape, *, center: float, scale: float) -> Domain:
        """Read the (M + F, F) float32 of :meth:`table`; what is not that raises :class:`BundleError`."""
        try:
            table = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BundleError(f"{path}: cannot be read as an array ({error}); copy or export the bundle again") from error
        if table.shape != (shape.vectors + shape.width, shape.width) or table.dtype != np.float32 or not np.isfinite(table).all():
            raise BundleError(
                f"{path}: expected finite float32 ({shape.vectors + shape.width}, {shape.width}), found {table.dtype} {table.shape}; "
                "export the bundle again"
            )
        return cls(table[: shape.vectors], table[shape.vectors :], center, scale)

    def table(self) -> Features:
        """Mean and whitening, one above the other, as they are stored."""
        return np.concatenate((self.mean, self.whitening)).astype(np.float32)

    def distance(self, features: Features) -> float:
        """Logarithm of the mean squared Mahalanobis distance of features (M, F)."""
        # One product for each vector: a larger one would wake the threads of BLAS, which costs more than all of it on a busy machine.
        away = (features.astype(np.float32) - self.mean)[:, None] @ self.whitening
        return math.log(max(float(np.square(away).sum(axis=-1).mean()), 1e-9))

    def score(self, features: Features) -> float:
        """0 … 1: how sure it is that features (M, F) are of no face that the model knows."""
        return 0.5 * (1 + math.tanh((self.distance(features) - self.center) / (2 * self.scale)))
