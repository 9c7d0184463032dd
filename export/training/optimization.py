"""Updates of one module: flat gradients, AdamW, clipping, the learning-rate law, and the exponential average of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


def rate_factor(step: int, steps: int, warmup: int, schedule: str, decay_fraction: float = 0.25) -> float:
    """Share of the peak learning rate at update ``step`` of ``steps`` (from 0), in (0, 1].

    Linear warm-up over ``warmup`` updates, then "constant", "cosine" to 0, or "wsd": stable, then ``1 - sqrt`` decay over the last
    ``decay_fraction`` of all updates (arXiv 2405.18392, section 4).
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
    if schedule == "wsd":
        decay = max(decay_fraction * steps, 1.0)
        return 1 - math.sqrt(min(max(step - (steps - decay), 0.0) / decay, 1.0))
    return 1.0


class Optimization:
    """AdamW for one module whose gradients are views into one flat buffer, ready to be averaged, measured and scaled in one go."""

    def __init__(self, module: nn.Module, rate: float, betas: tuple[float, float], weight_decay: float, clip: float) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.rate, self.clip = rate, clip
        first = self.parameters[0]
        self.gradients = torch.zeros(sum(p.numel() for p in self.parameters), device=first.device, dtype=torch.float32)
        offset = 0
        for p in self.parameters:  # a view with the parameter's own strides: channels-last weights need equal layouts in the fused kernel
            p.grad = self.gradients.as_strided(p.size(), p.stride(), offset)
            offset += p.numel()
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=betas, fused=True)
        self._moments = self._allocate()

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss' gradients, for this module's parameters only."""
        loss.backward(inputs=self.parameters)  # type: ignore[no-untyped-call]

    def apply(self, factor: float) -> float:
        """Clip, update at ``factor`` times the peak rate, clear; returns the norm before clipping. A non-finite norm updates nothing."""
        norm = float(self.gradients.norm())
        if math.isfinite(norm):
            if self.clip and norm > self.clip:
                self.gradients *= self.clip / norm
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * factor
            self.optimizer.step()
        self.gradients.zero_()
        return norm

    def state(self) -> dict[str, torch.Tensor]:
        """The live tensors of AdamW (first and second moments, update counts), to be written or filled in place."""
        return self._moments

    def _allocate(self) -> dict[str, torch.Tensor]:
        """AdamW makes its state lazily at the first step; made here so that a fresh and a resumed run are alike."""
        tensors: dict[str, torch.Tensor] = {}
        for index, p in enumerate(self.parameters):
            state = self.optimizer.state[p]
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            tensors |= {f"{index:04d}.{key}": state[key] for key in ("step", "exp_avg", "exp_avg_sq")}
        return tensors


class Averages:
    """Exponential moving average of a module's weights, in fp32, ramped up at the start; buffers are taken as they are."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {name: t for name, t in module.state_dict().items() if t.is_floating_point()}
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        self.shadow = {name: t.detach().clone() for name, t in self.live.items() if name in trained}
        self._module = module

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after update ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.values()), [self.live[name] for name in self.shadow], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averaged and live weights; call it again to undo."""
        for name, shadow in self.shadow.items():
            live = self.live[name]
            kept = live.clone()
            live.copy_(shadow)
            shadow.copy_(kept)

    def state(self) -> dict[str, torch.Tensor]:
        """A full state dict: averaged parameters, and the module's own buffers and frozen parameters."""
        return {name: self.shadow.get(name, tensor) for name, tensor in self._module.state_dict().items()}
