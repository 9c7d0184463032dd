"""Training of the unified model: pictures from captions and answers about faces, in every step.

    python -m export cache --data shards/train --tokenizer runs/tokenizer --encoders runs/encoders --out tokens/train
    python -m export train unified --tokens tokens/train --text tokenizer.json --out runs/unified --image-tokenizer runs/tokenizer

A micro batch has two parts.  T2I: each caption stands before ``draws`` differently masked copies of its image, which share the prompt's
columns (exact, no prompt sees its image) and so cost less; prompts of similar length go together.  Some copies are masked within a named
region only, as edits are.  MMU: each image is followed by as many
questions as fit into ``text_columns``.  Both train with the losses of export/training/losses.py; each group of routers has its own balance
losses.

Axes: B faces, G draws, N image tokens, P prompt columns, S text columns, K masked positions, V codes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.data.text.dialogues import TextMaker
from export.data.text.tokenizer import read_text_tokenizer
from export.data.tokens import TokenCache
from export.model.transformer import Routing, UnifiedTransformer
from export.training.checkpoint import latest_checkpoint, load_weights, save_weights
from export.training.compute import Compute
from export.training.distributed import Processes
from export.training.loop import Batch, StepMetrics, TrainOptions, resolve_device, train
from export.training.losses import SCORE_WEIGHT, balance_loss, cosine_mask_ratio, expert_usage, generation_loss, text_loss
from export.training.preview import ImageDecoder, measure
from f2edge.errors import InputError
from f2edge.imaging.regions import PRESENT, select_cells
from f2edge.spec.attributes import F2EDGE_SCHEMA, AttributeSchema
from f2edge.spec.configuration import NANO, ImageTokenizerConfiguration, ModelConfiguration
from f2edge.spec.layout import left_pad, tokens_of_cells

#: Micro batches whose prompts are sorted by length together.
_POOL = 4
_TWO_REGIONS = 0.2
#: Values whose pictures are drawn more often than they were rendered: an action in 36, but the first that people ask for, and one that
#: no sign beside the face tells.
_SOUGHT = {("action", "smile"): 8.0, ("action", "laugh"): 2.0, ("action", "frown"): 2.0}
#: Regions of most of what a face is asked for.
FEATURES = ("eyes", "brows", "nose", "mouth")


@dataclass(frozen=True)
class Mixture:
    """What a micro batch is made of, and the weights of its losses.

    Attributes:
        draws: G, masked copies of an image behind one prompt.
        faces_share: share of the rows (masked copies and faces) that are faces with questions.
        text_columns: S, text columns of a face's questions.
        describe_share: share of the faces that are also described.
        seen_share: share of the faces that are asked about as seen under real conditions.
        unsure_share: share of the questions that ask for what is not to be seen.
        prompt_dropout: share of the prompts replaced by the empty one, for guidance.
        thorough_share: share of the prompts that name many slots, all as likely (``TextMaker.prompt``).
        instruct_share: share of the prompts that ask for one thing as an edit does ("remove the beard"), and are masked where it is.
        region_share: share of the masked copies that are masked within one or two named regions only.
        region_weight: weight of those copies' masked tokens, which are few.
        feature_weight: further weight of tokens where the eyes, brows, nose and mouth are; most of what a face is asked for lies there.
        smoothing: label smoothing of the masked cross entropy.
        masked, score: weights of D3Diff's two terms, the masked cross entropy and the score entropy (alpha in the paper).
        understanding: weight of the answers' cross entropy.
        token_balance, sequence_balance: λ of the balance losses of each group.
    """

    draws: int = 2
    faces_share: float = 0.1
    text_columns: int = 160
    describe_share: float = 0.25
    seen_share: float = 0.6
    unsure_share: float = 0.15
    prompt_dropout: float = 0.1
    thorough_share: float = 0.5
    instruct_share: float = 0.08
    region_share: float = 0.2
    region_weight: float = 5.0
    feature_weight: float = 2.0
    smoothing: float = 0.0
    masked: float = 1.0
    score: float = SCORE_WEIGHT
    understanding: float = 1.0
    token_balance: float = 0.01
    sequence_balance: float = 0.01

    def __post_init__(self) -> None:
        if not (self.masked >= 0 and self.score >= 0 and 0 < self.masked + self.score < float("inf")):
            raise InputError(f"unified training: loss weights masked {self.masked} and score {self.score} must be 0 or more, not both 0")

    def described(self, rows: int, micros: int) -> str:
        """Return in words what a step of ``micros`` micro batches of ``rows`` rows holds."""
        pictures, faces = (count * micros for count in self.split(rows))
        return (
            f"each step: {pictures} pictures x {self.draws} masks behind captions ({100 * self.prompt_dropout:g} % of them empty, "
            f"{100 * self.instruct_share:g} % instructions, {100 * self.region_share:g} % of the masks within a region), {faces} pictures "
            f"with questions in {self.text_columns} columns ({100 * self.describe_share:g} % begin with a description). "
            f"loss: {self.masked:g} x masked cross entropy + {self.score:g} x score entropy + {self.understanding:g} x answers + "
            f"{self.token_balance:g} x token balance + {self.sequence_balance:g} x sequence balance"
        )

    def split(self, rows: int) -> tuple[int, int]:
        """Pictures (each with ``draws`` rows) and faces in a micro batch of ``rows``."""
        faces = round(rows * self.faces_share)
        pictures = (rows - faces) // self.draws
        if pictures < 1 or faces < 1:
            raise InputError(f"unified training: batch {rows} leaves {pictures} pictures and {faces} faces; both need at least one")
        return pictures, faces


@dataclass(frozen=True)
class _Prompt:
    """Token ids, and the region that alone is masked behind them."""

    ids: list[int]
    region: str | None = None


class UnifiedTask:
    """The task of :func:`export.training.loop.train`.

    Args:
        cache: faces as tokens; the last ``validation_rows`` are kept for validation.
        texts: makes prompts and questions.
        batch: rows of a micro batch, split by ``mixture``.
        image_decoder: codes to pixels, for sample grids; None: no grids.
        compute, device: kernels, and the type of device that they run on.
    """

    name = "unified"
    together = _POOL
    validates_together = True

    def __init__(
        self,
        cache: TokenCache,
        texts: TextMaker,
        batch: int,
        *,
        configuration: ModelConfiguration = NANO,
        mixture: Mixture | None = None,
        image_decoder: ImageDecoder | None = None,
        validation_rows: int = 512,
        seed: int = 0,
        compute: Compute | None = None,
        device: str = "cpu",
    ) -> None:
        self.mixture = mixture or Mixture()
        self.pictures, self.faces = self.mixture.split(batch)
        self.trained_rows = len(cache) - (validation_rows if cache.validation_rows is None else cache.validation_rows)
        if self.trained_rows < 1:
            raise InputError(f"unified training: {len(cache)} faces leave none for training beside {validation_rows} for validation")
        _check_fit(cache, configuration)
        self.cache, self.texts, self.seed, self.image_decoder = cache, texts, seed, image_decoder
        self.validation = np.arange(self.trained_rows, len(cache))
        self._row_share = row_shares(cache.slots[: self.trained_rows], cache.schema)
        self._features = [cache.region_names.index(name) for name in FEATURES if name in cache.region_names]
        torch.manual_seed(seed)
        self.model = UnifiedTransformer(configuration)
        (compute or Compute()).apply(self.model, device)
        self.modules: Mapping[str, nn.Module] = {"model": self.model}
        self._pools: dict[int, tuple[int, list[Batch]]] = {}

    # Batches ---------------------------------------------------------------------------------------------------------

    def batch(self, step: int, micro: int) -> Batch:
        """Random faces of the training rows, new texts and masks every time."""
        key = (step // _POOL, micro)
        if self._pools.get(micro, (-1,))[0] != key[0]:
            self._pools[micro] = (key[0], self._picture_pool(np.random.default_rng([self.seed, 0, *key])))
        return {**self._pools[micro][1][step % _POOL], **self._questions(np.random.default_rng([self.seed, 1, step, micro]))}

    def _picture_pool(self, rng: np.random.Generator) -> list[Batch]:
        """Several T2I parts at once, each of prompts of similar length, in random order."""
        rows = np.searchsorted(self._row_share, rng.random(_POOL * self.pictures), side="right")
        prompts = [self._prompt(row, rng) for row in rows.tolist()]
        order = np.argsort([len(p.ids) for p in prompts], kind="stable").reshape(_POOL, self.pictures)
        return [self._pictures(rows[part], [prompts[i] for i in part], rng) for part in rng.permutation(order)]

    def _prompt(self, row: int, rng: np.random.Generator) -> _Prompt:
        kind, mixture = rng.random(), self.mixture
        if kind < mixture.prompt_dropout:
            return _Prompt(self.texts.layout.unconditional)
        face = self.cache.face(row)
        asked = self.texts.instruction(face, rng) if kind < mixture.prompt_dropout + mixture.instruct_share else None
        return _Prompt(self.texts.prompt(face, rng, mixture.thorough_share)) if asked is None else _Prompt(*asked)

    def _pictures(self, rows: np.ndarray, prompts: list[_Prompt], rng: np.random.Generator) -> Batch:
        ids, lengths = left_pad([prompt.ids for prompt in prompts], self.texts.layout.pad)
        tokenizer = self.model.configuration.tokenizer
        codes = torch.from_numpy(self.cache.codes[rows].astype(np.int64))
        coverage = self.cache.regions[rows].astype(np.float32) / 255  # (B, R, G, G)
        masked, within = self.masks(coverage, prompts, rng)
        weight = np.where(within, self.mixture.region_weight, 1.0)[..., None]
        features = tokens_of_cells(coverage[:, self._features].max(axis=1, initial=0), tokenizer)[:, None]
        weight = (weight * (1 + self.mixture.feature_weight * features)).astype(np.float32)  # (B, G, N)
        return {
            "prompt_ids": torch.from_numpy(ids),
            "prompt_lengths": torch.from_numpy(lengths),
            "codes": codes,
            "masked": torch.from_numpy(masked),
            "weight": torch.from_numpy(weight),
        }

    def masks(self, coverage: np.ndarray, prompts: list[_Prompt], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Masks of pictures, of which regions cover the shares (B, R, G, G) of cells: (B, G, N), and which lie within a region (B, G)."""
        tokenizer = self.model.configuration.tokenizer
        masked = draw_masks(len(prompts), self.mixture.draws, self.model.configuration.image_tokens, rng)
        named = np.array([prompt.region is not None for prompt in prompts])
        within: np.ndarray = named[:, None] | (rng.random(masked.shape[:2]) < self.mixture.region_share)
        for row, draw in zip(*np.nonzero(within), strict=True):
            region = prompts[row].region
            only = None if region not in self.cache.region_names else self.cache.region_names.index(region)
            masked[row, draw] = draw_region_mask(coverage[row], tokenizer, rng, only)
        return masked, within

    def _questions(self, rng: np.random.Generator) -> Batch:
        rows = rng.integers(self.trained_rows, size=self.faces)
        mixture = self.mixture
        seen = rng.random(self.faces) < mixture.seen_share
        faces = [self.cache.face(row, seen=changed) for row, changed in zip(rows.tolist(), seen.tolist(), strict=True)]
        talk = self.texts.dialogues(faces, rng, mixture.text_columns, mixture.describe_share, mixture.unsure_share)
        return {
            **self.features(rows, seen),
            "text_ids": talk.ids,
            "text_positions": talk.positions,
            "text_segments": talk.segments,
            "text_targets": talk.targets,
            "text_weights": talk.weights,
        }

    def features(self, rows: np.ndarray, seen: np.ndarray) -> Batch:
        """What MMU reads of some faces, those of ``seen`` (B,) under real conditions.

        Returns:
            codes (B, N) int64, semantic and identity features (B, M, F) fp32.
        """
        cache = self.cache
        pairs = ((cache.codes, cache.seen_codes), (cache.semantic, cache.seen_semantic), (cache.identity, cache.seen_identity))
        codes, semantic, identity = (np.where(_beside(seen, clean), changed[rows], clean[rows]) for clean, changed in pairs)
        return {
            "face_codes": torch.from_numpy(codes.astype(np.int64)),
            "semantic": torch.from_numpy(semantic.astype(np.float32)),
            "identity": torch.from_numpy(identity.astype(np.float32)),
        }

    # Losses ----------------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], StepMetrics]:
        """One loss: D3Diff, the answers' cross entropy and the balance losses."""
        del step
        drawn, metrics = self._generation(batch)
        told, more = self._understanding(batch)
        return {"model": drawn + told}, {**metrics, **more}

    def parts(self, model: UnifiedTransformer, count: int = 4) -> Iterator[dict[str, Tensor]]:
        """Run a model of the same tokens, such as the dense one that this one starts from, on the first ``count`` batches.

        Yields, twice for each batch, the loss of one task without balance losses: ``{"t2i": …}``, then ``{"mmu": …}``.
        """
        own, self.model, device = self.model, model, next(model.parameters()).device
        try:
            for step in range(count):
                batch = {key: value.to(device) for key, value in self.batch(step, 0).items()}
                for group, losses in (("t2i", self._generation), ("mmu", self._understanding)):
                    found = losses(batch)[1][group]
                    assert isinstance(found, Tensor)
                    yield {group: found}
        finally:
            self.model = own

    def _generation(self, batch: Batch) -> tuple[Tensor, StepMetrics]:
        masked, codes = batch["masked"], batch["codes"][:, None]  # (B, G, N), (B, 1, N)
        B, G, N = masked.shape
        ratio = masked.float().mean(dim=-1)  # (B, G)
        seen = torch.where(masked, self.model.configuration.codes, codes)
        P = batch["prompt_ids"].shape[1]
        hidden, routing = self.model.generation_states(batch["prompt_ids"], batch["prompt_lengths"], seen, ratio)
        logits = self.model.image_scores(hidden[masked])  # (K, V)
        target, weighing = codes.expand(B, G, N)[masked], ratio[..., None].expand(B, G, N)[masked]
        loss = generation_loss(
            logits, target, weighing, rows=B * G, image_tokens=N, smoothing=self.mixture.smoothing, weight=batch["weight"][masked],
            masked_weight=self.mixture.masked, score_weight=self.mixture.score,
        )  # fmt: skip
        column = torch.arange(P + G * (self.model.configuration.image_columns + 2), device=masked.device)
        balance, metrics = self._balance("t2i", routing, column >= P - batch["prompt_lengths"][:, None])
        taught, more = self.taught(batch, logits)
        return loss.total + balance + taught, {"t2i": loss.masked, "t2i/score": loss.score, **metrics, **more}

    def taught(self, batch: Batch, logits: Tensor) -> tuple[Tensor, StepMetrics]:
        """Return a teacher's part of the loss, by logits (K, V) of the masked positions; none here."""
        del batch
        return logits.new_zeros(()), {}

    def _understanding(self, batch: Batch) -> tuple[Tensor, StepMetrics]:
        segments, weights = batch["text_segments"], batch["text_weights"]
        hidden, routing = self.model.understanding_states(
            batch["face_codes"], batch["semantic"], batch["identity"], batch["text_ids"], batch["text_positions"], segments
        )
        asked = weights > 0  # (B, S)
        logits, targets = self.model.text_scores(hidden[asked]), batch["text_targets"][asked]
        loss = text_loss(logits, targets, weights[asked])
        right = (logits.detach().argmax(dim=-1) == targets).float().mean()
        image = torch.ones_like(segments[:, :1], dtype=torch.bool).expand(-1, self.model.configuration.understanding_columns)
        balance, metrics = self._balance("mmu", routing, torch.cat((image, segments >= 0), dim=1))
        return self.mixture.understanding * loss + balance, {"mmu": loss, "mmu/right": right, **metrics}

    def _balance(self, group: str, routing: Routing, valid: Tensor) -> tuple[Tensor, StepMetrics]:
        """One group's balance losses, and how often its least used expert is chosen, relative to an even share."""
        loss, metrics = valid.new_zeros((), dtype=torch.float32), StepMetrics()
        levels = (
            ("token", routing.token_probability, routing.token_chosen, valid, self.mixture.token_balance),
            ("sequence", routing.sequence_probability, routing.sequence_chosen, None, self.mixture.sequence_balance),
        )
        for level, probability, chosen, rows, weight in levels:
            if not chosen.numel():  # the model lacks this level
                continue
            loss = loss + weight * balance_loss(probability, chosen, rows)
            usage = expert_usage(chosen, rows).mean(dim=0)
            metrics[f"{group}/{level}_least"] = usage.min() * usage.numel()
        return loss, metrics

    # Validation ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, model: Mapping[str, nn.Module], step: int, directory: Path) -> dict[str, float]:
        """Return the metrics of :func:`export.training.preview.measure` on the held-out rows; write tables and faces to ``directory``."""
        transformer = model["model"]
        assert isinstance(transformer, UnifiedTransformer)
        return measure(
            transformer, self.cache, self.validation, self.texts, image_decoder=self.image_decoder, step=step, directory=directory
        )


def _beside(chosen: np.ndarray, array: np.ndarray) -> np.ndarray:
    """A choice for each row (B,), shaped so that it broadcasts over rows of ``array``."""
    return chosen.reshape(-1, *(1 for _ in array.shape[1:]))


def row_shares(slots: np.ndarray, schema: AttributeSchema = F2EDGE_SCHEMA) -> np.ndarray:
    """Of slots (n, K): up to where in [0, 1] each row reaches when rows take room by how sought their pictures are, (n,)."""
    weight = np.ones(len(slots))
    for (name, value), times in _SOUGHT.items():
        if schema == F2EDGE_SCHEMA:
            weight[slots[:, list(schema).index(name)] == schema[name].index(value)] = times
    share: np.ndarray = np.cumsum(weight / weight.sum())
    share[-1] = 1.0
    return share


def draw_masks(rows: int, draws: int, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Masks (rows, draws, tokens) of MaskGIT's law, at least one position each; the ratios are spread evenly over all draws."""
    count = rows * draws
    u = (rng.permutation(count) + rng.random(count)) / count
    share = cosine_mask_ratio(torch.from_numpy(u)).numpy()
    most = np.maximum(1, np.round(share * tokens)).astype(np.int64)
    rank = rng.random((count, tokens)).argsort(axis=1).argsort(axis=1)
    return (rank < most[:, None]).reshape(rows, draws, tokens)


def draw_region_mask(
    coverage: np.ndarray, tokenizer: ImageTokenizerConfiguration, rng: np.random.Generator, only: int | None = None
) -> np.ndarray:
    """A mask (N,) within one region (seldom two) that the picture shows, by the shares (R, G, G) of cells that regions cover.

    With ``only`` within that region, if the picture shows it.  The share of the region that is masked follows the same law as that of a
    whole picture: an edit decodes it step by step too.
    """
    shown = np.flatnonzero(coverage.max(axis=(1, 2)) >= PRESENT)
    chosen = rng.permutation(shown)[: 1 + int(rng.random() < _TWO_REGIONS)] if only is None or only not in shown else np.array([only])
    cells = (
        np.logical_or.reduce([select_cells(coverage[region]) for region in chosen]) if len(chosen) else np.ones(coverage.shape[1:], bool)
    )
    inside = np.flatnonzero(tokens_of_cells(cells, tokenizer))
    share = float(cosine_mask_ratio(torch.tensor(rng.random())))
    mask = np.zeros(tokenizer.tokens, dtype=bool)
    mask[rng.choice(inside, size=max(1, round(share * len(inside))), replace=False)] = True
    return mask


def _check_fit(cache: TokenCache, configuration: ModelConfiguration) -> None:
    """The cache must come from the tokenizer and the encoders of this configuration."""
    if configuration.understanding != "codes":
        raise InputError(f"configuration {configuration.name!r} reads pictures by CLIP's features; training is for those that read codes")
    wanted: dict[str, tuple[int, ...]] = {"codes": (configuration.image_tokens,)}
    if configuration.sequence_experts and configuration.semantic is not None and configuration.identity is not None:
        wanted |= {
            name: (shape.vectors, shape.width)
            for name, shape in (("semantic", configuration.semantic), ("identity", configuration.identity))
        }
    for name, shape in wanted.items():
        found = getattr(cache, name).shape[1:]
        if found != shape:
            raise InputError(f"token cache: {name} has shape {found} per face, {configuration.name!r} needs {shape}; make the cache again")


def defaults(out: Path, *, smoke: bool = False) -> TrainOptions:
    """Settings for about 80 minutes on two cores, where questions need a tenth of the rows; with ``smoke`` for less than a minute."""
    if smoke:
        return TrainOptions(out=out, steps=12, batch=10, learning_rate=2e-3, optimizer="muon", warmup=4, ema=0.9, log_every=4)
    return TrainOptions(
        out=out,
        steps=3000,
        batch=80,
        learning_rate=2e-3,
        optimizer="muon",
        warmup=100,
        schedule="wsd",
        decay_fraction=0.35,
        ema=0.998,
        validate_every=600,
        save_every=150,
    )


def run(
    tokens: Path,
    text: Path,
    options: TrainOptions,
    *,
    image_tokenizer: Path | None = None,
    start_from: Path | None = None,
    configuration: ModelConfiguration = NANO,
    mixture: Mixture | None = None,
    validation_rows: int = 512,
    compute: Compute | None = None,
    report: Callable[[str], None] = lambda _: None,
    kind: Callable[..., UnifiedTask] = UnifiedTask,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Train (or resume) on a token cache and write ``unified.safetensors``; returns the run's folder.

    Args:
        tokens: folder of :func:`run_cache`.
        text: the text tokenizer's ``tokenizer.json``.
        options: of the loop.
        image_tokenizer: folder of a trained image tokenizer, for sample grids.
        start_from: run, weights file or bundle of a transformer of this configuration (a bundle's may have another image tokenizer),
            or weights of a dense one of its width and layers, which is upcycled (:mod:`export.training.start`); a new run begins with
            its weights as trained last.
        configuration: of the model.
        mixture: of the batches.
        validation_rows: faces at the cache's end that are not trained on.
        compute: kernels.
        report: called with lines about the mixture and the start.
        kind: makes the task.
        about: further metadata of the weights file.
    """
    if not text.is_file():
        raise InputError(f"{text}: no text tokenizer here; make one: python -m export text-tokenizer --out {text}")
    decoder = None
    if image_tokenizer is not None:
        from export.training.tokenizer import load_tokenizer

        decoder = load_tokenizer(image_tokenizer).to(resolve_device(options.device)).decode
    tokenizer, cache = read_text_tokenizer(text), TokenCache(tokens)
    texts = TextMaker(tokenizer, configuration, cache.schema)
    task = kind(
        cache, texts, options.batch, configuration=configuration, mixture=mixture, image_decoder=decoder,
        validation_rows=validation_rows, seed=options.seed, compute=compute, device=resolve_device(options.device).type,
    )  # fmt: skip
    first = Processes.first()
    say = report if first else lambda _: None
    say(task.mixture.described(options.batch, options.accumulate * Processes.expected()))
    if start_from is not None and latest_checkpoint(options.out) is None:
        from export.training.start import start

        start(task.model, start_from, task.parts, say)
    last = train(task, options)
    if first:
        save_finished(last, configuration, options.out / "unified.safetensors", about)
    return options.out


def save_finished(checkpoint: Path, configuration: ModelConfiguration, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint's averaged weights, sharded or not, as one file that says its configuration and what else is ``about`` it."""
    with torch.device("meta"):
        model = UnifiedTransformer(configuration)
    model.to_empty(device="cpu")
    load_weights(checkpoint, model)
    save_weights(path, model, {"configuration": json.dumps(configuration.to_json()), **(about or {})})
