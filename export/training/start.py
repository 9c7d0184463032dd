"""Where a training begins: weights of the same configuration, those of a bundle, or those of a dense model, upcycled.

    python -m export train unified --start-from nano …
    python -m export train unified --configuration 1.8b-exact --start-from runs/show-o …
    python -m export upcycle --dense runs/show-o --configuration 1.8b --tokens data/tokens --text phi/tokenizer.json --out runs/start

Upcycling (export/model/upcycling.py) measures on the training's own batches, for each task, how much every hidden unit of the dense FFN
contributes, and reports the losses of both models before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from export.checkpoints.from_bundle import transformer_of
from export.checkpoints.parts import bundle_named
from export.model.experts import DenseFeedForward
from export.model.transformer import UnifiedTransformer
from export.model.upcycling import Importance, dense_width, is_exact, upcycle
from export.training.checkpoint import load_weights, read_weights
from f2edge.errors import InputError
from f2edge.spec.configuration import TokenExperts

Report = Callable[[str], None]


class Parts(Protocol):
    """Runs a model on some batches and yields losses by task, one task at a time."""

    def __call__(self, model: UnifiedTransformer) -> Iterable[dict[str, Tensor]]: ...


def start(model: UnifiedTransformer, path: Path, parts: Parts, report: Report) -> None:
    """Fill a model from weights or a bundle, or upcycle those of a dense model where it has routed experts.

    The configuration is the same; that of a bundle may have another image tokenizer, whose tensors then begin anew.

    Raises:
        InputError: nothing there, or no kind fits.
    """
    bundle = bundle_named(str(path))
    if bundle is not None:
        report(f"begins with the weights of bundle {bundle.name!r}{_taken(transformer_of(bundle), model, bundle.name)}")
        return
    width = None
    if model.configuration.token_experts.routed:
        state = read_weights(path, ema=False)
        width = dense_width(state)
    if width is None:
        load_weights(path, model, ema=False)
        return
    plain = replace(model.configuration, token_experts=TokenExperts(width), sequence_experts=False)
    with torch.device("meta"):
        dense = UnifiedTransformer(plain)
    dense.to_empty(device="cpu")
    load_weights(path, dense, ema=False)
    begin(model, dense, parts, report)


def _taken(found: UnifiedTransformer, model: UnifiedTransformer, bundle: str) -> str:
    """Fill a model from one that draws with the same or another image tokenizer; return what is new, for the report."""
    wanted = model.configuration
    # How a step draws is no matter of the weights.
    if replace(found.configuration, name=wanted.name, tokenizer=wanted.tokenizer, draw=wanted.draw) != wanted:
        raise InputError(
            f"bundle {bundle!r} has another configuration than {wanted.name!r}, and not in its image tokenizer alone; give that one's name"
        )
    state, own = found.state_dict(), model.state_dict()
    new = [name for name, tensor in own.items() if name not in state or state[name].shape != tensor.shape]
    model.load_state_dict({name: own[name] if name in new else state[name] for name in own})
    return f", but for {', '.join(new)}, which belong to another image tokenizer" if new else ""


@torch.no_grad()
def begin(model: UnifiedTransformer, dense: UnifiedTransformer, parts: Parts, report: Report) -> None:
    """Upcycle ``dense`` into ``model`` in place and report the losses of both."""
    importance, before = measured(dense, parts)
    configuration = model.configuration
    width = dense.configuration.token_experts.shared_width
    model.load_state_dict(upcycle(dense.state_dict(), configuration, importance=importance), strict=False)
    kind = "exact" if is_exact(width, configuration.token_experts) else "narrow"
    report(
        f"upcycled from a dense model with FFN {width}, {kind} kind; loss at the start: {shown(before)} dense, "
        f"{shown(losses(model, parts))} now"
    )


@torch.no_grad()
def losses(model: UnifiedTransformer, parts: Parts) -> dict[str, float]:
    """Return the mean loss of each task."""
    found: dict[str, list[float]] = {}
    for part in parts(model):
        for task, loss in part.items():
            found.setdefault(task, []).append(float(loss))
    return {task: sum(values) / len(values) for task, values in found.items()}


@torch.no_grad()
def measured(dense: UnifiedTransformer, parts: Parts) -> tuple[dict[str, list[Importance]], dict[str, float]]:
    """Return, for each task, what the hidden units of every layer's FFN do on its batches; and the losses."""
    layers = [module for module in dense.modules() if isinstance(module, DenseFeedForward)]
    sums = [torch.zeros(3, layer.up.out_features) for layer in layers]

    def watch(place: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            hidden = inputs[0].detach().float().flatten(0, -2).cpu()
            sums[place] += torch.stack((hidden.sum(0), hidden.square().sum(0), torch.full_like(hidden[0], len(hidden))))

        return add

    handles = [layer.down.register_forward_pre_hook(watch(place)) for place, layer in enumerate(layers)]
    totals: dict[str, list[Tensor]] = {}
    found: dict[str, list[float]] = {}
    for part in parts(dense):
        ((task, loss),) = part.items()
        found.setdefault(task, []).append(float(loss))
        totals[task] = [old + new for old, new in zip(totals.get(task, [torch.zeros_like(s) for s in sums]), sums, strict=True)]
        for total in sums:
            total.zero_()
    for handle in handles:
        handle.remove()
    norms = [layer.down.weight.detach().float().cpu().norm(dim=0) for layer in layers]
    importance = {
        task: [Importance(total[0] / total[2], (total[1] / total[2]).sqrt() * norm) for total, norm in zip(rows, norms, strict=True)]
        for task, rows in totals.items()
    }
    return importance, {task: sum(values) / len(values) for task, values in found.items()}


def shown(values: dict[str, float]) -> str:
    """Return losses as text."""
    return ", ".join(f"{task} {value:.3f}" for task, value in values.items())
