"""How near pictures are to renders beyond attributes: kernel distance, precision, recall, a discriminator, sharpness, eyes that match.

The same figures of renders against other renders are their floor, and those of pictures that only went through the image tokenizer say how
much of the difference the tokenizer makes.  Axes: n, m pictures, F width of a feature vector.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu
from torch import Tensor, nn
from torch.nn import functional

from bench.quality.judge import Images, Judge, to_pixels
from bench.quality.quality import Bench, as_array
from bench.results import Results
from f2edge.errors import InputError

Features = NDArray[np.floating]

#: Parts of the pictures that are left out one at a time for an interval.
_PARTS = 16
_NEIGHBOURS = 3
_EPOCHS, _BATCH, _RATE = 12, 32, 2e-3
_EYES = "eye_color"
#: Values of other slots with which both eyes can be seen.
_EYES_OPEN = {"eyewear": ("none", "eyeglasses"), "action": ("none", "smile"), "head_pose": ("front",), "lighting": ("even",)}


def kernel_distance(a: Features, b: Features) -> tuple[float, float, float]:
    """Return the kernel distance of two sets (n, F) and (m, F) and its 95 % interval (KID, arXiv 1801.01401).

    The unbiased squared maximum mean discrepancy with the kernel ``(x · y / F + 1)³``, which may be slightly below 0.  The interval is by
    the jackknife, leaving out a sixteenth of both sets at a time; resampling with repetition would not do, because a row is too near to
    its own copy.

    Raises:
        InputError: fewer than four rows, or other widths.
    """
    if min(len(a), len(b)) < 4 or a.shape[1:] != b.shape[1:]:
        raise InputError(f"kernel distance: needs two sets of at least four vectors of one width, got {a.shape} and {b.shape}")
    count = min(_PARTS, len(a), len(b))
    parts = zip(*(np.array_split(np.arange(len(rows)), count) for rows in (a, b)), strict=True)
    without = np.array([discrepancy(np.delete(a, left, axis=0), np.delete(b, right, axis=0)) for left, right in parts])
    distance, reach = discrepancy(a, b), 1.96 * float(np.sqrt((count - 1) * without.var()))
    return distance, distance - reach, distance + reach


def discrepancy(a: Features, b: Features) -> float:
    """Return the unbiased squared maximum mean discrepancy of two sets with that kernel."""

    def kernel(x: Features, y: Features) -> NDArray[np.float64]:
        return np.asarray((x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1.0) ** 3)

    def within(x: Features) -> float:
        table = kernel(x, x)
        return float((table.sum() - np.trace(table)) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2.0 * float(kernel(a, b).mean())


def precision_recall(made: Features, real: Features, neighbours: int = _NEIGHBOURS) -> tuple[float, float]:
    """Return precision and recall (arXiv 1904.06991): the share of ``made`` that lies among ``real``, and the reverse.

    A vector lies among a set where it is no farther from one of its members than that member's third neighbour.
    """

    def among(points: Features, members: Features) -> float:
        radii = np.sort(cdist(members, members), axis=1)[:, neighbours]
        return float((cdist(points, members) <= radii).any(axis=1).mean())

    return among(made, real), among(real, made)


class _Discriminator(nn.Module):
    """Four strided convolutions and the mean and maximum of the last; small, so that a few hundred pictures train it."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
        super().__init__()
        before, layers = 3, list[nn.Module]()
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.BatchNorm2d(width), nn.SiLU()]
            before = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2 * before, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 128, 128) in [-1, 1] → logits (B)."""
        grid = self.layers(pixels)
        logits: Tensor = self.head(torch.cat((grid.mean(dim=(2, 3)), grid.amax(dim=(2, 3))), dim=1))
        return logits[:, 0]


def discriminator_auc(made: Images, real: Images, seed: int = 0) -> float:
    """Return how well a network that is trained on half of the pictures tells the other half apart: 0.5 not at all, 1 always.

    The mean area under the curve over both halves, each trained on the other.
    """
    halves = [(made[k::2], real[k::2]) for k in (0, 1)]
    return float(np.mean([_auc(*halves[k], *halves[1 - k], seed + k) for k in (0, 1)]))


def _auc(made: Images, real: Images, other_made: Images, other_real: Images, seed: int) -> float:
    pixels = torch.cat((to_pixels(made), to_pixels(real)))
    truth = torch.cat((torch.ones(len(made)), torch.zeros(len(real))))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = _Discriminator()
        optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=0.05)
        steps = _EPOCHS * -(-len(pixels) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        for _ in range(_EPOCHS):
            order = torch.randperm(len(pixels))
            for first in range(0, len(pixels), _BATCH):
                rows = order[first : first + _BATCH]
                batch = pixels[rows].flip(3) if torch.rand(()) < 0.5 else pixels[rows]
                loss = functional.binary_cross_entropy_with_logits(network(batch), truth[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    network.eval()
    with torch.inference_mode():
        high, low = (
            torch.cat([network(to_pixels(part[i : i + 64])) for i in range(0, len(part), 64)]) for part in (other_made, other_real)
        )
    return float(mannwhitneyu(high.numpy(), low.numpy()).statistic / (len(high) * len(low)))


def sharpness(images: Images) -> float:
    """Return the mean energy of edges, the variance of the Laplacian of the brightness, of uint8 pictures (n, Y, X, 3)."""
    return float(np.mean([cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var() for image in images]))


def unlike_eyes(images: Images, judge: Judge) -> tuple[float, int]:
    """Return the share of pictures whose eyes have two colors, and of how many: frontal faces with both eyes in sight.

    A picture's left half beside its own mirror image is a face with two left eyes; the judge reads it, and the same of the right.
    """
    names = list(judge.schema)
    answers = judge.predict(images)
    seen = np.ones(len(images), dtype=bool)
    for slot, values in _EYES_OPEN.items():
        if slot in judge.schema:
            seen &= np.isin(answers[:, names.index(slot)], [judge.schema[slot].index(value) for value in values])
    if _EYES not in judge.schema or not seen.any():
        return 0.0, 0
    half = images.shape[2] // 2
    left, right = images[seen][:, :, :half], images[seen][:, :, half:]
    colors = [judge.predict(np.concatenate(pair, axis=2)) for pair in ((left, left[:, :, ::-1]), (right[:, :, ::-1], right))]
    column = names.index(_EYES)
    return float((colors[0][:, column] != colors[1][:, column]).mean()), int(seen.sum())


def realism(bench: Bench) -> Results:
    """Compare generated faces, reconstructions and further renders with renders."""
    renders, others = bench.faces.images[: bench.images], bench.faces.images[bench.images :]
    # A reconstruction is compared with renders of other faces: beside its own original any two would look alike.
    pairs = {
        "generated": (as_array(bench.generated), renders),
        "tokenizer": (as_array(bench.reconstructed), others),
        "renders": (others, renders),
    }
    table: dict[str, dict[str, float]] = {}
    for name, (images, reference) in pairs.items():
        features, known = bench.judge.features(images), bench.judge.features(reference)
        kernel, low, high = kernel_distance(features, known)
        precision, recall = precision_recall(features, known)
        table[name] = {
            "kernel_distance": kernel, "kernel_low": low, "kernel_high": high, "precision": precision, "recall": recall,
            "discriminator_auc": discriminator_auc(images, reference, bench.seed),
            "relative_sharpness": sharpness(images) / max(sharpness(reference), 1e-9),
            "unlike_eyes": unlike_eyes(images, bench.judge)[0],
        }  # fmt: skip
    return {"pictures": len(renders), "eyes_seen": unlike_eyes(pairs["generated"][0], bench.judge)[1], "by_set": table}
