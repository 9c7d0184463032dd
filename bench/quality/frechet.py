"""Fréchet distance between two sets of feature vectors (arXiv 1706.08500, with the judge's features in place of Inception's).

    frechet_distance(judge.features(generated), judge.features(rendered))

The distance of two finite samples of one distribution is above 0, so results include the distance of two disjoint sets of renders of the
same size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from f2edge.errors import InputError

Features = NDArray[np.floating]


def gaussian_distance(mean_a: Features, covariance_a: Features, mean_b: Features, covariance_b: Features) -> float:
    """Return the squared 2-Wasserstein distance of two Gaussians: ``|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½)``.

    Means are ``(F,)``, covariances ``(F, F)``. The trace of the root is taken from ``(A C_b A)^½`` with ``A = C_a^½``: both symmetric,
    so singular covariances (fewer pictures than features) need no special treatment.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance_a, dtype=np.float64))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ np.asarray(covariance_b, dtype=np.float64) @ root)
    trace_root = np.sqrt(np.maximum(inner, 0)).sum()
    shift = np.asarray(mean_a, dtype=np.float64) - np.asarray(mean_b, dtype=np.float64)
    return max(float(shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * trace_root), 0.0)


def frechet_distance(a: Features, b: Features) -> float:
    """Return the Fréchet distance of Gaussians fitted to two sets ``(n, F)`` and ``(m, F)``; fewer rows raise :class:`InputError`."""
    if len(a) < 2 or len(b) < 2 or a.shape[1:] != b.shape[1:]:
        raise InputError(f"Fréchet distance: needs two sets of at least two vectors of one width, got {a.shape} and {b.shape}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    return gaussian_distance(a.mean(axis=0), np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False))
