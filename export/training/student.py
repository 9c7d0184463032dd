"""Distillation: a student that draws without guidance, and in half as many steps, what its teacher draws with them.

    python -m export train student --teacher nano --tokens tokens/train --text tokenizer.json --out runs/student
    python -m export train student --teacher runs/student --halve 12 --tokens tokens/train --text tokenizer.json --out runs/student-6

The batches, losses and loop are those of the unified model; the frozen teacher adds the divergence of what the student says about masked
tokens from a target.

* **Guidance.** The target is ``softmax(c + g (c - u))``, what the teacher with guidance g says about the same masked picture (arXiv
  2210.03142).  Behind the empty prompt c = u: the student's unconditional branch stays the teacher's, and can guide the student.
* **Steps** (``--halve T``).  The teacher draws pictures in T steps; the student sees every other of its states.  The target of a token that
  the teacher decodes in its next step is what it says then, that of any other what it says one step later (as in SDTT, arXiv 2410.21035).
  The finished picture takes the place of the data.

Axes: B pictures, G draws, N image tokens, D width, K masked positions, V codes, T steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from export.checkpoints.from_bundle import transformer_of
from export.checkpoints.parts import bundle_named
from export.data.text.dialogues import TextMaker
from export.data.tokens import TokenCache
from export.defaults import defaults_of, schedule_of
from export.graph.sampling import SAMPLING_INPUTS, guide, sample
from export.graph.trace import ImageStep
from export.model.transformer import UnifiedTransformer
from export.training import unified
from export.training.checkpoint import configuration_of, finished_or_newest, load_weights, trained_for_of
from export.training.compute import Compute
from export.training.loop import Batch, StepMetrics, TrainOptions
from export.training.unified import Mixture, UnifiedTask
from f2edge.bundle.trained_for import TrainedFor
from f2edge.decoding.parallel import UNCONDITIONAL, Feeds, decode
from f2edge.decoding.schedule import Schedule, plan
from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.layout import Ids

#: Weight of the data's losses beside the teacher's.
DATA_WEIGHT = 0.1
#: Share of the rows that are faces with questions: enough to keep what the teacher can read.
_FACES_SHARE = 0.05


@dataclass(frozen=True)
class Teacher:
    """A trained transformer and the schedule that it draws with.

    Attributes:
        trained_for: of a teacher that is a student itself.
    """

    model: UnifiedTransformer
    schedule: Schedule
    trained_for: TrainedFor | None = None

    def lesson(self, guidance: float | None, halve: int | None) -> tuple[Schedule, TrainedFor]:
        """Return the schedule to learn from, and what the student will be trained for; raises :class:`InputError` if that is nothing."""
        steps = self.schedule.steps if halve is None else halve
        schedule = replace(self.schedule, steps=steps, guidance=self.schedule.guidance if guidance is None else guidance)
        if halve is None and schedule.guidance == 0:
            raise InputError("--teacher draws without guidance: give --guidance, or --halve STEPS to learn to take half as many")
        if halve is not None and halve < 2:
            raise InputError(f"--halve {halve}: give the number of the teacher's steps, 2 or more")
        known = schedule.guidance or (self.trained_for.teacher_guidance if self.trained_for else 0.0)
        return schedule, TrainedFor(0.0, (steps if halve is None else -(-steps // 2),), known)


def teacher_of(name: str, configuration: ModelConfiguration) -> Teacher:
    """Return a teacher by the name or folder of a bundle, or by a run's folder or weights file.

    ``configuration`` is that of a run whose weights do not say theirs.

    Raises:
        InputError: nothing there, or it does not fit.
    """
    bundle = bundle_named(name)
    if bundle is not None:
        return Teacher(transformer_of(bundle), bundle.generation, bundle.manifest.trained_for)
    source = finished_or_newest(Path(name))
    chosen = configuration_of(source) or configuration
    model = UnifiedTransformer(chosen)
    load_weights(source, model)
    trained_for = trained_for_of(source)
    return Teacher(model, schedule_of(defaults_of(chosen, trained_for).generation), trained_for)


class _Guided:
    """What a frozen teacher says, with guidance, about pictures behind prompts."""

    def __init__(self, model: UnifiedTransformer, unconditional: Sequence[int], device: torch.device, compute: Compute) -> None:
        model.eval().requires_grad_(requires_grad=False).to(device)
        compute.apply(model, device.type)
        step = ImageStep(model)
        self.stem, self.head, self.unconditional = step.stem, step.head, torch.tensor([list(unconditional)], device=device)

    def behind(self, ids: Tensor, lengths: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return a function of the prompt (M,), B for the empty one, picture (M, N) and mask ratio (M,) of branches: states (M, N, D)."""
        empty = self.unconditional
        width = max(ids.shape[1], empty.shape[1])
        rows = torch.cat([functional.pad(part, (width - part.shape[1], 0)) for part in (ids, empty)])
        lengths = torch.cat((lengths, lengths.new_tensor([empty.shape[1]])))
        key, value = self.stem.prefill_prompt(rows, lengths)

        def states(prompt: Tensor, codes: Tensor, ratio: Tensor) -> Tensor:
            return self.stem.image_logits(codes, key[:, prompt], value[:, prompt], lengths[prompt], ratio).float()

        return states


class StudentTask(UnifiedTask):
    """The task of the unified model with a teacher; it begins with the teacher's weights.

    Args:
        cache, texts, batch: as there.
        teacher: of the same configuration.
        schedule: to learn from.
        halve: whether the student sees every other state of the teacher's pictures, not the data's.
        others: further arguments of :class:`UnifiedTask`.
    """

    name = "student"

    def __init__(
        self,
        cache: TokenCache,
        texts: TextMaker,
        batch: int,
        *,
        teacher: UnifiedTransformer,
        schedule: Schedule,
        halve: bool,
        **others: Any,
    ) -> None:
        super().__init__(cache, texts, batch, **others)
        self.model.load_state_dict(teacher.state_dict())
        self.schedule, self.halve = schedule, halve
        self._compute: Compute = others.get("compute") or Compute()
        self._frozen = teacher
        self._teacher: _Guided | None = None

    def masks(self, coverage: np.ndarray, prompts: list[Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """As there; where the teacher draws, what it begins with: everything is masked, or part of a region."""
        masked, within = super().masks(coverage, prompts, rng)
        if not self.halve:
            return masked, within
        return np.repeat(masked[:, :1] | ~within[:, :1, None], masked.shape[1], axis=1), np.repeat(within[:, :1], masked.shape[1], axis=1)

    def losses(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], StepMetrics]:
        """As there, with the teacher's part."""
        with torch.no_grad():
            lesson = self._drawn(batch) if self.halve else self._said(batch)
        return super().losses({**batch, **lesson}, step)

    @property
    def teacher(self) -> _Guided:
        """The teacher, on the device where the student is."""
        if self._teacher is None:
            device = next(self.model.parameters()).device
            self._teacher = _Guided(self._frozen, self.texts.layout.unconditional, device, self._compute)
        return self._teacher

    def taught(self, batch: Batch, logits: Tensor) -> tuple[Tensor, StepMetrics]:
        """Return the mean divergence of the student's distributions from the teacher's, weighted as the tokens are."""
        masked = batch["masked"]
        weight = batch["weight"][masked]
        with torch.no_grad():
            target = self.teacher.head(batch["taught"][masked]).float().softmax(dim=-1)  # (K, V)
        each = functional.kl_div(logits.float().log_softmax(dim=-1), target, reduction="none").sum(dim=-1)
        loss = (each * weight).sum() / weight.sum()
        return loss, {"taught": loss}

    def _said(self, batch: Batch) -> Batch:
        """What the teacher says about the batch's own masked pictures: ``taught``, guided states (B, G, N, D)."""
        masked = batch["masked"]
        B, G, _ = masked.shape
        codes = torch.where(masked, self.model.configuration.codes, batch["codes"][:, None]).flatten(0, 1)  # (B·G, N)
        states, ratio = self.teacher.behind(batch["prompt_ids"], batch["prompt_lengths"]), masked.float().mean(dim=-1).flatten()
        prompt = torch.arange(B, device=masked.device).repeat_interleave(G)
        found = states(torch.cat((prompt, torch.full_like(prompt, B))), codes.repeat(2, 1), ratio.repeat(2))
        conditional, unconditional = found.chunk(2)
        guided = guide(conditional, unconditional, torch.full_like(ratio, self.schedule.guidance))
        return {"taught": guided.view(B, G, *guided.shape[1:])}

    def _drawn(self, batch: Batch) -> Batch:
        """Let the teacher draw: finished ``codes`` (B, N), what is ``masked`` of them in every other step (B, G, N), and ``taught``."""
        codes, device, V = batch["codes"], batch["codes"].device, self.model.configuration.codes
        start = torch.where(batch["masked"][:, 0], V, codes).cpu().numpy()
        states = self.teacher.behind(batch["prompt_ids"], batch["prompt_lengths"])
        B, N = start.shape
        T = self.mixture.draws * 2
        seen = np.zeros((T, B, N), dtype=bool)
        said = torch.zeros(T, B, N, self.model.configuration.width, device=device)
        seeds = torch.randint(1 << 62, (B,)).tolist()
        number = iter(range(T))

        def step(feeds: Feeds, prefixes: tuple[int, ...]) -> tuple[Ids, Ids]:
            k, rows = next(number), list(prefixes[: len(feeds["codes"])])
            given = {name: torch.from_numpy(np.asarray(feeds[name])).to(device) for name in ("codes", "mask_ratio", "guidance")}
            branch, other = (torch.from_numpy(np.asarray(feeds[name])).to(device) for name in ("branch_row", "unconditional_branch"))
            prompt = torch.tensor([B if p == UNCONDITIONAL else p for p in prefixes], device=device)
            found = states(prompt, given["codes"][branch], given["mask_ratio"][branch])
            guided = guide(found[: len(rows)], found[other], given["guidance"])
            seen[k, rows], said[k, rows] = np.asarray(feeds["codes"]) == V, guided
            logits = self.teacher.head(guided).float().cpu()
            given = {name: torch.from_numpy(np.asarray(feeds[name])) for name in SAMPLING_INPUTS}
            codes, proposal = sample(logits, **given, draw=self.model.configuration.draw)
            return codes.numpy(), proposal.numpy()

        finished = decode(
            step,
            start,
            [plan(self.schedule, row == V, seed, self.texts.layout.block) for row, seed in zip(start, seeds, strict=True)],
            seeds,
        )
        masked = torch.from_numpy(seen).to(device)
        later = torch.where(masked[1::2, ..., None], said[1::2], said[::2])  # (G, B, N, D)
        weight = batch["weight"]
        return {
            "codes": torch.from_numpy(finished).to(device),
            "masked": masked[::2].transpose(0, 1),
            "weight": weight[:, :1].expand(-1, self.mixture.draws, -1),
            "taught": later.transpose(0, 1),
        }


def defaults(out: Path, *, smoke: bool = False) -> TrainOptions:
    """Settings of the unified model's training with a lower rate and fewer steps."""
    options = unified.defaults(out, smoke=smoke)
    if smoke:
        return replace(options, batch=20)
    return replace(options, steps=1000, learning_rate=8e-4, warmup=20, decay_fraction=0.5, validate_every=0)


def run(
    teacher: str,
    tokens: Path,
    text: Path,
    options: TrainOptions,
    *,
    configuration: ModelConfiguration,
    guidance: float | None = None,
    halve: int | None = None,
    data_weight: float = DATA_WEIGHT,
    image_tokenizer: Path | None = None,
    validation_rows: int = 512,
    compute: Compute | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train (or resume) a student and write ``unified.safetensors``, which says what it was trained for; returns the run's folder.

    Args:
        teacher: name or folder of a bundle, run's folder or weights file.
        tokens: as :func:`export.training.unified.run`.
        text: likewise.
        options: likewise.
        configuration: of a teacher whose weights do not say theirs.
        guidance: of the teacher; None: its default.
        halve: the teacher's steps, which are to be halved; None: the data's masks.
        data_weight: weight of the losses on the data, or on the teacher's finished pictures.
        image_tokenizer: as :func:`export.training.unified.run`.
        validation_rows: likewise.
        compute: likewise.
        report: likewise.
    """
    if not 0 < data_weight < float("inf"):
        raise InputError(f"--data-weight {data_weight}: give a number above 0")
    taught_by = teacher_of(teacher, configuration)
    schedule, trained_for = taught_by.lesson(guidance, halve)
    mixture = Mixture(masked=data_weight, score=data_weight * Mixture.score, faces_share=_FACES_SHARE)
    if halve is not None:
        mixture = replace(mixture, draws=-(-halve // 2))
    report(f"teacher {teacher}: {schedule.steps} steps, guidance {schedule.guidance:g}; the student: {trained_for.described}")
    return unified.run(
        tokens, text, options, image_tokenizer=image_tokenizer, configuration=taught_by.model.configuration, mixture=mixture,
        validation_rows=validation_rows, compute=compute, report=report,
        kind=partial(StudentTask, teacher=taught_by.model, schedule=schedule, halve=halve is not None),
        about={"trained_for": json.dumps(trained_for.to_json())},
    )  # fmt: skip
