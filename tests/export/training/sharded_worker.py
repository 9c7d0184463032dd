"""One process of a training of the unified model: ``python -m tests.export.training.sharded_worker JSON``; torchrun's variables as always.

Writes into the run's folder what tests read: ``bytes-RANK.json`` with the state's bytes in this process, and, of a run that saves nothing,
``step.json``: the bytes that its last step took beside those that stay.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.data.text.dialogues import TextMaker
from export.data.text.tokenizer import read_text_tokenizer, train_text_tokenizer
from export.data.tokens import TokenCache, cache_tokens
from export.training import loop
from export.training.compute import Compute
from export.training.loop import TrainOptions
from export.training.unified import Mixture, UnifiedTask
from f2edge.spec.configuration import PAPER, FeatureShape, ModelConfiguration
from tests.export.training.test_unified_training import TINY, Cells, Faces, Pool

#: Two layers of "1.8b" at full width, with few words; and the same with pictures of 16 tokens, whose steps are short.
FULL = replace(PAPER, name="1.8b, 2 layers", layers=2, text_vocabulary=4096)
WIDE = replace(FULL, tokenizer=replace(PAPER.tokenizer, image_size=64), semantic=FeatureShape(16, 1024))
CONFIGURATIONS = {"tiny": TINY, "wide": WIDE, "full": FULL}
MIXTURE = Mixture(text_columns=48, faces_share=0.34)


class WideFaces(Faces):
    """Faces whose regions lie on a finer grid."""

    def __init__(self, count: int, times: int) -> None:
        super().__init__(count)
        self.times = times

    def regions(self, rows: Any) -> NDArray[np.uint8]:
        return np.kron(super().regions(rows), np.ones((1, 1, self.times, self.times), np.uint8))


class Noise(nn.Module):
    """Values that depend on the picture alone, of any shape."""

    def __init__(self, *shape: int, codes: int = 0) -> None:
        super().__init__()
        self.shape, self.codes = shape, codes

    def forward(self, pixels: Tensor) -> Tensor:
        rows = [torch.Generator().manual_seed(int(p.double().sum().abs() * 1000)) for p in pixels]
        return torch.stack([torch.randn(*self.shape, generator=g) for g in rows])

    def encode(self, pixels: Tensor) -> Tensor:
        return (self.forward(pixels).abs() * 1e4).long() % self.codes


def prepare(folder: Path, configuration: ModelConfiguration) -> None:
    """Write a cache and a tokenizer for :func:`run`."""
    if configuration is TINY:
        cache_tokens(Faces(64), Cells(), Pool(4, 8), Pool(1, 5), folder / "tokens")
    else:
        semantic, identity = configuration.semantic, configuration.identity
        assert semantic is not None
        assert identity is not None
        parts = (Noise(semantic.vectors, semantic.width), Noise(identity.vectors, identity.width))
        faces = WideFaces(24, configuration.tokenizer.grid // 4)
        cache_tokens(faces, Noise(configuration.image_tokens, codes=configuration.codes), *parts, folder / "tokens", bf16=False)
    train_text_tokenizer(folder / "tokenizer.json")


def task(folder: Path, name: str, batch: int, compute: Compute) -> UnifiedTask:
    configuration = CONFIGURATIONS[name]
    texts = TextMaker(read_text_tokenizer(folder / "tokenizer.json"), configuration)
    cache = TokenCache(folder / "tokens")
    return UnifiedTask(cache, texts, batch, configuration=configuration, mixture=MIXTURE, validation_rows=8, compute=compute)


def run(folder: Path, name: str, options: TrainOptions, compute: Compute) -> None:
    made = task(folder, name, options.batch, compute)
    if not options.validate_every:
        made.validate = lambda *_: {}  # type: ignore[method-assign]
    held: list[loop._Run] = []
    original, update = loop._Run.go, loop._Run._update

    def go(self: loop._Run) -> Path:
        held.append(self)
        return original(self)

    def measured(self: loop._Run, micro_batches: list[loop.Batch]) -> loop.StepMetrics:
        """Note what a step needs; the first one also touches code, moments and gradients that stay."""
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
        before = _memory("VmRSS")
        metrics = update(self, micro_batches)
        _note(options.out / "step.json", _memory("VmHWM") - before)
        return metrics

    def save(self: loop._Run) -> None:
        """Write nothing."""
        self.last = options.out

    loop._Run.go = go  # type: ignore[method-assign]
    if not options.save_every:
        loop._Run._save, loop._Run._update = save, measured  # type: ignore[method-assign]
    options.out.mkdir(parents=True, exist_ok=True)
    loop.train(made, options)
    _note(options.out / f"bytes-{held[0].processes.rank}.json", {"state": state_bytes(held[0])})


def _note(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _memory(kind: str) -> int:
    """Return bytes of this process: VmRSS, those now in memory, or VmHWM, the most so far."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return int(rows[kind].split()[0]) * 1024


def state_bytes(held: loop._Run) -> int:
    """The bytes of all tensors of a checkpoint that this process holds."""
    total = 0
    for tensors in held._tensors().values():
        for tensor in tensors.values():
            own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            total += own.numel() * own.element_size()
    return total


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    own = {**given["options"], "out": Path(given["options"]["out"])}
    run(Path(given["folder"]), given["name"], TrainOptions(**own), Compute(**given.get("compute", {})))
