"""What a training needs, before it starts: memory, cache, steps, tokens/s and hours on named GPUs.

    python -m export train unified --configuration 1.8b --plan --shard --recompute --tokens tokens --text t.json --out runs/x

Memory is traced, not guessed: forward and backward pass of one micro batch run on tensors without storage (PyTorch's fake tensors), and
every allocation is counted until it is freed.  Two short models give the cost of a block.  Times come from the operation counts of
:mod:`f2edge.spec.flops`, which the roofline of the bench uses too; a backward pass costs twice the forward pass, recomputation once more.
``REACHED`` is the share of a GPU's dense bf16 rate that is assumed, not measured here.

Axes: B faces, G draws, N image tokens, P prompt columns, S text columns.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from export.data.tokens import META, TokenCache
from export.model.experts import TokenExpertLayer
from export.model.transformer import UnifiedTransformer
from export.training.compute import Compute
from export.training.losses import generation_loss, text_loss
from export.training.optimization import hidden_matrices
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.flops import attention_flops, token_flops

if TYPE_CHECKING:
    from export.training.loop import TrainOptions
    from export.training.unified import Mixture

#: Name → memory in GB and dense bf16 rate in TFLOP/s, from the vendor's data sheets.
GPUS: Mapping[str, tuple[float, float]] = {
    "rtx-4090": (24, 165),
    "l40s": (48, 362),
    "a100-40": (40, 312),
    "a100-80": (80, 312),
    "h100": (80, 989),
    "h200": (141, 989),
    "b200": (180, 2250),
}
#: Share of the dense rate that training of dense transformers commonly reaches; an assumption.
REACHED = 0.35
#: Typical prompt with its specials, in columns, and the share of masked tokens under MaskGIT's law.
_PROMPT, _MASKED = 40, 2 / np.pi
_GB = 1e9


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that exist, and their largest number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        weakref.finalize(storage, self._free, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class StateBytes:
    """Bytes of a model's training state, over all processes.

    Attributes:
        weights, moments, average: of the optimizer's and the exponential average's tensors too; gradients are as large as weights.
        gathered: largest parts that are whole in every process at one time, with their gradients, when the state is sharded.
    """

    weights: int
    moments: int
    average: int
    gathered: int

    def each(self, processes: int) -> float:
        """Return the bytes that one of ``processes`` holds between two steps, gradients included."""
        return (2 * self.weights + self.moments + self.average) / processes


def state_bytes(configuration: ModelConfiguration, *, optimizer: str = "muon", ema: bool = True) -> StateBytes:
    """Return the sizes of the state that :mod:`export.training.loop` keeps in fp32."""
    with torch.device("meta"):
        model = UnifiedTransformer(configuration)
    count = sum(p.numel() for p in model.parameters())
    hidden = sum(p.numel() for p in hidden_matrices(model)) if optimizer == "muon" else 0
    units = [sum(p.numel() for p in unit.parameters()) for unit in model.shard_units()]
    gathered = 2 * (count - sum(units)) + 2 * 2 * max(units)  # the rest of the model, and two units: one runs, one is on its way
    return StateBytes(4 * count, 4 * (2 * count - hidden), 4 * count if ema else 0, 4 * gathered)


def activation_bytes(
    configuration: ModelConfiguration, rows: tuple[int, int], mixture: Mixture, compute: Compute, *, device: str, bf16: bool
) -> int:
    """Return the most bytes that exist at one time beside the state, in a step of one micro batch.

    Args:
        configuration: of the model.
        rows: pictures and faces, as :meth:`Mixture.split` gives.
        mixture: of the batches.
        compute: kernels.
        device: type of device, for the choice of kernels.
        bf16: autocast.
    """
    traced = {layers: _traced(replace(configuration, layers=layers), rows, mixture, compute, device, bf16=bf16) for layers in (2, 3)}
    return traced[2] + (configuration.layers - 2) * (traced[3] - traced[2])


def _traced(
    configuration: ModelConfiguration, rows: tuple[int, int], mixture: Mixture, compute: Compute, device: str, *, bf16: bool
) -> int:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = UnifiedTransformer(configuration)
        compute.apply(model, device)
        _assume_even_routing(model)
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        with _Live() as live:
            for tensor in (*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)):
                live.add(tensor.untyped_storage())
            before = live.now
            live.peak = before
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = _drawn(model, rows[0], mixture) + _answered(model, rows[1], mixture)
            loss.backward()  # type: ignore[no-untyped-call]
            return int(live.peak - before)


def _assume_even_routing(model: nn.Module) -> None:
    """Replace the choice of tokens, which depends on their values, by equal shares."""
    for layer in model.modules():
        if isinstance(layer, TokenExpertLayer):
            share = layer.shape.active / layer.shape.routed
            layer.rows_of = lambda chosen, _expert, share=share: torch.arange(round(len(chosen) * share))  # type: ignore[method-assign,misc]


def _drawn(model: UnifiedTransformer, pictures: int, mixture: Mixture) -> Tensor:
    B, G, N = pictures, mixture.draws, model.configuration.image_tokens
    ids, lengths = torch.zeros(B, _PROMPT, dtype=torch.int64), torch.full((B,), _PROMPT)
    hidden, routing = model.generation_states(ids, lengths, torch.zeros(B, G, N, dtype=torch.int64), torch.rand(B, G))
    K = round(B * G * N * _MASKED)
    chosen = hidden.flatten(0, 2)[torch.arange(K)]
    target = torch.zeros(K, dtype=torch.int64)
    loss = generation_loss(model.image_scores(chosen), target, torch.rand(K), rows=B * G, image_tokens=N, weight=torch.rand(K))
    return loss.total + _balance(routing.token_probability) + _balance(routing.sequence_probability)


def _answered(model: UnifiedTransformer, faces: int, mixture: Mixture) -> Tensor:
    configuration, B, S = model.configuration, faces, mixture.text_columns
    features = [
        torch.rand(B, f.vectors, f.width) if f is not None else torch.zeros(B, 0, 0)
        for f in (configuration.semantic, configuration.identity)
    ]
    text = (torch.zeros(B, S, dtype=torch.int64) for _ in range(3))
    hidden, routing = model.understanding_states(torch.zeros(B, configuration.image_tokens, dtype=torch.int64), *features, *text)
    K = B * S // 3  # answers
    chosen = hidden.flatten(0, 1)[torch.arange(K)]
    loss = text_loss(model.text_scores(chosen), torch.zeros(K, dtype=torch.int64), torch.rand(K))
    return loss + _balance(routing.token_probability) + _balance(routing.sequence_probability)


def _balance(probability: Tensor) -> Tensor:
    return probability.square().mean() if probability.numel() else probability.sum()


# Times and texts ---------------------------------------------------------------------------------------------------------


def step_columns(configuration: ModelConfiguration, rows: tuple[int, int], mixture: Mixture) -> tuple[int, int]:
    """Return the columns of one micro batch: of one picture with its draws, and of one face with its questions, times their numbers."""
    picture = _PROMPT + mixture.draws * (configuration.image_columns + 2)
    return rows[0] * picture, rows[1] * (configuration.understanding_columns + mixture.text_columns)


def step_flops(configuration: ModelConfiguration, rows: tuple[int, int], mixture: Mixture, *, recompute: bool) -> float:
    """Return the operations of forward and backward pass of one micro batch."""
    drawn, read = step_columns(configuration, rows, mixture)
    picture, face = drawn // rows[0], read // rows[1]
    blocks = (drawn + read) * token_flops(configuration)
    blocks += rows[0] * attention_flops(configuration, picture, picture) + rows[1] * attention_flops(configuration, face, face)
    masked = rows[0] * mixture.draws * configuration.image_tokens * _MASKED
    heads = 2 * configuration.width * (masked * configuration.codes + rows[1] * mixture.text_columns / 3 * configuration.text_vocabulary)
    return (4 if recompute else 3) * blocks + 3 * heads


def cache_bytes(configuration: ModelConfiguration, faces: int) -> int:
    """Return the size of a token cache: codes as int16 and features as fp16, clean and as seen under real conditions."""
    values = configuration.image_tokens + sum(
        shape.vectors * shape.width for shape in (configuration.semantic, configuration.identity) if shape is not None
    )
    return faces * 2 * 2 * values


def planned(
    configuration: ModelConfiguration,
    options: TrainOptions,
    mixture: Mixture,
    compute: Compute,
    *,
    processes: int,
    tokens: Path,
    faces: int,
) -> str:
    """Return the plan as text; ``tokens`` is the cache, or where it will be with ``faces`` faces."""
    if (tokens / META).is_file():
        faces = len(TokenCache(tokens))
    rows = mixture.split(options.batch)
    state = state_bytes(configuration, optimizer=options.optimizer, ema=options.ema > 0)
    activations = activation_bytes(configuration, rows, mixture, compute, device="cuda", bf16=options.bf16)
    own = state.each(processes) + state.gathered if options.shard and processes > 1 else state.each(1)
    micros = options.accumulate * processes
    flops = options.accumulate * step_flops(configuration, rows, mixture, recompute=compute.recompute)
    columns = micros * sum(step_columns(configuration, rows, mixture))
    sharded = " (sharded)" if options.shard and processes > 1 else ""
    cached, often = cache_bytes(configuration, faces) / _GB, options.steps * micros * rows[0] / faces
    lines = [
        f"configuration {configuration.name}: {state.weights / 4e6:,.1f} M parameters; cache of {faces:,} faces: {cached:.1f} GB",
        mixture.described(options.batch, micros),
        f"{options.steps:,} steps of {columns:,} columns and {micros * options.batch:,} rows: {often:.1f} x all faces",
        f"memory of each of {processes} GPUs: {_gb(own + activations)} = {_gb(own)} state{sharded} + {_gb(activations)} activations",
        "",
        f"{'GPU':<10}{'fits':<7}{'tokens/s':>12}{'hours':>9}    at {100 * REACHED:g} % of the bf16 rate (assumed), without communication",
    ]
    for name, (memory, rate) in GPUS.items():
        seconds = flops / (rate * 1e12 * REACHED)
        fits = "yes" if (own + activations) / _GB < 0.92 * memory else "no"
        lines.append(f"{name:<10}{fits:<7}{columns / seconds:>12,.0f}{options.steps * seconds / 3600:>9.1f}")
    return "\n".join(lines)


def _gb(size: float) -> str:
    return f"{size / _GB:.1f} GB"
