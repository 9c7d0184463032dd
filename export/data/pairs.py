"""Whether both halves of a face agree: the hue of its two irises, seen without any network.

>>> mismatched(images, landmarks)       # (n,) bool: one iris looks blue and the other brown
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2edge.spec.attributes import F2EDGE_SCHEMA

#: Half width and half height of what is looked at around the center of an eye, as shares of the picture.
_REACH = (11 / 256, 7 / 256)
#: Hues in degrees by what an iris is called; the rest is brown, as skin is.
_HUES: Mapping[str, tuple[int, int]] = {"blue": (190, 250), "green": (90, 160)}
#: An iris has a hue that this share of its colored pixels has.
_SHARE = 0.08
_LEAST_SATURATION, _LEAST_VALUE = 70, 30


def iris_hue(patch: NDArray[np.uint8]) -> str:
    """What color an iris seems to have in a patch (Y, X, 3): "blue", "green" or "brown"."""
    hue, saturation, value = np.moveaxis(np.asarray(Image.fromarray(patch).convert("HSV")).astype(np.int64), -1, 0)
    degrees = hue[(saturation > _LEAST_SATURATION) & (value > _LEAST_VALUE)] * 360 / 255
    if not len(degrees):
        return "brown"
    shares = {name: float(((degrees > low) & (degrees < high)).mean()) for name, (low, high) in _HUES.items()}
    best = max(shares, key=shares.__getitem__)
    return best if shares[best] > _SHARE else "brown"


def mismatched(images: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the irises of each face differ in hue, (n,); images (n, Y, X, 3), landmarks (n, 5, 2) with the eyes first."""
    size = images.shape[1]
    across, down = (max(1, round(reach * size)) for reach in _REACH)
    found = np.zeros(len(images), bool)
    for row, (image, points) in enumerate(zip(images, landmarks, strict=True)):
        hues = []
        for x, y in points[:2].round().astype(np.int64):
            left, top = int(np.clip(x - across, 0, size - 1)), int(np.clip(y - down, 0, size - 1))
            hues.append(iris_hue(np.ascontiguousarray(image[top : y + down + 1, left : x + across + 1])))
        found[row] = hues[0] != hues[1]
    return found


def comparable(slots: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Faces (n,) of slots (n, K), -1 where hidden, that show the color of both eyes."""
    names = list(F2EDGE_SCHEMA)
    wink = F2EDGE_SCHEMA["action"].index("wink")
    shown: NDArray[np.bool_] = (slots[:, names.index("eye_color")] >= 0) & (slots[:, names.index("action")] != wink)
    return shown
