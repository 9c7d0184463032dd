"""Reading under conditions that pictures meet: analysis of changed renders with its calibration, and unknown pictures told from faces.

The changes are made by OpenCV and Pillow, not by the code that changes pictures in training.  Axes: n pictures, K slots.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import mannwhitneyu

from bench.quality import scores
from bench.quality.faces import HeldOutFaces, progress
from bench.quality.judge import Images
from bench.quality.quality import Bench, as_images
from bench.results import Results
from f2edge.errors import InputError

Picture = NDArray[np.uint8]
Change = Callable[[Picture, np.random.Generator], Picture]

_BINS = 15
#: Shares of a side.
_SHIFT, _COVER = 8 / 128, 0.3
_MIRRORED = {"head_pose": ("left", "right"), "lighting": ("left", "right")}


def _moved(picture: Picture, *, zoom: float = 1.0, degrees: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> Picture:
    side = picture.shape[0]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), degrees, zoom)
    matrix[:, 2] += np.array(shift) * side
    moved = cv2.warpAffine(
        picture, matrix, (side, side), flags=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(moved, dtype=np.uint8)


def _shifted(picture: Picture, rng: np.random.Generator) -> Picture:
    x, y = [(1, 0), (-1, 0), (0, 1), (0, -1)][int(rng.integers(4))]
    return _moved(picture, shift=(x * _SHIFT, y * _SHIFT))


def _jpeg(picture: Picture, quality: int) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _grain(picture: Picture, rng: np.random.Generator) -> Picture:
    noisy = picture + rng.normal(0.0, 15.0, picture.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def _scaled(picture: Picture, sigma: float) -> Picture:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma * picture.shape[0] / 128), dtype=np.uint8)


CHANGES: Mapping[str, Change] = {
    "clean": lambda picture, _: picture,
    "shifted by 8 of 128": _shifted,
    "zoom 1.2": lambda picture, _: _moved(picture, zoom=1.2),
    "zoom 0.8": lambda picture, _: _moved(picture, zoom=0.8),
    "turned by 10°": lambda picture, rng: _moved(picture, degrees=float(rng.choice((-10, 10)))),
    "turned by 20°": lambda picture, rng: _moved(picture, degrees=float(rng.choice((-20, 20)))),
    "dark, 0.4 of the light": lambda picture, _: (picture * 0.4).astype(np.uint8),
    "blurred by 2 of 128": lambda picture, _: _scaled(picture, 2.0),
    "mirrored": lambda picture, _: np.ascontiguousarray(picture[:, ::-1]),
    "JPEG of quality 30": lambda picture, _: _jpeg(picture, 30),
    "grain": _grain,
}


def robustness(bench: Bench) -> Results:
    """Analyze half of ``images`` faces under each of :data:`CHANGES`, and behind a bar that covers 30 %."""
    faces = bench.faces[: max(bench.images // 2, 1)]
    table: dict[str, dict[str, float]] = {}
    for name, change in CHANGES.items():
        rng = np.random.default_rng([bench.seed, len(table)])
        changed = np.stack([change(picture, rng) for picture in faces.images])
        table[name] = _read(bench, changed, _mirrored(faces.slots, bench) if name == "mirrored" else faces.slots, name)
    images, truth = covered(faces, bench)
    table["30 % covered"] = _read(bench, images, truth, "covered")
    return {
        "faces": len(faces),
        "clean": table["clean"]["accuracy"],
        "weakest": min(row["accuracy"] for row in table.values()),
        "largest_calibration_error": max(row["calibration_error"] for row in table.values()),
        "by_condition": table,
    }


def _read(bench: Bench, images: Images, truth: NDArray[np.int8], name: str) -> dict[str, float]:
    reports = [bench.pipeline.analyze(image)[0] for image in progress(as_images(images), name, len(images))]
    answers = scores.mention_table([report.best for report in reports], bench.schema)
    sure = np.array([[max(report.probabilities[slot].values()) for slot in bench.schema] for report in reports])
    given = truth >= 0
    return {
        "accuracy": float(np.mean(list(scores.balanced_accuracies(answers, truth, bench.schema).values()))),
        "calibration_error": calibration_error(sure[given], (answers == truth)[given]),
    }


def calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error of answers, ``(n,)`` each, over 15 bins of equal width (arXiv 1706.04599)."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [abs(float(confidence[bins == b].mean() - right[bins == b].mean())) * (bins == b).mean() for b in np.unique(bins)]
    return float(np.sum(gaps))


def _mirrored(truth: NDArray[np.int8], bench: Bench) -> NDArray[np.int8]:
    """Exchange left and right in the labels."""
    result: NDArray[np.int8] = truth.copy()
    for column, (name, slot) in enumerate(bench.schema.items()):
        if name in _MIRRORED:
            one, other = (slot.index(value) for value in _MIRRORED[name])
            result[truth[:, column] == one, column], result[truth[:, column] == other, column] = other, one
    return result


def covered(faces: HeldOutFaces, bench: Bench) -> tuple[Images, NDArray[np.int8]]:
    """Return the faces behind a bar of one color, and the labels of what it leaves in sight.

    A slot is left out where the bar touches one of the regions that show it, or where no region of the bundle does.
    """
    from export.data.conditions import PLACES

    places = {slot: PLACES.get(slot, ()) for slot in bench.schema}
    named = {place for where in places.values() for place in where} & set(bench.pipeline.bundle.regions)
    images, truth, side = faces.images.copy(), faces.slots.copy(), faces.images.shape[1]
    for row, face in enumerate(progress(as_images(faces.images), "covered", len(faces))):
        bar, rng = _bar(side, np.random.default_rng([bench.seed, row, 30])), np.random.default_rng([bench.seed, row, 31])
        images[row][bar] = rng.integers(0, 256, 3)
        pixels = bench.pipeline.pixels(face)
        hidden = {place for place in named if _touches(bar, bench.pipeline.cells(place, face.size, pixels))}
        for column, where in enumerate(places.values()):
            if hidden & set(where) or not named >= set(where):
                truth[row, column] = -1
    return images, truth


def _bar(side: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return an upright or a level bar (Y, X) of 30 % of a picture."""
    bar, width = np.zeros((side, side), dtype=bool), round(side * _COVER)
    at = int(rng.integers(side - width + 1))
    bar[:, at : at + width] = True
    return bar if rng.random() < 0.5 else bar.T


def _touches(bar: NDArray[np.bool_], cells: NDArray[np.bool_]) -> bool:
    size = bar.shape[0] // cells.shape[0]
    return bool((np.kron(cells, np.ones((size, size), dtype=bool)) & bar).any())


def domain(bench: Bench) -> Results:
    """Tell held-out renders from noise, textures and photographs by the score of unfamiliar pictures.

    Raises:
        InputError: scikit-image, whose pictures these are, is not installed.
    """
    faces = bench.faces[: max(bench.images // 5, 2)]
    known = _unfamiliar(bench, faces.images)
    if known is None:
        return {"faces": len(faces), "scored": False}
    table = {}
    for name, images in unknown_pictures(faces.images.shape[1], bench.seed).items():
        score = _unfamiliar(bench, images)
        assert score is not None
        auroc = mannwhitneyu(score, known).statistic / (len(score) * len(known))
        table[name] = {"auroc": float(auroc), "above_half": float((score > 0.5).mean()), "pictures": len(score)}
    return {"faces": len(faces), "scored": True, "faces_above_half": float((known > 0.5).mean()),
            "weakest": min(row["auroc"] for row in table.values()), "by_kind": table}  # fmt: skip


def _unfamiliar(bench: Bench, images: Images) -> NDArray[np.float64] | None:
    scored = [bench.pipeline.analyze(image)[0].unfamiliar for image in as_images(images)]
    return None if any(score is None for score in scored) else np.array(scored, dtype=np.float64)


#: Of scikit-image, by kind; they come with the package.
_PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "horse", "moon", "page", "rocket", "text")
_TEXTURES = ("brick", "grass", "gravel")


def unknown_pictures(side: int, seed: int) -> dict[str, Images]:
    """Return uint8 pictures (n, Y, X, 3) of no drawn face, by kind."""
    try:
        from skimage import data
    except ImportError:
        raise InputError('the section "domain" needs scikit-image; install it: pip install "f2edge[bench]"') from None
    rng = np.random.default_rng([seed, 7])
    noise = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(8)]
    noise += [_scaled(picture, sigma) for picture in noise for sigma in (1.0, 4.0)]
    return {
        "noise": np.stack(noise),
        "textures": _crops([getattr(data, name)() for name in _TEXTURES], side, rng),
        "photographs": _crops([getattr(data, name)() for name in _PHOTOGRAPHS], side, rng),
    }


def _crops(pictures: list[NDArray[np.generic]], side: int, rng: np.random.Generator) -> Images:
    """Return four square crops of each picture, of half its shorter side to all of it."""
    crops = []
    for picture in pictures:
        rgb = Image.fromarray(np.asarray(picture)).convert("RGB")
        for _ in range(4):
            size = int(rng.integers(min(rgb.size) // 2, min(rgb.size) + 1))
            left, top = (int(rng.integers(length - size + 1)) for length in rgb.size)
            crops.append(np.asarray(rgb.crop((left, top, left + size, top + size)).resize((side, side), Image.Resampling.LANCZOS)))
    return np.stack(crops)
