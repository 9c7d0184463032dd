"""Pictures without faces, which the model must not accept as faces: noise, textures, gradients, and shuffled renders.

>>> outliers(4, 128, np.random.default_rng(0)).shape
(4, 128, 128, 3)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]
_Values = NDArray[np.float64]


def _resized(values: _Values, size: int) -> _Values:
    """Values (y, x, 3) in [0, 1] stretched to ``size``."""
    small = Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float64) / 255


def _noise(size: int, rng: np.random.Generator) -> _Values:
    """White noise, or noise of one scale."""
    cells = size if rng.random() < 0.4 else int(rng.integers(4, size // 2))
    return _resized(rng.random((cells, cells, 3)), size)


def _cloud(size: int, rng: np.random.Generator) -> _Values:
    """Noise of many scales, as stone, bark or clouds have it."""
    total, roughness = np.zeros((size, size, 3)), rng.uniform(0.4, 0.9)
    tinted = rng.random() < 0.5
    for octave in range(2, size.bit_length()):
        cells = 1 << octave
        layer = _resized(rng.random((cells, cells, 3 if tinted else 1)).repeat(1 if tinted else 3, axis=2), size)
        total += roughness**octave * (layer - 0.5)
    picture: _Values = 0.5 + total / (4 * total.std() + 1e-9) * rng.uniform(0.5, 1.5)
    return picture


def _stripes(size: int, rng: np.random.Generator) -> _Values:
    """Waves in one or two directions: cloth, bricks, water."""
    y, x = np.mgrid[:size, :size] / size
    total = np.zeros((size, size))
    for _ in range(int(rng.integers(1, 4))):
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(2, 60)
        total += np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 7))
    share = ((total if rng.random() < 0.5 else np.sign(total)) / 4 + 0.5).clip(0, 1)[..., None]
    picture: _Values = share * rng.random(3) + (1 - share) * rng.random(3)
    return picture


def _shapes(size: int, rng: np.random.Generator) -> _Values:
    """Flat shapes on a gradient, drawn like a face but none."""
    y, x = np.mgrid[:size, :size] / size
    slope = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1) + 1)[..., None] / 3
    picture: _Values = slope * rng.random(3) + (1 - slope) * rng.random(3)
    for _ in range(int(rng.integers(3, 40))):
        cx, cy, rx, ry = rng.random(), rng.random(), *rng.uniform(0.01, 0.25, 2)
        far = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 if rng.random() < 0.6 else np.maximum(abs(x - cx) / rx, abs(y - cy) / ry)
        picture[far < 1] = rng.random(3)
    return picture


_KINDS: tuple[Callable[[int, np.random.Generator], _Values], ...] = (_noise, _cloud, _stripes, _shapes)


def outliers(count: int, size: int, rng: np.random.Generator) -> Picture:
    """``count`` pictures of ``size`` pixels, (count, size, size, 3) uint8, the kinds in turn."""
    pictures = [_KINDS[index % len(_KINDS)](size, rng) for index in range(count)]
    result: Picture = (np.stack(pictures).clip(0, 1) * 255).round().astype(np.uint8)
    return result


def shuffled(images: Picture, rng: np.random.Generator, parts: int = 4) -> Picture:
    """Pictures (B, Y, X, 3) cut into ``parts`` by ``parts`` tiles that changed places and turned: the right colors, no face."""
    side = images.shape[1] // parts
    result = np.empty_like(images)
    for row, image in enumerate(images):
        for place, source in enumerate(rng.permutation(parts * parts)):
            y, x, v, u = (value * side for value in (*divmod(place, parts), *divmod(int(source), parts)))
            result[row, y : y + side, x : x + side] = np.rot90(image[v : v + side, u : u + side], int(rng.integers(4)))
    return result
