"""Training of the judge and its accuracy on held-out renders.

    python -m bench judge --data shards/faces --out runs/judge

Writes ``judge.safetensors`` (fp16) and ``judge.json`` with the accuracy of every slot on faces of the split "heldout", whose attribute
combinations no training picture has.  Training pictures are warped, blurred, noisy and re-exposed a little, so that the judge is robust to
the artifacts of a tokenizer.

Axes: B batch, K slots, V values, Y / X pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bench.quality.judge import Judge, JudgeNetwork, to_pixels
from export.training.checkpoint import load_weights
from export.training.loop import Batch, StepMetrics, TrainOptions, train
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema

_SEED = 0x1A57
_CALIBRATION_BATCHES = 16


class LabelledImages(Protocol):
    """Used part of ``export.data.shards.FaceShards``."""

    def __len__(self) -> int: ...

    def images(self, rows: Any) -> NDArray[np.uint8]: ...

    def slots(self, rows: Any) -> NDArray[np.int8]: ...


def disturbed(images: NDArray[np.uint8], generator: torch.Generator) -> Tensor:
    """uint8 ``(B, Y, X, 3)`` → float ``(B, 3, Y, X)`` in [-1, 1], augmented without changing any attribute.

    Warped by a smooth field (up to about 1.5 px), moved up to 4 px, mixed with a blurred copy, re-exposed by ± 7 %, noisy at two scales.
    """
    pixels = to_pixels(images)
    B, _, Y, X = pixels.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    def some(share: float) -> Tensor:
        return (torch.rand(B, 1, 1, 1, generator=generator) < share).float()

    field = functional.interpolate(uniform(B, 2, 9, 9), size=(Y, X), mode="bilinear", align_corners=True) * (2.0 / X)
    turn = uniform(B) * 0.03
    affine = torch.zeros(B, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = 1 + uniform(B) * 0.03
    affine[:, 0, 1], affine[:, 1, 0] = turn, -turn
    affine[:, :, 2] = uniform(B, 2) * (8.0 / X)
    grid = functional.affine_grid(affine, [B, 3, Y, X], align_corners=False) + (field * some(0.7)).permute(0, 2, 3, 1)
    pixels = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    blurred = functional.interpolate(functional.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear", align_corners=False)
    pixels = torch.lerp(pixels, blurred, some(0.6) * torch.rand(B, 1, 1, 1, generator=generator))
    for scale in (1, 4):
        noise = torch.randn(B, 3, Y // scale, X // scale, generator=generator) * 0.05
        pixels = pixels + functional.interpolate(noise, scale_factor=scale) * some(0.4) * torch.rand(B, 1, 1, 1, generator=generator)
    return (pixels * (1 + uniform(B, 1, 1, 1) * 0.07) + uniform(B, 1, 1, 1) * 0.05).clamp_(-1, 1)


class JudgeTask:
    """The task of :func:`export.training.loop.train`; the last ``validation_rows`` rows of the data are kept for validation."""

    name = "judge"

    def __init__(self, data: LabelledImages, batch: int, *, schema: AttributeSchema = F2EDGE_SCHEMA, validation_rows: int = 1000) -> None:
        if len(data) - validation_rows < batch:
            raise InputError(f"judge: {len(data)} rows less {validation_rows} for validation do not fill a batch of {batch}")
        self.data, self.rows, self.schema, self.validation_rows = data, batch, schema, validation_rows
        torch.manual_seed(_SEED)
        self.network = JudgeNetwork(schema)
        self.modules: Mapping[str, nn.Module] = {"judge": self.network.to(memory_format=torch.channels_last)}  # type: ignore[call-overload]

    def batch(self, step: int, micro: int) -> Batch:
        """Return random augmented rows."""
        numbers = np.random.default_rng([_SEED, step, micro])
        rows = numbers.choice(len(self.data) - self.validation_rows, size=self.rows, replace=False)
        generator = torch.Generator().manual_seed(int(numbers.integers(2**62)))
        return {
            "pixels": disturbed(self.data.images(rows), generator),
            "slots": torch.from_numpy(self.data.slots(rows).astype(np.int64)),
        }

    def losses(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], StepMetrics]:
        """Return the cross entropy over the visible slots."""
        del step
        logits, slots = self.network(batch["pixels"]), batch["slots"]
        visible = slots >= 0
        loss = functional.cross_entropy(logits.flatten(0, 1), slots.flatten(), ignore_index=-1, reduction="sum") / visible.sum().clamp(
            min=1
        )
        right = ((logits.detach().argmax(-1) == slots) & visible).sum() / visible.sum().clamp(min=1)
        return {"judge": loss}, {"slot_accuracy": right}

    def validate(self, model: Mapping[str, nn.Module], step: int, directory: Path) -> dict[str, float]:
        """Return the mean slot accuracy on the validation rows."""
        del model, step, directory
        device = next(self.network.parameters()).device
        self._calibrate(device)
        rows = np.arange(len(self.data) - self.validation_rows, len(self.data))
        answers = []
        for begin in range(0, len(rows), 64):
            logits = self.network(to_pixels(self.data.images(rows[begin : begin + 64])).to(device))
            answers.append(logits.argmax(-1).cpu().numpy())
        accuracy = slot_accuracy(np.concatenate(answers), self.data.slots(rows), self.schema)
        return {"slot_accuracy": float(np.nanmean(list(accuracy.values())))}

    def _calibrate(self, device: torch.device) -> None:
        """Recompute the BatchNorm statistics for the current (averaged) weights."""
        norms = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()
        for index in range(_CALIBRATION_BATCHES):
            self.network(self.batch(2**31 + index, 0)["pixels"].to(device))
        for norm in norms:
            norm.momentum = 0.1
            norm.eval()


def slot_accuracy(answers: NDArray[Any], slots: NDArray[Any], schema: AttributeSchema = F2EDGE_SCHEMA) -> dict[str, float]:
    """Return the share of correct answers per slot where visible, NaN where never visible; ``(n, K)`` each, ``slots`` -1 where hidden."""
    visible = slots >= 0
    right = ((answers == slots) & visible).sum(axis=0)
    with np.errstate(invalid="ignore"):
        shares = np.where(visible.any(axis=0), right / visible.sum(axis=0), np.nan)
    return dict(zip(schema, shares.tolist(), strict=True))


def write_judge(
    run: Path,
    task: JudgeTask,
    images: NDArray[np.uint8],
    slots: NDArray[np.int8],
    names: Sequence[str] = ("judge.safetensors", "judge.json"),
) -> dict[str, Any]:
    """Write the averaged weights of a run and their accuracy on held-out pictures ``(n, …)``; return the JSON report."""
    load_weights(run, task.network, name="judge")
    Judge(task.network, task.schema).save(run / names[0])
    judge = Judge.load(run / names[0])  # measured as saved, in fp16
    accuracy = slot_accuracy(judge.predict(images), slots, judge.schema)
    report = {"faces": len(images), "mean_slot_accuracy": float(np.nanmean(list(accuracy.values()))), "slot_accuracy": accuracy}
    (run / names[1]).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def run(data: Path, options: TrainOptions, held_out: int = 2000) -> dict[str, Any]:
    """Train (or resume) on the shards in ``data``, write the judge and measure it on ``held_out`` fresh held-out renders."""
    from bench.quality.faces import held_out_faces
    from export.data.shards import FaceShards

    shards = FaceShards(data)
    task = JudgeTask(shards, options.batch, validation_rows=min(1000, len(shards) // 5))
    train(task, options)
    faces = held_out_faces(held_out, seed=1)
    return write_judge(options.out, task, faces.images, faces.slots)
