"""Real conditions for clean renders: a camera that moves, turns and zooms, dim light, blur, codecs, noise, a mirror, and things in the way.

What covers a part of the face takes the slots of that part out of the labels, and a mirror exchanges left and right; all else leaves the
labels true.

>>> seen = disturbed(images, slots, np.random.default_rng(0), regions=regions, names=REGIONS)
>>> seen.pixels.shape, seen.slots.shape
((16, 3, 128, 128), (16, 40))

Axes: B pictures, Y = X pixels, K slots, R regions, G grid cells along a side.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from export.data.pixels import to_pixels
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema

Images = NDArray[np.uint8]
Slots = NDArray[np.int8]

HIDDEN = -1
#: A slot whose places are covered by this share cannot be told any more.
COVERED = 0.5
_OCCLUDERS = 3

#: Where a slot is to be seen, by region; slots that are not named here need the whole picture and are never covered.
PLACES: Mapping[str, tuple[str, ...]] = {
    "hair_color": ("hair",), "hair_texture": ("hair",), "hairline": ("brows",), "bangs": ("brows",),
    "eyebrow_shape": ("brows",), "eyebrow_thickness": ("brows",),
    "eye_color": ("eyes",), "eye_shape": ("eyes",), "eye_bags": ("eyes",), "makeup": ("eyes",), "eyewear": ("eyes",),
    "nose_size": ("nose",), "nose_shape": ("nose",),
    "lips": ("mouth",), "lipstick": ("mouth",), "mustache": ("mouth",), "emotion": ("mouth",), "action": ("mouth",),
    "face_mask": ("mouth",), "beard": ("chin",), "chin": ("chin",),
    "sideburns": ("ears",), "earrings": ("ears",), "hat": ("hat",), "necklace": ("neck",), "necktie": ("neck",),
    "clothing_color": ("clothing",), "background": ("background",), "skin_texture": ("skin",), "cheeks": ("nose", "mouth"),
}  # fmt: skip
#: Values that a mirror exchanges.
_MIRRORED = {"head_pose": ("left", "right"), "lighting": ("left", "right")}


@dataclass(frozen=True)
class Conditions:
    """Strengths of changes to pictures; every change but the mirror has a random strength in each picture.

    Attributes:
        share: of the pictures that are changed at all (the mirror aside).
        moved: of those, the share that the camera moved.
        shift: largest move in either direction, as a share of a side.
        zoom: largest change of scale.
        turn: largest rotation in degrees.
        mirror: share of mirrored pictures.
        dark: lowest gain of the light; ``bright`` the highest.
        blur: largest standard deviation, pixels of a 128-pixel picture.
        noise: largest standard deviation of grain, pixels in [-1, 1].
        jpeg: lowest and highest quality.
        cover: largest share of the picture that lies behind something else.
        each: share of the changed pictures with each of dim light, blur, grain, JPEG.
        covered: share of the changed pictures with something in the way.
    """

    share: float = 0.7
    moved: float = 0.6
    shift: float = 0.0625
    zoom: float = 0.2
    turn: float = 20.0
    mirror: float = 0.5
    dark: float = 0.35
    bright: float = 1.25
    blur: float = 1.8
    noise: float = 0.12
    jpeg: tuple[int, int] = (25, 90)
    cover: float = 0.3
    each: float = 0.3
    covered: float = 0.25


#: For encoders and readers.
REAL = Conditions()
#: For the image tokenizer, which has to keep what it is shown: most pictures stay as they are.
MILD = Conditions(share=0.15, moved=0.8, each=0.15, covered=0.0)


@dataclass(frozen=True)
class Disturbed:
    """Changed pictures with the labels that still hold.

    Attributes:
        pixels: (B, 3, Y, X) float in [-1, 1], channels last in memory.
        slots: (B, K) int8, -1 where hidden.
        regions: (B, R, G, G) float in [0, 1], or empty.
        covered: (B, K) bool, slots that something in the way hides.
    """

    pixels: Tensor
    slots: Slots
    regions: Tensor
    covered: NDArray[np.bool_]


def disturbed(
    images: Images,
    slots: Slots,
    rng: np.random.Generator,
    conditions: Conditions = REAL,
    *,
    regions: NDArray[np.uint8] | None = None,
    names: Sequence[str] = (),
    schema: AttributeSchema = F2EDGE_SCHEMA,
) -> Disturbed:
    """Change pictures as ``conditions`` say.

    Args:
        images: (B, Y, X, 3) uint8.
        slots: (B, K), -1 where hidden.
        rng: source of all chance.
        conditions: how far.
        regions: (B, R, G, G) coverage times 255; needed where things may stand in the way.
        names: of the R regions.
        schema: of the columns of ``slots``.
    """
    B = len(images)
    pixels = to_pixels(images)
    maps = torch.zeros(B, 0, 1, 1) if regions is None else torch.from_numpy(regions.astype(np.float32) / 255)
    changed = rng.random(B) < conditions.share
    mirrored = rng.random(B) < conditions.mirror
    pixels, maps, slots = _mirror(pixels, maps, slots, mirrored, schema)
    moved = changed & (rng.random(B) < conditions.moved)
    if moved.any():
        rows = torch.from_numpy(np.flatnonzero(moved))
        matrix = _camera(len(rows), rng, conditions)
        pixels[rows] = _moved(pixels[rows], matrix, "border")
        if maps.numel():
            maps[rows] = _moved(maps[rows], matrix, "zeros")
    covered = np.zeros(slots.shape, bool)
    for row in np.flatnonzero(changed & (rng.random(B) < conditions.covered)):
        behind = _cover(pixels[row], rng, conditions.cover)
        covered[row] = _lost(maps[row], behind, names, schema)
    slots = np.where(covered, np.int8(HIDDEN), slots)
    _worsen(pixels, changed, rng, conditions)
    return Disturbed(pixels.clamp_(-1, 1).contiguous(memory_format=torch.channels_last), slots, maps, covered)


def _mirror(pixels: Tensor, maps: Tensor, slots: Slots, chosen: NDArray[np.bool_], schema: AttributeSchema) -> tuple[Tensor, Tensor, Slots]:
    rows = torch.from_numpy(np.flatnonzero(chosen))
    pixels[rows], maps[rows] = pixels[rows].flip(3), maps[rows].flip(3)
    slots = slots.copy()
    for name in set(_MIRRORED) & set(schema):
        column, slot, (left, right) = list(schema).index(name), schema[name], _MIRRORED[name]
        a, b = slot.index(left), slot.index(right)
        values = slots[:, column]
        slots[:, column] = np.where(chosen & (values == a), b, np.where(chosen & (values == b), a, values))
    return pixels, maps, slots


def _camera(count: int, rng: np.random.Generator, c: Conditions) -> Tensor:
    """Maps from places in the new picture to places in the old, (count, 2, 3), in units of half a side."""
    angle = np.radians(rng.uniform(-c.turn, c.turn, count)) * (rng.random(count) < 0.7)
    scale = 1 / (1 + rng.uniform(-c.zoom, c.zoom, count))
    matrix = np.zeros((count, 2, 3), np.float32)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale * np.cos(angle)
    matrix[:, 1, 0] = scale * np.sin(angle)
    matrix[:, 0, 1] = -matrix[:, 1, 0]
    matrix[:, :, 2] = 2 * rng.uniform(-c.shift, c.shift, (count, 2))
    return torch.from_numpy(matrix)


def _moved(values: Tensor, matrix: Tensor, padding: str) -> Tensor:
    grid = functional.affine_grid(matrix, list(values.shape), align_corners=False)
    return functional.grid_sample(values, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _cover(picture: Tensor, rng: np.random.Generator, most: float) -> Tensor:
    """Put up to three things over a picture (3, Y, X), in place; returns what they hide (Y, X) in {0, 1}."""
    size = picture.shape[-1]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    behind = np.zeros((size, size), bool)
    count = int(rng.integers(1, _OCCLUDERS + 1))
    for _ in range(count):
        area, ratio = rng.uniform(0.02, most) / count, math.exp(rng.uniform(-0.9, 0.9))
        half = np.sqrt(area * ratio) / 2, np.sqrt(area / ratio) / 2
        center, angle = rng.uniform(0.1, 0.9, 2), rng.uniform(0, math.pi)
        u = (x - center[0]) * math.cos(angle) + (y - center[1]) * math.sin(angle)
        v = (y - center[1]) * math.cos(angle) - (x - center[0]) * math.sin(angle)
        round_thing = rng.random() < 0.5
        inside = (u / half[0]) ** 2 + (v / half[1]) ** 2 < 4 / math.pi if round_thing else (abs(u) < half[0]) & (abs(v) < half[1])
        color = rng.uniform(-1, 1, (3, 1)).astype(np.float32)
        if rng.random() < 0.4:  # stripes, so that a thing in the way is not always flat
            color = color + np.where(np.sin(u[inside] * rng.uniform(40, 160)) > 0, np.float32(0.35), np.float32(-0.35))
        picture[:, torch.from_numpy(inside)] = torch.from_numpy(np.broadcast_to(color, (3, int(inside.sum()))).astype(np.float32))
        behind |= inside
    return torch.from_numpy(behind.astype(np.float32))


def _lost(maps: Tensor, behind: Tensor, names: Sequence[str], schema: AttributeSchema) -> NDArray[np.bool_]:
    """Which slots (K,) cannot be told any more when ``behind`` (Y, X) is hidden; maps (R, G, G)."""
    grid = maps.shape[-1]
    hidden = functional.adaptive_avg_pool2d(behind[None], grid)[0]
    whole = maps.sum((1, 2)).clamp(min=1e-6)
    share = dict(zip(names, ((maps * hidden).sum((1, 2)) / whole).tolist(), strict=True))
    return np.array([max((share[p] for p in PLACES.get(slot, ()) if p in share), default=0.0) > COVERED for slot in schema])


def _worsen(pixels: Tensor, changed: NDArray[np.bool_], rng: np.random.Generator, c: Conditions) -> None:
    """Light, blur, grain and codec, in place."""
    size = pixels.shape[-1]
    for row in np.flatnonzero(changed):
        dim, soft, grainy, coded = rng.random(4) < c.each
        picture = pixels[row]
        if dim:
            picture = (picture + 1) * float(rng.uniform(c.dark, c.bright)) - 1
        if soft:
            picture = _blurred(picture, float(rng.uniform(0.3, c.blur)) * size / 128)
        if grainy:
            coarse = int(rng.integers(1, 3))
            noise = rng.standard_normal((3, size // coarse, size // coarse), dtype=np.float32) * rng.uniform(0.01, c.noise)
            picture = picture + torch.from_numpy(noise.repeat(coarse, 1).repeat(coarse, 2))
        if coded:
            picture = _coded(picture, int(rng.integers(c.jpeg[0], c.jpeg[1] + 1)))
        pixels[row] = picture


def _blurred(picture: Tensor, sigma: float) -> Tensor:
    reach = max(1, math.ceil(2.5 * sigma))
    weight = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weight = (weight / weight.sum()).repeat(3, 1)
    padded = functional.pad(picture[None], (reach, reach, reach, reach), mode="replicate")
    across = functional.conv2d(padded, weight[:, None, None, :], groups=3)
    return functional.conv2d(across, weight[:, None, :, None], groups=3)[0]


def _coded(picture: Tensor, quality: int) -> Tensor:
    data: Any = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(data).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float().div_(127.5).sub_(1.0)
