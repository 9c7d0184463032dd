"""Calibration of a bundle's probabilities: a temperature for each slot, and statistics of the training domain's pictures.

Both are fitted on held-out renders under real conditions with the exported graphs, since quantization changes probabilities.

>>> document["reading"] = fit_reading(folder, faces=512)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.data.conditions import REAL, disturbed
from export.data.outliers import outliers, shuffled
from export.data.render.renderer import REGIONS, sample_face
from export.data.shards import HIDDEN, coverage
from export.data.text.questions import CANNOT_TELL
from f2edge.backends.base import host
from f2edge.backends.onnxruntime import OnnxRuntimeBackend
from f2edge.bundle.bundle import Bundle
from f2edge.decoding.choice import tempered
from f2edge.domain import Domain
from f2edge.inference import Inference
from f2edge.questions import Questions
from f2edge.spec.attributes import AttributeSchema
from f2edge.text import TextTokenizer

DOMAIN = "domain.npy"
_FIRST_SEED = 800_000
_CHUNK = 32
_TEMPERATURES = np.geomspace(0.25, 6.0, 64)
#: Fewer faces that show a slot tell nothing of its temperature.
_LEAST_FACES = 24
_RIDGE = 0.02


@dataclass(frozen=True)
class SeenFaces:
    """Renders under real conditions: pixels (B, 3, Y, X) float32 in [-1, 1], slots (B, K) int8 with -1 where hidden, and as rendered."""

    pixels: NDArray[np.float32]
    slots: NDArray[np.int8]
    images: NDArray[np.uint8]


def seen_faces(count: int, size: int, schema: AttributeSchema, first_seed: int = _FIRST_SEED) -> SeenFaces:
    """``count`` faces that no training has seen, by seed."""
    grid, rng = 16, np.random.default_rng(first_seed)
    images = np.empty((count, size, size, 3), np.uint8)
    slots = np.full((count, len(schema)), HIDDEN, np.int8)
    regions = np.empty((count, len(REGIONS), grid, grid), np.uint8)
    for row in range(count):
        face = sample_face(first_seed + 2 * row, "train", size)
        images[row] = face.image
        regions[row] = coverage(np.stack([face.regions[name] for name in REGIONS]), grid)
        for column, (name, slot) in enumerate(schema.items()):
            if name in face.slots:
                slots[row, column] = slot.index(face.slots[name])
    parts = [
        disturbed(images[i : i + _CHUNK], slots[i : i + _CHUNK], rng, REAL, regions=regions[i : i + _CHUNK], names=REGIONS, schema=schema)
        for i in range(0, count, _CHUNK)
    ]
    return SeenFaces(np.concatenate([p.pixels.numpy() for p in parts]), np.concatenate([p.slots for p in parts]), images)


def best_temperature(probabilities: NDArray[np.float64], truth: NDArray[np.integer[Any]]) -> float:
    """The temperature under which (n, values) give the true values (n,) the highest likelihood; 1 where n is too small."""
    if len(truth) < _LEAST_FACES:
        return 1.0
    losses = []
    for temperature in _TEMPERATURES:
        chances = np.stack([tempered(row, float(temperature)) for row in probabilities])
        losses.append(-np.log(np.maximum(chances[np.arange(len(truth)), truth], 1e-12)).mean())
    return round(float(_TEMPERATURES[int(np.argmin(losses))]), 4)


def fit_temperatures(questions: Questions, schema: AttributeSchema, faces: SeenFaces) -> dict[str, float]:
    """A temperature for each slot from what ``questions``, which has none yet, reports of ``faces``."""
    reports = [questions.report(questions.inference.image_prefix(pixels), schema).probabilities for pixels in faces.pixels]
    found = {}
    for column, name in enumerate(schema):
        rows = np.flatnonzero(faces.slots[:, column] >= 0)
        table = np.array([list(reports[row][name].values()) for row in rows]).reshape(len(rows), len(schema[name].values))
        found[name] = best_temperature(table, faces.slots[rows, column])
    return found


def fit_domain(features: NDArray[np.float32], strange: NDArray[np.float32]) -> Domain:
    """Statistics from features (n, M, F) of known pictures; every other one is kept back to find where ``strange`` ones begin."""
    fitted, kept = features[::2].astype(np.float64), features[1::2]
    mean = fitted.mean(axis=0)
    away = (fitted - mean).reshape(-1, features.shape[2])
    covariance = away.T @ away / len(away)
    covariance += _RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whitening = np.linalg.cholesky(np.linalg.inv(covariance))
    domain = Domain(mean.astype(np.float32), whitening.astype(np.float32), 0.0, 1.0)
    known, unknown = (np.array([domain.distance(row) for row in rows]) for rows in (kept, strange))
    last, first = float(np.quantile(known, 0.99)), float(np.quantile(unknown, 0.01))
    center = (last + first) / 2 if first > last else last
    return Domain(domain.mean, domain.whitening, center, max(float(known.std()) / 2, 1e-3))


def fit_reading(folder: Path, faces: int = 512) -> Mapping[str, Any]:
    """The manifest's ``reading`` for a bundle whose graphs and manifest are written; adds :data:`DOMAIN` to its folder."""
    bundle = Bundle.load(folder)
    backend = OnnxRuntimeBackend(bundle.path)
    shape, schema = bundle.configuration, bundle.schema
    seen = seen_faces(faces, shape.tokenizer.image_size, schema)
    questions = Questions(Inference.of(backend, bundle), bundle, TextTokenizer(bundle.tokenizer_path))
    row: dict[str, Any] = {"temperatures": fit_temperatures(questions, schema, seen), "unsure": CANNOT_TELL}
    if shape.semantic is None:
        return row

    def features(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = [host(backend.run("semantic", {"pixels": pixels[i : i + _CHUNK]})["features"]) for i in range(0, len(pixels), _CHUNK)]
        return np.concatenate(parts).astype(np.float32)

    rng = np.random.default_rng(_FIRST_SEED)
    strange = np.concatenate((outliers(faces // 2, shape.tokenizer.image_size, rng), shuffled(seen.images[: faces // 4], rng)))
    domain = fit_domain(features(seen.pixels), features(strange.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1))
    np.save(folder / DOMAIN, domain.table())
    return {**row, "domain": {"file": DOMAIN, "center": round(domain.center, 4), "scale": round(domain.scale, 4)}}
