"""Training of the image tokenizer: reconstruction, code usage, and late in the run a critic.

    python -m export train tokenizer --data shards/train --out runs/tokenizer [--perceptual runs/encoders]

The run's folder ends with ``tokenizer.safetensors``, which carries its configuration and is read by :func:`load_tokenizer`.

Ours: the pictures are drawn, with sharp lines a pixel or two wide that carry attributes (spectacle frames, earrings, freckles), so edges
are compared at three scales, and with ``--perceptual`` also the maps of a network trained to name those attributes, and the attributes that
it names in the reconstruction with the true ones: what a picture is asked for must survive the codes.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from export.data.conditions import HIDDEN, MILD, Conditions, disturbed
from export.data.pairs import comparable, mismatched
from export.data.pixels import to_pixels
from export.model.discriminator import PatchDiscriminator, critic_loss, generator_loss
from export.model.image_tokenizer import ImageTokenizer, bit_statistics
from export.model.magvit2 import Magvit2Tokenizer, build_tokenizer
from export.training.checkpoint import latest_checkpoint, load_weights, save_weights, stored_json
from export.training.encoders import attribute_loss
from export.training.loop import Batch, StepMetrics, TrainOptions, resolve_device, train
from f2edge.errors import InputError
from f2edge.spec.attributes import F2EDGE_SCHEMA
from f2edge.spec.configuration import NANO, ImageTokenizerConfiguration

Perceptual = Callable[[Tensor], list[Tensor]]
#: Pixels (B, 3, H, W) → slot logits (B, K, V) of a frozen network.
Reader = Callable[[Tensor], Tensor]
#: Rows (n,) → their slots (n, K), value index, -1 where hidden.
Labels = Callable[[Any], NDArray[np.int8]]
#: Rows (n,) → eyes, nose and mouth corners (n, 5, 2) in pixels.
Landmarks = Callable[[Any], NDArray[np.float32]]
_GRID_ROWS, _GRID_COLUMNS = 4, 8


class Pictures(Protocol):
    """Where pictures come from; ``export.data.shards.FaceShards`` is one."""

    def __len__(self) -> int: ...

    def images(self, rows: Any) -> NDArray[np.uint8]:
        """Rows (n,) → (n, H, W, 3)."""
        ...


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss.

    Attributes:
        absolute, squared: of pixel errors, pixels in [-1, 1].
        edges: of differences between neighbouring pixels at three scales; grows from 0 over the first ``edges_ramp`` of the steps,
            because at first, when nothing is in place, the best edges are none.
        perceptual: of feature maps, each relative to its mean size.
        attributes: of the cross entropy of the slots that a reader sees in the reconstruction, mean over visible slots.
        usage, confidence, commitment: of the code (``bit_statistics``).
        adversarial: of the critic's judgement; the critic trains from ``critic_from`` of the steps on, and is listened to ever more
            over the 5 % of the steps after that.
    """

    absolute: float = 1.0
    squared: float = 1.0
    edges: float = 1.0
    edges_ramp: float = 0.1
    perceptual: float = 0.5
    attributes: float = 0.4
    usage: float = 0.02
    confidence: float = 0.01
    commitment: float = 0.1
    adversarial: float = 0.05
    critic_from: float = 0.7


#: For training a finished tokenizer's decoder further: the critic begins soon.
FINE_TUNING = LossWeights(edges_ramp=0.0, usage=0.0, confidence=0.0, commitment=0.0, critic_from=0.1)


class TokenizerTask:
    """The task of :func:`export.training.loop.train`.

    Args:
        data: pictures of the configuration's size; the last ``held_out`` rows are for validation only.
        steps: of the whole run; the recipe's phases are shares of it.
        perceptual: pixels → feature maps of a frozen network on the same device, or None.
        readers: frozen networks that name slots, used in turn, so that no single one's blind spots are learned.
        labels: gives the true slots; needed with ``readers``.
        decoder_of: a trained tokenizer whose decoder is trained further; its encoder is frozen, so that codes keep their meaning and
            models that were trained on them stay valid.
        landmarks: of pictures; with labels, validation says of how many faces the two irises differ in hue ("left_right").
        conditions: how training pictures are changed; None: not at all.
    """

    name = "tokenizer"

    def __init__(
        self,
        data: Pictures,
        batch: int,
        steps: int,
        *,
        configuration: ImageTokenizerConfiguration = NANO.tokenizer,
        recipe: LossWeights | None = None,
        perceptual: Perceptual | None = None,
        readers: Sequence[Reader] = (),
        labels: Labels | None = None,
        decoder_of: ImageTokenizer | None = None,
        landmarks: Landmarks | None = None,
        conditions: Conditions | None = MILD,
        held_out: int = 256,
        seed: int = 0,
    ) -> None:
        if len(data) < held_out + batch:
            raise InputError(f"tokenizer: {len(data)} pictures are too few for a batch of {batch} and {held_out} held out; render more")
        self.data, self.rows, self.steps, self.held_out, self.seed = data, batch, steps, held_out, seed
        self.recipe, self.perceptual = recipe or (LossWeights() if decoder_of is None else FINE_TUNING), perceptual
        if readers and labels is None:
            raise InputError("tokenizer: networks that name attributes need the pictures' true slots; give labels")
        self.readers, self.labels, self.landmarks, self.conditions = tuple(readers), labels, landmarks, conditions
        torch.manual_seed(seed)
        self.tokenizer, self.critic = ImageTokenizer(configuration), PatchDiscriminator()
        if decoder_of is not None:
            self.tokenizer = copy.deepcopy(decoder_of)
            self.tokenizer.encoder.requires_grad_(requires_grad=False)
        self.modules: Mapping[str, nn.Module] = {"model": self.tokenizer, "critic": self.critic}

    def batch(self, step: int, micro: int) -> Batch:
        """Random pictures, (B, 3, H, W) in [-1, 1], and for readers their slots, (B, K)."""
        generator = np.random.default_rng([self.seed, step, micro])
        rows = np.sort(generator.choice(len(self.data) - self.held_out, size=self.rows, replace=False))
        images, labels = self.data.images(rows), None if self.labels is None else self.labels(rows)
        if self.conditions is None:
            pixels = to_pixels(images)
        else:
            known = np.full((len(rows), len(F2EDGE_SCHEMA)), HIDDEN, np.int8) if labels is None else labels
            changed = disturbed(images, known, generator, self.conditions)
            pixels, labels = changed.pixels, changed.slots
        batch = {"pixels": pixels}
        if self.readers and labels is not None:
            batch["slots"] = torch.from_numpy(labels.astype(np.int64))
        return batch

    def losses(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], StepMetrics]:
        """The tokenizer's loss, and the critic's once it has begun."""
        recipe, pixels, progress = self.recipe, batch["pixels"], step / self.steps
        result = self.tokenizer(pixels)
        error = result.pixels - pixels
        bits = bit_statistics(result.latent, codes_per_cell=self.tokenizer.configuration.codes_per_cell)
        edges = edge_loss(result.pixels, pixels)
        metrics: StepMetrics = {
            "psnr": psnr(result.pixels.detach(), pixels).mean(),
            "edges": edges.detach(),
            "usage": bits.usage.detach(),
            "confidence": bits.confidence.detach(),
        }
        loss = recipe.absolute * error.abs().mean() + recipe.squared * error.square().mean()
        loss = loss + recipe.edges * (min(1.0, progress / recipe.edges_ramp) if recipe.edges_ramp else 1.0) * edges
        loss = loss + recipe.confidence * bits.confidence - recipe.usage * bits.usage + recipe.commitment * bits.commitment
        if self.perceptual is not None:
            difference = perceptual_loss(self.perceptual, result.pixels, pixels)
            metrics["perceptual"] = difference.detach()
            loss = loss + recipe.perceptual * difference
        if self.readers:
            named = attribute_loss(self.readers[step % len(self.readers)](result.pixels), batch["slots"])
            metrics["attributes"] = named.detach()
            loss = loss + recipe.attributes * named
        if progress < recipe.critic_from:
            return {"model": loss}, metrics
        ramp = min(1.0, (progress - recipe.critic_from) / 0.05)
        loss = loss + recipe.adversarial * ramp * generator_loss(self.critic(result.pixels))
        return {"model": loss, "critic": critic_loss(self.critic(pixels), self.critic(result.pixels.detach()))}, metrics

    def validate(self, model: Mapping[str, nn.Module], step: int, directory: Path) -> dict[str, float]:
        """Return metrics on the held-out pictures, and write ``tokenizer-STEP.png`` with originals above their reconstructions."""
        del model  # self.tokenizer is that module
        device = next(self.tokenizer.parameters()).device
        rows = np.arange(len(self.data) - self.held_out, len(self.data))
        shown: list[Tensor] = []
        found, codes, differ = [], [], list[NDArray[np.bool_]]()
        for begin in range(0, len(rows), 32):
            pixels = to_pixels(self.data.images(rows[begin : begin + 32])).to(device)
            result = self.tokenizer(pixels)
            found.append(torch.stack((psnr(result.pixels, pixels), (result.pixels.clamp(-1, 1) - pixels).abs().mean((1, 2, 3)))))
            codes.append(self.tokenizer.codes(result.latent).flatten())
            shown = shown or [pixels.cpu(), result.pixels.cpu()]
            if self.landmarks is not None:
                drawn = ((result.pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
                differ.append(mismatched(drawn, self.landmarks(rows[begin : begin + 32])))
        write_pairs(directory / f"tokenizer-{step:06d}.png", *shown)
        ratio, absolute = torch.cat(found, 1).mean(1).tolist()
        figures = {"psnr": ratio, "l1": absolute, **code_metrics(torch.cat(codes).cpu(), self.tokenizer.configuration.bits)}
        if self.labels is not None and (both := comparable(self.labels(rows))).any() and differ:
            figures["left_right"] = float(np.concatenate(differ)[both].mean())
        return figures


def edge_loss(guess: Tensor, truth: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of horizontal and vertical neighbour differences, summed over halved resolutions (B, C, H, W)."""
    error, total = guess - truth, guess.new_zeros(())
    for scale in range(scales):
        total = total + (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        if scale < scales - 1:
            error = F.avg_pool2d(error, 2)
    return total


def perceptual_loss(features: Perceptual, guess: Tensor, truth: Tensor) -> Tensor:
    """Mean over maps of their mean absolute difference over the mean size of the true map (arXiv 1603.08155)."""
    with torch.no_grad():
        wanted = features(truth)
    terms = [(a.float() - b.float()).abs().mean() / (b.float().abs().mean() + 1e-6) for a, b in zip(features(guess), wanted, strict=True)]
    return torch.stack(terms).mean()


def psnr(guess: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, (B,); pixels in [-1, 1], the guess is clamped."""
    return -10 * ((guess.clamp(-1, 1) - truth) / 2).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def code_metrics(codes: Tensor, bits: int) -> dict[str, float]:
    """How well the code is used, from codes (n,): entropy of the single bits (best: ``bits``), of the worst bit, codes seen, perplexity."""
    share = ((codes.unsqueeze(1) >> torch.arange(bits)) & 1).double().mean(0)
    entropy = (torch.special.entr(share) + torch.special.entr(1 - share)) / math.log(2)
    counts = torch.bincount(codes, minlength=2**bits).double()
    return {
        "bit_entropy": float(entropy.sum()),
        "worst_bit": float(entropy.min()),
        "codes_seen": float((counts > 0).sum()),
        "perplexity": float(torch.special.entr(counts / counts.sum()).sum().exp()),
    }


def write_pairs(path: Path, above: Tensor, below: Tensor) -> None:
    """A sheet of pictures with their reconstructions underneath; both (n, 3, H, W) in [-1, 1]."""
    rows = min(_GRID_ROWS, len(above) // _GRID_COLUMNS)
    pairs = torch.stack((above, below), 1)[: rows * _GRID_COLUMNS]
    pairs = pairs.reshape(rows, _GRID_COLUMNS, *pairs.shape[1:])  # (R, C, 2, 3, H, W)
    sheet = pairs.permute(0, 2, 4, 1, 5, 3).flatten(0, 2).flatten(1, 2)  # (R·2·H, C·W, 3)
    Image.fromarray(((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()).save(path)


def load_tokenizer(path: Path) -> ImageTokenizer | Magvit2Tokenizer:
    """The tokenizer in ``path`` (``tokenizer.safetensors`` or the folder of a finished run or import), in eval mode."""
    file = path / "tokenizer.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no tokenizer here; train one: python -m export train tokenizer --data SHARDS --out {file.parent}")
    row = stored_json(file, "configuration", dict, "an image tokenizer")
    try:
        configuration = ImageTokenizerConfiguration(**{**row, "channels": tuple(row["channels"])})
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: describes another model than an image tokenizer ({error}); give the tokenizer's run") from error
    tokenizer = build_tokenizer(configuration)
    load_weights(file, tokenizer)
    return tokenizer.eval()


def defaults(out: Path, *, smoke: bool = False) -> TrainOptions:
    """Settings for about an hour on two cores; with ``smoke`` for half a minute."""
    if smoke:
        return TrainOptions(out=out, steps=30, batch=8, learning_rate=2e-3, warmup=10, optimizer="muon", ema=0.9, log_every=10)
    return TrainOptions(
        out=out,
        steps=4000,
        batch=12,
        learning_rate=2e-3,
        warmup=50,
        optimizer="muon",
        schedule="wsd",
        decay_fraction=0.3,
        ema=0.998,
        validate_every=500,
        rate_scale={"critic": 0.25},
    )


def run(
    data: Path,
    options: TrainOptions,
    *,
    configuration: ImageTokenizerConfiguration = NANO.tokenizer,
    perceptual: Path | None = None,
    start_from: Path | None = None,
    decoder_of: Path | None = None,
    held_out: int | None = None,
) -> Path:
    """Train (or resume) on the shards in ``data`` and write ``tokenizer.safetensors``; returns the run's folder.

    With ``perceptual``, a folder of trained encoders, the semantic one is the perceptual loss' network and, with its readout, names the
    attributes of the reconstructions.  With ``start_from``, a finished tokenizer, a new run begins with its weights.  With
    ``decoder_of``, a finished tokenizer, only its decoder is trained.  With ``held_out`` None, a fifth of the pictures is held out,
    256 at most.
    """
    from export.data.shards import FaceShards

    shards, features = FaceShards(data), None
    readers: tuple[Reader, ...] = ()
    if perceptual is not None:
        from export.model.encoders import attribute_reader, perceptual_features
        from export.training.encoders import load_encoders

        place, encoders = resolve_device(options.device), load_encoders(perceptual)
        features = perceptual_features(encoders.semantic.to(place))
        readers = () if encoders.readout is None else (attribute_reader(encoders.semantic, encoders.readout.to(place)),)
    old = None if decoder_of is None else load_tokenizer(decoder_of)
    if isinstance(old, Magvit2Tokenizer):
        raise InputError(f"{decoder_of}: the published MAGVIT-v2 tokenizer is used as it is; give a tokenizer that was trained here")
    task = TokenizerTask(
        shards,
        options.batch,
        options.steps,
        configuration=configuration,
        perceptual=features,
        readers=readers,
        labels=shards.slots,
        landmarks=shards.landmarks,
        decoder_of=old,
        held_out=min(256, len(shards) // 5) if held_out is None else held_out,
        seed=options.seed,
    )
    if start_from is not None and latest_checkpoint(options.out) is None:
        first = load_tokenizer(start_from)
        if first.configuration != task.tokenizer.configuration:
            raise InputError(f"{start_from}: a tokenizer of another configuration cannot be trained on; leave out --start-from")
        task.tokenizer.load_state_dict(first.state_dict())
    finish(task, options)
    return options.out


def finish(task: TokenizerTask, options: TrainOptions) -> Path:
    """Run the loop, then write the averaged weights with their configuration; returns that file."""
    last = train(task, options)
    tokenizer = ImageTokenizer(task.tokenizer.configuration)
    load_weights(last, tokenizer)
    file = options.out / "tokenizer.safetensors"
    save_weights(file, tokenizer, {"configuration": json.dumps(asdict(tokenizer.configuration))})
    return file
