"""Training of the three small encoders, together, in one pass over the rendered faces.

    python -m export train encoders --data shards/faces --out runs/encoders

The semantic encoder learns to tell every visible slot (cross entropy through :class:`~export.model.encoders.AttributeReadout`), the
identity encoder to keep a person's two pictures together and apart from all others of the batch (InfoNCE, arXiv 1807.03748, in both
directions), the region parser the share of every patch that each region covers (binary cross entropy on shares).  The run ends with
``semantic.safetensors``, ``identity.safetensors`` and ``regions.safetensors`` in its folder, and ``readout.safetensors`` for the image
tokenizer's training, all read by :func:`load_encoders`.

Axes: B batch (rows 2k and 2k + 1 are one person), K slots or regions, V values, M feature vectors of width F, G token grid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from export.data.conditions import REAL, Conditions, disturbed
from export.data.encoding import FaceSource
from export.data.pixels import to_pixels
from export.model.encoders import SIDE, AttributeReadout, IdentityEncoder, RegionParser, SemanticEncoder
from export.training.checkpoint import load_weights, save_weights, stored_json, weights_metadata
from export.training.loop import Batch, StepMetrics, TrainOptions, train
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema
from f2edge.spec.configuration import NANO, ModelConfiguration

TEMPERATURE = 0.1
_VALIDATION_CHUNK = 64
_CALIBRATION_BATCHES = 12
#: Weight of telling whether a slot is to be seen.
_SHOWN = 0.5


class FaceRows(FaceSource, Protocol):
    """The part of ``export.data.shards.FaceShards`` that is used here; rows are indices ``(n,)``."""

    def identity(self, rows: Any) -> NDArray[Any]:
        """Return person numbers ``(n,)``."""
        ...


class SemanticTraining(nn.Module):
    """The semantic encoder with the head that teaches it."""

    def __init__(self, encoder: SemanticEncoder, readout: AttributeReadout) -> None:
        super().__init__()
        self.encoder, self.readout = encoder, readout

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, 3, Y, X)`` → slot logits ``(B, K, V)``."""
        logits: Tensor = self.readout(self.encoder(pixels))
        return logits

    def both(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, 3, Y, X)`` → slot logits ``(B, K, V)``, and of whether a slot is to be seen ``(B, K)``."""
        return self.readout.both(self.encoder(pixels))


def attribute_loss(logits: Tensor, slots: Tensor) -> Tensor:
    """Mean cross entropy over the visible slots; logits ``(B, K, V)``, slots ``(B, K)`` int64 with -1 where hidden."""
    total = functional.cross_entropy(logits.flatten(0, 1), slots.flatten(), ignore_index=-1, reduction="sum")
    return total / (slots >= 0).sum().clamp(min=1)


def identity_loss(features: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """InfoNCE in both directions; features ``(B, F)`` of length 1, rows 2k and 2k + 1 one person, other pairs other persons."""
    similarity = features[0::2] @ features[1::2].T / temperature  # (B / 2, B / 2)
    target = torch.arange(len(similarity), device=features.device)
    return (functional.cross_entropy(similarity, target) + functional.cross_entropy(similarity.T, target)) / 2


def reduced(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures ``(B, Y, X, 3)`` as large as the encoders look at them, ``(B, 128, 128, 3)``; smaller ones as they are."""
    parts = images.shape[1] // SIDE
    if parts < 2:
        return images
    total: NDArray[np.uint16] = sum(
        (images[:, y::parts, x::parts].astype(np.uint16) for y in range(parts) for x in range(parts)), np.zeros((), np.uint16)
    )
    means: NDArray[np.uint8] = ((total + parts * parts // 2) // (parts * parts)).astype(np.uint8)
    return means


@dataclass(frozen=True)
class EncoderMetrics:
    """What a validation found, as shares in [0, 1]."""

    slot_accuracy: Mapping[str, float]
    retrieval: float
    region_overlap: Mapping[str, float]


class EncodersTask:
    """The task of :func:`export.training.loop.train`.

    Args:
        data: pictures in pairs; the last ``validation_rows`` of them (an even count) are kept for validation.
        batch: rows of a micro batch, even.
        conditions: how training pictures are changed.
    """

    name = "encoders"

    def __init__(
        self,
        data: FaceRows,
        batch: int,
        *,
        configuration: ModelConfiguration = NANO,
        schema: AttributeSchema = F2EDGE_SCHEMA,
        conditions: Conditions = REAL,
        validation_rows: int = 1000,
        seed: int = 0,
    ) -> None:
        if configuration.semantic is None or configuration.identity is None:
            raise InputError(f"configuration {configuration.name!r} has no encoders to train")
        self.validation_rows = validation_rows // 2 * 2
        if batch % 2 or len(data) - self.validation_rows < batch:
            raise InputError(
                f"encoders: batch {batch} must be even and fit into {len(data)} rows less {self.validation_rows} for validation"
            )
        self.data, self.rows, self.seed, self.schema = data, batch, seed, schema
        torch.manual_seed(seed)
        self.semantic = SemanticTraining(SemanticEncoder(configuration.semantic), AttributeReadout(schema, configuration.semantic))
        self.identity = IdentityEncoder(configuration.identity)
        self.regions = RegionParser(len(data.region_names), configuration.tokenizer.grid)
        self.conditions = conditions
        self.modules: Mapping[str, nn.Module] = {
            name: module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for name, module in (("semantic", self.semantic), ("identity", self.identity), ("regions", self.regions))
        }

    def batch(self, step: int, micro: int) -> Batch:
        """Random persons, both pictures of each."""
        generator = np.random.default_rng([self.seed, step, micro])
        persons = generator.choice((len(self.data) - self.validation_rows) // 2, size=self.rows // 2, replace=False)
        rows = (persons[:, None] * 2 + np.arange(2)).reshape(-1)
        images, coverage = reduced(self.data.images(rows)), self.data.regions(rows)
        seen = disturbed(
            images, self.data.slots(rows), generator, self.conditions,
            regions=coverage, names=self.data.region_names, schema=self.schema,
        )  # fmt: skip
        return {"pixels": seen.pixels, "slots": torch.from_numpy(seen.slots.astype(np.int64)), "regions": seen.regions}

    def losses(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], StepMetrics]:
        """One loss per encoder; they share nothing but the pictures."""
        del step
        (logits, shown), slots = self.semantic.both(batch["pixels"]), batch["slots"]
        visible = slots >= 0
        unsure = functional.binary_cross_entropy_with_logits(shown, visible.float())
        losses = {
            "semantic": attribute_loss(logits, slots) + _SHOWN * unsure,
            "identity": identity_loss(self.identity(batch["pixels"])[:, 0]),
            "regions": functional.binary_cross_entropy_with_logits(self.regions.logits(batch["pixels"]), batch["regions"]),
        }
        right = ((logits.detach().argmax(-1) == slots) & visible).sum() / visible.sum().clamp(min=1)
        return losses, {"slot_accuracy": right, "shown": ((shown.detach() > 0) == visible).float().mean()}

    def validate(self, model: Mapping[str, nn.Module], step: int, directory: Path) -> dict[str, float]:
        """Mean slot accuracy, retrieval and region overlap; the per-slot table goes to ``directory/encoders-STEP.json``."""
        for name in model:
            self._calibrate(model[name])
        found = self.measure()
        table = {"slot_accuracy": dict(found.slot_accuracy), "retrieval": found.retrieval, "region_overlap": dict(found.region_overlap)}
        (directory / f"encoders-{step:06d}.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
        return {
            "slot_accuracy": float(np.mean(list(found.slot_accuracy.values()))),
            "retrieval": found.retrieval,
            "region_overlap": float(np.mean(list(found.region_overlap.values()))),
        }

    def measure(self) -> EncoderMetrics:
        """Return metrics on the validation rows with the current weights of the modules."""
        first, right, seen, features = len(self.data) - self.validation_rows, 0.0, 0.0, []
        lower, upper = np.zeros(len(self.data.region_names)), np.zeros(len(self.data.region_names))
        for begin in range(first, len(self.data), _VALIDATION_CHUNK):
            rows = np.arange(begin, min(begin + _VALIDATION_CHUNK, len(self.data)))
            pixels, slots = to_pixels(reduced(self.data.images(rows))).to(next(self.identity.parameters()).device), self.data.slots(rows)
            answer = self.semantic(pixels).argmax(-1).cpu().numpy()
            right, seen = right + (answer == slots).sum(axis=0), seen + (slots >= 0).sum(axis=0)
            features.append(self.identity(pixels)[:, 0].float().cpu())
            coverage, truth = self.regions(pixels).float().cpu().numpy(), self.data.regions(rows) / 255.0
            lower += np.minimum(coverage, truth).sum(axis=(0, 2, 3))
            upper += np.maximum(coverage, truth).sum(axis=(0, 2, 3))
        persons = torch.cat(features)
        nearest = (persons[0::2] @ persons[1::2].T).argmax(dim=1)
        return EncoderMetrics(
            dict(zip(self.schema, (right / np.maximum(seen, 1)).tolist(), strict=True)),
            float((nearest == torch.arange(len(nearest))).float().mean()),
            dict(zip(self.data.region_names, (lower / np.maximum(upper, 1e-9)).tolist(), strict=True)),
        )

    def _calibrate(self, module: nn.Module) -> None:
        """Measure BatchNorm's statistics anew under the weights now in ``module``: those of training belong to other, moving weights."""
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()
        device = next(module.parameters()).device
        for index in range(_CALIBRATION_BATCHES):
            module(self.batch(2**31 + index, 0)["pixels"].to(device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


@dataclass(frozen=True)
class Encoders:
    """The three trained encoders, in eval mode, and the semantic one's readout where the run kept it."""

    semantic: SemanticEncoder
    identity: IdentityEncoder
    regions: RegionParser
    region_names: tuple[str, ...]
    readout: AttributeReadout | None = None


def write_encoders(run: Path, task: EncodersTask) -> None:
    """Take the averaged weights of a run's newest checkpoint and write one weights file per encoder beside it."""
    for name, module in task.modules.items():
        load_weights(run, module, name=name)
    metadata = {"region_names": json.dumps(list(task.data.region_names)), "grid": str(task.regions.grid)}
    semantic = task.semantic.encoder
    save_weights(run / "semantic.safetensors", semantic, {"channels": json.dumps(semantic.channels), "blocks": json.dumps(semantic.blocks)})
    save_weights(run / "readout.safetensors", task.semantic.readout, {"schema": json.dumps(task.schema.to_json())})
    save_weights(run / "identity.safetensors", task.identity)
    save_weights(run / "regions.safetensors", task.regions, metadata)


def load_encoders(directory: Path, configuration: ModelConfiguration = NANO) -> Encoders:
    """What :func:`write_encoders` wrote; a missing or unfitting file raises :class:`InputError`."""
    if configuration.semantic is None or configuration.identity is None:
        raise InputError(f"configuration {configuration.name!r} has no encoders")
    names = directory / "regions.safetensors"
    if not names.is_file():
        raise InputError(f"{directory}: no encoders here; train them: python -m export train encoders --data SHARDS --out {directory}")
    region_names = tuple(stored_json(names, "region_names", list, "the encoders' region parser"))
    widths = {
        key: tuple(stored_json(directory / "semantic.safetensors", key, list, "the semantic encoder's layers"))
        for key in ("channels", "blocks")
        if key in weights_metadata(directory / "semantic.safetensors")
    }
    semantic, identity = SemanticEncoder(configuration.semantic, **widths), IdentityEncoder(configuration.identity)
    regions = RegionParser(len(region_names), int(weights_metadata(names).get("grid", "8")))
    for name, module in (("semantic", semantic), ("identity", identity), ("regions", regions)):
        load_weights(directory / f"{name}.safetensors", module)
        module.eval()
    file = directory / "readout.safetensors"
    if not file.is_file():
        return Encoders(semantic, identity, regions, region_names)
    readout = AttributeReadout(
        AttributeSchema.from_json(stored_json(file, "schema", list, "the encoders' attribute readout")), configuration.semantic
    )
    load_weights(file, readout)
    return Encoders(semantic, identity, regions, region_names, readout.eval())


def run(data: Path, options: TrainOptions, *, configuration: ModelConfiguration = NANO, validation_rows: int = 1000) -> Path:
    """Train (or resume) on the shards in ``data`` and write the weights files; returns the run's folder."""
    from export.data.shards import FaceShards

    task = EncodersTask(FaceShards(data), options.batch, configuration=configuration, validation_rows=validation_rows, seed=options.seed)
    train(task, options)
    write_encoders(options.out, task)
    return options.out
