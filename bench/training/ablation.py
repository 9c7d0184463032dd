"""Ablation of losses and experts: equal steps, equal rows and the same batches for every variant, several seeds.

    python -m bench ablation --out runs/ablation
    python -m bench ablation --variants "masked only,alpha=0.1" --seeds 5 --out runs/ablation      # adds what is missing

Faces are rendered and encoded by the bundle's own image tokenizer and encoders; each variant trains a small transformer on them.  A
folder for each variant and seed holds its run, which resumes, and ``result.json`` when it is done.  Metrics, all on faces kept back:

==============  ====================================================================================================
cross_entropy   of masked tokens, nats, mean over 25, 50, 75 and 100 % masked
hidden_75       the same at 75 % masked, where most decoding steps are
judge           judge's accuracy over attributes mentioned in held-out prompts, 12 guided steps
frechet         Fréchet distance of those pictures to renders, judge's features
slots           accuracy over the schema's questions
==============  ====================================================================================================
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.quality.faces import HeldOutFaces, Prompt, held_out_faces, held_out_prompts
from bench.quality.frechet import frechet_distance
from bench.quality.judge import Images, Judge
from bench.quality.scores import mention_table, slot_shares
from bench.results import Progress, Results, write_json
from bench.training.faces import BundleImages, cached_faces
from bench.training.variants import BASE, SMALL, Variant
from export.data.text.dialogues import TextMaker
from export.data.text.tokenizer import read_text_tokenizer
from export.data.tokens import TokenCache
from export.training.checkpoint import load_weights, save_weights
from export.training.loop import TrainOptions, train
from export.training.preview import RATIOS, sample
from export.training.unified import UnifiedTask
from f2edge.errors import InputError
from f2edge.pipeline import FacePipeline
from f2edge.spec.configuration import ModelConfiguration

#: Metric → whether more is better.
METRICS: Mapping[str, bool] = {"cross_entropy": False, "hidden_75": False, "judge": True, "frechet": False, "slots": True}
#: Faces kept back, at most an eighth of all.
KEPT = 128
_RESULT, _GROUP = "result.json", 32


@dataclass(frozen=True)
class Budget:
    """What every variant gets.

    Attributes:
        faces: rendered, the last :data:`KEPT` of which are kept back.
        steps, batch: of training; rate: peak learning rate.
        pictures: generated for the judge.
        threads: of PyTorch and of the bundle's graphs.
    """

    faces: int = 3072
    steps: int = 160
    batch: int = 32
    rate: float = 4e-3
    pictures: int = 96
    threads: int = 1

    def __post_init__(self) -> None:
        if self.faces < 64 or self.steps < 1 or self.pictures < 2:
            raise InputError(f"ablation: faces {self.faces}, steps {self.steps}, pictures {self.pictures}; need at least 64, 1 and 2")


@dataclass(frozen=True)
class Ablation:
    """What all runs share."""

    pipeline: FacePipeline
    judge: Judge
    cache: TokenCache
    images: BundleImages
    held_out: HeldOutFaces
    prompts: Sequence[Prompt]
    budget: Budget
    base: ModelConfiguration = SMALL

    @classmethod
    def prepare(cls, pipeline: FacePipeline, judge: Judge, budget: Budget, out: Path, base: ModelConfiguration = SMALL) -> Ablation:
        """Render and encode the faces into ``out``, unless that is done; a folder of another budget is refused."""
        own = {"faces": budget.faces, "steps": budget.steps, "batch": budget.batch, "rate": budget.rate, "pictures": budget.pictures}
        stored = out / "budget.json"
        if stored.is_file() and (found := json.loads(stored.read_text(encoding="utf-8"))) != own:
            raise InputError(f"{out}: holds an ablation of {found}, not of {own}; choose another folder")
        write_json(own, stored)
        torch.set_num_threads(budget.threads)
        cache, images = cached_faces(pipeline, budget.faces, out)
        faces = held_out_faces(budget.pictures, 1, pipeline.bundle.configuration.tokenizer.image_size)
        return cls(pipeline, judge, cache, images, faces, held_out_prompts(faces.visible, 1), budget, base)

    def run(self, variant: Variant, seed: int, out: Path) -> Results:
        """Train and measure one variant with one seed; a result in ``out`` is read instead, and a run that was stopped goes on."""
        result = out / _RESULT
        if result.is_file():
            found: Results = json.loads(result.read_text(encoding="utf-8"))
            return found
        budget, configuration = self.budget, variant.configuration(self.base)
        texts = TextMaker(read_text_tokenizer(self.pipeline.bundle.tokenizer_path), configuration)
        task = UnifiedTask(
            self.cache, texts, budget.batch, configuration=configuration, mixture=variant.mixture(),
            validation_rows=min(KEPT, budget.faces // 8), seed=seed,
        )  # fmt: skip
        options = TrainOptions(
            out=out / "run", steps=budget.steps, batch=budget.batch, learning_rate=budget.rate, optimizer="muon", warmup=40,
            decay_fraction=0.4, ema=0.99, bf16=False, save_every=150, log_every=50, seed=seed, threads=budget.threads, device="cpu",
        )  # fmt: skip
        last = train(task, options)
        if not json.loads((last / "state.json").read_text(encoding="utf-8"))["finished"]:
            raise KeyboardInterrupt
        load_weights(last, task.model)
        metrics = self.measured(task, out)
        row = {"variant": variant.name, "seed": seed, "parameters": sum(p.numel() for p in task.model.parameters()), **metrics}
        save_weights(out / "unified.safetensors", task.model, {"configuration": json.dumps(configuration.to_json())})
        write_json(row, result)
        shutil.rmtree(out / "run")
        return row

    @torch.no_grad()
    def measured(self, task: UnifiedTask, out: Path) -> dict[str, float]:
        """Return :data:`METRICS` of a trained model."""
        task.model.eval()
        held = task.validate(task.modules, self.budget.steps, out)
        pictures = self.drawn(task)
        return {
            "cross_entropy": float(np.mean([held[f"t2i/loss@{ratio}"] for ratio in RATIOS])),
            "hidden_75": held["t2i/loss@0.75"],
            "judge": self.judged(pictures),
            "frechet": frechet_distance(self.judge.features(pictures), self.judge.features(self.held_out.images)),
            "slots": held["slots/right"],
        }

    def judged(self, pictures: Images) -> float:
        """Return the judge's accuracy over the attributes that the prompts mention."""
        said = mention_table([prompt.mentioned for prompt in self.prompts], self.judge.schema)
        return slot_shares(self.judge.predict(pictures), said, self.judge.schema).overall

    def ceiling(self) -> dict[str, float]:
        """Return judge's accuracy and Fréchet distance of the held-out renders, encoded, cut and decoded again."""
        again = self.images.again(self.held_out.images)
        return {
            "judge": self.judged(again),
            "frechet": frechet_distance(self.judge.features(again), self.judge.features(self.held_out.images)),
        }

    def drawn(self, task: UnifiedTask) -> Images:
        """Return the model's pictures for the held-out prompts."""
        layout = task.texts.layout
        ids = [layout.prompt(task.texts.encode(prompt.text)[: layout.prompt_tokens]) for prompt in self.prompts]
        parts = [sample(task.model, layout, ids[start : start + _GROUP]) for start in range(0, len(ids), _GROUP)]
        return np.concatenate([self.images.pictures(part) for part in parts])


def run_ablation(ablation: Ablation, variants: Sequence[Variant], seeds: int, out: Path, progress: Progress) -> Results:
    """Run what is missing, seed by seed, and return the rows and their summary."""
    rows = []
    for seed in range(seeds):
        for variant in variants:
            progress(f"{variant.name}, seed {seed}")
            rows.append(ablation.run(variant, seed, out / variant.folder / f"seed-{seed}"))
    return {"ceiling": ablation.ceiling(), "rows": rows, "summary": summary(rows, [variant.name for variant in variants])}


def summary(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Results:
    """Return for each variant and metric the mean over seeds with its 95 % interval, and the difference to :data:`BASE` with its own.

    Differences are taken seed by seed: the same seed has the same batches in every variant.  Half an interval is Student's t times the
    standard error; None for a single seed.
    """
    found: Results = {}
    for name in names:
        own = {row["seed"]: row for row in rows if row["variant"] == name}
        base = {row["seed"]: row for row in rows if row["variant"] == BASE}
        found[name] = {"seeds": len(own), "parameters": next(iter(own.values()))["parameters"]}
        for metric in METRICS:
            values = np.array([row[metric] for row in own.values()])
            both = [seed for seed in own if seed in base]
            apart = np.array([own[seed][metric] - base[seed][metric] for seed in both])
            found[name][metric] = {**interval(values), "difference": interval(apart) if len(apart) and name != BASE else None}
    return found


def interval(values: NDArray[np.float64], level: float = 0.95) -> dict[str, float | None]:
    """Return the mean of some values and half its confidence interval by Student's t, None for one value."""
    from scipy import stats

    if len(values) < 2:
        return {"mean": float(values.mean()), "half": None}
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    return {"mean": float(values.mean()), "half": float(stats.t.ppf(0.5 + level / 2, len(values) - 1)) * error}
